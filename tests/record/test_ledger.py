import numpy as np
import pyarrow.parquet as pq
import pytest

from trd_ray import rows as schema
from trd_ray.record.ledger import DROPPED, METRICS, facts_of_run, ledger, row_metrics, stage_seconds, union_seconds


def row(number: int, **columns) -> dict:
    plain = {"problem_id": f"p{number}", "problem": "?", "answer": "5", "reference": "", "row": number, "step": 0}
    order = {"epoch": 0, "sample_index": 0, "seed": number, "train": True, "dropped_because": ""}
    return plain | order | columns


def generation(
    y: str, tokens: int, passed: bool, finish: str = "stop", extracted: str = "5", detail: str = "", version: int = 3
) -> dict:
    verdict = {"passed": passed, "extracted": extracted, "detail": detail}
    return {y: {"ids": list(range(tokens)), "finish": finish, "version": version} | verdict}


def lit(rows: list[dict]) -> list[dict]:
    return schema.light(schema.to_table(rows))


FULL = [
    row(0, **generation("y_o", 10, True), **generation("y_r", 4, True), refine_cut_tokens=0, trajectory="y_o"),
    row(
        1,
        **generation("y_o", 20, False, version=1),
        **generation("y_r", 6, True),
        refine_cut_tokens=7,
        trajectory="y_r",
        refine_tokens=26,
        refine_scored_tokens=16,
        refine_student_logprob=-0.5,
        refine_edited_share=0.25,
        refine_kept_tokens=5,
    ),
    row(
        2,
        trajectory="y_r",
        **generation("y_o", 30, False, "length", "", "time limit (10 s)"),
        **generation("y_r", 8, False),
    ),
    row(
        3,
        **generation("y_o", 0, False, "stop", "", "empty"),
        **generation("y_r", 90, True, "length"),
        train=False,
        dropped_because="raw passed",
        teacher_cut_tokens=2,
    ),
    row(4, **generation("y_o", 15, True), **generation("y_r", 5, False), train=False, dropped_because="raw passed"),
]


def test_every_number_of_a_step_counted_by_hand():
    m = row_metrics(lit(FULL), version=3)
    assert m == {
        "rollouts": 5,
        "trained_rows": 3,
        "trained_rows/y_o": 1,
        "trained_rows/y_r": 2,
        "tokens/sampled": 75,
        "tokens/refined": 4 + 26 + 8 + 90 + 5,
        "tokens/scored": 16,
        "y_r/student_logprob": -0.5,
        "y_r/edited_share": 0.25,
        "relay/kept_share": 5 / 20,
        "dropped/raw passed": 2,
        "y_o/passed": pytest.approx(2 / 5),
        "y_o/tokens_mean": 15,
        "y_o/tokens_p50": 15,
        "y_o/truncated": pytest.approx(1 / 5),
        "y_o/no_answer": pytest.approx(2 / 5),
        "y_o/unanswered": pytest.approx(1 / 5),
        "y_o/empty": pytest.approx(1 / 5),
        "y_r/passed": pytest.approx(3 / 5),
        "y_r/tokens_mean": pytest.approx(113 / 5),
        "y_r/tokens_p50": 6,
        "y_r/truncated": pytest.approx(1 / 5),
        "y_r/no_answer": 0,
        "y_r/unanswered": 0,
        "y_r/empty": 0,
        "ledger/pass_pass": 1,
        "ledger/pass_fail": 1,
        "ledger/fail_pass": 2,
        "ledger/fail_fail": 1,
        "verify/deadlines": 1,
        "refine/cut_rows": 1,
        "teacher/cut_rows": 1,
        "staleness/mean": pytest.approx(2 / 5),
        "staleness/max": 2,
    }


def test_what_passed_or_was_cut_is_not_unanswered_whatever_was_extracted():
    m = row_metrics(lit([
        row(0, **generation("y_o", 10, True, "stop", "")), row(1, **generation("y_o", 20, False, "length", "")),
        row(2, **generation("y_o", 30, False, "length")), row(3, **generation("y_o", 30, False, "stop", "")),
    ]))  # fmt: skip
    assert m["y_o/no_answer"] == 3 / 4 and m["y_o/unanswered"] == 1 / 4


def test_without_refinements_nothing_is_said_about_them():
    m = row_metrics(lit([row(0, **generation("y_o", 10, True)), row(1, **generation("y_o", 20, False), y_r=None)]))
    assert m["y_o/passed"] == 0.5
    assert not [name for name in m if name.startswith(("y_r", "ledger", "staleness", "dropped", "trained_rows/"))]
    assert {name: n for name, n in m.items() if name.startswith("tokens/")} == {"tokens/sampled": 30}


def test_rows_in_files_give_the_numbers_of_rows_in_memory(tmp_path):
    pq.write_table(schema.to_table(FULL), tmp_path / "step-000000.parquet")
    assert ledger(facts_of_run(schema.RowFiles(tmp_path.iterdir())), version=3) == row_metrics(lit(FULL), version=3)


def test_a_row_that_nobody_could_judge_is_dropped_and_in_no_share():
    bad = row(5, **generation("y_o", 50, False), fault="y_o: not judged", train=False, dropped_because="bad row")
    never = row(6, fault="y_o: the engine refused the request", train=False, dropped_because="bad row")
    with_bad, without = row_metrics(lit([*FULL, bad, never])), row_metrics(lit(FULL))
    assert with_bad == without | {"rollouts": 7, "dropped/bad row": 2, "tokens/sampled": 75 + 50}


def test_no_rows_are_no_error():
    assert row_metrics([])["rollouts"] == 0


def test_overlapping_requests_count_once():
    rows = [
        {"y_o": {"start_s": 100.0, "seconds": 4.0}},
        {"y_o": {"start_s": 102.0, "seconds": 4.0}},
        {"y_o": {"start_s": 110.0, "seconds": 1.0, "verify_start_s": 110.5, "verify_seconds": 2.0}},
        {"y_r": {"start_s": None, "seconds": None, "verify_start_s": 112.0, "verify_seconds": 1.0}},
    ]
    assert stage_seconds(rows, (100.0, 120.0)) == {"sample": 7.0, "verify": 2.5, "refine": 0.0, "busy": 9.0}


def test_only_the_window_counts():
    rows = [{"y_o": {"start_s": 90.0, "seconds": 12.0}}, {"y_r": {"start_s": 118.0, "seconds": 50.0}}]
    assert stage_seconds(rows, (100.0, 120.0)) == {"sample": 2.0, "verify": 0.0, "refine": 2.0, "busy": 4.0}
    assert stage_seconds(rows, (103.0, 110.0))["busy"] == 0


def test_the_union_is_what_a_fine_grid_counts():
    rng = np.random.default_rng(0)
    for _ in range(20):
        starts = rng.uniform(-5, 15, 12)
        spans = [(s, s + d) for s, d in zip(starts, rng.uniform(0, 3, 12), strict=True)]
        grid = np.arange(0, 10, 1e-3) + 5e-4
        covered = np.zeros(len(grid), dtype=bool)
        for start, end in spans:
            covered |= (grid >= start) & (grid < end)
        assert union_seconds(spans, (0, 10)) == pytest.approx(covered.sum() * 1e-3, abs=0.02)


def test_every_metric_of_a_step_is_one_that_a_checkpoint_may_be_the_best_by():
    assert {name for name in row_metrics(lit(FULL), version=3) if not name.startswith(DROPPED)} == set(METRICS)
