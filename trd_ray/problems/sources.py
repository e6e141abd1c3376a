"""Where problems come from: files, folders, the Hugging Face hub, and what ships with the package.

    data.path, data.format, data.split  ->  read()        ->  Source: column names, and rows one by one
    a file                              ->  rows_of()     ->  its rows as they are, each with its place
    a repository of the hub             ->  hub_folder()  ->  a local folder with its files

Rows are read as they are asked for, so a source may be larger than memory, unless it is one JSON list.

A source that is missing, empty, cut off or not what its name says is refused as a UserError. `columns` and `benchmarks`
say what the columns mean.
"""

import csv
import glob
import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from trd_ray import config, made_here
from trd_ray.errors import UserError
from trd_ray.models import HUB_TIMEOUT_S

_SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow", ".jsonl.gz")
_TABLES = {".csv": ",", ".tsv": "\t"}  # a folder's tables are problems only where it has no other data files
_SPREADSHEETS = (".xlsx", ".xls", ".ods")
_CELL_CHARACTERS = 2**27  # the csv module allows 131,072
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.-]+)?")
_ROWS_AT_ONCE = 64
_BUFFER_BYTES = 2**20  # of each column

# The place of a row, which messages name, and the row: column -> value.
Row = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Source:
    names: list[str]  # the columns that any row has; [] where there is no row
    rows: Callable[[], Iterator[Row]]


def read(spec: config.DataConfig | config.EvaluationConfig, group: str) -> Source:
    """A source, whose column names are read already."""
    path = str(spec.path)
    if (made := made_here.like(path, made_here.PROBLEMS)) and not Path(path).exists():
        if path not in made:
            raise UserError(f"{path.partition(':')[0]} comes in parts: set {group}.path to {' or '.join(made)}")
        return _listed(path, made_here.PROBLEMS[path]())
    if spec.format == "hub":
        return _hub(path, spec.split, group)
    files = data_files(path)
    if not files:
        if not is_hub_name(path) or spec.format != "auto":
            raise UserError(
                f"there is no data file {path}: set {group}.path to a JSONL, Parquet or CSV file that exists"
            )
        return _hub(path, spec.split, group)
    names: dict[str, None] = {}
    for file in files:
        for _, row in rows_of(file, spec.format):
            names |= dict.fromkeys(row)
            if not _is_json(file, spec.format):
                break  # all its rows have the same columns
    return Source(list(names), lambda: (row for file in files for row in rows_of(file, spec.format)))


def is_hub_name(path: str) -> bool:
    """Whether a text that names nothing here may name a repository of the hub, `name` or `org/name`."""
    return not is_data_file_name(path) and bool(_HUB_NAME.fullmatch(path))


def is_data_file_name(path: str) -> bool:
    return path.endswith((*_SUFFIXES, *_TABLES))


def data_files(path: str) -> list[Path]:
    """The file, the data files anywhere in the folder, or those that match the glob, sorted. [] if there is none."""
    here = Path(path).expanduser()
    if here.is_file():
        return [here]
    found = here.rglob("*") if here.is_dir() else map(Path, glob.glob(str(here), recursive=True))
    found = sorted(f for f in found if f.is_file() and is_data_file_name(f.name))
    files = [f for f in found if f.suffix not in _TABLES] or found
    if here.is_dir() and not files:
        raise UserError(
            f"folder {path} holds no .jsonl, .json or .parquet file, and no .csv: put the problems there in one of "
            "these"
        )
    return files


def _is_json(file: Path, form: str) -> bool:
    return form == "jsonl" or (form != "parquet" and file.suffix not in (".parquet", ".arrow", *_TABLES))


def rows_of(file: Path, form: str = "auto") -> Iterator[Row]:
    """The rows of one file, read as they are asked for: JSON lines (also .gz), one JSON list, Parquet, Arrow or CSV."""
    if file.suffix in _SPREADSHEETS and form != "parquet":
        raise UserError(
            f"{file} is a spreadsheet, which is not read: save its sheet as CSV (UTF-8), with the column names in the "
            "first row"
        )
    if _is_json(file, form):
        return _json_rows(file)
    if file.suffix in _TABLES and form != "parquet":
        return _cells(file, _TABLES[file.suffix])
    return _batches(file, "Arrow" if file.suffix == ".arrow" and form != "parquet" else "Parquet")


def _cells(file: Path, separator: str) -> Iterator[Row]:
    """The rows of a table whose first row names the columns. Every cell is text."""
    limit = csv.field_size_limit(_CELL_CHARACTERS)
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter=separator, strict=True)
            names = next(reader, [])
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise UserError(
                    f"{file} names the column {twice[0]!r} twice in its first line: give each a name of its own"
                )
            for cells in reader:
                if not cells:  # an empty line
                    continue
                where = f"{file} line {reader.line_num}"
                if len(cells) != len(names):
                    raise UserError(
                        f"{where} has {len(cells)} cells where the first line names {len(names)} columns: put a cell "
                        "that holds a separator, a quote or a line break in double quotes"
                    )
                yield where, dict(zip(names, cells, strict=True))
    except csv.Error as e:
        raise UserError(f"{file} line {reader.line_num} is not valid CSV ({e}); is the file cut off?") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{file} is not UTF-8 text: save it as CSV in UTF-8") from e
    except OSError as e:
        raise UserError(f"{file} cannot be read ({e.strerror}): check its permissions") from e
    finally:
        csv.field_size_limit(limit)
    if not names:
        raise UserError(f"data file {file} is empty: put the column names in its first line and problems below")


def _json_rows(file: Path) -> Iterator[Row]:
    """The rows of a file of one object a line, or of one list of objects (.json)."""
    empty = True
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        # Lines end at \n alone: JSON strings may hold other line separators, such as U+2028.
        with cast(Any, opened)(file, "rb") as lines:
            for number, encoded in enumerate(lines, 1):
                line = encoded.decode("utf-8-sig" if number == 1 else "utf-8")
                if not line.strip():
                    continue
                if empty and file.suffix == ".json" and line.lstrip()[0] == "[":
                    yield from _json_list(file)
                    return
                empty = False
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as e:
                    raise UserError(
                        f"{file} line {number} is not valid JSON ({e.msg}); is the file cut off? Fix or remove that "
                        "line"
                    ) from e
                except (ValueError, RecursionError) as e:
                    raise _unreadable(f"{file} line {number}", e) from e
                yield _object(f"{file} line {number}", row)
    except UnicodeDecodeError as e:
        raise UserError(f"{file} is not UTF-8 text: save it as UTF-8 JSON lines, or name a Parquet file") from e
    except (EOFError, gzip.BadGzipFile) as e:
        raise UserError(f"{file} is not a whole gzip file ({e}): it may be cut off, so fetch it again") from e
    except OSError as e:
        raise UserError(f"{file} cannot be read ({e.strerror}): check its permissions") from e
    if empty:
        raise UserError(f"data file {file} is empty: put one JSON object with problem and answer on each line")


def _json_list(file: Path) -> Iterator[Row]:
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as e:
        raise UserError(f"{file} line {e.lineno} is not valid JSON ({e.msg}); is the file cut off?") from e
    except (ValueError, RecursionError) as e:
        raise _unreadable(str(file), e) from e
    if not found:
        raise UserError(f"data file {file} is empty: put JSON objects with problem and answer into its list")
    for number, row in enumerate(found, 1):
        yield _object(f"{file} row {number}", row)


def _unreadable(where: str, e: Exception) -> UserError:
    """For JSON that Python does not read, such as a number of thousands of digits."""
    why = "values within too many others" if isinstance(e, RecursionError) else str(e).partition(";")[0]
    return UserError(f"{where} cannot be read ({why}): write long numbers as text, or leave such rows out")


def _object(where: str, row: Any) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{where} holds a {type(row).__name__}, expected an object such as {_EXAMPLE}")
    return where, row


_EXAMPLE = '{"problem": "1+1?", "answer": "2"}'


def _batches(file: Path, form: str) -> Iterator[Row]:
    number = 0
    try:
        for batch in parquet(file) if form == "Parquet" else _arrow(file):
            for row in batch.to_pylist():
                number += 1
                yield f"{file} row {number}", row
    except (pa.ArrowException, OSError) as e:
        if file.stat().st_size == 0:
            raise UserError(f"data file {file} is empty: write problems to it") from e
        raise UserError(
            f"{file} is not a readable {form} file ({str(e).splitlines()[0]}): it may be cut off, so write it again"
        ) from e


def parquet(file: Path) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, a few at a time. By default pyarrow would hold all that it has read of the file."""
    with pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as opened:
        yield from opened.iter_batches(batch_size=_ROWS_AT_ONCE)


def _arrow(file: Path) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow file, or of the stream that the datasets library saves."""
    with pa.memory_map(str(file)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(source))
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                yield batch.slice(start, _ROWS_AT_ONCE)


def _listed(source: str, found: list[Any]) -> Source:
    rows = [_object(f"{source} row {i}", row) for i, row in enumerate(found, 1)]
    return Source(list(dict.fromkeys(name for _, row in rows for name in row)), lambda: iter(rows))


def hub_folder(repository: str, patterns: list[str], otherwise: str) -> Path:
    """The files of a data set repository that match any pattern, downloaded unless they are in the hub's cache.

    `repository` may name a revision, `org/name@revision`. Raises UserError, which names the repository, says why it
    could not be had, and ends with `otherwise`, the remedy.
    """
    from huggingface_hub import HfApi, snapshot_download

    name, _, revision = repository.partition("@")
    silent = None
    try:
        HfApi().dataset_info(name, revision=revision or None, timeout=HUB_TIMEOUT_S)
    except Exception as e:  # the hub's HTTP client raises its own, which differ between its versions
        silent = e  # it may be in the cache, for which snapshot_download alone would first try the hub for minutes
    try:
        return Path(
            snapshot_download(
                name,
                repo_type="dataset",
                revision=revision or None,
                allow_patterns=list(patterns),
                local_files_only=silent is not None,
            )
        )
    except Exception as e:
        reason = (str(silent or e).strip() or type(silent or e).__name__).splitlines()[0][:200]
        raise UserError(f"{repository} could not be had from the Hugging Face hub ({reason}): {otherwise}") from e


def _hub(path: str, split: str, group: str) -> Source:
    import datasets
    import datasets.config
    from huggingface_hub import HfApi

    name, _, subset = path.partition(":")
    cached = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    try:
        if not cached.exists():
            # The hub says no at once, where load_dataset retries for half a minute.
            HfApi().dataset_info(name, timeout=HUB_TIMEOUT_S)
        found = datasets.load_dataset(name, subset or None, split=split)
    except Exception as e:  # the hub's HTTP client raises its own, which differ between its versions
        raise UserError(
            f"{path} is neither a file or folder here nor a Hugging Face data set with the split {split!r} "
            f"({' '.join(str(e).split())[:300]}): check {group}.path and {group}.split, and the network"
        ) from e

    def rows() -> Iterator[Row]:
        batches: Any = found.with_format("arrow").iter(_ROWS_AT_ONCE)
        every = (row for batch in batches for row in batch.to_pylist())
        return ((f"{path} ({split}) row {i}", row) for i, row in enumerate(every, 1))

    return Source(found.column_names if len(found) else [], rows)
