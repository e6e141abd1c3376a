"""Whole evaluations, as a user starts them: what they leave, and how they go on."""

import contextlib
import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from runs import Finished, descendants, finish, held_out, run, start
from trd_ray.score.stats import from_json

pytestmark = pytest.mark.timeout(400)

QUICK = ["evaluation.bootstrap=200"]


def samples_in(directory: Path, name: str = "own") -> list[dict]:
    place = directory / "evaluation" / f"{name}.jsonl"
    lines = place.read_bytes().splitlines(keepends=True) if place.exists() else []
    return [line for line in map(json.loads, (x for x in lines if x.endswith(b"\n"))) if line.get("kind") == "sample"]


def key(sample: dict) -> tuple[str, int]:
    return sample["problem_id"], sample["sample"]


def wait_for_samples(process, directory: Path, n: int) -> None:
    deadline = time.monotonic() + 200
    while len(samples_in(directory)) < n:
        assert process.poll() is None, Path(f"{directory}.out").read_text()[-3000:]
        assert time.monotonic() < deadline, f"no {n} samples came"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    held_out(folder / "own.jsonl", 40)
    held_out(folder / "other.jsonl", 10, first=40)
    return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Finished:
    """Two benchmarks, 8 samples a problem, never interrupted."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    names = [str(data / "own.jsonl"), str(data / "other.jsonl")]
    return run(directory, "evaluate", "miniature:student", *names, *QUICK, "evaluation.samples=8")


def test_an_evaluation_leaves_scores_samples_and_a_report(whole):
    assert whole.code == 0, whole.output[-3000:]
    assert whole.left == []
    for name, n in (("own", 40), ("other", 10)):
        found = json.loads((whole.directory / "evaluation" / f"{name}.json").read_text())
        score = from_json(found)
        assert (score.problems, score.samples, score.name) == (n, 8, "miniature-student")
        assert set(score.scores) == {"avg@8", *(f"pass@{k}" for k in range(1, 9))}
        assert sum(len(b["problems"]) for b in found["buckets"]) == n
        assert found["settings"]["evaluation"]["temperature"] == 1
        rows = pq.read_table(whole.directory / "evaluation" / f"{name}.parquet").to_pylist()
        assert len(rows) == 8 * n
        assert sum(r["y_o"]["passed"] for r in rows) == sum(map(sum, score.per_problem.values())) > 0
        assert all(r["y_o"]["passed"] == score.per_problem[r["problem_id"]][r["sample"]] for r in rows)
        assert all(len(r["y_o"]["ids"]) == r["tokens"] and r["y_o"]["text"] and r["seed"] for r in rows)
    report = (whole.directory / "evaluation.md").read_text()
    for part in ("## Summary", "| mean |", "## own", "## other", "| never |", "Pass@8"):
        assert part in report
    page = (whole.directory / "report.html").read_text()
    assert "Problems ever solved" in page and "other: miniature-student has Avg@8" in page
    for part in ("Avg@8", "Pass@2", "Cut at the length limit", "all benchmarks"):
        assert part in whole.output


@pytest.mark.timeout(900)  # three starts
def test_a_killed_evaluation_goes_on_and_samples_nothing_twice(whole, data, tmp_path):
    """SIGKILL, then Ctrl-C, then to the end; the last start asks for more samples of fewer at a time."""
    assert whole.code == 0
    directory = tmp_path / "run"
    command = (directory, "evaluate", "miniature:student", str(data / "own.jsonl"), *QUICK)
    slowly = ["sampler.max_concurrent=4"]

    process = start(*command, *slowly, "evaluation.samples=4")
    wait_for_samples(process, directory, 30)
    others = descendants(process.pid)
    process.kill()
    process.wait()
    for other in others:  # a driver that is killed leaves Ray's own agents behind
        with contextlib.suppress(psutil.NoSuchProcess):
            other.kill()
    first = samples_in(directory)
    assert 30 <= len(first) < 160
    with open(directory / "evaluation" / "own.jsonl", "ab") as file:
        file.write(b'{"kind": "sample", "problem_id": "test-0')

    process = start(*command, *slowly, "evaluation.samples=4")
    wait_for_samples(process, directory, len(first) + 20)
    os.killpg(process.pid, signal.SIGINT)
    stopped = finish(process, directory)
    assert stopped.code == 130 and stopped.left == [], stopped.output[-3000:]
    assert "the same command goes on" in stopped.output
    second = samples_in(directory)
    assert second[: len(first)] == first and len(second) < 160

    done = run(*command, "evaluation.samples=8")
    assert done.code == 0, done.output[-3000:]
    third = samples_in(directory)
    assert third[: len(second)] == second
    assert Counter(map(key, third)) == Counter((s["problem_id"], i) for s in samples_in(whole.directory)
                                               if s["sample"] == 0 for i in range(8))  # fmt: skip
    # The same seeds; which samples are decoded beside it moves a logit's last bits, and thereby, rarely, a token.
    uninterrupted = {key(s): s for s in samples_in(whole.directory)}
    same = [s["ids"] == uninterrupted[key(s)]["ids"] for s in third]
    assert all(s["seed"] == uninterrupted[key(s)]["seed"] for s in third)
    assert sum(same) / len(same) >= 0.99


def test_another_k_a_base_and_a_changed_temperature_start_no_engine(whole, data, tmp_path):
    assert whole.code == 0
    directory = tmp_path / "run"
    shutil.copytree(whole.directory, directory)
    command = (directory, "evaluate", "miniature:student", str(data / "own.jsonl"), *QUICK)
    fewer = run(*command, "evaluation.samples=4", "--base", str(whole.directory), "--name", "again")
    assert fewer.code == 0 and "starting" not in fewer.output, fewer.output[-3000:]
    found = json.loads((directory / "evaluation" / "own.json").read_text())
    score, base = from_json(found), from_json(json.loads((whole.directory / "evaluation" / "own.json").read_text()))
    assert score.per_problem == {p: samples[:4] for p, samples in base.per_problem.items()}
    assert score.paired_with is not None and score.paired_with.name == "miniature-student"
    gain = score.scores["avg@4"].value - base.scores["avg@8"].value
    assert score.paired_with.differences["avg@4"].value == pytest.approx(gain)
    assert "again - miniature-student" in fewer.output and "solved by miniature-student" in fewer.output

    before = (directory / "evaluation" / "own.jsonl").read_bytes()
    hot = run(*command, "evaluation.temperature=0.9")
    assert hot.code == 2 and "put back evaluation.temperature=1.0 (now 0.9)" in hot.output
    other = run(directory, "evaluate", "miniature:teacher", str(data / "own.jsonl"), *QUICK)
    assert other.code == 2 and "samples of other weights" in other.output
    assert (directory / "evaluation" / "own.jsonl").read_bytes() == before
