"""Tests lie on disk: the column of them reads as one in memory does, and nothing is left of the file."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trd_ray.config import DataConfig
from trd_ray.errors import UserError
from trd_ray.problems import spool
from trd_ray.problems.columns import SCHEMA
from trd_ray.problems.load import load_problems
from trd_ray.problems.sources import rows_of
from trd_ray.problems.spool import spooled, where
from trd_ray.verify.code.tests import Tests

PACKED: list[bytes | None] = [b"a" * 7, None, b"b", None, b"c" * 100_000, b"d" * 3]


def rows(tests: Sequence[bytes | None]) -> list[dict]:
    texts = {"problem": "?", "answer": "", "reference": ""}
    return [texts | {"problem_id": f"p{number}", "tests": one} for number, one in enumerate(tests)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def write_many(file: Path, problems: int, bytes_of_tests: int) -> list[Tests]:
    """A data set whose tests are random digits, and what they are."""
    rng = np.random.default_rng(0)
    made = [Tests("stdio", [rng.bytes(bytes_of_tests // 2).hex()], ["1"], "tokens") for _ in range(problems)]
    with file.open("w") as lines:
        for number, one in enumerate(made):
            tests = {"kind": one.kind, "inputs": one.inputs, "outputs": one.outputs}
            lines.write(json.dumps({"problem": f"{number}?", "tests": tests}) + "\n")
    return made


@pytest.mark.parametrize("chunk_bytes", [1, 8, 2**30])
@pytest.mark.parametrize("tests", [PACKED, PACKED[1:], [None, None], [b"x"], []])
def test_a_column_on_disk_equals_the_one_in_memory(monkeypatch, chunk_bytes, tests):
    monkeypatch.setattr(spool, "CHUNK_BYTES", chunk_bytes)
    table, _ = spooled(iter(rows(tests)), SCHEMA)
    assert table.equals(pa.Table.from_pylist(rows(tests), schema=SCHEMA))
    assert table["tests"].null_count == tests.count(None)
    table.validate(full=True)


@pytest.mark.parametrize("keep", ["......", "xxxxxx", "x..xx.", ".xx..x"])
def test_rows_that_are_kept_are_those_that_a_filter_keeps_and_their_tests_are_found_in_the_file(keep):
    table, file = spooled(iter(rows(PACKED)), SCHEMA)
    mask = [mark == "x" for mark in keep]
    kept = where(table, mask)
    assert kept.equals(table.filter(pa.array(mask)))
    with open(file.path, "rb") as opened:
        for (start, length), tests in zip(file.places(kept["problem_id"].to_pylist()), kept["tests"], strict=True):
            opened.seek(start)
            assert (opened.read(length) or None) == tests.as_py()


def test_texts_of_rows_that_are_kept_lie_together():
    kept = where(spooled(iter(rows(PACKED)), SCHEMA)[0], [True, False, True, False, True, False])
    assert kept["problem"].num_chunks == 1 and kept["tests"].num_chunks == 3


def test_tests_outlive_their_spool_and_no_file_is_ever_seen(folder, tmp_path):
    made = write_many(tmp_path / "p.jsonl", 5, 1000)
    found = load_problems(DataConfig(path=str(tmp_path / "p.jsonl")))
    assert list(folder.iterdir()) == []
    table = found.table
    del found
    assert [Tests.unpack(packed) for packed in table["tests"].to_pylist()] == made


def test_mathematics_opens_no_file(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "opened", lambda: pytest.fail("a file was opened"))
    (tmp_path / "p.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n')
    assert not load_problems(DataConfig(path=str(tmp_path / "p.jsonl"))).has_tests


@pytest.mark.parametrize("bytes_of_tests", [10, 100_000])  # the disk is full when the file is flushed, or before
def test_a_full_disk_is_one_sentence(folder, tmp_path, monkeypatch, bytes_of_tests):
    write_many(tmp_path / "p.jsonl", 3, bytes_of_tests)
    monkeypatch.setattr(spool, "opened", lambda: os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb"))
    with pytest.raises(UserError) as refused:
        load_problems(DataConfig(path=str(tmp_path / "p.jsonl")))
    [sentence] = refused.value.sentences
    assert str(folder) in sentence and os.strerror(errno.ENOSPC) in sentence and "TMPDIR" in sentence


def test_memory_does_not_grow_with_the_tests_of_a_data_set(tmp_path):
    """200 MB of tests are loaded, kept in part, and looked at one by one, in a process that may take 50 MB for it."""
    file = tmp_path / "p.jsonl"
    write_many(file, 400, 500_000)
    program = f"""
import resource
from trd_ray.config import DataConfig
from trd_ray.problems.load import load_problems
from trd_ray.problems.spool import where
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_problems(DataConfig(path="word_problems:train"))
before = peak()
found = load_problems(DataConfig(path={str(file)!r}))
kept = where(found.table, [number % 2 for number in range(400)])
assert kept.num_rows == 200 and found.table["tests"].nbytes > 90e6, found.table["tests"].nbytes
print(peak() - before)
"""
    kib = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert int(kib) < 50 * 1024


def test_a_parquet_file_of_one_group_is_read_a_few_rows_at_a_time(tmp_path):
    file = tmp_path / "p.parquet"
    text = "x" * 10_000
    made = pa.table({"problem": [f"{number}{text}" for number in range(6000)]})
    pq.write_table(made, file, compression="none", use_dictionary=False)
    before = pa.total_allocated_bytes()
    grown = [pa.total_allocated_bytes() - before for _ in rows_of(file)]
    assert len(grown) == 6000 and max(grown) < made.nbytes / 3
