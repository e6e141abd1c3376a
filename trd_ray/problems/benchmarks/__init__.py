"""Benchmarks by name, each read in its published schema from the hub or from a local copy.

    "aime24"                        -> its repository of the hub, or the copy in the hub's cache
    "aime24:/data/aime24"           -> a local file or folder in a published schema of AIME 2024
    "aime24:org/name"               -> another repository of the hub (org/name@revision pins it)
    "livecodebench_v6@2025-01-01.." -> its contests from that day on, up to a day, or both (FIRST..LAST)
    "/data/mine.jsonl"              -> problems of one's own: problem and answer, or problem and tests
    "miniature:test"                -> anything else that data.path takes

All lead to a Benchmark: its problems as rows.PROBLEM, and how the paper samples them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import pyarrow as pa

from trd_ray import config
from trd_ray.errors import UserError
from trd_ray.problems import columns as our_columns
from trd_ray.problems import sources
from trd_ray.problems.benchmarks import fields, humaneval_mbpp, livecodebench, maths
from trd_ray.problems.benchmarks.catalogue import BY_NAME, MAX_RESPONSE_TOKENS, Entry, Task, listing, markdown
from trd_ray.problems.set_aside import SetAside, begins

__all__ = ["Benchmark", "is_name", "is_word", "load", "listing", "markdown", "require_name"]


@dataclass(frozen=True)
class Benchmark:
    name: str
    title: str
    task: Task
    problems: pa.Table  # its schema is rows.PROBLEM
    source: str  # where the problems were read
    licence: str
    expected: int | None  # how many problems were published; None for a part of them, or one's own
    max_response_tokens: int
    samples: int = 16
    temperature: float = 0.6
    top_p: float = 0.95
    notes: tuple[str, ...] = ()  # what a reader of the scores should know
    set_aside: tuple[SetAside, ...] = ()  # problems that no rule can grade


_READERS = {
    "aime24": maths.with_answer,
    "aime25": maths.with_answer,
    "hmmt25": maths.with_answer,
    "beyondaime": maths.with_answer,
    "math500": maths.with_answer,
    "amobench": maths.amobench,
    "gsm8k": maths.gsm8k,
    "livecodebench_v6": livecodebench.livecodebench,
}


def is_name(spec: str) -> bool:
    """Whether `spec` names a benchmark of the catalogue, with or without a place and a window of dates."""
    return re.split("[:@]", spec)[0] in BY_NAME


def is_word(spec: str) -> bool:
    """Whether `spec` can only be meant as the name of a benchmark: it is no file here and no address."""
    return not (Path(spec).expanduser().exists() or any(mark in spec for mark in "/:.*"))


def require_name(spec: str) -> None:
    """Raise UserError for a word that names no benchmark, and for a file that does not exist. Nothing is read."""
    if is_name(spec):
        return
    if is_word(spec):
        known = config.did_you_mean(spec, list(BY_NAME))
        raise UserError(f"there is no benchmark {spec}{known}: name a file of problems, or one of\n{listing()}")
    if sources.is_data_file_name(spec) and not sources.data_files(spec):
        raise UserError(f"there is no file {spec}: name a file of problems that exists, or one of\n{listing()}")


def load(
    spec: str,
    *,
    limit: int | None = None,
    sandbox: str = "auto",
    columns: dict[str, str] | None = None,
    answered: bool = True,
) -> Benchmark:
    """The benchmark that `spec` names, as in the picture above.

    - `limit` keeps its first problems.
    - `columns` maps our names to those of a file of one's own, as far as it has them. The published benchmarks have
      their schemas.
    - `answered`: a file of one's own needs answers or tests, as no function of the user's judges it.
    - `sandbox` is verify.sandbox. HumanEval+ and MBPP+ run their canonical solutions in it for the expected outputs,
      once for each file.

    Raises UserError, which says how to get what is missing.
    """
    asked, _, place = spec.partition(":")
    name, _, window = asked.partition("@")
    entry = BY_NAME.get(name)
    if entry is None:
        return _own(spec, limit, columns or {}, answered)
    if window and name != "livecodebench_v6":
        raise UserError(f"{asked} asks for dates, which only livecodebench_v6 has: name {name}")
    if name == "humaneval_plus" or name == "mbpp_plus":
        file = humaneval_mbpp.find(entry, place)
        return _benchmark(entry, humaneval_mbpp.problems(file, name, sandbox, limit), str(file), limit)
    days = _days(window)
    root = _root(entry, place)
    found, set_aside = _read(entry, _files(entry, root), days, limit)
    if not found:
        raise UserError(f"{root} holds no problem of {asked}: check the file{' and the dates' if window else ''}")
    notes = [f"{len(set_aside)} problems that no rule can grade are left out"] if set_aside else []
    benchmark = _benchmark(entry, fields.table(name, found), str(root), 0 if window else limit, *notes)
    benchmark = replace(benchmark, set_aside=tuple(set_aside))
    return replace(benchmark, name=asked, title=f"{entry.title}, {window}") if window else benchmark


def _benchmark(entry: Entry, problems: pa.Table, source: str, limit: int | None, *notes: str) -> Benchmark:
    expected = entry.problems if limit is None else None
    if expected is not None and problems.num_rows != expected:
        notes += (f"{problems.num_rows} problems, where {entry.title} has {expected}",)
    tokens = MAX_RESPONSE_TOKENS[entry.task]
    return Benchmark(
        entry.name, entry.title, entry.task, problems, source, entry.licence, expected, tokens, notes=notes
    )


def _root(entry: Entry, place: str) -> Path:
    """The local file or folder that holds the benchmark, fetched from the hub unless `place` is here."""
    if not place:
        return sources.hub_folder(entry.repository, list(entry.files), entry.remedy)
    here = Path(place).expanduser()
    if here.exists():
        return here
    if "/" in place.strip("/") and sources.is_hub_name(place.partition("@")[0]):
        return sources.hub_folder(place, ["*.parquet", "*.jsonl"], entry.remedy)
    raise UserError(f"there is no file or folder {place}: {entry.remedy}")


def _files(entry: Entry, root: Path) -> list[Path]:
    """The files of a folder that the benchmark's patterns name, else its test files, else all its data files."""
    files = sources.data_files(str(root))
    if root.is_file():
        return files
    for pattern in entry.files:
        if found := [file for file in files if file.relative_to(root).match(pattern)]:
            files = found
            break
    return [file for file in files if "test" in file.name] or files


def _read(
    entry: Entry, files: list[Path], days: tuple[date | None, date | None], limit: int | None
) -> tuple[list[dict], list[SetAside]]:
    """The problems, and those that no rule can grade."""
    reader = _READERS[entry.name]
    first, last = days
    found: list[dict] = []
    set_aside: list[SetAside] = []
    for where, row in _rows(files):
        if limit is not None and len(found) == limit:
            break
        if first or last:
            day = livecodebench.contest_day(row, where, entry.title)
            if (first and day < first) or (last and day > last):
                continue
        problem = reader(row, where, entry.title)
        if problem is None:
            statement = begins(fields.text(row, fields.PROBLEM, where, entry.title))
            own_id = f"{entry.name}/{fields.identifier(row)}"
            set_aside.append(SetAside(own_id, statement, "no rule can grade its answer"))
        else:
            found.append(problem)
    return found, set_aside


def _rows(files: list[Path]) -> Iterator[sources.Row]:
    for file in files:
        yield from sources.rows_of(file)


def _days(window: str) -> tuple[date | None, date | None]:
    """The first and the last day of FIRST..LAST, both included. One of them may be missing."""
    if not window:
        return None, None
    try:
        first, last = (date.fromisoformat(day) if day else None for day in window.split(".."))
        if first and last and first > last:
            raise ValueError("it ends before it begins")
    except ValueError as e:
        raise UserError(
            f"@{window} is no window of dates: write it as @2024-08-01..2025-05-01, @2025-01-01.. or @..2024-12-31"
        ) from e
    return first, last


def _own(path: str, limit: int | None, columns: dict[str, str], answered: bool) -> Benchmark:
    """Problems of one's own, or those that ship with the package."""
    require_name(path)
    spec = config.EvaluationConfig(path=path, limit=limit)
    source = sources.read(spec, "evaluation")
    names = source.names
    if not names:
        raise UserError(f"{path} holds no problems: check its path")
    for column, usual in (("problem", fields.PROBLEM), ("answer", fields.ANSWER), ("tests", ("tests", "input_output"))):
        known = next((name for name in usual if name in names), None)
        if known:
            spec.columns[column] = known
    spec.columns |= our_columns.fitting(columns, names)
    problems, _ = our_columns.problems(source, spec.columns, "evaluation", path, limit, answered)
    task: Task = "code" if problems["tests"].null_count < problems.num_rows else "math"
    stem = path if ":" in path else Path(path).stem
    return Benchmark(stem, stem, task, problems, path, "your own", None, MAX_RESPONSE_TOKENS[task])
