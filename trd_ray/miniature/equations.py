"""Where the equations of a response stand among its tokens, and whether each began from the right value.

    chain, tokens of a response  ->  equations()  ->  an Equation for each step that is written down

A prefix is right where the value that an equation begins with is the one that the chain has there. On a wrong prefix
two results are to be told apart: the one that is right for what stands there (`local`), and the one of the chain itself
(`reference`). They differ, because each step permutes the digits.

Second looks (Check, Wait) are left out, and so is whatever follows a line that is no step of the chain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from trd_ray.miniature.task import SECRET, Chain, compute, solve
from trd_ray.miniature.tokenizer import WORDS

SECOND_LOOKS = ("Check", "Wait")


@dataclass(frozen=True)
class Equation:
    place: int  # of the token that is its result
    operator: str
    local: int
    reference: int

    @property
    def right_prefix(self) -> bool:
        return self.local == self.reference


def equations(chain: Chain, tokens: Sequence[str]) -> list[Equation]:
    truth = solve(chain, SECRET)
    found: list[Equation] = []
    at = 0
    while True:
        word = tokens[at] if at < len(tokens) and tokens[at] in WORDS else ""
        at += bool(word)
        line = tokens[at : at + 6]  # 7 @ 2 = 5 ;
        if len(line) < 6 or not (line[0].isdecimal() and line[2].isdecimal() and line[3] == "=" and line[5] == ";"):
            return found
        if word not in SECOND_LOOKS:
            step = (line[1], int(line[2]))
            if len(found) == len(truth) or step != chain.steps[len(found)]:
                return found
            local = compute(int(line[0]), *step, SECRET)
            found.append(Equation(at + 4, line[1], local, truth[len(found)].result))
        at += 6
