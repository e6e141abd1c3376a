"""Long: whole runs that train on other trajectories than y_r of a single refinement. `make test-long`."""

from statistics import fmean

import pytest

from runs import NO_EVALUATION, ROWS, SMALL, STEPS, on_corpus, run

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


def test_a_run_that_repairs_refines_less_and_a_corpus_of_it_serves_repair_and_y_o_alone(tmp_path):
    repair = [*SMALL, *NO_EVALUATION, "train.trajectory=repair"]
    trained = run(tmp_path / "repair", "train", "miniature_opsd", *repair)
    assert trained.code == 0, trained.output[-3000:]
    assert len(trained.metrics) == STEPS and len(trained.rows) == ROWS
    for row in trained.rows:
        passed = row["y_o"]["passed"]
        assert (row["y_r"] is None) == passed and row["trajectory"] == ("y_o" if passed else "y_r")
        assert row["train"] and row["response_ids"] == row[row["trajectory"]]["ids"]
        # The attempt that trains does not stand in what its teacher sees.
        assert (row["teacher_ids"] == row["refine_prompt_ids"]) != passed
    refined = sum(row["y_r"] is not None for row in trained.rows)
    assert 0 < refined < ROWS
    assert sum(m["tokens/refined"] for m in trained.metrics) == sum(r["refine_tokens"] or 0 for r in trained.rows)
    assert f"{refined} of {ROWS} rollouts were refined" in (trained.directory / "summary.md").read_text()

    corpus = run(tmp_path / "corpus", "refine", "miniature_opsd", *repair)
    assert corpus.code == 0, corpus.output[-3000:]
    arguments = [*SMALL, *on_corpus(corpus)]
    refused = run(tmp_path / "refused", "train", "miniature_opsd", *arguments)
    assert refused.code == 2 and "set train.trajectory=repair or y_o" in refused.output
    offline = run(tmp_path / "offline", "train", "miniature_opsd", *arguments, "train.trajectory=repair")
    assert offline.code == 0, offline.output[-3000:]
    assert all((row["trajectory"] == "y_o") == row["y_o"]["passed"] for row in offline.rows)


@pytest.mark.parametrize("one_pool", [False, True], ids=["two pools", "one pool"])
def test_the_nearest_refinement_is_scored_by_the_student_that_the_learner_has(tmp_path, one_pool):
    import torch
    from transformers import AutoModelForCausalLM

    from serving import logprobs
    from trd_ray.miniature import model_path

    nearest = [*SMALL, *NO_EVALUATION, "refiner.n=3", "refiner.select=nearest", "refiner.max_edited_share=1"]
    shared = ["placement=shared", "sampler.max_model_len=320", "learner.lora={rank: 8, alpha: 16}", "sync.lora=adapter"]
    nearest += shared if one_pool else ["sampler.max_model_len=168"]
    trained = run(tmp_path / "run", "train", "miniature_opsd", *nearest)
    assert trained.code == 0, trained.output[-3000:]
    assert all(m["sync/gap_mean"] < 1e-3 for m in trained.metrics)
    assert all(m["tokens/refined"] >= m["tokens/scored"] > 0 for m in trained.metrics)
    base = AutoModelForCausalLM.from_pretrained(model_path("student"), dtype=torch.float32)
    scored = 0
    for row in trained.rows:
        several = row["refine_candidates_passed"] > 1
        assert (row["refine_student_logprob"] is not None) == several == (row["refine_scored_tokens"] is not None)
        assert 0 <= row["refine_edited_share"] <= 1
        if several and row["step"] == 1:  # before the first update
            scored += 1
            expected = fmean(logprobs(base, row["student_prompt_ids"], row["y_r"]["ids"]))
            assert row["refine_student_logprob"] == pytest.approx(expected, abs=1e-3)
    assert scored
