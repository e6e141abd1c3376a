"""Two cells that anyone can repeat: what they differ in, what counts as expected, and how that is written down."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from trd_ray.config import from_tree
from trd_ray.score.stats import Answer, score, to_json

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
import repeat_cell  # noqa: E402


@pytest.fixture
def own_cells(tmp_path, monkeypatch):
    """A copy of the file, which a test may write, with nothing to expect."""
    place = tmp_path / "repeat_cell.json"
    tree = {name: cell | {"expected": None} for name, cell in repeat_cell.cells().items()}
    place.write_text(json.dumps(tree))
    monkeypatch.setattr(repeat_cell, "CELLS", place)
    return place


def test_the_cells_differ_in_what_they_train_on_alone(tmp_path):
    trd, plain = (from_tree(repeat_cell.run_tree(name, 0, tmp_path)) for name in ("opsd-trd", "opsd-forward_kl"))
    assert (trd.train.trajectory, trd.teacher.view) == ("y_r", "refine")
    assert (plain.train.trajectory, plain.teacher.view) == ("y_o", "vanilla")
    assert trd.learner == plain.learner and trd.steps == plain.steps == 12 and trd.evaluation == plain.evaluation


def test_what_is_shipped_to_be_expected_is_what_the_readme_says():
    told = (ROOT / "jobs" / "README.md").read_text()
    for name in repeat_cell.cells():
        of = repeat_cell.expected(name)
        assert of and 0 <= of.low <= of.mean <= of.high <= 100
        assert f"| {of.mean} [{of.low}, {of.high}] |" in told


def test_an_interval_for_a_further_seed_holds_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        *seen, further = rng.normal(50, 3, 6)
        of = repeat_cell.expected_of(seen)
        held += repeat_cell.is_expected(float(further), of)
    assert held / 2000 == pytest.approx(0.95, abs=0.02)


def write_run(folder: Path, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    answers = [Answer(f"p{i}", bool(rng.random() < share), 5, False, True) for i in range(100) for _ in range(16)]
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    trained = score(answers, name="trained", step=12, version=12, resamples=200, seed=0)
    (folder / "evaluation" / "trained.json").write_text(json.dumps(to_json(trained)))


def test_what_was_recorded_is_set_beside_what_is_found(own_cells, tmp_path, capsys):
    place = tmp_path / "D"
    for name, share in (("opsd-trd", 0.9), ("opsd-forward_kl", 0.3)):
        for seed in range(3):
            write_run(place / f"{name}-{seed}", share, seed)
    assert repeat_cell.main(["--directory", str(place)]) == 0
    assert "not measured yet" in capsys.readouterr().out
    assert repeat_cell.main(["--directory", str(place), "--seeds", "3", "--record"]) == 0
    capsys.readouterr()
    assert repeat_cell.main(["--directory", str(place)]) == 0
    assert "3 seeds | 89.9" in capsys.readouterr().out
    write_run(place / "opsd-trd-0", 0.5, 7)
    assert repeat_cell.main(["--directory", str(place), "--cells", "opsd-trd"]) == 1
    assert "not as expected" in capsys.readouterr().out
    assert "opsd-forward_kl" in own_cells.read_text()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--cells", "opsd"], "there is no cell 'opsd': choose from opsd-trd, opsd-forward_kl"),
        (["--record"], "--record needs 3 seeds or more"),
        (["learner.lr=1e-3"], "learner.lr would make another cell"),
        (["evaluation.after=false"], "evaluation.after would make another cell"),
        (["stepz=3"], "unknown key stepz"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_before_anything_starts(options, sentence, tmp_path, capsys):
    assert repeat_cell.main(["--directory", str(tmp_path / "D"), *options]) == 2
    told = capsys.readouterr().err.strip()
    assert sentence in told and len(told.splitlines()) == 1 and not (tmp_path / "D").exists()


@pytest.mark.long
def test_a_cell_runs_from_its_start_to_its_line(tmp_path, own_cells, capsys):
    assert repeat_cell.main(["--directory", str(tmp_path / "D"), "--cells", "opsd-trd", "cluster.memory_gib=64"]) == 0
    assert "| opsd-trd | 0 | not measured yet | " in capsys.readouterr().out


def test_a_key_of_where_a_cell_runs_may_be_set(tmp_path):
    tree = repeat_cell.run_tree("opsd-trd", 0, tmp_path, ["cluster.memory_gib=20"])
    assert tree["cluster"]["memory_gib"] == 20
