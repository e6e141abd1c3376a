"""What the stream benchmark measures: its options, each with its default."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from trd_ray.errors import UserError

NEVER_STEPS = 4  # so many steps are on the way at a time where nothing becomes stale


@dataclass(frozen=True)
class Settings:
    rows: int
    steps: int
    engines: int
    hosts: int
    staleness: str
    in_flight: str
    raw_median: int
    refined_median: int
    max_tokens: int
    sigma: float
    token_seconds: float
    learner_seconds: float
    scale: float
    idle_seconds: float
    rows_per_block: int | None
    store_gib: float
    seed: int
    problems: int | None = None
    tests_kib: int | None = None

    @property
    def seconds_a_token(self) -> float:
        return self.token_seconds * self.scale

    @property
    def train_seconds(self) -> float:
        return self.learner_seconds * self.scale

    @property
    def together(self) -> int:
        """How many steps are on their way at a time."""
        return NEVER_STEPS if self.staleness == "never" else int(self.staleness) + 1

    @property
    def last_steps(self) -> int:
        """The last ones of a run that drains: their weights wait for no request, so they are not measured."""
        return 0 if self.in_flight == "keep" or self.staleness == "never" else self.together - 1


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def settings(arguments: list[str], description: str) -> tuple[Settings, bool, Path | None]:
    """The settings, whether a line of JSON is wanted, and where the run's files stay. Raises UserError."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rows", type=positive, default=128, help="a step; default 128")
    add("--steps", type=positive, default=4, help="rounded up so that whole rounds are measured; default 4")
    add("--engines", type=positive, default=8, help="half sample, half refine; default 8")
    add("--hosts", type=positive, default=2, help="processes that they share; default 2")
    add("--staleness", choices=["0", "1", "2", "never"], default="0")
    add("--in-flight", choices=["drain", "keep"], default="drain")
    add("--raw-median", type=positive, default=7700, help="tokens; default 7,700")
    add("--refined-median", type=positive, default=880, help="tokens; default 880")
    add("--max-tokens", type=positive, default=16_384, help="of a response; default 16,384")
    add("--sigma", type=float, default=0.65, help="of the lengths' logarithm; default 0.65")
    add("--token-seconds", type=float, default=0.02, help="of decoding a token; default 0.02")
    add("--learner-seconds", type=float, default=60.0, help="of a step; default 60")
    add("--scale", type=float, default=0.05, help="of all these seconds; default 0.05")
    add("--idle-seconds", type=float, default=6.0, help="in which nothing is done, before the engines start; default 6")
    add("--rows-per-block", type=positive, help="default: the recipe's own default")
    add("--store-gib", type=float, default=2.0, help="size of the object store; default 2")
    add("--seed", type=int, default=0)
    add("--problems", type=positive, help="in the data set; default: as many as rows, at most 4,096")
    add("--tests-kib", type=positive, help="of test cases that each problem has; default: none")
    add("--json", action="store_true", help="also one line of JSON")
    add("--keep", type=Path, metavar="FOLDER", help="where the run's files stay; default: nowhere")
    chosen = vars(parser.parse_args(arguments))
    wants_json, keep = chosen.pop("json"), chosen.pop("keep")
    s = Settings(**chosen)
    if not 2 <= s.engines <= 4096:
        raise UserError(f"--engines {s.engines} must be from 2, one that samples and one that refines, to 4096")
    if not 0 <= s.sigma < 10:
        raise UserError(f"--sigma {s.sigma} must be from 0 to below 10")
    if s.max_tokens > 24_576:
        raise UserError(f"--max-tokens {s.max_tokens} must leave the context of 65,536 room: give at most 24576")
    for name in ("token_seconds", "learner_seconds", "scale", "idle_seconds", "store_gib"):
        if not 0 < getattr(s, name) < 1e6:
            raise UserError(f"--{name.replace('_', '-')} {getattr(s, name)} must be a positive number")
    rounds = -(-max(1, s.steps - 1) // s.together)
    return replace(s, steps=1 + rounds * s.together + s.last_steps), wants_json, keep
