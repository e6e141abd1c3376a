"""TACO's programming problems for training, each with a reference solution that passes the problem's own tests.

    files or hub  ->  schema.candidates()  ->  references.Chooser  ->  load(): problems, and what was set aside

Solutions run in the sandbox, as Ray tasks where Ray runs, else in threads.

- Every choice is kept on disk as it is made, so a start that ends early goes on where it stopped.
- The whole result is kept under a hash of the files' contents, so the next start reads it.
- Tests go from file to file: only those of problems whose references are being chosen are in memory.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from trd_ray import cache, config, rows
from trd_ray.errors import UserError
from trd_ray.problems import sources
from trd_ray.problems.set_aside import SetAside, counted
from trd_ray.problems.spool import Spool, spooled
from trd_ray.problems.taco.references import Chooser, Progress
from trd_ray.problems.taco.schema import Candidate, candidates, tests_of

__all__ = ["SetAside", "Taco", "load", "tests_of"]

REPOSITORY = "BAAI/TACO"
DIFFICULTIES = ("EASY", "MEDIUM", "MEDIUM_HARD", "HARD", "VERY_HARD", "UNKNOWN_DIFFICULTY")
SOLUTIONS_TRIED = 8
TIMEOUT_S = 24 * 3600.0  # all references together may take so long

_VERSION = 1  # raised when the cache is to hold something else
_SCHEMA = pa.schema([*rows.PROBLEM, pa.field("name", pa.string()), pa.field("set_aside", pa.string())])


@dataclass(frozen=True)
class Taco:
    problems: pa.Table  # its schema is rows.PROBLEM
    set_aside: list[SetAside]
    spool: Spool  # where the tests lie

    def __str__(self) -> str:
        if not self.set_aside:
            return f"{self.problems.num_rows} problems"
        return f"{self.problems.num_rows} problems, {counted(self.set_aside)}"


def load(
    spec: config.DataConfig,
    verify: config.VerifyConfig,
    *,
    solutions_tried: int = SOLUTIONS_TRIED,
    timeout_s: float = TIMEOUT_S,
    progress: Progress | None = None,
) -> Taco:
    """TACO from `spec.path`: a file or folder in its schema (Parquet, JSON Lines, Arrow), or a repository of the hub.

    - `spec.difficulty` and `spec.limit` select problems.
    - `spec.split` selects the files of a folder or repository that holds more than one split.
    - A problem is set aside when it shows pictures, when it has no readable tests, or when none of its first
      `solutions_tried` solutions passes under the limits of `verify`.

    Raises UserError, also when `timeout_s` is over.
    """
    files = _files(str(spec.path), spec.split)
    limits = verify.time_limit_s, verify.memory_mib, verify.program_timeout_s, verify.max_tests
    difficulty = sorted(name.upper() for name in spec.difficulty) if spec.difficulty else None
    if unknown := [name for name in difficulty or [] if name not in DIFFICULTIES]:
        raise UserError(f"data.difficulty is {unknown[0]}{config.did_you_mean(unknown[0], list(DIFFICULTIES))}")
    key = cache.digest(files, _VERSION, difficulty, spec.limit, solutions_tried, *limits)

    def make() -> pa.Table:
        found = candidates(files, difficulty, spec.limit, verify.max_tests, solutions_tried)
        chosen = Chooser(verify, timeout_s).chosen(found, progress)
        return spooled((_row(candidate, *choice) for candidate, choice in chosen), _SCHEMA)[0]

    found = _read(cache.kept_file(f"taco-{key}", make))
    if not found.problems.num_rows:
        raise UserError(_nothing_left(spec, found))
    return found


def _read(file: Path) -> Taco:
    set_aside: list[SetAside] = []

    def left() -> Iterator[dict[str, Any]]:
        for batch in sources.parquet(file):
            for row in batch.to_pylist():
                if row["set_aside"] is None:
                    yield row
                else:
                    set_aside.append(SetAside(row["problem_id"], row["name"], row["set_aside"]))

    problems, spool = spooled(left(), pa.schema(rows.PROBLEM))
    return Taco(problems, set_aside, spool)


def _nothing_left(spec: config.DataConfig, found: Taco) -> str:
    if not found.set_aside:
        of = f" of difficulty {', '.join(spec.difficulty)}" if spec.difficulty else ""
        return f"{spec.path} holds no problem{of}: check data.path and data.difficulty"
    first = found.set_aside[0]
    return (
        f"no problem of {spec.path} is left ({found}): the first is {first.name or first.problem_id}: "
        f"{first.reason[:300]}; fix the data, or raise verify.time_limit_s and verify.memory_mib"
    )


def _files(path: str, split: str) -> list[Path]:
    if not Path(path).expanduser().exists() and not sources.data_files(path):
        if not sources.is_hub_name(path.partition("@")[0]):
            raise UserError(f"there is no data file {path}: set data.path to TACO's files, or to {REPOSITORY}")
        path = _fetched(path, split)
    files = sources.data_files(path)
    if not files:
        raise UserError(f"{path} holds no .parquet, .arrow or .jsonl file of TACO: set data.path to a folder of them")
    of_split = [file for file in files if split in (file.parent.name, re.split(r"[-.]", file.name)[0])]
    return of_split or files


def _fetched(repository: str, split: str) -> str:
    """The Parquet copy, of the repository's two: its loading script runs in no current version of datasets."""
    otherwise = (
        f"run `hf download {REPOSITORY} --repo-type dataset --include 'ALL/{split}-*' --local-dir DIR` (or "
        "huggingface-cli in place of hf) where there is a network, and set data.path=DIR"
    )
    folder = sources.hub_folder(repository, [f"ALL/{split}-*.parquet", f"data/{split}-*.parquet"], otherwise)
    if not any(folder.rglob("*.parquet")):
        folder = sources.hub_folder(repository, [f"{split}/*.arrow", f"*{split}*.jsonl"], otherwise)
    return str(folder)


def _row(candidate: Candidate, index: int | None, reason: str) -> dict[str, Any]:
    row = {
        "problem_id": candidate.problem_id,
        "problem": candidate.problem,
        "answer": "",
        "reference": "",
        "name": candidate.name,
    }
    if index is None:
        return row | {"set_aside": reason}
    # A reference is what the prompts ask for: a program in a fenced block.
    return row | {"reference": f"```python\n{candidate.solutions[index].strip()}\n```", "tests": candidate.tests}
