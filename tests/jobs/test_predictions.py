"""jobs/predicted.py without its runs: what it asks, what it reads of runs that are there, its table and exit code."""

import json
import sys
from pathlib import Path

import pytest

from trd_ray.config import load
from trd_ray.errors import UserError
from trd_ray.record.directory import RunDirectory
from trd_ray.record.metrics import Metrics

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import predicted  # noqa: E402


def recorded(directory: Path, name: str, step_s: float, steps: int = predicted.STEPS) -> None:
    """A run whose first step took ten times as long."""
    recipe = load(predicted.RECIPE, predicted.overrides_of(name, directory))
    run = RunDirectory.create(directory / name, recipe)
    with Metrics(run.path, steps) as metrics:
        for step in range(1, steps + 1):
            metrics.log(step, {"seconds/step": step_s * (10 if step == 1 else 1)})
    run.release()


def told(step_s: float, warnings: tuple[str, ...] = ()) -> str:
    return json.dumps({"cost": {"step": {"step_s": step_s}, "warnings": list(warnings)}})


def test_the_runs_differ_from_the_base_in_batch_staleness_engines_and_lengths(tmp_path):
    recipes = {name: load(predicted.RECIPE, predicted.overrides_of(name, tmp_path)) for name in predicted.OTHERS}
    base = load(predicted.RECIPE, predicted.overrides_of(predicted.BASE, tmp_path))
    assert len(recipes) == 7 and all(r.steps == base.steps == 12 and not r.evaluation.names for r in recipes.values())
    assert base.directory == tmp_path / "base" and recipes["short"].directory == tmp_path / "short"
    assert recipes["rollouts-128"].rollouts_per_step == 2 * base.rollouts_per_step
    assert recipes["staleness-1"].stream.max_staleness == recipes["staleness-1-keep"].stream.max_staleness == 1
    assert (recipes["staleness-1"].sync.in_flight, recipes["staleness-1-keep"].sync.in_flight) == ("drain", "keep")
    for k in (1, 4):
        both = recipes[f"staleness-{k}-128"]
        assert (both.stream.max_staleness, both.rollouts_per_step) == (k, 2 * base.rollouts_per_step)
    two = recipes["two-samplers"].sampler
    assert two.bounds.start == 2 and two.cpus * 2 == base.sampler.cpus, "the same cores"
    assert recipes["short"].sampler.max_response_tokens == 24


def test_a_prediction_is_a_dry_run_like_the_base(tmp_path):
    words = predicted.asked("short", tmp_path, ["seed=3"])
    assert words[:2] == ["train", "miniature_opsd"] and {"--dry-run", "--json", f"--like={tmp_path / 'base'}"} <= {
        *words
    }
    assert "sampler.max_response_tokens=24" in words and "seed=3" in words


def test_steady_steps_are_measured_and_a_run_is_done_when_it_has_all(tmp_path):
    recorded(tmp_path, "short", 2.0)
    assert predicted.measured_s(tmp_path / "short") == 2.0 and predicted.is_done(tmp_path / "short")
    recorded(tmp_path, "base", 2.0, steps=5)
    assert not predicted.is_done(tmp_path / "base") and not predicted.is_done(tmp_path / "nothing")


def test_a_dry_run_without_the_base_s_rates_is_no_prediction():
    assert predicted.predicted_s(told(1.25)) == 1.25
    with pytest.raises(UserError, match="it ran on H100"):
        predicted.predicted_s(told(1.25, ("base gives lengths alone, since it ran on H100",)))
    with pytest.raises(UserError, match="does not fit"):
        predicted.predicted_s(json.dumps({"cost": None}))


@pytest.mark.parametrize(("said", "within"), [(1.29, True), (1.31, False), (0.71, True), (0.69, False)])
def test_a_third_is_the_border(said, within):
    line = predicted.Line("short", ["sampler.max_response_tokens=24"], said, 1.0, 2.5)
    assert line.within == within
    cells = [cell.strip() for cell in predicted.table([line]).splitlines()[-1].split("|")[1:-1]]
    seconds, verdict = f"{said:.2f}", "yes" if within else "no"
    assert cells == ["short", "sampler.max_response_tokens=24", seconds, "1.00", seconds, verdict, "2.5"]


def test_what_is_there_is_not_run_again_and_one_miss_is_exit_code_1(tmp_path, monkeypatch, capsys):
    for name in (predicted.BASE, *predicted.OTHERS):
        recorded(tmp_path, name, 2.0)
    (tmp_path / predicted.LOADS).write_text(json.dumps({"short": 3.25}))
    says = dict.fromkeys((predicted.BASE, *predicted.OTHERS), 2.2)
    monkeypatch.setattr(predicted, "predict", lambda name, directory, more: says[name])
    assert predicted.main(["--directory", str(tmp_path)]) == 0
    assert "| 3.2 |" in capsys.readouterr().out
    says["two-samplers"] = 3.0
    assert predicted.main(["--directory", str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("| no ") == 1


def test_a_mistake_in_an_override_is_told_before_anything_runs(tmp_path, capsys):
    assert predicted.main(["--directory", str(tmp_path / "new"), "sampler.replica=2"]) == 2
    assert "sampler.replica" in capsys.readouterr().err and not (tmp_path / "new").exists()
