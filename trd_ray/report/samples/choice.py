"""Which rows a page shows when it cannot hold all: an order, whose first rows are taken until the page is full.

    facts of every row  ->  in_order()  ->  rows, each with the reason why it is there  ->  said() of those that fit

Four queues take turns, so that wherever the order is cut each has had its share:

    cell     for steps spread evenly, a row of each ledger cell of the step (twice in a turn)
    dense    the first, the middle and the last step, row by row
    highest  the rows whose tokens have the highest mean KL
    even     all rows, spread evenly
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

CELLS = ("fail_pass", "pass_fail", "fail_fail", "pass_pass", "fail", "pass", "open", "fault")
_TURN = ("cell", "cell", "dense", "highest", "even")


@dataclass(frozen=True)
class Light:
    """What the choice needs to know of a row."""

    row: int
    step: int
    cell: str  # one of CELLS
    tokens: int  # of all its texts
    kl: float | None  # mean over the tokens of its trained trajectory


def cell_of(passed: bool | None, refined: bool | None, fault: str | None) -> str:
    """The ledger's cell of a row: of both verdicts, or of y_o's alone; "open" where a verdict is missing."""
    if fault:
        return "fault"
    words = [{True: "pass", False: "fail"}[one] for one in (passed, refined) if one is not None]
    return "_".join(words) if passed is not None else "open"


def in_order(rows: Sequence[Light]) -> list[tuple[Light, str]]:
    """All rows, the ones to show first, each with the queue that brought it."""
    steps: dict[int, list[Light]] = {}
    for row in rows:
        steps.setdefault(row.step, []).append(row)
    queues: dict[str, Iterator[Light]] = {
        "cell": (row for step in spread(sorted(steps)) for row in _of_cells(steps[step])),
        "dense": _dense(steps),
        "highest": iter(sorted((r for r in rows if r.kl is not None), key=lambda r: (-(r.kl or 0.0), r.row))),
        "even": iter(spread(rows)),
    }
    taken: dict[int, tuple[Light, str]] = {}
    while queues:
        for name in _TURN:
            fresh = next((row for row in queues.get(name, ()) if row.row not in taken), None)
            if fresh is None:
                queues.pop(name, None)
            else:
                taken[fresh.row] = fresh, name
    return list(taken.values())


def spread(things: Sequence[T]) -> list[T]:
    """The same things in an order whose every beginning is spread evenly over them: ends, middle, quarters, ..."""
    n = len(things)
    places = dict.fromkeys([0, n - 1] if n > 1 else range(n))
    parts = 2
    while len(places) < n:
        places |= dict.fromkeys((n - 1) * k // parts for k in range(1, parts, 2))
        parts *= 2
        if parts > 2 * n:
            places |= dict.fromkeys(range(n))
    return [things[at] for at in places]


def said(taken: Sequence[tuple[Light, str]], rows: Sequence[Light]) -> str:
    """The sentence that says which rows are shown."""
    if len(taken) == len(rows):
        return f"All {len(rows):,} rows are shown."
    cells = {(row.step, row.cell) for row, _ in taken}
    steps = {row.step for row in rows}
    lacking = {row.step for row in rows if (row.step, row.cell) not in cells}
    whole = len(steps) - len(lacking)
    why = Counter(name for _, name in taken)
    parts = [f"{why['cell']:,} that stand for the ledger cells of their step"] if why["cell"] else []
    if why["dense"]:
        some = sorted(dict.fromkeys(_three(sorted(steps))))
        parts.append(f"{why['dense']:,} of step{'s' if len(some) > 1 else ''} {_listed(list(map(str, some)))}")
    parts += [f"{why['highest']:,} with the highest mean KL"] if why["highest"] else []
    parts += [f"{why['even']:,} spread evenly over the run"] if why["even"] else []
    return (
        f"{len(taken):,} of {len(rows):,} rows are shown, as many as this page has room for: {_listed(parts)}. Of "
        f"{whole:,} of {len(steps):,} steps every ledger cell is here. rows/ holds all rows, and trd show RUN --row N "
        "prints one."
    )


def _of_cells(rows: list[Light]) -> Iterator[Light]:
    for cell in CELLS:
        if found := next((row for row in rows if row.cell == cell), None):
            yield found


def _dense(steps: dict[int, list[Light]]) -> Iterator[Light]:
    some = [steps[step] for step in dict.fromkeys(_three(sorted(steps)))]
    for at in range(max(map(len, some), default=0)):
        yield from (rows[at] for rows in some if at < len(rows))


def _three(steps: list[int]) -> list[int]:
    return [steps[0], steps[len(steps) // 2], steps[-1]] if steps else []


def _listed(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
