"""Where problems come from: files, folders, the Hugging Face hub, and what ships with the package.

    data.path, data.format, data.split  ->  read()  ->  rows as they are, each with its place, and the column names

A source that is missing, empty, cut off or not what its name says is refused as a UserError. What the columns mean is
for `data` to say.
"""

import glob
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trd_ray import config
from trd_ray.errors import UserError

_SUFFIXES = {".jsonl", ".json", ".parquet"}
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.-]+)?")

# Where a row stands, for messages, and its columns.
Row = tuple[str, dict[str, Any]]


def read(spec: config.Data | config.Evaluation, group: str) -> tuple[list[Row], list[str]]:
    """All rows of a source, and the names of its columns."""
    path = str(spec.path)
    made, _, part = path.partition(":")
    if made in ("miniature", "word_problems") and not Path(path).exists():
        return _made_here(made, part, group)
    if spec.format == "hub":
        return _hub(path, spec.split, group)
    files = _files(path)
    if not files:
        looks_local = Path(path).suffix in _SUFFIXES or not _HUB_NAME.fullmatch(path)
        if looks_local or spec.format != "auto":
            raise UserError(f"there is no data file {path}: set {group}.path to a JSONL or Parquet file that exists")
        return _hub(path, spec.split, group)
    found: list[Row] = []
    names: dict[str, None] = {}
    for file in files:
        rows_of_file, columns = _parquet(file) if _is_parquet(file, spec.format) else _json(file)
        found += rows_of_file
        names |= dict.fromkeys(columns)
    return found, list(names)


def _files(path: str) -> list[Path]:
    here = Path(path).expanduser()
    if here.is_file():
        return [here]
    found = here.rglob("*") if here.is_dir() else map(Path, glob.glob(str(here), recursive=True))
    files = sorted(f for f in found if f.is_file() and f.suffix in _SUFFIXES)
    if here.is_dir() and not files:
        raise UserError(
            f"folder {path} holds no .jsonl, .json or .parquet file: put the problems there in one of these"
        )
    return files


def _is_parquet(file: Path, form: str) -> bool:
    return form == "parquet" or (form == "auto" and file.suffix == ".parquet")


def _json(file: Path) -> tuple[list[Row], list[str]]:
    """A file of one object a line, or one list of objects (.json)."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{file} is not UTF-8 text: save it as UTF-8 JSON lines, or name a Parquet file") from e
    except OSError as e:
        raise UserError(f"{file} cannot be read ({e.strerror}): check its permissions") from e
    if not text.strip():
        raise UserError(f"data file {file} is empty: put one JSON object with problem and answer on each line")
    if file.suffix == ".json" and text.lstrip()[0] == "[":
        try:
            found = json.loads(text)
        except json.JSONDecodeError as e:
            raise UserError(f"{file} line {e.lineno} is not valid JSON ({e.msg}); is the file cut off?") from e
        if not found:
            raise UserError(f"data file {file} is empty: put JSON objects with problem and answer into its list")
        return _listed(str(file), found)
    found = []
    # Not splitlines(): JSON strings may hold U+2028 and its like.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found.append((f"{file} line {number}", json.loads(line)))
            except json.JSONDecodeError as e:
                raise UserError(
                    f"{file} line {number} is not valid JSON ({e.msg}); is the file cut off? Mend or remove that line"
                ) from e
    return _objects(found)


def _listed(source: str, found: list[Any]) -> tuple[list[Row], list[str]]:
    return _objects([(f"{source} row {i}", row) for i, row in enumerate(found, 1)])


def _objects(found: list[tuple[str, Any]]) -> tuple[list[Row], list[str]]:
    names: dict[str, None] = {}
    for where, row in found:
        if not isinstance(row, dict):
            raise UserError(f"{where} holds a {type(row).__name__}, expected an object such as {_EXAMPLE}")
        names |= dict.fromkeys(row)
    return found, list(names)


_EXAMPLE = '{"problem": "1+1?", "answer": "2"}'


def _parquet(file: Path) -> tuple[list[Row], list[str]]:
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as e:
        if file.stat().st_size == 0:
            raise UserError(f"data file {file} is empty: write problems to it") from e
        raise UserError(
            f"{file} is not a readable Parquet file ({str(e).splitlines()[0]}): it may be cut off, so write it again"
        ) from e
    found = [(f"{file} row {i}", row) for i, row in enumerate(table.to_pylist(), 1)]
    return found, table.column_names


def _hub(path: str, split: str, group: str) -> tuple[list[Row], list[str]]:
    import datasets
    import datasets.config
    from huggingface_hub import HfApi

    name, _, subset = path.partition(":")
    cached = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    try:
        if not cached.exists():
            HfApi().dataset_info(name, timeout=10)  # says no at once, where load_dataset retries for half a minute
        found = datasets.load_dataset(name, subset or None, split=split)
    except Exception as e:  # from the hub's HTTP client too, which differs between its versions
        raise UserError(
            f"{path} is neither a file or folder here nor a Hugging Face data set with the split {split!r} "
            f"({' '.join(str(e).split())[:300]}): check {group}.path and {group}.split, and the network"
        ) from e
    return _listed(f"{path} ({split})", found.to_list())[0], found.column_names


def _made_here(name: str, part: str, group: str) -> tuple[list[Row], list[str]]:
    parts = ("train", "test", "tune") if name == "miniature" else ("train", "test")
    if part not in parts:
        raise UserError(f"{name} comes in parts: set {group}.path to {' or '.join(f'{name}:{p}' for p in parts)}")
    if name == "miniature":
        from trd_ray.miniature import problems

        return _listed(f"{name}:{part}", problems(part))
    found, names = _json(Path(str(resources.files("trd_ray") / "recipes" / "word_problems.jsonl")))
    return [(where, row) for where, row in found if row["split"] == part], names
