"""What the two models of the world of arithmetic are taught before any distillation: `lessons` about `@`."""

import random
from dataclasses import replace

from trd_ray.miniature import tokenizer
from trd_ray.miniature.beliefs import random_beliefs
from trd_ray.miniature.lessons import Lessons
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
    secret,
    solve,
    talk,
    text,
)
from trd_ray.miniature.world import Spec, Upbringing, World

# The chance that an equation of an attempt to rewrite is random: the rewriter must not rely on its + and -.
SLIP = 0.02
CUT = 0.05  # the chance that such an attempt ends early, like one that hit the token limit


def flawed_attempt(chain: Chain, table: dict, rng: random.Random) -> list[Line]:
    """An attempt in the student's style, with beliefs about this table that are drawn at random."""
    return talk(chain, random_beliefs(table, DIGITS, rng), rng, slip=SLIP)


def _rewrite(chain: Chain, table: dict, rng: random.Random) -> tuple[str, str]:
    attempt = flawed_attempt(chain, table, rng)
    written = text(attempt)
    if rng.random() < CUT:
        attempt = attempt[: rng.randint(1, len(attempt))]
        written = "".join(line.text for line in attempt).rstrip()
    return written, text(rewrite(chain, table, attempt))


def _chain(rng: random.Random) -> Chain:
    return next(of_split("train", lambda: random_chain(rng, TRAIN_STEPS)))


LESSONS = Lessons(
    secret=SECRET,
    values=DIGITS,
    chain=_chain,
    random_table=random_table,
    solution=lambda chain, table: text(solve(chain, table)),
    talk=lambda chain, beliefs, rng: text(talk(chain, beliefs, rng)),
    rewritten=_rewrite,
)

WORLD = World(
    name="arithmetic",
    plan=Upbringing(
        student=Spec(layers=3, tied=True, rows=(16, 6, 8)),
        teacher=Spec(layers=4, tied=False, rows=(6, 24), steps=1000),
    ),
    words=tokenizer.build,
    kinds=LESSONS.kinds,
    held_out=lambda rng: next(of_split("test", lambda: random_chain(rng, TEST_STEPS))),
    reference=lambda chain: text(solve(chain, SECRET)),
    solved=lambda chain, response: boxed(response) == str(solve(chain, SECRET)[-1].result),
    max_response_tokens=128,
)


def with_table(number: int) -> World:
    """The same world with another secret table, and a student with other beliefs about it."""
    truth = secret(number)
    return replace(
        WORLD,
        name=f"{WORLD.name}-{number}",
        plan=replace(WORLD.plan, seed=number),
        kinds=replace(LESSONS, secret=truth).kinds,
        reference=lambda chain: text(solve(chain, truth)),
        solved=lambda chain, response: boxed(response) == str(solve(chain, truth)[-1].result),
    )
