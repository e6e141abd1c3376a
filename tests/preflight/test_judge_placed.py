"""A judge is counted, seated and named in a plan as a pool of its own, and one that cannot be asked is refused."""

from dataclasses import replace
from typing import Any

import pytest
import yaml
from test_placement import NODE, QWEN3_8B, TINY, recipe

from trd_ray.cli import main
from trd_ray.config import from_tree, recipe_tree
from trd_ray.miniature import problems
from trd_ray.preflight import placement, shown
from trd_ray.preflight.reseating import seats_for
from trd_ray.scale.loads import Moment
from trd_ray.scale.scale_policy import EngineBounds, ScalePolicy
from trd_ray.session.inputs import Inputs
from trd_ray.session.pool_models import model_of, models_wanted
from trd_ray.steer.command import sizes

ASKED: dict[str, Any] = {"verify": {"function": "judge"}, "judge": {"path": "wise", "replicas": 2}}


def plan(job: placement.Job = "train", facts: Any = QWEN3_8B, **tree: Any) -> placement.Placement:
    return placement.plan(recipe(**(ASKED | tree)), TINY, TINY, NODE, gpu_gib=80, judge=facts, job=job)


def test_a_judge_has_engines_of_its_own_with_the_memory_of_its_model():
    found = plan()
    assert found.fits
    assert [(a.spec.name, a.spec.replicas) for a in found.actors] == [
        ("sampler", 1), ("refiner", 1), ("judge", 2), ("learner", 1), ("verifier", 1),
    ]  # fmt: skip
    [judge] = [a for a in found.actors if a.spec.name == "judge"]
    as_refiner = placement.plan(recipe(teacher={"mode": "opd", "path": "big"}), TINY, QWEN3_8B, NODE, gpu_gib=80)
    [refiner] = [a for a in as_refiner.actors if a.spec.name == "refiner"]
    assert judge.memory_gib == refiner.memory_gib and "weight sync" not in judge.memory_gib
    assert len(found.seats_of("judge")) == 2 and found.needs["GPU"] == 5


def test_every_job_that_verifies_has_the_judge_and_no_other():
    assert [("judge" in plan(job).specs) for job in ("train", "refine", "evaluate")] == [True] * 3
    assert "judge" not in placement.plan(recipe(), TINY, TINY, NODE, gpu_gib=80).specs
    corpus: Any = {"data": {"source": "corpus", "path": "c"}}
    assert "judge" not in plan(**corpus, evaluation={"path": None}).specs
    assert "judge" not in plan(**corpus, evaluation={"path": "aime24"}).specs  # which has rules of its own
    assert "judge" in plan(**corpus, evaluation={"path": "mine.jsonl"}).specs
    assert "judge" not in plan(facts=None).specs  # nothing to judge, as in an evaluation on benchmarks alone


def test_a_map_shows_the_judge_s_letter():
    text = shown.render(plan())
    assert "J judge" in text and "J0" in text and "J1" in text


def test_what_does_not_fit_is_told_by_the_judge_s_keys():
    few = placement.plan(recipe(**ASKED), TINY, TINY, NODE | {"GPU": 3.0}, gpu_gib=80, judge=QWEN3_8B)
    assert any("judge.gpus" in reason for reason in few.reasons)
    narrow = plan(judge={"path": "wise", "gpus": 0.02, "memory_utilization": 0.02})
    assert any("raise judge.tensor_parallel or judge.memory_utilization" in reason for reason in narrow.reasons)


def test_another_engine_of_the_judge_finds_a_seat_while_the_run_goes_on():
    found = plan()
    more = seats_for([("judge", 2)], found, found.machines, recipe(**ASKED))
    assert more.fits and set(found.seats) < set(more.seats) and len(more.seats_of("judge")) == 3


def test_a_judge_that_everyone_waits_for_gets_the_engine():
    counts = {"sampler": 2, "refiner": 1, "judge": 1}
    full = [Moment(1.0, counts, {"sampler": 0.2, "refiner": 0.3, "judge": 4.0})] * 60
    policy = ScalePolicy({pool: EngineBounds(1, 3) for pool in counts})
    found = policy.after_step(full, counts)
    assert found and found.counts["judge"] == 2 and "the judge was full" in found.why


def test_a_person_may_scale_the_judge():
    assert sizes(["judge=2", "refiner=auto"]) == {"judge": 2, "refiner": "auto"}


def test_its_engines_load_the_judge_s_model_and_every_node_fetches_it():
    made = recipe(**ASKED)
    inputs: Any = Inputs.__new__(Inputs)
    inputs.recipe, inputs.judge_path, inputs.teacher_path = made, "/models/wise", "/models/student"
    assert model_of("judge", inputs, "/models/newest") == (made.judge, "/models/wise")
    wanted = models_wanted(inputs, "/models/student", {"sampler", "judge"})
    assert len(wanted) == len(models_wanted(inputs, "/models/student", {"sampler"})) + 1


# As a user meets it


def written(folder: Any, **judge: Any) -> str:
    tree = recipe_tree("miniature_opsd")
    tree |= {"verify": tree.get("verify", {}) | {"function": "judge"}, "name": "j", "run_dir": str(folder / "r")}
    tree["prompts"] = tree.get("prompts", {}) | {"task": "math"}
    tree["judge"] = {"path": "miniature:student", "prompt": "{problem}{response}", "max_response_tokens": 16, **judge}
    tree["cluster"] = {"memory_gib": 64, "local_cpus": 16}
    tree["evaluation"] = {"path": None}
    file = folder / "j.yaml"
    file.write_text(yaml.safe_dump(tree))
    assert from_tree(tree).engines["judge"] and problems("train")
    return str(file)


def test_a_dry_run_says_how_the_judge_is_asked_and_where_it_sits(tmp_path, capsys):
    assert main(["train", written(tmp_path), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "the judge: miniature:student on the pool judge, asked at temperature 0 for at most 16 tokens" in told
    assert "\njudge " in told and "fits: yes" in told
    assert main(["train", written(tmp_path), "--dry-run", "--on", "1x8xH100"]) == 0
    assert "J judge" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"prompt": "{problem}"}, "judge.prompt must hold the placeholder {response} exactly once"),
        ({"prompt": None}, "set a shorter judge.prompt"),  # the miniature reads letter by letter
        ({"max_model_len": 100_000}, "judge.max_model_len is 100000"),
        ({"path": "no/such/model/there"}, "no/such/model/there"),
        ({"extra": {"no_such_argument": 1}}, "judge.extra.no_such_argument is no engine argument"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_before_anything_starts(tmp_path, capsys, judge, said):
    assert main(["train", written(tmp_path, **judge)]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_facts_of_a_judge_count_as_those_of_any_model():
    assert plan(facts=replace(TINY, path="wise")).needs == plan(facts=TINY).needs
