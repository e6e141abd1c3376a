"""The alarms of whole runs of a real model on few rows: exactly those that its rows show to be true, and Ray's spills.

pytest -m long tests/train/test_alarmed_runs.py
"""

import json
import shutil
import tempfile
import time

import pytest

from runs import run
from trd_ray import alarms
from trd_ray.alarms.replay import of_run
from trd_ray.train.store_spills import asked, spilled_bytes

pytestmark = pytest.mark.long
LIMITS = {"sampler.max_response_tokens": 64, "refiner.max_response_tokens": 96}


def at_least(count: int, n: int, share: float) -> float:
    """The chance of so many, by another library than the alarms use."""
    from scipy.stats import binom

    return float(binom.sf(count - 1, n, share))


def true_of(rows: list[dict]) -> set[str]:
    """Which alarms of texts these rows, all of a run of two steps, show to be true in the first step or in both."""
    found = set()
    for y in ("y_o", "y_r"):
        for those in ([row for row in rows if row["step"] == 1], rows):
            texts = [row[y] for row in those if row[y] is not None]
            cut = [text for text in texts if text["finish"] == "length"]
            ended = [text for text in texts if text["finish"] != "length"]
            mute = [text for text in ended if not text["extracted"] and not text["passed"]]
            if cut and at_least(len(cut), len(texts), 0.25) < 0.005:
                found.add(f"truncated_{y}")
            if mute and at_least(len(mute), len(ended), 0.25) < 0.005:
                found.add(f"no_answer_{y}")
    return found


@pytest.mark.parametrize("keys", [[], [f"{key}={limit}" for key, limit in LIMITS.items()]], ids=["smoke", "64 tokens"])
def test_smollm2_raises_exactly_the_alarms_that_its_rows_show_to_be_true(tmp_path, keys):
    done = run(tmp_path / "run", "train", "smollm2_smoke", "rollouts_per_step=8", *keys, timeout_s=1800)
    assert done.code == 0, done.output[-3000:]
    told = alarms.read(done.directory)
    assert {one["name"] for one in told} == true_of(done.rows)
    if keys:
        assert "truncated_y_o" in {one["name"] for one in told}
    for one in told:
        assert done.output.count(f"alarm: {one['name']}: {one['sentence']}") == 1
        assert one["sentence"] in (done.directory / "summary.md").read_text()
    assert of_run(done.directory).told() == told
    assert all(f"alarm/{one['name']}" in done.metrics[one["since_step"] - 1] for one in told)
    evaluations = [
        json.loads(line)["name"]
        for line in (done.directory / "events.jsonl").read_text().splitlines()
        if '"kind": "evaluation"' in line
    ]
    assert evaluations == ["base", "trained"]


def test_ray_tells_what_its_object_store_spills():
    import numpy as np
    import ray

    # The path of a socket has at most 107 characters, so the folder is not one of pytest's.
    folder = tempfile.mkdtemp(prefix="ray-")
    ray.init(num_cpus=1, object_store_memory=80 * 2**20, _temp_dir=folder, include_dashboard=False)
    try:
        assert spilled_bytes(asked()) == 0
        kept = [ray.put(np.zeros(20 * 2**20, np.uint8)) for _ in range(8)]
        deadline = time.monotonic() + 30
        while not (spilled := spilled_bytes(asked())) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert spilled >= 60 * 2**20 and len(kept) == 8
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
