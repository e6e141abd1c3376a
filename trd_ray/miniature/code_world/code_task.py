"""The miniature task of code: programs over a list of numbers, from instructions of which some are made up.

    random.Random -> Chain -> problem text     read; add 3; zorp; 2 times blick; print all
                           -> reference (y*)   ```python ... ```, the concise right program
                           -> talk (y_o)       the program with self-talk in comments, then perhaps Check or Wait and
                                               the whole program again: the last block counts
                           -> rewrite (y_r)    the right program with the first one's self-talk, once
                           -> tests            standard inputs and what the right program prints

A made-up instruction stands for one statement. Its name does not tell which, the table `SECRET` does. A problem is
taken only if its tests fail every program that has another meaning in place of one right meaning, so nobody passes by
luck.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice

from trd_ray.miniature.beliefs import Beliefs
from trd_ray.miniature.code_world.statements import (
    EFFECTS,
    MEANINGS,
    OUTPUTS,
    PLAIN,
    PRINTED,
    READ,
    STATEMENTS,
    Numbers,
    run,
)
from trd_ray.miniature.splits import Split, distinct, of_split
from trd_ray.verify.code.tests import Tests

WORDS = (
    *("zorp", "blick", "frobble", "quent", "murd", "splonk", "grax", "tweem", "vost", "plaff", "drune", "snib"),
    *("jolk", "wumble", "krint", "yarf", "hesk", "fleem", "ondle", "brask", "chiv", "lorp", "nuzz", "gwent"),
)
MADE_UP_SHARE = 0.45  # the share of made-up instructions among the steps
REPEATED_SHARE = 0.15
REPEATABLE = tuple(name for name in STATEMENTS if name.split()[0] in ("add", "subtract", "multiply")) + WORDS
TRAIN_STEPS = (2, 5)
TEST_STEPS = (5, 5)
CASES = (3, 6)  # fewest and most; a problem that needs more to tell right from wrong is not taken
MOST_DRAFTS = 3

_STATEMENTS = list(EFFECTS)

Table = dict[str, str]  # made-up word -> statement


@dataclass(frozen=True)
class Step:
    instruction: str
    times: int = 1


@dataclass(frozen=True)
class ProgramChain:
    steps: tuple[Step, ...]
    output: str  # a key of OUTPUTS

    @property
    def problem(self) -> str:
        told = (f"{s.times} times {s.instruction}" if s.times > 1 else s.instruction for s in self.steps)
        return "; ".join(("read", *told, self.output))


@dataclass(frozen=True)
class Draft:
    """One program. `word` is what is said before it: "", and for a second look Check or Wait."""

    word: str
    comments: tuple[str, ...]  # self-talk before each step: "", Hmm or Then
    statements: tuple[str, ...]  # one for each step
    chain: ProgramChain

    @property
    def text(self) -> str:
        lines = [READ]
        for comment, statement, step in zip(self.comments, self.statements, self.chain.steps, strict=True):
            lines += [f"# {comment}"] if comment else []
            lines += [f"for _ in range({step.times}):", f"    {statement}"] if step.times > 1 else [statement]
        program = "\n".join((*lines, OUTPUTS[self.chain.output]))
        return (f"\n{self.word}\n" if self.word else "") + f"```python\n{program}\n```"


def random_table(rng: random.Random) -> Table:
    return dict(zip(WORDS, rng.sample(MEANINGS, len(WORDS)), strict=True))


@cache
def secret(number: int = 0) -> Table:
    """The one true meaning of each word, for a base: each number is another table."""
    return random_table(random.Random(20260607 + number))


SECRET = secret()


def random_chain(rng: random.Random, steps: tuple[int, int]) -> ProgramChain:
    """A chain whose number of steps lies between the two, both included. No instruction stands in it twice."""
    drawn: dict[str, Step] = {}
    for _ in range(rng.randint(*steps)):
        instruction = _instruction(rng)
        while instruction in drawn:
            instruction = _instruction(rng)
        again = instruction in REPEATABLE and rng.random() < REPEATED_SHARE
        drawn[instruction] = Step(instruction, rng.choice((2, 3)) if again else 1)
    return ProgramChain(tuple(drawn.values()), rng.choice(list(OUTPUTS)))


def _instruction(rng: random.Random) -> str:
    if rng.random() < MADE_UP_SHARE:
        return rng.choice(WORDS)
    form = rng.choice(PLAIN)
    return form.instruction.format(c=rng.choice(form.constants))


def solve(chain: ProgramChain, table: Table) -> Draft:
    """The concise right program."""
    statements = tuple(table.get(s.instruction) or STATEMENTS[s.instruction] for s in chain.steps)
    return Draft("", ("",) * len(chain.steps), statements, chain)


def talk(chain: ProgramChain, beliefs: Beliefs, rng: random.Random, slip: float = 0.0) -> list[Draft]:
    """The student's style: self-talk in comments, and second looks that write the whole program again.

    A `slip` is the chance that a statement is a random one, whatever the instruction.
    """

    def statements() -> tuple[str, ...]:
        return tuple(
            rng.choice(_STATEMENTS)
            if rng.random() < slip
            else STATEMENTS.get(s.instruction) or beliefs.recall(s.instruction, rng)
            for s in chain.steps
        )

    comments = tuple(rng.choice(("Hmm", "Then")) if rng.random() < 0.25 else "" for _ in chain.steps)
    drafts = [Draft("", comments, statements(), chain)]
    while len(drafts) < MOST_DRAFTS and rng.random() < 0.25:
        again = statements()
        word = "Check" if again == drafts[-1].statements else "Wait"
        drafts.append(Draft(word, ("",) * len(chain.steps), again, chain))
    return drafts


def rewrite(chain: ProgramChain, table: Table, comments: Sequence[str]) -> Draft:
    """The right program with an attempt's self-talk."""
    return Draft("", tuple(comments), solve(chain, table).statements, chain)


def text(drafts: Sequence[Draft]) -> str:
    return "".join(draft.text for draft in drafts)


def program(response: str) -> str | None:
    """The last fenced block of a response."""
    blocks = re.findall(r"^```python\n(.*?)\n```$", response, re.DOTALL | re.MULTILINE)
    return blocks[-1] if blocks else None


def solved(chain: ProgramChain, response: str, table: int = 0) -> bool:
    """Whether the response passes the chain's tests, by this world's own reading of its statements."""
    written = program(response)
    return written is not None and all(run(written, given) == printed for given, printed in cases(chain, table))


def cases(chain: ProgramChain, table: int = 0) -> list[tuple[str, str]]:
    """Standard inputs and outputs of the right program, always the same for a chain."""
    found, _ = _cases(chain, table)
    return found


def is_decided(chain: ProgramChain, table: int = 0) -> bool:
    """Whether the cases fail every program that gives any one made-up instruction another meaning."""
    _, undecided = _cases(chain, table)
    return undecided == 0


@lru_cache(maxsize=4096)
def _cases(chain: ProgramChain, table: int) -> tuple[list[tuple[str, str]], int]:
    """The cases, and how many of the wrong programs they do not fail."""
    rng = random.Random(chain.problem)
    right = solve(chain, secret(table)).statements
    found = []
    wrong = [
        (i, meaning)
        for i, step in enumerate(chain.steps)
        if step.instruction in secret(table)
        for meaning in MEANINGS
        if meaning != right[i]
    ]
    while len(found) < CASES[0] or (wrong and len(found) < CASES[1]):
        given = [rng.randint(-9, 30) for _ in range(rng.randint(7, 10))]
        before = [given]  # the list before each step, and after the last
        for statement, step in zip(right, chain.steps, strict=True):
            before.append(_applied(statement, step.times, before[-1]))
        shown = PRINTED[OUTPUTS[chain.output]]
        printed = shown(before[-1])
        survivors = []
        for i, meaning in wrong:
            xs = _applied(meaning, chain.steps[i].times, before[i])
            for statement, step in zip(right[i + 1 :], chain.steps[i + 1 :], strict=True):
                xs = _applied(statement, step.times, xs)
            if shown(xs) == printed:
                survivors.append((i, meaning))
        wrong = survivors
        found.append((" ".join(map(str, given)), printed))
    return found, len(wrong)


def _applied(statement: str, times: int, xs: Numbers) -> Numbers:
    for _ in range(times):
        xs = EFFECTS[statement](xs)
    return xs


def problems(split: Split, n: int, seed: int, table: int = 0) -> list[dict]:
    """n different rows of problem_id, problem, answer (""), reference, tests. Train: 2 to 5 steps. Test: 5."""
    rng = random.Random(f"{split} {seed}")
    steps = TRAIN_STEPS if split == "train" else TEST_STEPS
    chains = distinct(of_split(split, lambda: random_chain(rng, steps)))
    rows = []
    for i, chain in enumerate(islice((chain for chain in chains if is_decided(chain, table)), n)):
        inputs, outputs = map(list, zip(*cases(chain, table), strict=True))
        tests = Tests(kind="stdio", inputs=inputs, outputs=outputs, compare="tokens")
        rows.append(
            {
                "problem_id": f"code_{split}-{i:05d}",
                "problem": chain.problem,
                "answer": "",
                "reference": solve(chain, secret(table)).text,
                "tests": tests.pack(),
            }
        )
    return rows
