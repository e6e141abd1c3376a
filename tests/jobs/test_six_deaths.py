"""The short form of the campaign: six processes of one run die, one after another, and the run is as if none had.

Everything is real but vLLM's AsyncLLM and the learner's forward and backward.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WAYS = ["engine/sampling", "stage/refining", "pool/train", "learner/sync", "keeper/sampling", "driver/checkpoint"]


@pytest.mark.timeout(900)
def test_six_processes_of_a_run_die_and_nothing_is_lost_done_twice_or_left(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    only = [f"{way}/KILL/stream" for way in WAYS]
    done = subprocess.run(
        [
            sys.executable, ROOT / "jobs" / "chaos.py", "miniature_opsd", "evaluation.path=null", "--rounds", "6",
            "--together", "6", "--stand-ins", "--local", "--folder", tmp_path, "--keep", "--only", *only,
        ],
        capture_output=True, text=True, timeout=800, cwd=tmp_path, env=environment,
    )  # fmt: skip
    said = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, said
    assert "left behind" not in done.stderr
    found = [json.loads((tmp_path / f"round-{number:03d}.json").read_text()) for number in range(6)]
    assert {(r["victim"], r["moment"]) for r in found} == {tuple(way.split("/")) for way in WAYS}
    assert all(r["flaws"] == [] and r["missed"] == "" for r in found), said
    assert [code for r in found for code in r["exits"]] == [137, 0]  # the driver's death, and the command given again
