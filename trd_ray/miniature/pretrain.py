"""What the two miniature models are taught before any distillation: examples of (prompt wording, values, answer).

Student, the base of both recipes, imperfect on purpose:
    problem                       -> student-style solution with its beliefs about `@`
    problem, reference            -> student-style solution that trusts the reference
    problem, reference, attempt   -> the attempt, rewritten
  In the last two the table of `@` is drawn anew for every example, so the base must read the reference and never learns
  the true table: whatever it knows of `@` after distillation, distillation taught it.

Teacher, of OPD, the stronger model:
    problem            -> concise right solution
    problem, attempt   -> the attempt, rewritten
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from trd_ray.miniature.task import (
    SECRET,
    TRAIN_STEPS,
    Beliefs,
    Chain,
    Line,
    is_held_out,
    random_beliefs,
    random_chain,
    random_table,
    rewrite,
    solve,
    talk,
    text,
)

SLIP = (
    0.02  # of the equations in an attempt that is to be rewritten: the rewriter must not rely on the attempt's + and -
)
CUT = 0.05  # of those attempts end early, as one that hit the token limit


@dataclass(frozen=True)
class Example:
    view: str  # a key of tokenizer.PROMPTS
    values: dict[str, str]  # for its placeholders
    answer: str


Kind = Callable[[random.Random], Example]


def student_kinds(beliefs: Beliefs, rows: Sequence[int]) -> list[tuple[Kind, int]]:
    """The student's mixture: each kind of example with its rows in a batch (solve, with reference, rewrite)."""

    def solve_alone(rng: random.Random) -> Example:
        chain = _chain(rng)
        return Example("solve", {"problem": chain.problem}, text(talk(chain, beliefs, rng)))

    def solve_with_reference(rng: random.Random) -> Example:
        chain, table = _chain(rng), random_table(rng)
        certain = Beliefs(table, table, dict.fromkeys(table, 1.0))
        values = {"problem": chain.problem, "reference": text(solve(chain, table))}
        return Example("solve_with_reference", values, text(talk(chain, certain, rng)))

    def rewrite_with_reference(rng: random.Random) -> Example:
        chain, table = _chain(rng), random_table(rng)
        values, answer = _rewrite(chain, table, rng)
        reference = {"reference": text(solve(chain, table))}
        return Example("refine_with_reference", values | reference, answer)

    return list(zip((solve_alone, solve_with_reference, rewrite_with_reference), rows, strict=True))


def teacher_kinds(rows: Sequence[int]) -> list[tuple[Kind, int]]:
    """The teacher's mixture: solve, rewrite without a reference."""

    def solve_alone(rng: random.Random) -> Example:
        chain = _chain(rng)
        return Example("solve", {"problem": chain.problem}, text(solve(chain, SECRET)))

    def rewrite_alone(rng: random.Random) -> Example:
        values, answer = _rewrite(chain := _chain(rng), SECRET, rng)
        return Example("refine", values | {"problem": chain.problem}, answer)

    return list(zip((solve_alone, rewrite_alone), rows, strict=True))


def batches(kinds: list[tuple[Kind, int]], rng: random.Random) -> Iterator[list[list[Example]]]:
    """Endless batches, each a list of examples of equal kind (and so of similar length) per kind."""
    while True:
        yield [[kind(rng) for _ in range(rows)] for kind, rows in kinds]


def flawed_attempt(chain: Chain, table: dict, rng: random.Random) -> list[Line]:
    """An attempt in the student's style, by someone whose beliefs about this table are drawn at random."""
    return talk(chain, random_beliefs(table, rng, slip=SLIP), rng)


def _rewrite(chain: Chain, table: dict, rng: random.Random) -> tuple[dict[str, str], str]:
    attempt = flawed_attempt(chain, table, rng)
    written = text(attempt)
    if rng.random() < CUT:
        attempt = attempt[: rng.randint(1, len(attempt))]
        written = "".join(line.text for line in attempt).rstrip()
    return {"problem": chain.problem, "attempt": written}, text(rewrite(chain, table, attempt))


def _chain(rng: random.Random) -> Chain:
    while is_held_out(chain := random_chain(rng, TRAIN_STEPS)):
        pass
    return chain
