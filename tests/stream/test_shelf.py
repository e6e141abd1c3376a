"""The shelf puts the tests of a problem into the object store for who asks, and keeps none itself."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.exceptions import ObjectLostError

from trd_ray.problems.columns import SCHEMA
from trd_ray.problems.spool import Spool
from trd_ray.stream.shelf import start_shelf

MIB = 2**20


def problems(spool: Spool, tests: Sequence[bytes | None]) -> pa.Table:
    ids = [f"p{number}" for number in range(len(tests))]
    for one in tests:
        spool.add(one)
    known = {"problem_id": ids, "problem": ids, "answer": [""] * len(ids), "reference": [""] * len(ids)}
    known |= {"tests": spool.finish(ids)}
    return pa.table({name: known.get(name, [None] * len(ids)) for name in SCHEMA.names}, schema=SCHEMA)


@pytest.fixture(scope="module", autouse=True)
def spilled(tmp_path_factory) -> Iterator[Path]:
    """A local Ray, whose store writes what does not fit into this folder."""
    folder = tmp_path_factory.mktemp("spilled")
    ray.init(
        address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=200 * MIB,
        object_spilling_directory=str(folder),
    )  # fmt: skip
    yield folder
    ray.shutdown()


@ray.remote(num_cpus=0)
def length_of(tests: bytes) -> int:
    return len(tests)


def test_each_problem_has_its_own_tests_wherever_filtering_left_it():
    spool = Spool()
    tests = [b"a" * 10, None, b"b" * 300_000, b"c"]
    whole = problems(spool, tests)
    kept = whole.filter(pa.array([False, True, True, True]))
    shelf = start_shelf(kept, spool)
    assert shelf is not None
    for number, expected in enumerate(tests[1:]):
        refs = ray.get(shelf.tests.remote(number))
        assert [ray.get(ref) for ref in refs] == ([expected] if expected else [])


def test_no_shelf_is_started_where_no_program_runs():
    spool = Spool()
    table = problems(spool, [None, None])
    assert start_shelf(table, spool) is start_shelf(table, None) is None


def test_the_store_holds_only_what_somebody_holds(spilled):
    """Ten times its size goes through the store, of which nothing is left in it or beside it but what is held."""
    spool = Spool()
    tests = [np.random.default_rng(seed).bytes(20 * MIB) for seed in range(4)]
    shelf = start_shelf(problems(spool, tests), spool)
    assert shelf is not None
    [held] = ray.get(shelf.tests.remote(0))
    for asked in range(100):
        [ref] = ray.get(shelf.tests.remote(asked % 4))
        assert ray.get(length_of.remote(ref)) == 20 * MIB
        del ref
    assert ray.get(held) == tests[0]
    assert [file for file in spilled.rglob("*") if file.is_file()] == []


def test_what_a_dead_shelf_had_put_is_lost_for_a_verifier_and_the_restarted_one_puts_it_again():
    """The stage asks again after this error, see flow.py."""
    spool = Spool()
    tests = [b"a" * 300_000]
    shelf = start_shelf(problems(spool, tests), spool)
    assert shelf is not None
    [ref] = ray.get(shelf.tests.remote(0))
    ray.kill(shelf, no_restart=False)
    with pytest.raises(ObjectLostError):  # once the store has heard of the death
        for _ in range(600):
            ray.get(length_of.remote(ref), timeout=60)
            time.sleep(0.1)
    [ref] = ray.get(shelf.tests.remote(0), timeout=60)
    assert ray.get(length_of.remote(ref), timeout=60) == 300_000
