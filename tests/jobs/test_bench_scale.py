"""Engines that the policy moves end near the best fixed split, in simulated runs whose pools and clients are real."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
import bench_scale  # noqa: E402
from scale_bench import virtual  # noqa: E402
from scale_bench.story import Scene  # noqa: E402

SHORT = Scene(engines=4, steps=18, rows=40, look_s=4.0)


def test_the_clock_of_a_simulation_jumps_to_what_is_due_in_its_order():
    async def story() -> list[tuple[float, str]]:
        seen: list[tuple[float, str]] = []

        async def after(seconds: float, name: str) -> None:
            await asyncio.sleep(seconds)
            seen.append((asyncio.get_running_loop().time(), name))

        await asyncio.gather(after(86_400, "late"), after(60, "first"), after(3600, "second"))
        return seen

    assert virtual.run(story()) == [(60, "first"), (3600, "second"), (86_400, "late")]


@pytest.mark.parametrize("workload", bench_scale.WORKLOADS, ids=lambda workload: workload.name)
def test_engines_that_move_by_themselves_are_within_a_tenth_of_the_best_split_with_the_same_ledger(workload):
    *fixed, scaled = bench_scale.lines(SHORT, workload, begins=["even"])
    assert {one.begins for one in fixed} == {"1:3", "2:2", "3:1"}
    assert scaled.begins == "2:2, scaled" and scaled.to_best < 1.10, scaled
    assert all(one.same_ledger for one in [*fixed, scaled])
    assert len(scaled.changes) <= 4  # it settles


def test_a_run_that_begins_with_one_engine_each_gets_the_others():
    *_, scaled = bench_scale.lines(replace(SHORT, steps=8), bench_scale.WORKLOADS[0], begins=["one"])
    assert scaled.begins == "1:1, scaled" and scaled.changes[-1].endswith("3:1") and scaled.same_ledger


def test_the_program_prints_a_line_for_the_best_split_and_for_each_scaled_run():
    command = [sys.executable, ROOT / "jobs" / "bench_scale.py", "--engines", "2", "--steps", "2", "--rows", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("scaled | ") == 6 and "differs" not in done.stdout
    refused = subprocess.run([*command, "--engines", "1"], capture_output=True, text=True, timeout=280)
    assert refused.returncode == 2 and "2 engines or more" in refused.stderr
