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
from collections.abc import Sequence

from trd_ray.miniature import tokenizer
from trd_ray.miniature.beliefs import certain, random_beliefs
from trd_ray.miniature.splits import of_split
from trd_ray.miniature.task import (
    DIGITS,
    SECRET,
    TEST_STEPS,
    TRAIN_STEPS,
    Chain,
    Line,
    boxed,
    random_chain,
    random_table,
    rewrite,
    solve,
    talk,
    text,
)
from trd_ray.miniature.world import Example, Kind, Name, Plan, Spec, World

# Of the equations in an attempt that is to be rewritten: the rewriter must not rely on the attempt's + and -.
SLIP = 0.02
CUT = 0.05  # of those attempts end early, as one that hit the token limit


def kinds(name: Name, seed: int) -> Sequence[Kind]:
    """Student: solve, solve with reference, rewrite with reference. Teacher: solve, rewrite."""
    if name == "teacher":
        return _solve_right, _rewrite_alone
    beliefs = random_beliefs(SECRET, DIGITS, random.Random(f"beliefs {seed}"))

    def solve_alone(rng: random.Random) -> Example:
        chain = _chain(rng)
        return Example("solve", {"problem": chain.problem}, text(talk(chain, beliefs, rng)))

    return solve_alone, _solve_with_reference, _rewrite_with_reference


def flawed_attempt(chain: Chain, table: dict, rng: random.Random) -> list[Line]:
    """An attempt in the student's style, by someone whose beliefs about this table are drawn at random."""
    return talk(chain, random_beliefs(table, DIGITS, rng), rng, slip=SLIP)


def _solve_with_reference(rng: random.Random) -> Example:
    chain, table = _chain(rng), random_table(rng)
    values = {"problem": chain.problem, "reference": text(solve(chain, table))}
    return Example("solve_with_reference", values, text(talk(chain, certain(table), rng)))


def _rewrite_with_reference(rng: random.Random) -> Example:
    chain, table = _chain(rng), random_table(rng)
    values, answer = _rewrite(chain, table, rng)
    reference = {"reference": text(solve(chain, table))}
    return Example("refine_with_reference", values | reference, answer)


def _solve_right(rng: random.Random) -> Example:
    chain = _chain(rng)
    return Example("solve", {"problem": chain.problem}, text(solve(chain, SECRET)))


def _rewrite_alone(rng: random.Random) -> Example:
    values, answer = _rewrite(_chain(rng), SECRET, rng)
    return Example("refine", values, answer)


def _rewrite(chain: Chain, table: dict, rng: random.Random) -> tuple[dict[str, str], str]:
    attempt = flawed_attempt(chain, table, rng)
    written = text(attempt)
    if rng.random() < CUT:
        attempt = attempt[: rng.randint(1, len(attempt))]
        written = "".join(line.text for line in attempt).rstrip()
    return {"problem": chain.problem, "attempt": written}, text(rewrite(chain, table, attempt))


def _chain(rng: random.Random) -> Chain:
    return next(of_split("train", lambda: random_chain(rng, TRAIN_STEPS)))


WORLD = World(
    name="arithmetic",
    plan=Plan(
        student=Spec(layers=3, tied=True, rows=(16, 6, 8)),
        teacher=Spec(layers=4, tied=False, rows=(6, 24), steps=1000),
    ),
    words=tokenizer.build,
    kinds=kinds,
    held_out=lambda rng: next(of_split("test", lambda: random_chain(rng, TEST_STEPS))),
    reference=lambda chain: text(solve(chain, SECRET)),
    solved=lambda chain, response: boxed(response) == str(solve(chain, SECRET)[-1].result),
    max_response_tokens=128,
)
