"""What the two models of the world of code are taught before any distillation: `lessons` about made-up words."""

import random
from dataclasses import replace

from trd_ray.miniature.beliefs import random_beliefs
from trd_ray.miniature.code_world import code_task, code_tokenizer
from trd_ray.miniature.code_world.code_task import (
    SECRET,
    Draft,
    ProgramChain,
    Table,
    random_table,
    rewrite,
    secret,
    solve,
    talk,
    text,
)
from trd_ray.miniature.code_world.statements import MEANINGS
from trd_ray.miniature.lessons import Lessons
from trd_ray.miniature.splits import of_split
from trd_ray.miniature.world import Spec, Upbringing, World

# The chance that a statement of an attempt to rewrite is random: the rewriter must not rely on its plain ones.
SLIP = 0.02
CUT = 0.05  # the chance that such an attempt ends early, like one that hit the token limit


def flawed_attempt(chain: ProgramChain, table: Table, rng: random.Random) -> list[Draft]:
    """An attempt in the student's style, with beliefs about these meanings that are drawn at random."""
    return talk(chain, random_beliefs(table, MEANINGS, rng), rng, slip=SLIP)


def _rewrite(chain: ProgramChain, table: Table, rng: random.Random) -> tuple[str, str]:
    attempt = flawed_attempt(chain, table, rng)
    written = text(attempt)
    comments = attempt[0].comments
    if rng.random() < CUT:
        lines = written.split("\n")
        written = "\n".join(lines[: rng.randint(3, len(lines))])
        if len(written) < len(attempt[0].text):
            comments = ("",) * len(comments)  # the self-talk of a program that is not whole is not kept
    return written, rewrite(chain, table, comments).text


def _chain(rng: random.Random) -> ProgramChain:
    return next(of_split("train", lambda: code_task.random_chain(rng, code_task.TRAIN_STEPS)))


def _held_out(rng: random.Random, table: int = 0) -> ProgramChain:
    chains = of_split("test", lambda: code_task.random_chain(rng, code_task.TEST_STEPS))
    return next(chain for chain in chains if code_task.is_decided(chain, table))


LESSONS = Lessons(
    secret=SECRET,
    values=MEANINGS,
    chain=_chain,
    random_table=random_table,
    solution=lambda chain, table: solve(chain, table).text,
    talk=lambda chain, beliefs, rng: text(talk(chain, beliefs, rng)),
    rewritten=_rewrite,
)

WORLD = World(
    name="code",
    plan=Upbringing(
        student=Spec(layers=3, tied=True, rows=(6, 4, 14), steps=900),
        teacher=Spec(layers=4, tied=False, rows=(8, 18), steps=900),
    ),
    words=code_tokenizer.build,
    kinds=LESSONS.kinds,
    held_out=_held_out,
    reference=lambda chain: solve(chain, SECRET).text,
    solved=code_task.solved,
    max_response_tokens=160,
)


def with_table(number: int) -> World:
    """The same world with another meaning for each word, and a student with other beliefs about them."""
    truth = secret(number)
    return replace(
        WORLD,
        name=f"{WORLD.name}-{number}",
        plan=replace(WORLD.plan, seed=number),
        kinds=replace(LESSONS, secret=truth).kinds,
        held_out=lambda rng: _held_out(rng, number),
        reference=lambda chain: solve(chain, truth).text,
        solved=lambda chain, response: code_task.solved(chain, response, number),
    )
