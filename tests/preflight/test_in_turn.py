"""Engines and ranks that have the same GPUs, or cores, in turn: seats, shares, and what a GPU holds in both phases.

The figures of Qwen3-8B with adapters on 8 ranks are worked by hand: 8,190,735,360 weights, 174,587,904 numbers in
adapters of rank 64, GPUs of 80 GiB.
"""

from typing import Any

import pytest

from trd_ray import config, models
from trd_ray.config import Recipe
from trd_ray.known_models import facts_of_recipe, facts_without_files
from trd_ray.preflight import in_turn, placement, shown
from trd_ray.preflight.actors import ActorPlan
from trd_ray.preflight.in_turn import GpuPhase
from trd_ray.preflight.machines import Machine
from trd_ray.preflight.reseating import seats_for

GIB = 2**30
WEIGHTS, ADAPTERS = 8_190_735_360, 174_587_904
QWEN3_8B, QWEN3_1P7B = (facts_without_files(path, None, False) for path in ("Qwen/Qwen3-8B", "Qwen/Qwen3-1.7B"))
LAPTOP = {"CPU": 2.0, "memory": 16 * GIB}
TEACHES = {"mode": "opd", "path": "Qwen/Qwen3-8B"}
ADAPTED = {"lora": {}, "activation_checkpointing": True, "tokens_per_micro_batch": 38912}


def recipe(ranks: int = 8, **tree: Any) -> Recipe:
    """One engine of each pool on the GPU of each rank."""
    made = {"placement": "timeshare"} | tree
    for group, counts in (("sampler", "replicas"), ("refiner", "replicas"), ("learner", "workers")):
        made[group] = {counts: ranks} | tree.get(group, {})
    return Recipe.model_validate(made)


def plan(
    asked: Recipe, gpus: int = 8, gpu_gib: float = 80.0, student: models.ModelFacts = QWEN3_8B, job: Any = "train"
) -> placement.Placement:
    node = Machine("a", 128.0, gpus=gpus, gpu_gib=gpu_gib, memory_gib=1000.0)
    return placement.plan(asked, student, QWEN3_8B, [node], job=job)


def phases_of(found: placement.Placement) -> tuple[GpuPhase, GpuPhase]:
    assert found.fits, found.reasons
    awake, at_work = in_turn.phases(found.actors)
    return awake, at_work


def actor(found: placement.Placement, name: str) -> ActorPlan:
    return next(a for a in found.actors if a.spec.name == name)


def by_gpu(found: placement.Placement) -> dict[tuple[int, int], set[str]]:
    held: dict[tuple[int, int], set[str]] = {}
    for seat in found.seats:
        for gpu in seat.gpus:
            held.setdefault((seat.machine, gpu), set()).add(f"{seat.actor} {seat.number}")
    return held


def told(found: placement.Placement) -> str:
    """The plan as text, without the breaks of its table."""
    return " ".join(shown.render(found).split())


def own_adapters(ranks: int = 8, **tree: Any) -> Recipe:
    """OPSD with adapters and a frozen teacher: one pool samples and refines."""
    return recipe(ranks, **({"learner": ADAPTED, "sync": {"lora": "adapter"}} | tree))


# Seats


def test_each_engine_has_the_gpu_of_one_rank():
    found = plan(own_adapters(2), gpus=2)
    assert found.fits and by_gpu(found) == {(0, i): {f"sampler {i}", f"learner {i}"} for i in range(2)}
    assert found.needs["GPU"] == 2 and found.turns() == {"learner": 0, "sampler": 1}


def test_two_pools_and_the_ranks_have_the_same_gpus():
    found = plan(recipe(2, teacher=TEACHES, learner=ADAPTED), gpus=3, student=QWEN3_1P7B)
    assert by_gpu(found) == {(0, i): {f"sampler {i}", f"refiner {i}", f"learner {i}"} for i in range(2)}
    assert list(found.turns().items()) == [("learner", 0), ("sampler", 1), ("refiner", 2)]
    assert all(seat.share == pytest.approx(1 / 3, abs=1e-4) for seat in found.seats)
    assert found.sync_backend == "ipc", "whole weights go to an engine on the sender's own GPU"


def test_engines_follow_the_ranks_over_several_nodes():
    nodes = [Machine(name, 64.0, gpus=2, gpu_gib=80.0, memory_gib=500.0) for name in "ab"]
    found = placement.plan(own_adapters(4), QWEN3_8B, QWEN3_8B, nodes)
    assert found.fits and by_gpu(found) == {
        (i // 2, i % 2): {f"sampler {i}", f"learner {i}"} for i in range(4)
    }  # fmt: skip


def test_a_judge_has_gpus_of_its_own():
    asked = own_adapters(1, verify={"function": "judge"}, judge={"path": "Qwen/Qwen3-8B"})
    node = Machine("a", 64.0, gpus=2, gpu_gib=80.0, memory_gib=500.0)
    found = placement.plan(asked, QWEN3_8B, QWEN3_8B, [node], judge=QWEN3_8B)
    assert found.fits and {"judge 0"} in by_gpu(found).values()
    assert "judge" not in {name for phase in in_turn.phases(found.actors) for name in phase.works}


def test_fewer_engines_than_ranks_are_spread_evenly_or_refused():
    found = plan(own_adapters(2, sampler={"replicas": 1}), gpus=2)
    assert found.fits and sorted(map(len, by_gpu(found).values())) == [1, 2]
    [reason] = plan(own_adapters(4, sampler={"replicas": 3}), gpus=4).reasons
    assert "sampler.replicas is 3 and learner.workers is 4: set sampler.replicas=4" in reason


def test_weights_travel_by_ipc_only_where_every_rank_has_an_engine():
    asked: dict[str, Any] = {"teacher": {"follow": "live"}, "learner": ADAPTED, "sampler": {"replicas": 1}}
    assert plan(recipe(2, **asked), gpus=2).sync_backend == "gloo"
    [reason] = plan(recipe(2, **asked, sync={"backend": "ipc"}), gpus=2).reasons
    assert "set sampler.replicas=2, or sync.backend=auto" in reason


def test_an_engine_that_starts_again_finds_its_rank_and_no_other_gpu():
    found = plan(own_adapters(2), gpus=4)
    again = seats_for([("sampler", 1)], found, found.machines, own_adapters(2))
    assert again.fits and again.seats == found.seats
    third = seats_for([("sampler", 2)], found, found.machines, own_adapters(2))
    assert not third.fits, "two GPUs are free, but no rank sits there"


def test_without_a_learner_engines_have_whole_gpus():
    found = plan(own_adapters(2), gpus=2, job="evaluate")
    assert found.fits and {seat.share for seat in found.seats} == {1.0}
    assert [phase.name for phase in in_turn.phases(found.actors)] == ["engines awake"]
    assert actor(found, "sampler").spec.rest is None, "nobody waits for its GPU"


# Memory


def test_an_awake_engine_takes_what_a_rank_at_rest_leaves_of_nine_tenths():
    found = plan(own_adapters())
    awake, _ = phases_of(found)
    rank = ((2 * WEIGHTS + 4 * ADAPTERS + 8 * ADAPTERS) / 8) / GIB + 1.5  # base, adapters, AdamW; the context
    assert rank == pytest.approx(3.65, abs=0.01)
    assert awake.rests == {"learner": pytest.approx(rank)}
    share = actor(found, "sampler").spec.memory_utilization
    assert share == pytest.approx((0.9 * 80 - rank) / 80, abs=0.001) and share == 0.854
    assert awake.total_gib <= 0.9 * 80
    parts = actor(found, "sampler").memory_gib
    # 80 GB, 8B with adapters: 0.9 x 80 - 15.3 of weights - 3 of graphs - 4 of the learner, and adapters, leave 49.
    assert parts["weights"] == pytest.approx(15.3, abs=0.05)
    assert parts["KV cache"] == pytest.approx(49, abs=0.5)


def test_the_learner_at_work_has_beside_it_weights_graphs_and_a_context():
    found = plan(own_adapters())
    _, at_work = phases_of(found)
    own = actor(found, "sampler").memory_gib
    assert at_work.rests == {"sampler": pytest.approx(2 * WEIGHTS / GIB + own["adapters"] + 3 + 1.5)}
    parts = actor(found, "learner").memory_gib
    # 15.3 + 3 + 1.5 beside 2.2 of shards, 6.1 gathered and about 25 of a step make 53, without the adapters' slots and
    # the learner's own context.
    shards = parts["weights"] + parts["gradients"] + parts["optimizer"]
    assert (shards, parts["gathered"]) == (pytest.approx(2.2, abs=0.05), pytest.approx(6.1, abs=0.05))
    assert at_work.total_gib - own["adapters"] - parts["runtime"] == pytest.approx(53, abs=0.6)


def test_where_all_weights_train_they_wait_on_the_host_and_the_engine_s_are_dropped():
    asked = {"learner": {"activation_checkpointing": True}, "teacher": {"follow": "live"}}
    found = plan(recipe(**asked))
    awake, at_work = phases_of(found)
    assert awake.rests == {"learner": 1.5}
    assert (actor(found, "sampler").spec.rest, at_work.rests) == ("drop", {"sampler": 4.5})
    apart = actor(plan(recipe(placement="separate", **asked), gpus=32), "learner")
    assert actor(found, "learner").host_gib - apart.host_gib == pytest.approx(12 * WEIGHTS / 8 / GIB)
    assert found.sync_backend == "ipc"


def test_new_weights_come_where_the_step_s_memory_was():
    """A short step frees less than a sync takes: both sides' buffers and the engine's weights."""
    tree = {"tokens_per_micro_batch": 16, "chunk_tokens": 16, "activation_checkpointing": True}
    found = plan(recipe(teacher={"follow": "live"}, learner=tree))
    assert found.fits, found.reasons
    parts = actor(found, "learner").memory_gib
    buffers = (2 * (2**28 + 1_244_659_712) + 1_244_659_712) / GIB
    step = sum(parts[name] for name in ("gathered", "loss chunk", "head gradient", "activations", "backward"))
    assert parts["weight sync"] + step == pytest.approx(2 * WEIGHTS / GIB + 2 * buffers)
    assert "weight sync" not in actor(found, "sampler").memory_gib


def test_a_frozen_engine_waits_on_the_host_only_where_the_learner_leaves_it_no_room():
    asked = {"teacher": TEACHES, "learner": {"activation_checkpointing": True, "tokens_per_micro_batch": 34816}}
    large, small = (plan(recipe(**asked), gpu_gib=gib, student=QWEN3_1P7B) for gib in (80.0, 44.0))
    assert large.fits and small.fits, small.reasons
    assert [actor(found, "refiner").spec.rest for found in (large, small)] == ["keep", "offload"]
    assert actor(large, "refiner").resting_gib - actor(small, "refiner").resting_gib == pytest.approx(2 * WEIGHTS / GIB)
    assert actor(small, "refiner").host_gib - actor(large, "refiner").host_gib == pytest.approx(2 * WEIGHTS / GIB)


def test_two_pools_share_what_is_left_in_equal_caches():
    found = plan(recipe(teacher=TEACHES, learner=ADAPTED), student=QWEN3_1P7B)
    caches = [actor(found, name).memory_gib["KV cache"] for name in ("sampler", "refiner")]
    assert caches[0] == pytest.approx(caches[1], abs=0.2)
    assert phases_of(found)[0].total_gib == pytest.approx(72, abs=0.2)


def test_a_share_of_the_recipe_s_own_is_kept_and_checked():
    asked = {"teacher": TEACHES, "learner": ADAPTED}
    found = plan(recipe(**asked, sampler={"memory_utilization": 0.5}), student=QWEN3_1P7B)
    assert actor(found, "sampler").spec.memory_utilization == 0.5
    assert phases_of(found)[0].total_gib == pytest.approx(72, abs=0.2), "the refiner has the rest"
    [reason] = plan(own_adapters(sampler={"memory_utilization": 0.97})).reasons
    assert 'in the phase "engines awake" (sampler 77.6; at rest learner 3.7), but has 80.0' in reason
    assert "lower sampler.memory_utilization (by default it is computed)" in reason
    [reason] = plan(own_adapters(sampler={"memory_utilization": 0.27})).reasons
    assert "raise sampler.memory_utilization, or lower sampler.max_model_len" in reason, "more ranks would not help"


def test_a_gpu_that_is_too_small_for_the_learner_s_phase_is_refused_with_what_to_lower():
    reasons = plan(own_adapters(1), gpus=1, gpu_gib=40.0).reasons
    [reason] = [one for one in reasons if "learner at work" in one]
    assert "of which activations 18.7" in reason and "lower learner.tokens_per_micro_batch" in reason


# Cores


def test_on_cores_engines_and_ranks_are_counted_once_and_their_memory_twice():
    recipes = [config.load("miniature_opsd", [f"placement={placed}"]) for placed in ("separate", "timeshare")]
    apart, turns = (placement.plan(r, *facts_of_recipe(r), LAPTOP, longest_sequence_tokens=320) for r in recipes)
    assert apart.fits and turns.fits, turns.reasons
    assert (apart.needs["CPU"], turns.needs["CPU"]) == (1.75, 1.25)
    assert turns.needs["memory"] == apart.needs["memory"], "an engine on a CPU has nothing to free"
    assert in_turn.phases(turns.actors) == [] and "0.25 CPUs more in turn with the learner" in told(turns)
    assert turns.sync_backend == "gloo"


# What is printed


def test_the_rendered_plan_has_both_phases():
    text = shown.render(plan(own_adapters()))
    assert ", of the refiner too (without the adapter)" in told(plan(own_adapters()))
    assert "in turn, of the 80 GiB of a GPU:" in text
    assert "  engines awake     72.0: sampler 68.3 (memory_utilization 0.854), learner 3.7 at rest\n" in text
    assert "  learner at work   56.0: learner 35.6, sampler 20.4 at rest\n" in text
    assert "S7 L7" in text
    tree = shown.as_json(plan(own_adapters()))
    assert [phase["name"] for phase in tree["phases"]] == ["engines awake", "learner at work"]
    assert tree["actors"][0]["memory_utilization"] == 0.854 and tree["actors"][0]["rest"] == "keep"
