"""What a draft from the prompt would save, read from the rows of a run."""

import json
import sys
from pathlib import Path

import pytest

from trd_ray.record.directory import RunDirectory
from trd_ray.rows import to_table

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
import draft_acceptance  # noqa: E402


def write_run(directory: Path) -> None:
    (directory / "rows").mkdir(parents=True)
    (directory / "recipe.yaml").write_text("{}")
    fixed = {"problem_id": "p", "problem": "?", "answer": "", "reference": "", "epoch": 0, "sample_index": 0, "seed": 0}
    y = {"text": "", "finish": "stop", "score": 1.0, "extracted": "", "detail": ""}
    same, other = list(range(40)), list(range(100, 140))
    rows = [
        fixed
        | {"row": 0, "refine_prompt_ids": same, "y_o": y | {"ids": same, "passed": True}, "y_r": y | {"ids": same}},
        fixed
        | {"row": 1, "refine_prompt_ids": same, "y_o": y | {"ids": same, "passed": False}, "y_r": y | {"ids": other}},
        fixed | {"row": 2, "y_o": y | {"ids": same, "passed": False}},
    ]
    RunDirectory(directory).write_rows(1, to_table([row | {"step": 0} for row in rows]))


def test_rows_count_by_the_verdict_of_their_attempt(tmp_path, capsys):
    write_run(tmp_path / "run")
    out = tmp_path / "counts.json"
    assert draft_acceptance.main([str(tmp_path / "run"), "--draft", "9", "--json", str(out)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("2 refinements of run") and "| 9 | y_o failed | 40 | 1.00 | nothing drafted |" in told
    counts = {one["rollouts"]: one for one in json.loads(out.read_text())}
    assert counts["y_o passed"]["passes"] == 2 + 4 and counts["all"]["tokens"] == 80


def test_only_so_many_rows_are_read_as_are_asked_for(tmp_path, capsys):
    write_run(tmp_path / "run")
    assert draft_acceptance.main([str(tmp_path / "run"), "--rows", "1"]) == 0
    assert "1 refinements" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--shortest", "5"], "--shortest 5 is above --longest 4"),
        (["--draft", "0"], "must be a whole number of at least 1"),
        ([], "holds no rows"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(options, sentence, tmp_path, capsys):
    assert draft_acceptance.main([str(tmp_path / "run"), *options]) == 2
    told = capsys.readouterr().err.strip()
    assert sentence in told and len(told.splitlines()) == 1
