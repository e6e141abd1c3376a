"""The secret table in two halves, and a teacher for each, which knows its own half and is wrong about the other.

    low: 0@1 ... 4@3     high: 5@1 ... 9@3
    chain -> whose()            -> the half with all of its secret steps; None for a chain that needs both, or none
    half  -> world()            -> what its teacher is taught: `build.build_one` makes the model
          -> halved_problems()  -> training problems of both halves, as many of each, with a column `teacher`

Held-out chains have six steps and mostly need both halves.
"""

from dataclasses import replace

from trd_ray.miniature import TRAIN_PROBLEMS, problems
from trd_ray.miniature.pretrain import LESSONS, WORLD
from trd_ray.miniature.task import DIGITS, OPERANDS, SECRET, Chain, Table, solve
from trd_ray.miniature.world import World

HALVES = {"low": range(5), "high": range(5, 10)}  # the left operands whose results a teacher knows


def believed(half: str) -> Table:
    """The table as its teacher knows it: true in its half, wrong in every entry of the other.

    There the results are those of the next left operand, so `@` permutes the digits as the true one does.
    """
    table = dict(SECRET)
    others = [left for left in DIGITS if left not in HALVES[half]]
    for right in OPERANDS:
        for left, next_one in zip(others, others[1:] + others[:1], strict=True):
            table[left, right] = SECRET[next_one, right]
    return table


def parsed(problem: str) -> Chain:
    """The chain of a problem's text."""
    steps = zip(problem[1::2], map(int, problem[2::2]), strict=True)
    return Chain(int(problem[0]), tuple(steps))


def whose(chain: Chain) -> str | None:
    lefts = {line.left for line in solve(chain, SECRET) if line.op == "@"}
    return next((half for half, known in HALVES.items() if lefts and lefts <= set(known)), None)


def halved_problems(limit: int = TRAIN_PROBLEMS) -> list[dict]:
    """Of the first `limit` training problems those of one half, in turn, each with its `teacher`."""
    by_half: dict[str, list[dict]] = {half: [] for half in HALVES}
    for row in problems("train")[:limit]:
        if half := whose(parsed(row["problem"])):
            by_half[half].append(row | {"teacher": half})
    return [row for rows in zip(*by_half.values(), strict=False) for row in rows]


def world(half: str) -> World:
    """The world of arithmetic as the teacher of a half is taught it."""
    lessons = replace(LESSONS, secret=believed(half))
    return replace(WORLD, name=f"arithmetic-{half}", kinds=lessons.kinds)
