"""The tutorial's files, taken out of it, fit together; its run is a test of whole runs."""

import re
from pathlib import Path

import pytest

from trd_ray import config
from trd_ray.cli import main
from trd_ray.errors import UserError
from trd_ray.problems.load import load_problems
from trd_ray.session.inputs import require_verifier
from trd_ray.verify import verifier
from trd_ray.verify.own import __file__ as room

TEXT = (Path(room).parent / "TUTORIAL.md").read_text()


@pytest.fixture
def tutorial(tmp_path, monkeypatch) -> Path:
    """The folder of someone who has followed it up to the dry run."""
    for name, language in (("score.py", "python"), ("problems.jsonl", "json"), ("json.yaml", "yaml")):
        [block] = re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
        (tmp_path / name).write_text(block)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_tutorial_s_function_fits_its_problems_and_judges_them(tutorial):
    recipe = config.load("json.yaml")
    assert recipe.task == "plain" and recipe.steps == 2
    found = load_problems(recipe.data, recipe.verify)
    [line] = require_verifier(recipe, {"data.path": found.table})
    [shown] = re.findall(r"^(verify\.function .*)\.\.\.$", TEXT, flags=re.MULTILINE)
    assert line.startswith(shown)
    judge, rows = verifier(recipe.verify), found.table.to_pylist()
    assert all(judge(row["reference"], row).passed for row in rows) and len(rows) == 8
    half = judge('{"city": "Paris"}', rows[0])
    assert not half.passed and half.score == 0.5 and half.feedback == "The JSON lacks country."
    assert judge("Paris", rows[0]).feedback.startswith("This is no JSON")
    judge.close()


def test_without_the_parameter_the_run_is_refused_before_it_starts(tutorial):
    score = tutorial / "score.py"
    score.write_text(score.read_text().replace("keys", "names"))
    recipe = config.load("json.yaml")
    with pytest.raises(UserError, match="has no parameter keys, which verify.arguments gives it"):
        require_verifier(recipe, {"data.path": load_problems(recipe.data, recipe.verify).table})


def test_a_dry_run_prints_the_shape_that_was_found(tutorial, capsys):
    assert main(["train", "json.yaml", "--dry-run", "cluster.memory_gib=64", "cluster.local_cpus=16"]) == 0
    [shown] = re.findall(r"^(verify\.function .*)\.\.\.$", TEXT, flags=re.MULTILINE)
    assert f"\n{shown}" in f"\n{capsys.readouterr().out}"
