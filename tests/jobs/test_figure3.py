"""Figure 3 on the miniature world: the recipes of its runs, the numbers of its lines, and what is drawn of them."""

import json
import math
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from trd_ray.config import from_tree
from trd_ray.errors import UserError
from trd_ray.record.directory import RunDirectory
from trd_ray.rows import to_table
from trd_ray.token_values import ScoredTrajectory, with_column

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
import figure3  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


def test_the_runs_differ_in_what_they_train_on_alone(tmp_path):
    trees = {run: figure3.run_tree("opsd", run, 2, tmp_path, ["steps=3"]) for run in figure3.RUNS}
    trd, vanilla = (from_tree(trees[run]) for run in ("trd", "vanilla"))
    assert (trd.train.trajectory, trd.teacher.view) == ("y_r", "refine")
    assert (vanilla.train.trajectory, vanilla.teacher.view) == ("y_o", "vanilla")
    for recipe in (trd, vanilla):
        assert (recipe.seed, recipe.steps, recipe.diagnostics.rows, recipe.evaluation.path) == (2, 3, 16, None)
    left = [
        {k: v for k, v in tree.items() if k not in ("name", "run_dir", "train", "teacher")} for tree in trees.values()
    ]
    assert left[0] == left[1]
    with pytest.raises(UserError, match="unknown key stepz"):
        figure3.run_tree("opd", "trd", 0, tmp_path, ["stepz=3"])


def scored(trajectory: str, view: str, kl: float, seed: int, trained: bool = False) -> ScoredTrajectory:
    """Made up: a student that is less sure than its teacher the larger the KL is."""
    rng = np.random.default_rng(seed)
    kl_N = rng.gamma(0.5, 2 * kl, 40)
    return ScoredTrajectory(
        trajectory, view, trained, np.stack([kl_N, 0.3 + kl_N / 4, 0.3 + kl_N / 9, kl_N / 500]).astype(np.float16)
    )


def write_runs(directory: Path, steps: int = 12, seeds: int = 3) -> None:
    fixed = {"problem_id": "p", "problem": "?", "answer": "", "reference": "", "epoch": 0, "sample_index": 0, "seed": 0}
    for mode, start in (("opd", 1.0), ("opsd", 2.0)):
        for run, (trajectory, view) in figure3.RUNS.items():
            for seed in range(seeds):
                place = directory / f"{mode}-{run}-{seed}"
                (place / "rows").mkdir(parents=True)
                for step in range(1, steps + 1):
                    falls = start * math.exp(-step / 6)
                    views = [("y_o", "vanilla", falls), ("y_o", "refine", falls * 1.3)]
                    views += [("y_r", "refine", falls / 5), ("y_r", "vanilla", falls / 3)] * (run == "trd")
                    looks = [scored(y, v, kl, 100 * step + seed) for y, v, kl in views]
                    first = scored(trajectory, view, 50.0, seed, trained=True)  # would be seen if it were counted
                    rows = [[first, *looks], [first], []]
                    table = to_table([fixed | {"row": 3 * step + i, "step": step - 1} for i in range(3)])
                    RunDirectory(place).write_rows(step, with_column(table, rows))


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("figure")
    write_runs(directory)
    assert figure3.main(["--directory", str(directory), "--draw"]) == 0
    return directory


def test_a_point_is_the_mean_over_all_tokens_of_what_diagnostics_looked_at(directory):
    series = figure3.measured(directory / "opd-trd-1")
    assert set(series) == {(y, v) for y in ("y_o", "y_r") for v in ("refine", "vanilla")}
    expected = scored("y_r", "refine", math.exp(-5 / 6) / 5, 501).values_FN.astype(np.float64)
    found = series["y_r", "refine"][5]
    assert found.kl == pytest.approx(expected[0].mean()) and found.onset == pytest.approx(1000 * expected[3].mean())
    assert found.gap == pytest.approx(math.exp(expected[1].mean()) - math.exp(expected[2].mean()))


def test_trajectories_count_by_their_tokens():
    long, short = (
        {"kl": [k] * n, "student_nll": [0.0], "teacher_nll": [0.0], "onset": [0.0]} for k, n in ((1.0, 9), (0.0, 1))
    )
    assert figure3.point([long, short]).kl == pytest.approx(0.9)


def test_the_picture_has_three_panels_of_three_lines_for_each_mode(directory):
    root = ElementTree.parse(directory / "figure3.svg").getroot()
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    for mode in ("OPD", "OPSD"):
        assert [f"{mode}: {panel.title}" in texts for panel in figure3.PANELS] == [True] * 3
    paths = [path.get("class") for path in root.iter(f"{SVG}path")]
    for looks in (f"line{n}" for n in range(len(figure3.LINES))):
        assert paths.count(f"band {looks}") == 6 and paths.count(looks) == 7  # one of them is the legend's
    width, height = (float(n) for n in root.get("viewBox", "").split()[2:])
    for path in root.iter(f"{SVG}path"):
        numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", path.get("d", ""))]
        assert all(-1 <= n <= max(width, height) for n in numbers)


def test_the_band_reaches_from_the_lowest_to_the_highest_seed():
    several = [{1: figure3.Point(k, 0.0, 0.0), 2: figure3.Point(2 * k, 0.0, 0.0)} for k in (1.0, 2.0, 6.0)]
    del several[0][2]
    assert figure3.over_seeds(several, "kl") == [(1, 3.0, 1.0, 6.0)]


def test_the_table_and_the_file_of_results_tell_each_line_of_each_mode(directory):
    lines = (directory / "table.md").read_text().splitlines()
    assert len(lines) == 2 + 2 * len(figure3.LINES) and "OPSD, TRD run: y_r, refined" in lines[-2]
    results = json.loads((directory / "results.json").read_text())
    assert len(results) == 6 and all(len(one["seeds"]) == 3 and len(one["seeds"][0]) == 12 for one in results)


def test_one_step_of_one_run_can_be_drawn_and_an_empty_folder_is_told(tmp_path, capsys):
    assert figure3.main(["--directory", str(tmp_path), "--draw"]) == 2
    assert "leave out --draw" in capsys.readouterr().err
    write_runs(tmp_path, steps=1, seeds=1)
    assert figure3.main(["--directory", str(tmp_path), "--draw"]) == 0


def test_a_run_is_not_made_again(tmp_path):
    tree = figure3.run_tree("opd", "trd", 0, tmp_path, ["steps=2"])
    assert not figure3.is_done(tree)
    Path(tree["run_dir"]).mkdir()
    (Path(tree["run_dir"]) / "metrics.jsonl").write_text("{}\n")
    assert not figure3.is_done(tree)
    (Path(tree["run_dir"]) / "metrics.jsonl").write_text("{}\n{}\n")
    assert figure3.is_done(tree)
