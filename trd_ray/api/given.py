"""What somebody gives in Python becomes what a recipe can say: keys, files of problems, names of code.

    a recipe's name, file or dict, keys      ->  tree_of()   ->  a tree of keys
    a list of dicts, a Dataset, a frame      ->  problems()  ->  FOLDER/problems-1f0c....jsonl, or .parquet
    what `refine` gave, also filtered        ->  problems()  ->  FOLDER/corpus-1f0c..., which is trained on as a corpus
    a verifier, a metric function, callbacks ->  own_code()  ->  their names (trd_ray.own_source)

A file is named by its content, so the same call names the same file again, and a run can go on.
"""

import contextlib
import datetime
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from trd_ray import config
from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.own_source import reference_to

FOLDER = "given"  # beside the run directory
# Of a file that is written here, whatever the recipe's own source is.
OURS: dict[str, Any] = {"format": "auto", "arguments": {}, "difficulty": None}
_OF_A_CORPUS = {"row", "problem_id", "y_o", "y_r", "response_ids"}
_WANTED = "give a list of dicts, a datasets.Dataset, a pandas or pyarrow table, or the path of a file"


def tree_of(recipe: Any, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a recipe sets, with `keys` above them. Raises UserError.

    At the top a name with dots is a key in a group. Further below it is a name, as that of a set in evaluation.sets.
    """
    if isinstance(recipe, str | os.PathLike):
        tree = config.recipe_tree(os.fspath(recipe))
        if sources := config.sources_beside(tree, config.recipe_path(os.fspath(recipe)).parent):
            tree["verify"]["sources"] = sources  # what is written down lies in another folder
    elif isinstance(recipe, Mapping):
        tree = {}
        _lay(tree, recipe, "")
    else:
        raise UserError(f"a recipe is a name, a file or a dict of keys, but this is of type {type(recipe).__name__}")
    _lay(tree, keys, "")
    return tree


def _lay(tree: dict[str, Any], keys: Mapping[str, Any], within: str) -> None:
    for key, value in keys.items():
        *groups, name = [str(key)] if within else str(key).split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {}) if node.get(group) is not None else _new(node, group)
            if not isinstance(node, dict):
                raise UserError(f"{within}{key}: {group} holds a value, not a group of keys")
        if isinstance(value, Mapping) and isinstance(node.get(name), dict):
            _lay(node[name], value, f"{within}{key}.")
        else:
            node[name] = _plain(value, f"{within}{key}")


def _new(node: dict[str, Any], group: str) -> dict[str, Any]:
    node[group] = {}
    return node[group]


def _plain(value: Any, key: str) -> Any:
    """A value as YAML can hold it. Raises UserError."""
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        _lay(found, value, f"{key}.")
        return found
    if isinstance(value, list | tuple):
        return [_plain(one, key) for one in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and not hasattr(value, "__len__"):  # a number of NumPy
        value = value.item()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise UserError(f"{key} must be a value that YAML can hold, but is of type {type(value).__name__}")


def overrides(tree: Mapping[str, Any], within: str = "") -> list[str]:
    """The tree as overrides of a command: `key.sub=value`."""
    found = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value and not any("." in str(name) for name in value):
            found += overrides(value, f"{within}{key}.")
        else:
            # As YAML writes it: what JSON calls 1e-06, YAML reads as text.
            written = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=sys.maxsize)
            found.append(f"{within}{key}={written.strip()[1:-1]}")
    return found


def write_recipe(tree: dict[str, Any], place: Path) -> Path:
    """A recipe file for the command line, which goes on with the run as well."""
    head = "# Written by trd_ray.api. `trd` takes it like any other recipe.\n"
    with _may_lack(place.parent, "recipe"):
        write_atomically(place, head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    return place


@contextlib.contextmanager
def _may_lack(folder: Path, what: str) -> Iterator[None]:
    """Make the folder; raises UserError where it, or what the block writes into it, cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as e:
        raise UserError(f"{folder} cannot hold the {what} ({e.strerror or e}): set run_dir to another place") from e


# Code


def own_code(
    folder: Path, verifier: Any = None, metric: Any = None, callbacks: Iterable[Any] = ()
) -> dict[str, dict[str, Any] | list[str]]:
    """The keys that name this code. What has no file is written to `folder`. Raises UserError."""
    tree: dict[str, Any] = {}
    if verifier is not None:
        known = isinstance(verifier, str) and ":" not in verifier  # such as math, code, judge
        tree["verify"] = {"function": verifier if known else reference_to(verifier, folder)}
    if metric is not None:
        tree["metrics"] = {"function": reference_to(metric, folder)}
    if isinstance(callbacks, str) or callable(callbacks):
        raise UserError("callbacks is a list: put the class into brackets")
    if named := [reference_to(callback, folder) for callback in callbacks]:
        tree["callbacks"] = named
    return tree


# Problems


def problems(given: Any, folder: Path, name: str = "problems") -> dict[str, Any]:
    """The keys of `data` that name these problems; a corpus, as `refine` gives it, is one. Raises UserError."""
    if isinstance(given, str | os.PathLike):
        path = os.fspath(given)
        is_corpus = (Path(path) / "recipe.yaml").is_file() and (Path(path) / "rows").is_dir()
        return {"source": "corpus" if is_corpus else "problems", "path": path}
    columns = _columns(given)
    if columns is not None and set(columns) >= _OF_A_CORPUS:
        return {"source": "corpus", "path": str(_corpus(given, folder))} | OURS
    if columns is not None:
        place = _written(folder, name, ".parquet", lambda place: _to_parquet(given, place))
        return {"source": "problems", "path": str(place)} | OURS
    if not isinstance(given, Iterable) or isinstance(given, Mapping | bytes):
        if type(given).__name__ == "DatasetDict":
            raise UserError(f"{name} has the parts {', '.join(map(str, given))}: give one of them")
        raise UserError(f"{name} is of type {type(given).__name__}: {_WANTED}")
    place = _written(folder, name, ".jsonl", lambda place: _to_lines(given, place, name))
    return {"source": "problems", "path": str(place)} | OURS


def with_problems(tree: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The recipe with these keys of `data` in place of what it says of where its problems are."""
    return _with_group(tree, "data", found | {"sources": []})


def with_held_out(tree: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The same for the problems that are evaluated."""
    known = config.EvaluationConfig.model_fields
    return _with_group(tree, "evaluation", {key: value for key, value in found.items() if key in known})


def _with_group(tree: dict[str, Any], name: str, keys: dict[str, Any]) -> dict[str, Any]:
    """The tree with these keys of a group, each in place of all that it held. Raises UserError."""
    group = tree.get(name) or {}
    if not isinstance(group, dict):
        raise UserError(f"{name} must be a group of keys, but found {group!r:.80}")
    return tree | {name: group | keys}


def _columns(given: Any) -> list[str] | None:
    """The columns of a table of any library, None for what is no table. No library is imported for that."""
    for module, kind, names in (
        ("datasets", "Dataset", lambda: given.column_names),
        ("pyarrow", "Table", lambda: given.column_names),
        ("pandas", "DataFrame", lambda: [str(name) for name in given.columns]),
    ):
        found = getattr(sys.modules.get(module), kind, None)
        if found is not None and isinstance(given, found):
            return names()
    return None


def _to_parquet(given: Any, place: Path) -> None:
    import pyarrow.parquet as pq

    if not len(given):
        raise UserError("there are no problems: give one at least")
    if hasattr(given, "iloc"):  # a frame of pandas
        given.to_parquet(str(place), index=False)
    elif hasattr(given, "to_parquet"):  # a data set, which may be larger than memory
        given.to_parquet(str(place))
    else:
        pq.write_table(given, place)


def _to_lines(given: Iterable[Any], place: Path, name: str) -> None:
    number = 0
    with open(place, "w", encoding="utf-8") as lines:
        for number, row in enumerate(given, 1):
            if not isinstance(row, Mapping):
                raise UserError(f"row {number} of {name} is of type {type(row).__name__}, not a dict: {_WANTED}")
            try:
                lines.write(json.dumps(dict(row), default=_cell, ensure_ascii=True) + "\n")
            except (TypeError, ValueError) as e:
                raise UserError(
                    f"row {number} of {name} holds what is neither text nor a number nor made of them ({e}): convert it"
                ) from e
    if not number:
        raise UserError(f"there are no {name}: give one at least")


def _cell(value: Any) -> Any:
    """What JSON has no form for."""
    if hasattr(value, "tolist"):  # of NumPy
        return value.tolist()
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"of type {type(value).__name__}")


def _written(folder: Path, name: str, ending: str, write: Callable[[Path], None]) -> Path:
    """A file that is named by its content."""
    fresh = folder / f".{name}.{secrets.token_hex(8)}.tmp{ending}"
    with _may_lack(folder, name):
        try:
            write(fresh)
            place = folder / f"{name}-{_digest(fresh)}{ending}"
            os.replace(fresh, place)
        finally:
            fresh.unlink(missing_ok=True)
    return place.absolute()


def _corpus(given: Any, folder: Path) -> Path:
    """The folder of a corpus with these rows, in their order."""
    import numpy as np
    import pyarrow as pa

    from trd_ray.record.directory import write_parquet
    from trd_ray.rows import ROW, SCHEMA_VERSION

    table = given if isinstance(given, pa.Table) else _arrow(given)
    if not table.num_rows:
        raise UserError("the corpus has no rows: keep some of them")
    missing = [field for field in ROW if field.name not in table.column_names]
    for field in missing:
        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    try:
        table = table.select(ROW.names).cast(ROW)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as e:
        why = " ".join(str(e).split())[:200]
        raise UserError(f"these rows are no corpus of version {SCHEMA_VERSION} ({why}): keep its columns") from e
    at = table.column_names.index("row")
    table = table.set_column(at, ROW.field("row"), pa.array(np.arange(table.num_rows), pa.int64()))
    fresh = folder / f".corpus.{secrets.token_hex(8)}.tmp"
    with _may_lack(folder, "corpus"):
        try:
            (fresh / "rows").mkdir(parents=True)
            file = write_parquet(fresh / "rows" / "step-000001.parquet", table)
            place = folder / f"corpus-{_digest(file)}"
            if not place.is_dir():
                os.replace(fresh, place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return place.absolute()


def _arrow(given: Any) -> Any:
    """The table of a data set, after its filters and its order; or of a frame."""
    if hasattr(given, "with_format"):
        return given.with_format("arrow")[:]
    import pyarrow as pa

    return pa.Table.from_pandas(given, preserve_index=False)


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]
