"""A run that was recorded predicts others: engines whose speed is known, and runs of real engines on a CPU."""

import json
import random
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from priced import case as case_on_gpus
from trd_ray import config
from trd_ray.economics import learning
from trd_ray.economics.batching import EngineRequest, serve_pool
from trd_ray.economics.calibration import Measured, ModelledSpeeds, Timed, TimedRow, calibrated
from trd_ray.economics.case import Case
from trd_ray.economics.engine_speed import EngineSpeed
from trd_ray.economics.learning import HowItTrains, LearnerSpeed, Trained
from trd_ray.economics.model_costs import ModelCosts
from trd_ray.economics.run_cost import base_of, engine_speed, learner_speed, run_cost, work_of
from trd_ray.economics.step_cost import PoolSetup, Setup, refinements, step_cost
from trd_ray.economics.workload import Row
from trd_ray.models import ModelFacts
from trd_ray.preflight import placement
from trd_ray.preflight.machines import Machine

SPEED = EngineSpeed(
    launch_s=2e-3, weights_s=1e-3, product_s=2e-5, sequence_s=1e-5, cached_token_s=1e-7, prefill_token_s=2e-5,
    prefill_square_s=0.0,
)  # fmt: skip
LEARNER = LearnerSpeed(flops=50e9, link_bytes_s=1e9, memory_bytes_s=1e10, update_s=0.03)
TINY = ModelCosts(parameters=600_000, body=500_000, kv_bytes=512, attention=512.0, head=100_000.0, layers=2, width=4)
HOW = HowItTrains(False, False, 4, 4096, 600_000, 1)


def made_up_run(
    slower: float, rows: int, steps: int, seed: int, median_tokens: int = 40, shared: bool = False, more: int = 0
):
    """A run as its files would have it, of engines and a learner that are so much slower than the model says.

    `shared`: one pool samples and refines. `more`: refinements of a row beside the one that trains.
    """
    rng = random.Random(seed)
    true = replace(SPEED.slower(slower), request_s=0.03)
    found, metrics, works = [], [], {}
    for step in range(1, steps + 1):
        shapes = [
            Row(
                12,
                max(2, round(rng.lognormvariate(0, 0.4) * median_tokens)),
                70,
                rng.randint(20, 60),
                tuple(rng.randint(20, 60) for _ in range(more)),
            )  # fmt: skip
            for _ in range(rows)
        ]
        sampler = PoolSetup(1, true)
        placed, refiner = ("shared", sampler) if shared else ("separate", PoolSetup(1, true))
        setup = Setup(placed, sampler, refiner, 0, True, 1, 1, 0.1, 0.2, 0.04, 1e9, False)
        trained = [Trained(12, r.refine_prompt, r.refined) for r in shapes]
        works[step] = learning.work(trained, TINY, TINY, HOW)
        train_s = learning.training_s(works[step], replace(LEARNER, flops=LEARNER.flops / slower), 1)
        cost = step_cost(setup, shapes, train_s)
        after = [refinements(r, 0.04) for r in shapes]
        both = [EngineRequest(0.0, r.prompt, r.raw, then=one) for r, one in zip(shapes, after, strict=True)]
        if shared:
            served = serve_pool(both, 1, true)
            sampled, refined = served.first_s, served.finish_s
        else:
            sampled = serve_pool([replace(one, then=None) for one in both], 1, true).finish_s
            refined = serve_pool(
                [refinements(r, t + 0.04) for t, r in zip(sampled, shapes, strict=True)], 1, true
            ).finish_s
        begin, engine = 100.0 * step, "sampler-0" if shared else "refiner-0"
        for r, end, last, t in zip(shapes, sampled, refined, trained, strict=True):
            start = end + 0.04
            y_r = Timed(r.refine_prompt, r.refined, begin + start, last - start, engine, r.others)
            found.append(TimedRow(step, Timed(r.prompt, r.raw, begin, end, "sampler-0"), y_r, t, 0.0))
        line = {"step": step, "seconds/step": cost.step_s, "seconds/train": train_s, "seconds/sync": 0.1}
        metrics.append(line | {"seconds/overhead": 0.3})
    return found, metrics, works


@pytest.mark.parametrize("slower", [0.5, 1.0, 3.0])
def test_how_much_slower_engines_and_learner_are_is_found(slower):
    rows, metrics, works = made_up_run(slower, 32, 6, seed=1)
    found = calibrated(rows, metrics, works, ModelledSpeeds(SPEED, SPEED, LEARNER, 1), "a run")
    assert found.slower["sampler"] == pytest.approx(slower, rel=0.05)
    assert found.slower["refiner"] == pytest.approx(slower, rel=0.25), "its requests come one after the other"
    assert found.learner.flops == pytest.approx(LEARNER.flops / slower, rel=0.05)
    assert (found.sync_s, found.scheduling_s) == (0.1, pytest.approx(0.2))
    assert found.sampler.request_s == pytest.approx(0.03, rel=0.3)


@pytest.mark.parametrize("slower", [0.5, 3.0])
@pytest.mark.parametrize("how", [{"shared": True}, {"more": 3}, {"shared": True, "more": 3}], ids=str)
def test_one_pool_for_both_and_several_refinements_have_one_rate(how, slower):
    found = calibrated(*made_up_run(slower, 32, 6, seed=1, **how), ModelledSpeeds(SPEED, SPEED, LEARNER, 1), "a run")
    assert found.slower["sampler"] == pytest.approx(slower, rel=0.1)
    assert found.slower["refiner"] == pytest.approx(slower, rel=0.25)
    assert len(found.lengths.of_run[0].others) == how.get("more", 0)


def test_gpus_that_change_hands_are_no_scheduling():
    rows, metrics, works = made_up_run(1.0, 32, 6, seed=1)
    base = ModelledSpeeds(SPEED, SPEED, LEARNER, 1)
    assert calibrated(rows, metrics, works, base, "a run").turn_s is None
    turns = [line | {"seconds/rest": 0.05, "seconds/wake": 0.1} for line in metrics]
    found = calibrated(rows, turns, works, base, "a run")
    assert found.turn_s == pytest.approx(0.15) and found.scheduling_s == pytest.approx(0.3 - 0.1 - 0.15)


def test_a_run_that_refined_nothing_tells_how_slow_a_refiner_would_be():
    rows, metrics, works = made_up_run(3.0, 32, 6, seed=1)
    rows = [row._replace(refined=None) for row in rows]
    found = calibrated(rows, metrics, works, ModelledSpeeds(SPEED, SPEED, LEARNER, 1), "a run")
    assert found.slower["refiner"] == found.slower["sampler"] == pytest.approx(3.0, rel=0.05)


def test_a_run_on_a_corpus_tells_of_its_learner_alone():
    made = made_up_run(3.0, 32, 6, seed=1)
    found = calibrated(*made, ModelledSpeeds(SPEED, SPEED, LEARNER, 1), "a run", corpus=True)
    assert found.slower["learner"] == pytest.approx(3.0, rel=0.05)
    assert found.slower["sampler"] == found.slower["refiner"] == 1.0, "others' engines made its rows"
    assert found.sync_s is found.scheduling_s is found.verify_s is None


@pytest.mark.parametrize(
    ("rows", "changes", "median_tokens"),
    [(8, {}, 40), (128, {}, 40), (32, {"staleness": 1}, 40), (32, {"sampler": 2}, 40), (32, {}, 160)],
    ids=["a smaller batch", "a larger batch", "staleness 1", "two samplers", "four times the tokens"],
)
def test_rates_of_one_run_predict_runs_that_differ_within_30_percent(rows, changes, median_tokens):
    slower = 2.0
    found = calibrated(*made_up_run(slower, 32, 6, seed=1), ModelledSpeeds(SPEED, SPEED, LEARNER, 1), "a run")
    true = replace(SPEED.slower(slower), request_s=0.03)
    others, _, works = made_up_run(slower, rows, 1, seed=9, median_tokens=median_tokens)
    shapes = [row.lengths for row in others]

    def took(
        sampler: EngineSpeed, refiner: EngineSpeed, learner: LearnerSpeed, sync: float, rest: float, verify: float
    ):
        setup = Setup(
            "separate", PoolSetup(changes.get("sampler", 1), sampler), PoolSetup(1, refiner),
            changes.get("staleness", 0), True, 1, 1, sync, rest, verify, 1e9, False,
        )  # fmt: skip
        return step_cost(setup, shapes, learning.training_s(works[1], learner, 1)).step_s

    truth = took(true, true, replace(LEARNER, flops=LEARNER.flops / slower), 0.1, 0.2, 0.04)
    said = took(found.sampler, found.refiner, found.learner, found.sync_s, found.scheduling_s, found.verify_s)
    assert said == pytest.approx(truth, rel=0.3)


def test_a_hiccup_of_the_machine_does_not_move_the_rates():
    rows, metrics, works = made_up_run(1.0, 32, 6, seed=1)
    late = [r._replace(sampled=r.sampled._replace(seconds=5 * r.sampled.seconds)) if r.step == 3 else r for r in rows]
    clean, found = (
        calibrated(some, metrics, works, ModelledSpeeds(SPEED, SPEED, LEARNER, 1), "a run") for some in (rows, late)
    )
    assert found.slower["sampler"] == pytest.approx(clean.slower["sampler"], rel=0.05)


# RunFacts: real engines, the real learner.
RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())["runs"]
STUDENT = ModelFacts(
    path="miniature:student", architecture="Qwen3ForCausalLM", parameters=643_648, hidden_size=128,
    intermediate_size=384, vocab_size=28, layers=3, attention_heads=4, kv_heads=4, head_dim=32, tied_embeddings=True,
    max_positions=512, dtype="float32", eos_ids=(4,),
)  # fmt: skip


def miniature(*overrides: str) -> Case:
    recipe = config.load("miniature_opsd", list(overrides))
    placed = placement.plan(recipe, STUDENT, STUDENT, [Machine("two cores", 2.0)])
    return Case(recipe, STUDENT, {"": STUDENT}, placed, recipe.steps)


def of_record(name: str) -> tuple[Measured, float]:
    run = RECORDED[name]
    rows = [
        TimedRow(
            step, Timed(prompt, raw, start, took, "sampler-0"), Timed(shown, refined, begins, takes, "refiner-0"),
            Trained(student, teacher, response), 0.0,
        )
        for step, prompt, raw, start, took, shown, refined, begins, takes, student, teacher, response in run["rows"]
    ]  # fmt: skip
    case = miniature()
    works = {n: work_of(case, [r.trained for r in rows if r.step == n]) for n in {r.step for r in rows}}
    return calibrated(rows, run["metrics"], works, base_of(case), name), recorded_s(name)


def recorded_s(name: str) -> float:
    return median(line["seconds/step"] for line in RECORDED[name]["metrics"])


@pytest.mark.parametrize(
    ("like", "predicts", "overrides"),
    [
        ("25 steps", "6 steps", []),
        ("6 steps", "25 steps", []),
        ("25 steps", "16 rows", ["rollouts_per_step=16", "stream.rows_per_block=16"]),
        ("6 steps", "16 rows", ["rollouts_per_step=16", "stream.rows_per_block=16"]),
    ],
)
def test_a_recorded_cpu_run_predicts_another_within_30_percent(like, predicts, overrides):
    measured, own = of_record(like)
    case = miniature(*overrides)
    again = run_cost(replace(miniature(), measured=measured)).step.step_s
    assert again == pytest.approx(own, rel=0.15), "its own steps"
    assert run_cost(replace(case, measured=measured)).step.step_s == pytest.approx(recorded_s(predicts), rel=0.3)


@pytest.mark.parametrize(
    "overrides", [[], ["sampler.replicas=4", "refiner.replicas=3"], ["learner.workers=2"]], ids=" ".join
)
def test_a_run_as_fast_as_the_model_says_changes_no_estimate_of_others(overrides):
    like = base_of(miniature())
    even = Measured(
        "a run", miniature().lengths, like.sampler, like.refiner, like.learner,
        slower={"sampler": 1.0, "refiner": 1.0, "learner": 1.0},
    )  # fmt: skip
    case = miniature(*overrides)
    known = replace(case, measured=even)
    assert engine_speed(known, "sampler") == engine_speed(case, "sampler")
    assert engine_speed(known, "refiner") == engine_speed(case, "refiner")
    assert learner_speed(known) == learner_speed(case), "two ranks have a core each, whatever the run had"


def test_engines_that_crowd_their_cores_are_not_slowed_down_twice():
    crowded = miniature("sampler.replicas=4")
    assert base_of(crowded).sampler.launch_s == pytest.approx(2 * base_of(miniature()).sampler.launch_s)


def test_a_cache_of_half_the_width_is_faster_with_the_rates_of_a_run_too():
    of = case_on_gpus("paper_opd_1p7b")
    like = base_of(of)
    slow = Measured("a run", of.lengths, like.sampler, like.refiner, like.learner,
                    slower={"sampler": 2.0, "refiner": 1.0, "learner": 1.0})  # fmt: skip
    narrow = case_on_gpus("paper_opd_1p7b", "sampler.extra={kv_cache_dtype: fp8}")
    before, after = (engine_speed(replace(one, measured=slow), "sampler") for one in (of, narrow))
    assert before.cached_token_s == pytest.approx(2 * like.sampler.cached_token_s)
    assert after.cached_token_s == pytest.approx(before.cached_token_s / 2)
    assert after.cache_tokens == pytest.approx(2 * before.cache_tokens, rel=0.01)


def test_measured_cpu_constants_meet_the_recorded_step_without_a_run_to_go_by():
    measured, own = of_record("25 steps")
    lengths_alone = Measured("a run", measured.lengths)
    assert run_cost(replace(miniature(), measured=lengths_alone)).step.step_s == pytest.approx(own, rel=0.3)


def test_lengths_of_a_run_are_cut_at_lower_limits():
    measured, _ = of_record("25 steps")
    short = miniature("sampler.max_response_tokens=20", "refiner.max_response_tokens=20")
    rows = replace(short, measured=measured).lengths.rows(64, 0)
    assert max(row.raw for row in rows) == 20 and "median of" in measured.lengths.said
