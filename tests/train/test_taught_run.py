"""A whole run with two teachers: a stronger model, and the privileged self for the rows that have a reference."""

import json
from pathlib import Path

import pytest
import yaml

from runs import NO_EVALUATION, finish, run, start, wait_for_step
from trd_ray import miniature
from trd_ray.config import recipe_tree
from trd_ray.steer import command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS, ROWS = 2, 8


def write(folder: Path) -> str:
    """The recipe: every other row has no reference, and is the stronger model's."""
    rows = [
        row | {"topic": "own"} if i % 2 else row | {"topic": "strong", "reference": ""}
        for i, row in enumerate(miniature.problems("train")[: STEPS * ROWS])
    ]
    data = folder / "problems.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = recipe_tree("miniature_opd")
    tree["teachers"] = {"strong": tree.pop("teacher"), "own": {"mode": "opsd"}}
    tree["data"] = {"path": str(data), "teacher_column": "topic"}
    tree["refiner"] |= {"max_prompt_tokens": 192, "max_model_len": 320}
    tree |= {"steps": STEPS, "rollouts_per_step": ROWS}
    for group in ("sampler", "refiner", "learner"):
        tree[group] |= {"cpus": 0.4}
    file = folder / "two.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return str(file)


def test_each_row_is_refined_and_taught_by_its_own_teacher_in_one_run(tmp_path):
    done = run(tmp_path / "run", "train", write(tmp_path), *NO_EVALUATION)
    assert done.code == 0, done.output[-3000:]
    assert done.left == [] and len(done.rows) == STEPS * ROWS
    for row in done.rows:
        assert row["y_r"]["engine"].startswith(f"refiner.{row['teacher']}-")
        assert (row["teacher"] == "own") == bool(row["reference"]) and row["train"]
    # The privileged self is shown the reference, so its view is the longer one.
    views = {name: [len(r["teacher_ids"]) for r in done.rows if r["teacher"] == name] for name in ("own", "strong")}
    assert sum(views["own"]) > sum(views["strong"])
    for metrics in done.metrics:
        assert {f"teachers/{name}/{what}" for name in views for what in ("rollouts", "kl")} <= metrics.keys()
        assert {"queue/refiner.own", "queue/refiner.strong"} <= metrics.keys()
    assert "teachers strong" in (done.directory / "summary.md").read_text()


SCORE = """\
def score(completion, answer):
    return {"score": completion.strip().endswith("{" + answer + "}"), "feedback": "read by score.py"}
"""


@pytest.mark.long
def test_a_source_s_own_verifier_and_teacher_are_those_of_its_rows(tmp_path):
    """What `write` says by a column is said by the sources, each of which also names its verifier."""
    recipe = Path(write(tmp_path))
    tree = yaml.safe_load(recipe.read_text())
    problems = [json.loads(line) for line in Path(tree["data"]["path"]).read_text().splitlines()]
    verifiers = {"strong": "mine", "own": "math"}
    sources = []
    for name, verify in verifiers.items():
        its = [{k: v for k, v in one.items() if k != "topic"} for one in problems if one["topic"] == name]
        place = tmp_path / f"{name}.jsonl"
        place.write_text("".join(json.dumps(one) + "\n" for one in its))
        sources.append({"name": f"from_{name}", "path": str(place), "verify": verify, "teacher": name})
    (tmp_path / "score.py").write_text(SCORE)
    tree["data"] = {"sources": sources}
    tree["verify"] = (tree.get("verify") or {}) | {"functions": {"mine": {"function": "score.py:score"}}}
    recipe.write_text(yaml.safe_dump(tree, sort_keys=False))
    done = run(tmp_path / "run", "train", str(recipe), *NO_EVALUATION)
    assert done.code == 0, done.output[-3000:]
    assert done.left == [] and len(done.rows) == STEPS * ROWS
    assert {row["source"] for row in done.rows} == {"from_strong", "from_own"}
    for row in done.rows:
        teacher = row["source"].removeprefix("from_")
        assert row["teacher"] == teacher and row["y_r"]["engine"].startswith(f"refiner.{teacher}-")
        for y in ("y_o", "y_r"):
            assert (row[y]["feedback"] == "read by score.py") == (verifiers[teacher] == "mine")
            assert row[y]["parts"] is None  # one verifier judges a row
    for name in ("from_strong", "from_own"):
        assert all(metrics[f"source/{name}/rows"] for metrics in done.metrics)


@pytest.mark.long
def test_one_teacher_s_pool_grows_alone_and_the_run_goes_on_from_its_checkpoint(tmp_path):
    recipe, directory = write(tmp_path), tmp_path / "run"
    more = [
        *NO_EVALUATION,
        "cluster.memory_gib=64",
        "checkpoint.every_steps=2",
        "steps=10000",
        "sampler.n=8",
        "refiner.cpus=0.1",
    ]
    process = start(directory, "train", recipe, *more)
    wait_for_step(process, directory, 1, timeout_s=300)
    assert command.ask(str(directory), "scale", {"refiner.own": 2}, None, 60) == 0
    wait_for_step(process, directory, 4, timeout_s=300)
    assert command.ask(str(directory), "stop", {}, None, 60) == 0
    done = finish(process, directory)
    assert not done.left and "Traceback" not in done.output
    kept = json.loads((directory / "scale.json").read_text())
    assert {name: pool["engines"] for name, pool in kept.items()} == {
        "sampler": 1, "refiner.strong": 1, "refiner.own": 2,
    }  # fmt: skip
    steps = len(done.metrics)
    again = run(directory, "train", recipe, *more[:-3], f"steps={steps + 2}", *more[-2:], "--resume")
    assert again.code == 0 and [m["step"] for m in again.metrics] == list(range(1, steps + 3))
