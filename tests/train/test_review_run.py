"""Long: a corpus that a person judges, from its first rollout to the step that trains on it. `make test-long`."""

import pytest

from runs import NO_EVALUATION, ROWS, SMALL, STEPS, run
from trd_ray.config import VerifyConfig
from trd_ray.verify import verifier
from trd_ray.verify.review.given_verdicts import PersonsVerdict, append_given
from trd_ray.verify.review.review_queue import given_place, read_queue

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


def test_a_corpus_waits_for_its_reviewer_and_then_trains_as_if_a_program_had_judged_it(tmp_path):
    review = ["verify.function=review", "prompts.task=math", "refiner.n=2", "refiner.select=first_passed"]
    command = ["refine", "miniature_opsd", *SMALL, *NO_EVALUATION, *review]
    sampled = run(tmp_path / "corpus", *command)
    assert sampled.code == 0, sampled.output[-3000:]
    corpus = sampled.directory
    assert f"wait for a person in {corpus}" in sampled.output and f"and {ROWS} rows of the corpus" in sampled.output
    assert all(row["y_o"]["passed"] is None and row["review_waits"] > 1 and not row["fault"] for row in sampled.rows)
    engines = {file.name: file.stat().st_mtime_ns for file in (corpus / "logs").glob("sampler*")}
    on_corpus = [*SMALL, *NO_EVALUATION, "data.source=corpus", f"data.path={corpus}", "prompts.task=math"]
    early = run(tmp_path / "early", "train", "miniature_opsd", *on_corpus)
    assert early.code == 2 and f"trd review {corpus}" in early.output

    judge = verifier(VerifyConfig())  # the person knows mathematics
    for one in read_queue(corpus).values():
        passed = judge(one.response, {"problem_id": one.problem_id, "answer": one.answer}).passed
        append_given(given_place(corpus), one.key, PersonsVerdict(passed))
    judged = run(corpus, *command)
    assert judged.code == 0, judged.output[-3000:]
    assert "every response is judged" in judged.output
    assert engines and engines == {file.name: file.stat().st_mtime_ns for file in (corpus / "logs").glob("sampler*")}
    assert len(judged.rows) == ROWS and len(judged.metrics) == STEPS
    for row in judged.rows:
        texts = [one["text"] for one in row["review_candidates"]]
        right = [judge(text, row).passed for text in texts]
        assert row["y_o"]["passed"] == judge(row["y_o"]["text"], row).passed and row["review_waits"] == 0
        assert row["y_r"]["text"] == texts[right.index(True) if any(right) else 0]
        assert row["y_r"]["passed"] == any(right)

    trained = run(tmp_path / "trained", "train", "miniature_opsd", *on_corpus)
    assert trained.code == 0, trained.output[-3000:]
    assert all(row["train"] and row["response_ids"] == row["y_r"]["ids"] for row in trained.rows)
    assert all(row["review_candidates"] is None for row in trained.rows) and len(trained.metrics) == STEPS
