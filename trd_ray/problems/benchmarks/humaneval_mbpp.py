"""HumanEval+ and MBPP+ from evalplus's own release files.

    the override variable | evalplus's cached download | its download from GitHub | NAME:PATH  ->  find()  ->  a file
    a line of it  ->  the prompt, and tests whose expected outputs the canonical solution gives in the sandbox

A line has task_id, prompt, entry_point, canonical_solution, base_input, plus_input, contract and atol.

The expected outputs of a file are made once, in parallel, and kept under a hash of the file.
"""

import gzip
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.request import urlopen

import pyarrow as pa

from trd_ray import cache, rows
from trd_ray.errors import UserError
from trd_ray.files import taking_place
from trd_ray.problems import sources
from trd_ray.problems.benchmarks import fields
from trd_ray.problems.benchmarks.catalogue import Entry

Name = Literal["humaneval_plus", "mbpp_plus"]

DOWNLOAD_TIMEOUT_S = 10.0  # the longest wait for the server, each time

_VERSION = 1  # raised when the cache is to hold something else
_OVERRIDES = {"humaneval_plus": "HUMANEVAL_OVERRIDE_PATH", "mbpp_plus": "MBPP_OVERRIDE_PATH"}


def find(entry: Entry, place: str) -> Path:
    """The release file: `place`, else what the override variable names, else evalplus's own, downloaded if absent."""
    override = _OVERRIDES[entry.name]
    place = place or os.environ.get(override, "")
    if not place:
        return _own_copy(entry)
    files = sources.data_files(place)
    named = [file for pattern in entry.files for file in files if file.match(pattern)] or files
    if not named:
        raise UserError(f"there is no file {place} (from {entry.name}:PATH or {override}): {remedy(entry)}")
    if len(named) > 1:
        raise UserError(f"{place} holds {len(named)} data files: name the one with {entry.title}")
    return named[0]


def remedy(entry: Entry) -> str:
    url, _ = _published(entry)
    return f"download {url} where there is a network, and name {entry.name}:FILE or set {_OVERRIDES[entry.name]}=FILE"


def _published(entry: Entry) -> tuple[str, Path]:
    """The address from which evalplus downloads its release, and the file that it writes."""
    from evalplus.data import humaneval, mbpp
    from evalplus.data.utils import get_dataset_metadata

    if entry.name == "humaneval_plus":
        url, path = get_dataset_metadata("HumanEvalPlus", humaneval.HUMANEVAL_PLUS_VERSION, mini=False)
    else:
        url, path = get_dataset_metadata("MbppPlus", mbpp.MBPP_PLUS_VERSION, mini=False)
    return url, Path(path)


def _own_copy(entry: Entry) -> Path:
    url, path = _published(entry)
    if not path.is_file():
        try:
            download(url, path)
        except (OSError, EOFError, HTTPException, zlib.error) as e:  # URLError and BadGzipFile are OSErrors
            raise UserError(f"{url} could not be downloaded, and {path} is not there ({e}): {remedy(entry)}") from e
    return path


def download(url: str, path: Path) -> None:
    """Download what evalplus itself would leave at `path`, but whole or not at all, and with a limit on each wait."""
    with urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as answer:
        text = gzip.decompress(answer.read())
    path.parent.mkdir(parents=True, exist_ok=True)
    with taking_place(path, rivals=True) as temporary:
        temporary.write_bytes(text)


def problems(file: Path, name: Name, sandbox: str, limit: int | None) -> pa.Table:
    """The problems of a release file as rows.PROBLEM. An id is `name/` and evalplus's task_id."""
    key = cache.digest([file], _VERSION, name, limit)
    return cache.kept(f"{name}-{key}", pa.schema(rows.PROBLEM), lambda: _made(file, name, sandbox, limit))


def _made(file: Path, name: Name, sandbox: str, limit: int | None) -> pa.Table:
    from trd_ray.sandbox import Sandbox
    from trd_ray.verify.code.evalplus import FIELDS, evalplus_tests

    found = list(sources.rows_of(file))[:limit]
    for where, row in found:
        missing = [field for field in FIELDS if field not in row]
        if missing:
            raise UserError(
                f"{where} is no task of evalplus's release: expected the columns {', '.join(FIELDS)}, found "
                f"{', '.join(row)}; the hub's evalplus/humanevalplus and evalplus/mbppplus have another schema"
            )
    shared = Sandbox(sandbox)

    def problem(row: dict[str, Any]) -> dict[str, Any]:
        tests = evalplus_tests(row, name, shared)
        return fields.problem(row["prompt"].strip(), row["task_id"], tests=tests.pack())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return fields.table(name, list(pool.map(problem, [row for _, row in found])))
