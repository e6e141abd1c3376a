"""Each alarm is provoked by a plausible run in which one thing is wrong, and its neighbour just below it is quiet."""

import math
from pathlib import Path
from typing import Any

import pytest
from plausible import ROWS, line, names, run, watcher

from trd_ray.alarms.around import Around
from trd_ray.alarms.chance import at_least
from trd_ray.alarms.conditions import CONDITIONS
from trd_ray.alarms.watcher import Watcher
from trd_ray.config import ALARMS, from_tree, load

DEAD = {"kind": "engine", "what": "restarts", "engine": "sampler-0", "said": "engine sampler-0 restarts"}
LOST = "The guard `old` is lost."
AGAIN = {"kind": "learner", "phase": "restarting", "said": "rank 1 died: the learner starts again from checkpoint 10"}


def evaluation(step: int, avg: float, change: list[float], of: str = "", **more: Any) -> dict[str, Any]:
    best = {"name": "step-000005", "step": 5, "change": change}
    return {"kind": "evaluation", "name": f"step-{step:06d}", "of": of, "step": step, "avg": avg, "best": best} | more


# name -> (steps as they should be before, steps that are wrong, what is wrong in them, what is only just right)
PROVOKED: dict[str, tuple[int, int, dict[str, Any], dict[str, Any]]] = {
    "truncated_y_o": (6, 1, {"y_o__truncated": 0.40}, {"y_o__truncated": 0.30}),
    "truncated_y_r": (0, 1, {"y_r__truncated": 0.40}, {"y_r__truncated": 0.30}),
    "no_answer_y_o": (0, 1, {"y_o__unanswered": 0.42}, {"y_o__unanswered": 0.27, "y_o__no_answer": 0.9}),
    "no_answer_y_r": (0, 1, {"y_r__unanswered": 0.42}, {"y_r__unanswered": 0.27, "y_r__no_answer": 0.9}),
    "length_explosion": (
        6, 1, {"y_o__truncated": 0.6, "y_o__tokens_mean": 2000.0}, {"y_o__truncated": 0.2, "y_o__tokens_mean": 1700.0},
    ),
    "views_cut": (3, 1, {"refine__cut_rows": 50}, {"refine__cut_rows": 38, "teacher__cut_rows": 38}),
    "none_passed_y_o": (0, 1, {"y_o__passed": 0.0}, {"y_o__passed": 1 / ROWS}),
    "none_passed_y_r": (0, 1, {"y_r__passed": 0.0}, {"y_r__passed": 1 / ROWS}),
    "all_passed": (0, 2, {"y_o__passed": 1.0}, {"y_o__passed": 1 - 1 / ROWS}),
    "refinement_harms": (
        0, 2, {"ledger__pass_fail": 20, "ledger__fail_pass": 6}, {"ledger__pass_fail": 16, "ledger__fail_pass": 12},
    ),
    "refinement_leaks": (0, 1, {"support__leaks": 0.13}, {"support__leaks": 0.07}),
    "refinement_longer": (0, 1, {"y_r__tokens_mean": 1900.0}, {"y_r__tokens_mean": 1700.0}),
    "all_dropped": (
        3, 1, {"trained_rows": 0, "dropped__refinement failed": ROWS},
        {"trained_rows": 1, "dropped__refinement failed": ROWS - 1},
    ),
    "bad_rows": (3, 1, {"dropped__bad row": 50}, {"dropped__bad row": 24}),
    "verifier_deadlines": (0, 1, {"verify__deadlines": 45}, {"verify__deadlines": 30}),
    "not_finite": (3, 1, {"grad_norm": math.nan, "skipped_updates": 1.0, "updates": 0.0}, {"grad_norm": 3.0}),
    "kl_spike": (12, 1, {"kl__mean": 1.5}, {"kl__mean": 0.9}),
    "kl_rises": (30, 10, {"kl__mean": 0.25}, {"kl__mean": 0.17}),
    "gradient_spike": (12, 1, {"grad_norm": 8.0}, {"grad_norm": 4.0}),
    "entropy_collapse": (8, 3, {"student__entropy": 0.01}, {"student__entropy": 0.05}),
    "engine_gap": (3, 3, {"sync__gap_mean": 0.08}, {"sync__gap_mean": 0.045}),
    "learner_waits": (0, 10, {"seconds__wait": 80.0}, {"seconds__wait": 66.0}),
    "engines_wait": (
        0, 10, {"seconds__train": 100.0, "seconds__sample": 40.0, "seconds__refine": 30.0},
        {"seconds__train": 70.0, "seconds__sample": 40.0, "seconds__refine": 30.0},
    ),
    "verifier_slow": (0, 10, {"seconds__verify": 110.0}, {"seconds__verify": 90.0}),
    "overhead": (0, 10, {"seconds__overhead": 30.0}, {"seconds__overhead": 20.0}),
    "throughput_fell": (12, 5, {"tokens_per_s__sampler": 1800.0}, {"tokens_per_s__sampler": 2200.0}),
    "slow_rank": (
        0, 5, {"learner__slowest_rank": 3, "learner__slowest_rank_ratio": 1.4},
        {"learner__slowest_rank": 3, "learner__slowest_rank_ratio": 1.2},
    ),
    "slow_checkpoint": (5, 2, {"checkpoint__seconds": 1500.0}, {"checkpoint__seconds": 1000.0}),
    "engine_restarts": (3, 3, {"events": [DEAD]}, {"events": [DEAD | {"what": "is up again"}]}),
    "learner_restarts": (3, 2, {"events": [AGAIN]}, {"events": [AGAIN | {"phase": "restarted"}]}),
    "spilling": (3, 1, {"store__spilled_gib": 0.4}, {"store__spilled_gib": 0.05}),
    "disk_nearly_full": (
        3, 1, {"disk__free_gib": 20.0, "checkpoint__gib": 11.0}, {"disk__free_gib": 23.0, "checkpoint__gib": 11.0},
    ),
    "held_out_falls": (
        20, 1, {"events": [evaluation(21, 0.41, [-0.06, -0.08, -0.04])]},
        {"events": [evaluation(21, 0.44, [-0.03, -0.05, -0.01])]},
    ),
    "guard_lost": (
        3, 1, {"events": [evaluation(4, 0.3, [-0.2, -0.3, -0.1], "old", lost=True, lost_said=LOST)]},
        {"events": [evaluation(4, 0.45, [-0.05, -0.1, 0.0], "old")]},
    ),
}  # fmt: skip


def stale(mean: float) -> Watcher:
    seen = run(watcher("stream.max_staleness=4"), 10, staleness__mean=mean, seconds__wait=1.0)
    return run(seen, 1, staleness__mean=1.5, seconds__wait=1.0)


@pytest.mark.parametrize("name", PROVOKED)
def test_an_alarm_is_raised_by_its_fault_and_by_no_other_alarm_s_and_not_just_below(name):
    before, steps, wrong, right = PROVOKED[name]
    raised = run(run(watcher(), before), steps, **wrong)
    assert names(raised) == [name]
    [alarm] = raised.alarms
    assert alarm.since_step > before and alarm.until_step is None and alarm.means and alarm.do
    assert names(run(run(watcher(), before), 2 * steps, **right)) == []


def test_staleness_at_its_bound_is_told_where_the_learner_never_waits_and_ends_below():
    [alarm] = stale(3.9).alarms
    assert alarm.name == "staleness_at_bound" and "3.9 versions" in alarm.sentence
    assert (alarm.since_step, alarm.until_step) == (10, 11)
    assert names(stale(3.6)) == []
    assert names(run(watcher(), 20, seconds__wait=1.0)) == [], "staleness 1 is what overlapped sampling costs"


def test_every_alarm_is_provoked():
    assert {*PROVOKED, "staleness_at_bound", "no_progress"} == set(ALARMS) == {one.name for one in CONDITIONS}


def test_a_run_as_it_should_be_raises_nothing_in_300_steps():
    assert names(run(watcher(), 300)) == []


@pytest.mark.parametrize("name", [name for name in PROVOKED if name not in ("bad_rows", "guard_lost")])
def test_an_alarm_ends_where_its_fault_does_and_begins_again_with_it(name):
    before, steps, wrong, _ = PROVOKED[name]
    seen = run(run(watcher(), before), steps, **wrong)
    good = {"checkpoint__seconds": 60.0} if name == "slow_checkpoint" else {}
    if name == "held_out_falls":
        good = {"events": [evaluation(22, 0.47, [0.0, -0.01, 0.01])]}
    run(seen, 25, **good)
    ended = seen.alarms[0].until_step
    assert ended and ended > seen.alarms[0].since_step and names(seen) == [name] and not seen.lasting
    if name not in ("held_out_falls", "kl_rises", "length_explosion", "refinement_harms"):  # which look further back
        run(seen, steps, **wrong)
        assert [alarm.until_step is None for alarm in seen.alarms if alarm.name == name][-1]


def test_between_its_two_thresholds_an_alarm_stays_what_it_is():
    seen = run(watcher(), 20, y_o__truncated=0.24)
    assert names(seen) == []
    run(seen, 1, y_o__truncated=0.5)
    run(seen, 20, y_o__truncated=0.24)
    assert [(alarm.since_step, alarm.until_step) for alarm in seen.alarms] == [(21, None)]
    run(seen, 2, y_o__truncated=0.10)
    assert seen.alarms[0].until_step == 42 and len(seen.alarms) == 1


def test_a_metric_of_an_alarm_is_one_while_it_lasts_and_zero_where_it_ends():
    seen = run(run(watcher(), 12), 1, kl__mean=1.5)
    assert seen.metrics() == {"alarm/kl_spike": 1.0}
    run(seen, 1)
    assert seen.metrics() == {"alarm/kl_spike": 0.0}
    run(seen, 1)
    assert seen.metrics() == {}


def test_a_silent_alarm_is_a_metric_and_nothing_that_is_told():
    seen = run(watcher("alarms.silent=[truncated_y_o]"), 1, y_o__truncated=0.6, y_r__truncated=0.6)
    assert seen.metrics() == {"alarm/truncated_y_o": 1.0, "alarm/truncated_y_r": 1.0}
    assert [one["name"] for one in seen.told()] == ["truncated_y_r"]


def test_few_rows_do_not_cry_by_chance():
    """Runs of 8 rows a step, of which a tenth is cut in truth: hardly one of 100 cries in 60 steps."""
    import random

    cried = 0
    for seed in range(100):
        chance, seen = random.Random(seed), watcher("rollouts_per_step=8")
        for step in range(1, 61):
            cut = sum(chance.random() < 0.10 for _ in range(8)) / 8
            cells = {"ledger/pass_pass": 4, "ledger/pass_fail": 0, "ledger/fail_pass": 3, "ledger/fail_fail": 1}
            seen.step(step, {"rollouts": 8, "y_o/truncated": cut, "y_o/no_answer": cut, "y_o/passed": 0.5} | cells)
        cried += bool(seen.alarms)
    assert cried <= 2


def test_the_gap_s_range_is_that_of_the_coarser_of_engine_and_learner():
    def precision(*keys: str) -> str:
        return Around.of(load("miniature_opsd", list(keys))).precision

    assert precision() == "float32" and precision("sampler.dtype=float16") == "float16"
    assert precision("sampler.dtype=float16", "learner.dtype=bfloat16") == "bfloat16"
    assert (
        precision("sampler.extra={quantization: fp8}") == precision("sampler.extra={kv_cache_dtype: fp8_e5m2}") == "fp8"
    )
    for dtype, gap in (("float32", 1.5e-3), ("float16", 0.015), ("bfloat16", 0.075)):
        learner = "float32" if dtype == "float16" else dtype
        seen = Watcher(Around.of(load("miniature_opsd", [f"learner.dtype={learner}", f"sampler.dtype={dtype}"])))
        assert names(run(seen, 3, sync__gap_mean=gap)) == ["engine_gap"], dtype
        seen = Watcher(Around.of(load("miniature_opsd", [f"learner.dtype={learner}", f"sampler.dtype={dtype}"])))
        assert names(run(seen, 9, sync__gap_mean=gap / 2)) == [], dtype


def test_what_is_said_names_the_numbers_and_the_keys_of_each_teacher():
    own = {name: {"refiner": {"max_response_tokens": limit}} for name, limit in (("maths", 40), ("code", 90))}
    seen = run(Watcher(Around.of(from_tree({"teachers": own}))), 1, y_r__truncated=1.0, y_r__no_answer=0.5)
    [alarm] = seen.alarms
    assert alarm.sentence == "128 of 128 (100%) refinements of step 1 are cut at 40 or 90 tokens, and 64 hold no answer"
    assert "teachers.maths.refiner.max_response_tokens or teachers.code.refiner.max_response_tokens" in alarm.do


@pytest.mark.parametrize(("keys", "said"), [
    ([], "verify.answer_in_prose=true"), (["verify.answer_in_prose=true"], "boxed"), (["prompts.task=code"], "Python"),
    (["data.path=reasoning_gym:spell_backward"], "the form that its verifier reads"),
])  # fmt: skip
def test_responses_without_an_answer_name_what_the_prompt_must_ask_for(keys, said):
    seen = Watcher(Around.of(load("smollm2_smoke", keys)))
    [alarm] = run(seen, 1, y_r__unanswered=0.8, y_r__passed=0.1, sync__gap_mean=None).alarms
    assert alarm.do.startswith("Let prompts.refine ask for") and said in alarm.do
    assert ("answer_in_prose" in alarm.do) == (keys == [])


def test_attempts_that_are_all_cut_say_so_and_not_also_that_none_passed_or_answered():
    """USERS.md's run: SmolLM2 with 64 tokens. All attempts are cut; of 8 refinements 7 ended without a box."""
    seen = Watcher(Around.of(load("smollm2_smoke", ["sampler.max_response_tokens=64", "rollouts_per_step=8"])))
    cells = {"ledger/pass_pass": 0, "ledger/pass_fail": 0, "ledger/fail_pass": 0, "ledger/fail_fail": 8}
    small = {"rollouts": 8, "trained_rows": 8, "y_o/tokens_mean": 64.0, "y_r/tokens_mean": 41.0} | cells
    y_o = {"y_o/truncated": 1.0, "y_o/no_answer": 1.0, "y_o/passed": 0.0}
    y_r = {"y_r/truncated": 0.0, "y_r/no_answer": 7 / 8, "y_r/unanswered": 7 / 8, "y_r/passed": 0.0}
    seen.step(1, small | y_o | y_r | {"y_o/unanswered": 0.0, "lr": 1e-5})
    assert names(seen) == ["truncated_y_o", "no_answer_y_r"]
    assert "8 of 8 (100%) attempts of step 1 are cut at 64 tokens" in seen.alarms[0].sentence
    assert "7 of 8 (88%) refinements of step 1 that ended by themselves" in seen.alarms[1].sentence


def test_a_student_that_stops_ending_is_told_from_a_limit_that_is_too_short():
    """What a run on the miniature world showed, 16 rollouts a step with too high a learning rate."""
    seen = Watcher(Around.of(load("miniature_opsd", ["stream.max_staleness=1"])))
    for step, (tokens, cut, passed) in enumerate([(34.8, 0, 0.44), (42.7, 0, 0.56), (46.6, 0, 0.06), (128, 1, 0)], 1):
        refined = {"y_r/truncated": float(cut), "y_r/no_answer": float(cut), "y_r/passed": 1.0 - cut}
        shown = {"rollouts": 16, "y_o/tokens_mean": tokens, "y_o/truncated": float(cut), "y_o/no_answer": float(cut)}
        seen.step(step, shown | refined | {"y_o/passed": passed, "y_r/tokens_mean": tokens, "ledger/fail_pass": 16})
    assert names(seen) == ["truncated_y_r", "length_explosion"] and seen.alarms[0].since_step == 4


def test_a_lost_guard_is_said_in_the_guard_s_own_words():
    seen = run(run(watcher(), 3), 1, PROVOKED["guard_lost"][2]["events"])
    assert seen.alarms[0].sentence == LOST and str(seen.alarms[0]).count("..") == 0
    run(seen, 1, [evaluation(5, 0.5, [0.0, -0.1, 0.1], "old")])
    assert not seen.lasting


def test_a_held_out_score_that_falls_is_told_where_evaluation_sets_are_scored_after_it():
    fell = [evaluation(21, 0.41, [-0.06, -0.08, -0.04]), evaluation(21, 0.45, [0.0, -0.1, 0.1], "old")]
    assert names(run(run(watcher(), 20), 1, fell)) == ["held_out_falls"]


def test_a_corpus_in_which_nothing_trains_is_no_alarm():
    seen = run(watcher(), 5, trained_rows=0, lr=None, loss=None, kl__mean=None, grad_norm=None, updates=None)
    assert names(seen) == []


def test_a_corpus_is_trained_on_without_engines_and_with_old_rows_and_that_is_no_alarm():
    keys = ("data.source=corpus", "stream.max_staleness=4")
    changes: dict[str, Any] = {"seconds__sample": 0.0, "seconds__refine": 0.0, "seconds__verify": 0.0}
    changes |= {"seconds__wait": 0.0, "seconds__train": 115.0, "dropped__bad row": 5, "tokens_per_s__sampler": None}
    seen = watcher(*keys)
    for step in range(1, 31):
        seen.step(step, line(step, **changes, staleness__mean=float(step)))
    assert names(seen) == []
    assert {"bad_rows", "engines_wait"} <= {*names(run(watcher("stream.max_staleness=4"), 30, **changes))}


def test_a_step_on_policy_may_wait_for_its_rows_and_a_trial_s_step_may_be_all_overhead():
    assert names(run(watcher("stream.max_staleness=0"), 20, seconds__wait=110.0)) == []
    assert names(run(watcher(), 20, seconds__step=5.0, seconds__overhead=4.0, seconds__wait=4.5)) == []


def test_the_learner_that_waits_names_the_pool_to_grow():
    [alarm] = run(watcher(), 10, seconds__wait=90.0, seconds__refine=115.0).alarms
    assert "raise refiner.replicas" in alarm.sentence and "75% of a step" in alarm.sentence


@pytest.mark.parametrize("n", [1, 7, 64, 300])
def test_the_tail_is_that_of_scipy(n):
    from scipy.stats import binom

    for share in (0.05, 0.25, 0.5):
        for count in {0, 1, n // 3, n}:
            assert at_least(count, n, share) == pytest.approx(
                float(binom.sf(count - 1, n, share)), rel=1e-9, abs=1e-300
            )


def test_the_readme_s_table_is_the_code_s():
    text = (Path(__file__).parents[2] / "trd_ray" / "alarms" / "README.md").read_text()
    assert table() in text


def table() -> str:
    words = Around.of(from_tree({})).words
    rows = [
        f"| `{one.name}` | {one.means.format_map(words)} | {upper(one.do.format_map(words))} |" for one in CONDITIONS
    ]
    return "\n".join(["| alarm | it means | set |", "|---|---|---|", *rows])


def upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def test_a_step_costs_no_time_to_speak_of():
    import time

    seen = run(watcher(), 200)
    began = time.perf_counter()
    for step in range(201, 301):
        seen.step(step, line(step))
    assert (time.perf_counter() - began) / 100 < 0.02
