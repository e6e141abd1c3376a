"""Long: whole runs of the methods beside TRD's own: hard labels, y*, fresh solutions, relays, best-of-n, spans, passes.

`make test-long`.
"""

import math
from typing import Any

import pytest

from runs import NO_EVALUATION, ROWS, SMALL, STEPS, on_corpus, run
from trd_ray.distill.learned_metrics import OF_TEACHER
from trd_ray.stream.edits import edited_places

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


def trained(folder, *overrides: str) -> Any:
    found = run(folder, "train", "miniature_opsd", *SMALL, *NO_EVALUATION, *overrides)
    assert found.code == 0, found.output[-3000:]
    assert len(found.metrics) == STEPS
    return found


@pytest.mark.parametrize("trajectory", ["y_r", "reference"])
def test_hard_labels_train_without_a_teacher_in_the_learner(tmp_path, trajectory):
    found = trained(tmp_path / "run", "loss.divergence=cross_entropy", f"train.trajectory={trajectory}")
    for metrics in found.metrics:
        assert not metrics.keys() & set(OF_TEACHER)
        assert metrics["loss"] == pytest.approx(metrics["student/nll"], rel=0.1)
        assert metrics["trained_rows"] and ("tokens/refined" in metrics) == (trajectory == "y_r")
    for row in found.rows:
        assert row["teacher_ids"] is None and row["scored"] is None and row["trajectory"] == trajectory
        assert (row["y_r"] is None) == (trajectory == "reference")
    if trajectory == "reference":  # each ends as the student ends its turn, and no attempt of full length does
        ends = {row["y_o"]["ids"][-1] for row in found.rows if row["y_o"]["finish"] == "stop"}
        assert {row["response_ids"][-1] for row in found.rows} == ends


def test_a_fresh_solution_is_sampled_and_scored_as_if_there_were_no_attempt(tmp_path):
    found = trained(tmp_path / "run", "refiner.from=problem")
    assert all(row["teacher_ids"] == row["refine_prompt_ids"] for row in found.rows)
    prompts = {row["problem_id"]: row["refine_prompt_ids"] for row in found.rows}
    assert all(row["refine_prompt_ids"] == prompts[row["problem_id"]] for row in found.rows)


def test_a_relay_begins_with_the_attempt_as_the_teacher_reads_it_and_generates_the_tail_alone(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from serving import logprobs
    from trd_ray.miniature import model_path

    found = trained(tmp_path / "run", "refiner.from=relay")
    base = AutoModelForCausalLM.from_pretrained(model_path("student"), dtype=torch.float32)  # which is the teacher
    whole = 0
    for row in found.rows:
        y_o, y_r, kept = row["y_o"]["ids"], row["y_r"]["ids"], row["refine_kept_tokens"]
        assert y_r[:kept] == y_o[:kept] and row["refine_tokens"] == len(y_r) - kept
        assert row["refine_scored_tokens"] == len(y_o) and len(row["y_r"]["logprobs"]) == len(y_r)
        assert row["teacher_ids"] == row["refine_prompt_ids"]
        read = logprobs(base, row["refine_prompt_ids"], y_o)
        assert row["y_r"]["logprobs"][:kept] == pytest.approx(read[:kept], abs=1e-3)
        assert all(logprob > -4.61 for logprob in read[:kept])
        if kept == len(y_o):
            whole += 1
            assert row["y_o"]["passed"] and row["y_r"]["text"] == row["y_o"]["text"]
    shares = [row["refine_kept_tokens"] / len(row["y_o"]["ids"]) for row in found.rows]
    assert sum(shares) > 0 and whole < len(found.rows)
    for metrics in found.metrics:
        assert 0 <= metrics["relay/kept_share"] <= 1 and metrics["tokens/scored"] == metrics["tokens/sampled"]


def test_of_two_rollouts_of_a_problem_one_trains(tmp_path):
    best = ["train.subset=best", "sampler.n=2", "train.trajectory=y_o", "teacher.view=vanilla"]
    found = trained(tmp_path / "run", *best)
    for metrics in found.metrics:
        assert metrics["rollouts"] == ROWS / STEPS and metrics["trained_rows"] == ROWS / STEPS / 2
    pairs: dict[tuple, list[dict]] = {}
    for row in found.rows:
        pairs.setdefault((row["epoch"], row["problem_id"]), []).append(row)
    for pair in pairs.values():
        [chosen] = [row for row in pair if row["train"]]
        assert chosen["y_o"]["passed"] == any(row["y_o"]["passed"] for row in pair)


@pytest.mark.parametrize("loss", ["loss.first_share=0.34", "loss.span=edited"])
def test_a_part_of_a_trajectory_has_loss_and_no_other_token_counts(tmp_path, loss):
    found = trained(tmp_path / "run", loss)
    of_step: dict[int, int] = {}
    for row in found.rows:
        if not row["train"]:
            assert row["dropped_because"] == "nothing edited"
            continue
        ids = row["y_r"]["ids"]
        if loss == "loss.span=edited":
            expected = edited_places(row["y_o"]["ids"], ids).tolist()
            assert row["loss_at"] == expected and len(row["response_ids"]) == expected[-1] + 1
        else:
            assert row["loss_at"] is None and row["response_ids"] == ids[: math.ceil(0.34 * len(ids))]
        count = len(row["response_ids"] if row["loss_at"] is None else row["loss_at"])
        of_step[row["step"]] = of_step.get(row["step"], 0) + count
    assert [m["trained_tokens"] for m in found.metrics] == [of_step[step] for step in sorted(of_step)]


def test_a_corpus_is_met_twice_and_says_how_stale_it_is(corpus, tmp_path):
    twice = [*on_corpus(corpus), "data.passes=2", "steps=null"]
    found = run(tmp_path / "run", "train", "miniature_opsd", *SMALL, *twice)
    assert found.code == 0, found.output[-3000:]
    assert len(found.metrics) == 2 * STEPS
    assert [row["row"] for row in found.rows] == list(range(2 * ROWS))
    assert [m["staleness/mean"] for m in found.metrics] == list(range(2 * STEPS))
    assert [m["epoch"] for m in found.metrics] == [0] * STEPS + [1] * STEPS
    first, second = found.rows[:ROWS], found.rows[ROWS:]
    assert [row["response_ids"] for row in first] == [row["response_ids"] for row in second]
