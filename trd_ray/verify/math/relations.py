r"""Equations and inequalities as answers: what they name, and which interval they bound.

-1 < x \le 1      ->  interval_of  ->  ("x", (-1, 1])
x > 3, x \le 7    ->  met          ->  (3, 7]
"""

import re

from trd_ray.verify.math.forms import Form, Formula, Group, Number, Relation, read
from trd_ray.verify.math.latex import join, tokens

_LABEL = re.compile(
    r"(?:\\(?:text|overline|angle|triangle|widehat|hat|vec|bar)\s*\{?)?\\?[a-zA-Z]+[']*\}?"
    r"(?:_(?:\{[^{}]*\}|[a-zA-Z0-9]))?[']*(?:\([^()=]*\))?|\|[^|]*\||\([a-zA-Z](?:_[0-9])?(?:,[a-zA-Z](?:_[0-9])?)*\)|\\text\{[^{}]*\}"
    r"|\[[A-Z]{3,}\]|[fghFGH]\^\{-1\}\([a-z]\)"
)
_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt|frac|pi|infty|R)(?![a-zA-Z])")

_BOUNDED = re.compile(r"[a-zA-Z](?:\([a-zA-Z]\))?|\|[a-y]\||\\(?:theta|alpha|beta|lambda|phi|omega)")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def latex_of(part: str) -> str:
    return join(tokens(part))


def is_label(part: str) -> bool:
    r"""`x`, `f(x)`, `AB`, `|z|`, `\angle ABC`, `(x,y)`: a name for the value, nothing to be solved."""
    bare = latex_of(part)
    return (
        bool(_LABEL.fullmatch(bare.replace(r"\angle ", r"\angle{"))) and not _FUNCTION.match(bare) and bare not in "ei"
    )


def member_of(form: Form) -> Form:
    if isinstance(form, Relation) and form.signs == (r"\in",) and is_label(form.parts[0]):
        return read(form.parts[1])
    return form


def sides(relation: Relation) -> list[str]:
    return [latex_of(part) for part in relation.parts]


def as_less(relation: Relation) -> tuple[str, list[str]] | None:
    """The sign and sides of `a > b` as `b < a`; None for what is no inequality."""
    sign = relation.signs[0]
    if sign in (">", r"\ge"):
        return _FLIPPED[sign], sides(relation)[::-1]
    return (sign, sides(relation)) if sign in _FLIPPED else None


def interval_of(relation: Relation) -> tuple[str, Form] | None:
    r"""`-1 < x \le 1` as its variable and (-1, 1]; None unless it bounds one letter by what holds no letters."""
    if not all(sign in _FLIPPED or sign == r"\ne" for sign in relation.signs):
        return None
    parts = [latex_of(part) for part in relation.parts]
    signs = list(relation.signs)
    letters = [bool(_BOUNDED.fullmatch(p)) for p in parts]
    if sum(letters) != 1 or len(parts) > 3:
        return None
    bounds = [read(part) for part, letter in zip(parts, letters, strict=True) if not letter]
    if signs[0] in (">", r"\ge"):
        parts, signs, letters = parts[::-1], [_FLIPPED.get(s, s) for s in signs[::-1]], letters[::-1]
        bounds = bounds[::-1]
    where = letters.index(True)
    name = parts[where]
    low, high = Formula(r"-\infty"), Formula(r"\infty")
    if name[0] == "|":
        return _around_zero(name[1:-1], signs, bounds[0], outside=where == 1)
    if signs == [r"\ne"]:
        return name, Group("union", (Group("()", (low, bounds[0])), Group("()", (bounds[0], high))))
    if len(parts) == 3:
        if where != 1 or not set(signs) <= {"<", r"\le"}:
            return None
        kind = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
        return name, Group(kind, (bounds[0], bounds[1]))
    if where == 0:
        return name, Group("()" if signs[0] == "<" else "(]", (low, bounds[0]))
    return name, Group("()" if signs[0] == "<" else "[)", (bounds[0], high))


def _around_zero(name: str, signs: list[str], bound: Form, outside: bool) -> tuple[str, Form] | None:
    r"""`|x| < 3` as -3 < x < 3, `3 < |x|` as its complement."""
    if len(signs) != 1 or signs == [r"\ne"] or not isinstance(bound, Number) or bound.value <= 0:
        return None
    strict = signs == ["<"]
    lower = Number(-bound.value, bound.places)
    if not outside:
        return name, Group("()" if strict else "[]", (lower, bound))
    below = Group("()" if strict else "(]", (Formula(r"-\infty"), lower))
    return name, Group("union", (below, Group("()" if strict else "[)", (bound, Formula(r"\infty")))))


def as_intervals(union: Group) -> tuple[Form, ...]:
    return tuple(
        interval[1] if isinstance(item, Relation) and (interval := interval_of(item)) else item for item in union.items
    )


def met(form: Form) -> Form:
    """`x > 3 and x < 7` as (3, 7). What does not overlap is a union, as in "x < 3 and x > 7 are the solutions"."""
    if not isinstance(form, Group) or form.kind != "both":
        return form
    found = [interval_of(item) if isinstance(item, Relation) else None for item in form.items]
    if len(found) == 2 and found[0] and found[1] and found[0][0] == found[1][0]:
        pair = [one[1] for one in found if one and isinstance(one[1], Group) and len(one[1].items) == 2]
        above = next((one for one in pair if isinstance(one.items[0], Number)), None)
        below = next((one for one in pair if isinstance(one.items[1], Number)), None)
        if above and below and above is not below:
            low, high = above.items[0], below.items[1]
            assert isinstance(low, Number) and isinstance(high, Number)
            if low.value < high.value:
                return Group(above.kind[0] + below.kind[1], (low, high))
    return Group("union", form.items)
