"""Every teacher and every pool is counted, seated and named in a plan, and lengths fit each teacher's own context."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_placement import GIB, NODE, QWEN3_8B, TINY, recipe

from trd_ray.cli import main
from trd_ray.config import from_tree, recipe_tree
from trd_ray.errors import UserError
from trd_ray.miniature import problems
from trd_ray.preflight import lengths, placement, shown
from trd_ray.preflight.actors import ActorPlan
from trd_ray.preflight.lengths_of_each import carried, fit_each
from trd_ray.preflight.reseating import seats_for
from trd_ray.views import PromptTokens

BIG: dict[str, Any] = {"mode": "opd", "path": "big"}
TWO: dict[str, Any] = {"big": BIG | {"refiner": {"replicas": 2}}, "own": {}}
FACTS = {"big": QWEN3_8B, "own": TINY}


def plan(cluster: dict = NODE, teachers: dict = TWO, facts: Any = FACTS, **tree: Any) -> placement.Placement:
    return placement.plan(recipe(teachers=teachers, **tree), TINY, facts, cluster, gpu_gib=80)


def actor(found: placement.Placement, name: str) -> ActorPlan:
    return next(a for a in found.actors if a.spec.name == name)


def alone(teacher: dict, facts: Any, **tree: Any) -> placement.Placement:
    return placement.plan(recipe(teacher=teacher, **tree), TINY, facts, NODE, gpu_gib=80)


def test_each_teacher_has_its_pool_and_its_place_in_the_learner():
    found = plan()
    assert [(a.spec.name, a.spec.replicas) for a in found.actors] == [
        ("sampler", 1), ("refiner.big", 2), ("refiner.own", 1), ("learner", 1), ("verifier", 1),
    ]  # fmt: skip
    assert found.fits and found.needs["GPU"] == 5
    big, own = alone(BIG, QWEN3_8B), alone({}, TINY)
    for name, one in (("big", big), ("own", own)):
        assert actor(found, f"refiner.{name}").memory_gib == actor(one, "refiner").memory_gib
        learner = actor(found, "learner").memory_gib
        assert learner[f"teacher {name}"] == actor(one, "learner").memory_gib["teacher"]
    gathered = [actor(one, "learner").memory_gib["gathered"] for one in (big, own)]
    assert learner["gathered"] == max(gathered)  # one at a time


def test_what_a_rank_reads_into_the_host_is_one_model_at_a_time():
    on_host = {"CPU": 64.0, "memory": 1000 * GIB}
    found = plan(on_host, learner={"cpus": 1.0, "workers": 1})
    assert actor(found, "learner").total_gib >= (4 * TINY.parameters * 4 + QWEN3_8B.parameters * 2) / GIB


def test_a_teacher_that_is_the_student_takes_nothing_of_its_own():
    adapters = actor(plan(learner={"lora": {}}), "learner").memory_gib
    assert "teacher big" in adapters and "teacher own" not in adapters
    moving = actor(plan(teachers=TWO | {"own": {"follow": "ema"}}), "learner").memory_gib
    assert "average" in moving and "teacher own" not in moving


def test_one_teacher_by_name_is_planned_as_one_without():
    named, unnamed = plan(teachers={"x": BIG}, facts={"x": QWEN3_8B}), alone(BIG, QWEN3_8B)
    assert [a.total_gib for a in named.actors] == [a.total_gib for a in unnamed.actors]
    assert (named.needs, named.object_store_gib) == (unnamed.needs, unnamed.object_store_gib)
    assert [(s.machine, s.gpus) for s in named.seats] == [(s.machine, s.gpus) for s in unnamed.seats]


def test_what_does_not_fit_is_told_by_the_keys_of_the_teacher():
    teachers = {"big": BIG | {"refiner": {"gpus": 0.02, "memory_utilization": 0.02}}, "own": {}}
    [reason] = [one for one in plan(teachers=teachers).reasons if "KV cache" in one]
    assert "raise teachers.big.refiner.tensor_parallel or teachers.big.refiner.memory_utilization" in reason
    assert any("teachers.own.refiner.gpus" in one for one in plan(NODE | {"GPU": 3.0}).reasons)


def test_another_engine_of_one_teacher_finds_a_seat_and_all_others_keep_theirs():
    found = plan()
    more = seats_for([("refiner.own", 1)], found, found.machines, recipe(teachers=TWO))
    assert more.fits and set(found.seats) < set(more.seats) and len(more.seats_of("refiner.own")) == 2


def test_pools_of_several_teachers_are_told_apart_on_the_map():
    text = shown.render(plan())
    assert "big:0" in text and "own:0" in text and "S sampler, big: refiner.big, own: refiner.own, L learner" in text
    assert plan().turns() == {"sampler": 0, "refiner.big": 0, "refiner.own": 0, "learner": 0}


# Lengths


def fitted(own: int, big: int, tokens: dict[str, PromptTokens], **tree: Any) -> Any:
    r = from_tree({"teachers": {"big": BIG, "own": {}}} | tree)
    student, teachers = replace(TINY, max_positions=own), {"big": replace(TINY, max_positions=big), "own": TINY}
    teachers["own"] = student
    contexts = {n: lengths.Contexts.of(one, student, teachers[n]) for n, one in r.by_teacher.items()}
    asked = {name: [lengths.Problem(name, "text", p)] for name, p in tokens.items()}
    return fit_each(r, asked, [20], contexts, student, teachers)


PROMPTS = {"big": PromptTokens(20, 20, 40, 0), "own": PromptTokens(20, 220, 240, 200)}


def test_the_student_samples_as_many_tokens_as_the_smallest_context_leaves_and_no_reference_is_cut_for_another():
    r = fitted(1024, 4096, PROMPTS).recipe
    big, own = r.by_teacher["big"].refiner, r.by_teacher["own"].refiner
    assert own.prompt_tokens >= 240 + r.sampler.response_tokens  # a whole attempt beside the reference
    assert own.prompt_tokens + own.response_tokens <= 1024 and big.prompt_tokens + big.response_tokens <= 4096
    assert big.prompt_tokens < own.prompt_tokens + 4096 and r.refiner.prompt_tokens == max(
        big.prompt_tokens, own.prompt_tokens
    )


def test_a_run_that_goes_on_has_the_lengths_that_each_teacher_began_with():
    tree = {"teachers": {"big": BIG, "own": {}}}
    began = fitted(1024, 4096, PROMPTS).recipe
    assert carried(from_tree(tree), began) == began
    assert carried(from_tree({}), from_tree({})) == from_tree({})


def test_a_row_that_is_too_long_for_its_teacher_names_it():
    long = PROMPTS | {"own": PromptTokens(20, 2000, 2020, 0)}
    with pytest.raises(UserError, match="for the teacher own: 1 of 1 problem is too long"):
        fitted(1024, 4096, long)


def test_a_limit_is_told_by_the_keys_of_the_teacher_since_its_own_go_before_those_of_refiner():
    own = {"big": BIG, "own": {"refiner": {"max_response_tokens": 3000}}}
    with pytest.raises(UserError) as e:
        fitted(1024, 4096, PROMPTS, teachers=own, sampler={"max_response_tokens": 100})
    said = " ".join(e.value.sentences)
    assert (
        "teachers.own.refiner.max_response_tokens (3000)" in said and "teachers.own.refiner.max_prompt_tokens" in said
    )
    assert not re.search(r"(?<!own\.)refiner\.max", said)


# As a user meets it


def write(tmp_path: Path, names: list[str | None], references: bool = True, **tree: Any) -> str:
    rows = [row | {"topic": name} for row, name in zip(problems("train"), names, strict=False)]
    data = tmp_path / "p.jsonl"
    data.write_text("".join(json.dumps(row if references else row | {"reference": ""}) + "\n" for row in rows))
    base = recipe_tree("miniature_opd")
    teacher = base.pop("teacher")
    base |= {
        "teachers": {"strong": teacher, "own": {"mode": "opsd"}}, "rollouts_per_step": 4,
        "data": {"path": str(data), "teacher_column": "topic"}, "cluster": {"memory_gib": 64, "local_cpus": 4},
        "run_dir": str(tmp_path / "r"),
    }  # fmt: skip
    base["refiner"] |= {"max_prompt_tokens": None, "max_response_tokens": None}
    base["sampler"] |= {"max_response_tokens": None}
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(base | tree, sort_keys=False))
    return str(file)


def test_a_dry_run_shows_every_teacher_and_every_pool(tmp_path, capsys):
    assert main(["train", write(tmp_path, ["strong", "own"] * 4), "--dry-run", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert [a["actor"] for a in tree["placement"]["actors"]][1:3] == ["refiner.strong", "refiner.own"]
    assert "4 taught by strong, 4 taught by own" in tree["found"]
    learner = next(a for a in tree["placement"]["actors"] if a["actor"] == "learner")
    assert {"teacher strong", "teacher own"} <= learner["gib"].keys()
    own = tree["recipe"]["teachers"]["own"]["refiner"]
    assert own["max_prompt_tokens"] and own["replicas"] is None


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["strong", "owl"] * 4, "name a teacher that the recipe does not have, such as 'owl'"),
        (["strong", None] * 4, "4 of 8 problems"),
    ],
)
def test_a_name_that_nobody_knows_is_refused_before_anything_starts(tmp_path, capsys, names, said):
    assert main(["train", write(tmp_path, names)]) == 2
    told = capsys.readouterr().err
    assert said in told and "strong, own" in told and not (tmp_path / "r").exists()


def test_a_privileged_self_needs_references_for_its_own_rows_alone(tmp_path, capsys):
    file = write(tmp_path, ["strong"] * 8, references=False)
    assert main(["train", file, "--dry-run"]) == 0
    assert "no problem names the teacher own" in capsys.readouterr().out
    assert main(["train", write(tmp_path, ["own"] + ["strong"] * 7, references=False), "--dry-run"]) == 2
    assert "teachers.own.mode=opsd shows the teacher the reference solution, but 1 of 1" in capsys.readouterr().err
