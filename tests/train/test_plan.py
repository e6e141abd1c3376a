"""A run that is done needs no nodes: what is left to do is known before anybody waits for some."""

import json

import pytest

from trd_ray.config import load
from trd_ray.errors import UserError
from trd_ray.record.directory import RunDirectory
from trd_ray.session.beginning import Beginning
from trd_ray.session.inputs import prepare
from trd_ray.train.command import run
from trd_ray.train.plan import seems_done


@pytest.fixture
def recipe(tmp_path):
    return load(
        "miniature_opsd", [f"run_dir={tmp_path / 'run'}", "cluster.memory_gib=64", "evaluation.path=null", "steps=3"]
    )


def test_a_run_seems_done_once_its_last_checkpoint_is_there_and_never_where_one_begins(recipe):
    inputs = prepare(recipe)
    assert not seems_done(inputs, "required")
    RunDirectory.create(recipe.directory, recipe).release()
    for step, done in ((2, False), (3, True)):
        (recipe.directory / "checkpoints" / f"step-{step:06d}").mkdir()
        assert seems_done(inputs, "auto") == seems_done(inputs, "required") == done
    assert not seems_done(inputs, "no")


def test_the_same_command_finds_a_corpus_complete_though_there_are_no_nodes(recipe, monkeypatch, capsys):
    def none(self: Beginning, *inputs: object, wait_s: float = 0.0) -> None:
        raise UserError(f"there are no nodes, after {wait_s} s")

    monkeypatch.setattr(Beginning, "require", none)
    RunDirectory.create(recipe.directory, recipe).release()
    metrics = recipe.directory / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2)))
    with pytest.raises(UserError, match="there are no nodes, after 600"):
        run(recipe, "refine", "auto")
    with open(metrics, "a") as file:
        file.write('{"step": 3}\n')
    assert run(recipe, "refine", "auto") == 0
    assert "is complete (3 steps): nothing is left to do" in capsys.readouterr().out
