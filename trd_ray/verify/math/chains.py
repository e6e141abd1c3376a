r"""Chains of equalities, whose last member is the answer.

    x_1^2 + x_2^2 = (x_1+x_2)^2 - 2x_1x_2 = 14    against 14     ->  the last member is 14, the others lead to it
    S = \pi r^2 = 9\pi                            against 9\pi
    2x = 6                                        against 6      ->  no chain: an equation, which has a solution

A member leads to the answer when it has a symbol that the answer lacks, as a formula has before numbers are put in. A
member without one must have the answer's value: `2x = 6 = 3` says nothing.
"""

import re

from trd_ray.verify.math.forms import Form, Formula, Number, Relation, read
from trd_ray.verify.math.latex import tokens
from trd_ray.verify.math.named_values import names_a_value

MIN_MEMBERS = 3  # an equality of two is an equation, where neither of them is a name

_SYMBOL = re.compile(
    r"[a-zA-Z]+|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|rho|sigma|phi|varphi|omega|Delta|text\{.*\})"
)


def leads(member: str, answer: Form) -> bool:
    """Whether a member of a chain has a symbol that its last member lacks."""
    return bool(symbols(member) - (symbols(answer.latex) if isinstance(answer, Formula) else set()))


def symbols(part: str) -> set[str]:
    found: set[str] = set()
    for token in tokens(part):
        if _SYMBOL.fullmatch(token):
            found.update(token if token.isalpha() else [token])
    return found - {"e", "i"}


def result(chain: Relation) -> Form | None:
    """What an expected answer `2^3 + 1 = 8 + 1 = 9` gives as the value; None for an equation or an inequality."""
    if set(chain.signs) != {"="}:
        return None
    first, last = chain.parts[0], read(chain.parts[-1])
    if names_a_value(first):
        return last
    if not symbols(first) and not symbols(chain.parts[-1]):
        return last  # 3 + 4 = 7
    long = len(chain.parts) >= MIN_MEMBERS and isinstance(last, (Number, Formula))
    return last if long and leads(first, last) else None
