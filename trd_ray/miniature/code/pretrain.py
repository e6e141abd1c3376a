"""What the two models of the world of code are taught before any distillation.

Student, the base of both recipes, imperfect on purpose:
    problem                       -> student-style programs with its beliefs about the made-up instructions
    problem, reference            -> student-style programs that trust the reference
    problem, reference, attempt   -> the attempt, rewritten
  In the last two the meanings are drawn anew for every example, so the base must read the reference and never learns
  the true ones: whatever it knows of them after distillation, distillation taught it.

Teacher, of OPD, the stronger model:
    problem            -> concise right program
    problem, attempt   -> the attempt, rewritten
"""

import random
from collections.abc import Sequence

from trd_ray.miniature.beliefs import certain, random_beliefs
from trd_ray.miniature.code import task, tokenizer
from trd_ray.miniature.code.statements import MEANINGS
from trd_ray.miniature.code.task import SECRET, Chain, Draft, Table, random_table, rewrite, solve, talk, text
from trd_ray.miniature.splits import of_split
from trd_ray.miniature.world import Example, Kind, Name, Plan, Spec, World

SLIP = 0.02  # of the statements in an attempt that is to be rewritten: the rewriter must not rely on its plain ones
CUT = 0.05  # of those attempts end early, as one that hit the token limit


def kinds(name: Name, seed: int) -> Sequence[Kind]:
    """Student: solve, solve with reference, rewrite with reference. Teacher: solve, rewrite."""
    if name == "teacher":
        return _solve_right, _rewrite_alone
    beliefs = random_beliefs(SECRET, MEANINGS, random.Random(f"beliefs {seed}"))

    def solve_alone(rng: random.Random) -> Example:
        chain = _chain(rng)
        return Example("solve", {"problem": chain.problem}, text(talk(chain, beliefs, rng)))

    return solve_alone, _solve_with_reference, _rewrite_with_reference


def flawed_attempt(chain: Chain, table: Table, rng: random.Random) -> list[Draft]:
    """An attempt in the student's style, by someone whose beliefs about these meanings are drawn at random."""
    return talk(chain, random_beliefs(table, MEANINGS, rng), rng, slip=SLIP)


def _solve_with_reference(rng: random.Random) -> Example:
    chain, table = _chain(rng), random_table(rng)
    values = {"problem": chain.problem, "reference": solve(chain, table).text}
    return Example("solve_with_reference", values, text(talk(chain, certain(table), rng)))


def _rewrite_with_reference(rng: random.Random) -> Example:
    chain, table = _chain(rng), random_table(rng)
    values, answer = _rewrite(chain, table, rng)
    return Example("refine_with_reference", values | {"reference": solve(chain, table).text}, answer)


def _solve_right(rng: random.Random) -> Example:
    chain = _chain(rng)
    return Example("solve", {"problem": chain.problem}, solve(chain, SECRET).text)


def _rewrite_alone(rng: random.Random) -> Example:
    values, answer = _rewrite(_chain(rng), SECRET, rng)
    return Example("refine", values, answer)


def _rewrite(chain: Chain, table: Table, rng: random.Random) -> tuple[dict[str, str], str]:
    attempt = flawed_attempt(chain, table, rng)
    written, comments = text(attempt), attempt[0].comments
    if rng.random() < CUT:
        lines = written.split("\n")
        written = "\n".join(lines[: rng.randint(3, len(lines))])
        if len(written) < len(attempt[0].text):
            comments = ("",) * len(comments)  # a program that is not whole is written anew
    return {"problem": chain.problem, "attempt": written}, rewrite(chain, table, comments).text


def _chain(rng: random.Random) -> Chain:
    return next(of_split("train", lambda: task.random_chain(rng, task.TRAIN_STEPS)))


def _held_out(rng: random.Random) -> Chain:
    return next(filter(task.is_decided, of_split("test", lambda: task.random_chain(rng, task.TEST_STEPS))))


WORLD = World(
    name="code",
    plan=Plan(
        student=Spec(layers=3, tied=True, rows=(6, 4, 14), steps=900),
        teacher=Spec(layers=4, tied=False, rows=(8, 18), steps=900),
    ),
    words=tokenizer.build,
    kinds=kinds,
    held_out=_held_out,
    reference=lambda chain: solve(chain, SECRET).text,
    solved=task.solved,
    max_response_tokens=160,
)
