"""The stream benchmark measures a whole run, in which only vLLM and the learner's arithmetic are replaced."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = (
    "--rows 64 --steps 3 --engines 8 --raw-median 40 --refined-median 20 --max-tokens 80 "
    "--token-seconds 0.002 --learner-seconds 0.05 --scale 1 --idle-seconds 3"
)


def test_a_whole_run_is_measured_and_leaves_no_process(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, ROOT / "jobs" / "bench_stream.py", *TINY.split(), "--json"],
        capture_output=True, text=True, timeout=200, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "left behind" not in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ratio"] == pytest.approx(found["wall_s"] / found["bound_s"]) and found["ratio"] > 1
    assert f"ratio               {found['ratio']:.3f}" in done.stdout
    # The bound is what the lengths say: the slowest row, and the learner's sleep.
    sampled, refined, trained = (found["slowest_s"][name] for name in ("S", "R", "T"))
    assert found["bound_s"] == pytest.approx(sampled + refined + 0.05) and trained == 0.05
    assert 0 < sampled + refined <= 160 * 0.002
    for role in ("driver", "pools", "stages", "verifiers", "learner", "engine hosts"):
        assert found["cpu_ms_a_row"][role] > 0, role
    assert found["busiest"][0]["rows_per_s_at_one_core"] > 0
