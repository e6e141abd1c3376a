import json
import math

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trd_ray.record.metrics import Metrics, line

STEP = {
    "y_o/passed": 0.25,
    "y_r/passed": 0.875,
    "y_o/tokens_mean": 812.4,
    "y_r/tokens_mean": 344.0,
    "kl/mean": 0.12345,
    "lr": 2e-6,
    "sync/gap_mean": 1.2e-5,
    "tokens_per_s/sampler": 7000.0,
    "tokens_per_s/refiner": 900.0,
    "seconds/step": 12.34,
}


def scalars(directory, name: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(directory / "tensorboard"))
    board.Reload()
    return [(e.step, round(e.value, 4)) for e in board.Scalars(name)]


def test_a_step_is_in_every_file_as_soon_as_it_is_logged(tmp_path):
    metrics = Metrics(tmp_path, total_steps=10)
    metrics.log(1, STEP)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1} | STEP
    assert (tmp_path / "train.log").read_text() == line({"step": 1} | STEP, 10) + "\n"
    metrics.close()
    assert scalars(tmp_path, "kl/mean") == [(1, 0.1235)]


def test_numbers_that_are_not_finite_are_null_and_every_line_is_strict_json(tmp_path):
    odd = {"loss": math.nan, "grad_norm": math.inf, "kl/mean": torch.tensor(0.5), "rollouts": np.int64(3), "note": "x"}
    with Metrics(tmp_path, 2) as metrics:
        metrics.log(1, odd)

    def refuse(word):
        raise AssertionError(word)

    kept = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert kept == {"step": 1, "loss": None, "grad_norm": None, "kl/mean": 0.5, "rollouts": 3, "note": "x"}


def test_a_resumed_run_goes_on_in_the_same_files(tmp_path):
    with Metrics(tmp_path, 4) as metrics:
        for step in (1, 2, 3):
            metrics.log(step, {"loss": float(step)})
    with Metrics(tmp_path, 4, done=2) as metrics:
        metrics.log(3, {"loss": 30.0})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_half_a_line_that_a_crash_left_is_taken_back(tmp_path):
    with Metrics(tmp_path, 10) as metrics:
        metrics.log(1, STEP)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    with Metrics(tmp_path, 10, done=1) as metrics:
        metrics.log(2, STEP)
    assert [json.loads(text)["step"] for text in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_lines_stand_in_columns_whatever_was_measured():
    lines = [line({"step": 1}, 120), line({"step": 100} | STEP, 120), line({"step": 8, "kl/mean": None}, 120)]
    assert len({len(text) for text in lines}) == 1
    assert len({tuple(i for i, c in enumerate(text) if c in ">/+") for text in lines}) == 1
    assert lines[1].startswith("step 100/120  pass 0.250 > 0.875  tokens   812 >   344  KL  0.1235")


def test_rows_that_nothing_trained_on_have_no_columns_of_a_learner():
    rows = {"step": 1, "rollouts": 8} | {name: STEP[name] for name in STEP if name.startswith("y_")}
    assert line(rows, 120) == "step   1/120  pass 0.250 > 0.875  tokens   812 >   344"
    dropped = line(rows | {"lr": 2e-6}, 120)  # a step of training whose rows were all dropped
    assert "KL       -" in dropped and "lr 2.0e-06" in dropped


def test_a_measured_number_that_is_not_finite_is_told_from_one_that_was_not_measured(tmp_path):
    broken = STEP | {"kl/mean": math.nan, "skipped_updates": 2.0}
    with Metrics(tmp_path, 10) as metrics:
        told = metrics.log(1, broken)
    assert (tmp_path / "train.log").read_text() == told + "\n" == line({"step": 1} | broken, 10) + "\n"
    assert "KL     nan " in told and told.endswith("  2 updates skipped")
    assert "KL       - " in line({"step": 1} | STEP | {"kl/mean": None}, 10)
    assert "skipped" not in line({"step": 1} | STEP | {"skipped_updates": 0.0}, 10)


def test_a_full_disk_is_an_error_where_a_step_is_lost_and_a_sentence_at_the_end(tmp_path, capsys):
    (tmp_path / "train.log").symlink_to("/dev/full")
    metrics = Metrics(tmp_path, total_steps=10)
    with pytest.raises(OSError, match="No space left on device"):
        metrics.log(1, STEP)
    metrics.close()
    assert "the metrics could not be closed (No space left on device)" in capsys.readouterr().out
    assert scalars(tmp_path, "kl/mean") == [(1, 0.1235)]


def test_a_step_that_found_no_room_is_logged_once_when_there_is_some(tmp_path, monkeypatch):
    metrics = Metrics(tmp_path, total_steps=10)
    metrics.log(1, STEP)
    full = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    whole, metrics._json = metrics._json, full
    with pytest.raises(OSError, match="No space left on device"):
        metrics.log(2, STEP)
    metrics._json = whole
    buffered, metrics._log = metrics._log, open("/dev/full", "w", buffering=1)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left on device"):
        metrics.log(2, STEP)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1  # the line was taken back
    metrics._log = buffered
    metrics.log(2, STEP)
    metrics.close()
    full.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(one)["step"] for one in lines] == [1, 2]
    assert scalars(tmp_path, "kl/mean") == [(1, 0.1235), (2, 0.1235)]
