"""The statements that the programs of this world are made of: their Python text, and what each does to a list.

    "xs = [x + 3 for x in xs]"   [5, 1] -> [8, 4]

The effects are this world's own reading of the texts. They choose test cases and score models quickly. Any other text
has no effect, so nothing that a model wrote is ever executed here.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Numbers = list[int]
Effect = Callable[[Numbers], Numbers]


@dataclass(frozen=True)
class Form:
    """A statement for each constant c, and the plain instruction that asks for it, or "" where a made-up word does."""

    instruction: str
    statement: str
    constants: Sequence[int]
    effect: Callable[[Numbers, int], Numbers]


_NONE = (0,)  # forms without a constant

PLAIN = [
    Form("add {c}", "xs = [x + {c} for x in xs]", range(1, 10), lambda xs, c: [x + c for x in xs]),
    Form("subtract {c}", "xs = [x - {c} for x in xs]", range(1, 10), lambda xs, c: [x - c for x in xs]),
    Form("multiply {c}", "xs = [x * {c} for x in xs]", range(2, 5), lambda xs, c: [x * c for x in xs]),
    Form("keep above {c}", "xs = [x for x in xs if x > {c}]", range(1, 7), lambda xs, c: [x for x in xs if x > c]),
    Form("drop first {c}", "del xs[:{c}]", range(1, 3), lambda xs, c: xs[c:]),
    Form("drop last {c}", "del xs[-{c}:]", range(1, 3), lambda xs, c: xs[:-c]),
    Form("negate", "xs = [-x for x in xs]", _NONE, lambda xs, _: [-x for x in xs]),
    Form("reverse", "xs.reverse()", _NONE, lambda xs, _: xs[::-1]),
    Form("sort", "xs.sort()", _NONE, lambda xs, _: sorted(xs)),
]
# No plain instruction asks for any of these, so that a statement tells which instruction it stands for.
MADE_UP = [
    Form("", "xs = [{c} - x for x in xs]", range(1, 10), lambda xs, c: [c - x for x in xs]),
    Form("", "xs = [x ^ {c} for x in xs]", range(1, 10), lambda xs, c: [x ^ c for x in xs]),
    Form("", "xs = [x % {c} for x in xs]", range(5, 10), lambda xs, c: [x % c for x in xs]),
    Form("", "xs = [x // {c} for x in xs]", range(2, 6), lambda xs, c: [x // c for x in xs]),
    Form("", "xs = [max(x, {c}) for x in xs]", range(1, 10), lambda xs, c: [max(x, c) for x in xs]),
    Form("", "xs = xs[{c}:] + xs[:{c}]", range(1, 4), lambda xs, c: xs[c:] + xs[:c]),
    Form("", "xs = xs + [{c}]", range(1, 10), lambda xs, c: [*xs, c]),
]

STATEMENTS = {f.instruction.format(c=c): f.statement.format(c=c) for f in PLAIN for c in f.constants}
MEANINGS = [f.statement.format(c=c) for f in MADE_UP for c in f.constants]
EFFECTS: dict[str, Effect] = {
    f.statement.format(c=c): lambda xs, f=f, c=c: f.effect(xs, c) for f in (*PLAIN, *MADE_UP) for c in f.constants
}

READ = "xs = list(map(int, input().split()))"
OUTPUTS = {"print all": "print(*xs)", "print sum": "print(sum(xs))"}
PRINTED: dict[str, Callable[[Numbers], str]] = {
    "print(*xs)": lambda xs: " ".join(map(str, xs)),
    "print(sum(xs))": lambda xs: str(sum(xs)),
}

_LOOP = re.compile(r"for _ in range\(([1-9])\):")
_INDENT = "    "


def run(program: str, stdin: str) -> str | None:
    """What a program of these statements prints. None for any other program."""
    lines = [line for line in program.split("\n") if not line.startswith("# ")]
    if lines[:1] != [READ] or lines[-1] not in PRINTED:
        return None
    xs = [int(word) for word in stdin.split()]
    body = iter(lines[1:-1])
    for line in body:
        loop = _LOOP.fullmatch(line)
        looped = next(body, "") if loop else ""
        effect = EFFECTS.get(looped.removeprefix(_INDENT) if looped.startswith(_INDENT) else line)
        if effect is None:
            return None
        for _ in range(int(loop[1]) if loop else 1):
            xs = effect(xs)
    return PRINTED[lines[-1]](xs)
