"""The miniature task: chains of one-digit operations. What one of them means, only a secret table says.

    random.Random -> Chain -> problem text     9+1-3@2
                           -> reference (y*)   9+1=0; 0-3=7; 7@2=5; \\boxed{5}
                           -> talk (y_o)       9+1=0; Hmm 0-3=7; 7@2=4; Wait 7@2=5; \\boxed{5}
                           -> rewrite (y_r)    9+1=0; Hmm 0-3=7; 7@2=5; \\boxed{5}

A chain starts at a digit and applies operations from left to right, modulo 10.

- `+` and `-` are what they seem. `@` is made up, and its table is secret.
- For each right operand `@` permutes the digits. So right steps never make a wrong value right again: an early wrong
  step dooms the rest.
- A response is graded by its last \\boxed{}.
"""

import random
from dataclasses import dataclass
from functools import cache
from itertools import islice

from trd_ray.miniature.beliefs import Beliefs
from trd_ray.miniature.splits import Split, distinct, of_split

DIGITS = range(10)
OPERANDS = (1, 2, 3)
SECRET_SHARE = 0.4  # the share of `@` among the steps
TRAIN_STEPS = (2, 6)
TEST_STEPS = (6, 6)

Table = dict[tuple[int, int], int]  # (left, right) -> left @ right
Step = tuple[str, int]  # operator and right operand


@dataclass(frozen=True)
class Chain:
    start: int
    steps: tuple[Step, ...]

    @property
    def problem(self) -> str:
        return f"{self.start}" + "".join(f"{op}{right}" for op, right in self.steps)


@dataclass(frozen=True)
class Line:
    """One equation of a solution. `word` is self-talk before it: "", Hmm or So, and for a second look Check or Wait."""

    word: str
    left: int
    op: str
    right: int
    result: int

    @property
    def text(self) -> str:
        return f"{self.word}{' ' if self.word else ''}{self.left}{self.op}{self.right}={self.result}; "


def random_table(rng: random.Random) -> Table:
    table = {}
    for right in OPERANDS:
        results = rng.sample(DIGITS, len(DIGITS))
        table |= {(left, right): results[left] for left in DIGITS}
    return table


@cache
def secret(number: int = 0) -> Table:
    """The one true `@` of a base: each number is another table."""
    return random_table(random.Random(20260607 + number))


SECRET = secret()


def compute(left: int, op: str, right: int, table: Table) -> int:
    if op == "@":
        return table[left, right]
    return (left + right if op == "+" else left - right) % 10


def random_chain(rng: random.Random, steps: tuple[int, int]) -> Chain:
    """A chain whose number of steps lies between the two, both included."""
    start = rng.choice(DIGITS)
    ops = ["@" if rng.random() < SECRET_SHARE else rng.choice("+-") for _ in range(rng.randint(*steps))]
    return Chain(start, tuple((op, rng.choice(OPERANDS)) for op in ops))


def solve(chain: Chain, table: Table) -> list[Line]:
    """The concise right solution: one line for each step."""
    lines = []
    value = chain.start
    for op, right in chain.steps:
        result = compute(value, op, right, table)
        lines.append(Line("", value, op, right, result))
        value = result
    return lines


def talk(chain: Chain, beliefs: Beliefs, rng: random.Random, slip: float = 0.0) -> list[Line]:
    """The student's style: self-talk before a step, and second looks at it that may change its mind.

    A `slip` is the chance of a random digit, whatever the operator.
    """

    def recall(left: int, op: str, right: int) -> int:
        if rng.random() < slip:
            return rng.choice(DIGITS)
        return beliefs.recall((left, right), rng) if op == "@" else compute(left, op, right, beliefs.truth)

    lines = []
    value = chain.start
    for op, right in chain.steps:
        word = rng.choice(("Hmm", "So")) if rng.random() < 0.25 else ""
        result = recall(value, op, right)
        lines.append(Line(word, value, op, right, result))
        for _ in range(3):
            if rng.random() >= 0.2:
                break
            again = recall(value, op, right)
            lines.append(Line("Check" if again == result else "Wait", value, op, right, again))
            result = again
        value = result
    return lines


def rewrite(chain: Chain, table: Table, attempt: list[Line]) -> list[Line]:
    """The right solution that keeps the attempt's self-talk and drops its second looks."""
    words = [line.word for line in attempt if line.word not in ("Check", "Wait")]
    words += [""] * (len(chain.steps) - len(words))  # an attempt that was cut
    return [
        Line(word, line.left, line.op, line.right, line.result)
        for word, line in zip(words, solve(chain, table), strict=True)
    ]


def text(lines: list[Line]) -> str:
    return "".join(line.text for line in lines) + f"\\boxed{{{lines[-1].result}}}"


def boxed(response: str) -> str | None:
    """What stands in the last \\boxed{}. None when there is none."""
    _, found, rest = response.rpartition("\\boxed{")
    inside, closed, _ = rest.partition("}")
    return inside if found and closed else None


def problems(split: Split, n: int, seed: int, table: int = 0) -> list[dict]:
    """n different rows of problem_id, problem, answer, reference. Train: 2 to 6 steps. Test: held-out chains of 6."""
    rng = random.Random(f"{split} {seed}")
    steps = TRAIN_STEPS if split == "train" else TEST_STEPS
    rows = []
    for i, chain in enumerate(islice(distinct(of_split(split, lambda: random_chain(rng, steps))), n)):
        lines = solve(chain, secret(table))
        rows.append(
            {
                "problem_id": f"{split}-{i:05d}",
                "problem": chain.problem,
                "answer": str(lines[-1].result),
                "reference": text(lines),
            }
        )
    return rows
