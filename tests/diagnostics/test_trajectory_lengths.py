"""Lengths, difficulty and subsets, counted by hand or by SciPy."""

import json

import numpy as np
import pytest
from made_steps import response, row, scored, step_table
from scipy.stats.mstats import mquantiles

from trd_ray.diagnostics.difficulty import buckets_of_rows, evaluated_buckets
from trd_ray.diagnostics.row_facts import RowFacts
from trd_ray.diagnostics.step_rows import StepRows
from trd_ray.diagnostics.subsets import subsets_of
from trd_ray.diagnostics.trajectory_lengths import References, lengths_of
from trd_ray.score.buckets import buckets
from trd_ray.score.buckets import to_json as buckets_to_json
from trd_ray.score.stats import Answer, score, to_json


def facts_of(*rows: dict, edited: list[float] | None = None) -> RowFacts:
    facts = RowFacts()
    half = len(rows) // 2
    shares = np.array(edited if edited else [np.nan] * len(rows))
    for part, its in ((rows[:half], shares[:half]), (rows[half:], shares[half:])):
        facts.add(StepRows(step_table(*part)), its)
    return facts


def trained(kl: list[float]) -> list[dict]:
    return [scored("y_r", "refine", True, kl=kl)]


ROWS = [
    row(0, problem_id="a", y_o=response([1] * 10, True), y_r=response([1] * 4, True), scored=trained([1.0, 3.0])),
    row(1, problem_id="a", y_o=response([1] * 30, False), y_r=response([1] * 8, True), scored=trained([6.0])),
    row(2, problem_id="b", y_o=response([1] * 20, False), y_r=response([1] * 6, False)),
    row(3, problem_id="b", y_o=response([1] * 50, False), y_r=None),
    row(4, problem_id="c", y_o=response([1] * 12, True), y_r=response([1] * 2, False), scored=trained([0.0] * 3)),
    row(5, problem_id="d", y_o=response([1] * 99, None), y_r=response([1] * 3, None)),
    row(6, problem_id="a", y_o=response([1] * 999, True), fault="dead"),
]


def test_lengths_are_told_apart_by_the_verdict_of_the_attempt():
    found = lengths_of(facts_of(*ROWS), {"a": 5, "b": 7})
    raw = found["all"]["raw"]
    assert raw["rows"] == 6 and raw["mean"] == pytest.approx(np.mean([10, 30, 20, 50, 12, 99]))
    expected = mquantiles([10, 30, 20, 50, 12, 99], [0.05, 0.25, 0.5, 0.75, 0.95, 1], alphap=1, betap=1)
    assert [raw[q] for q in ("p5", "p25", "p50", "p75", "p95", "max")] == pytest.approx(list(expected))
    assert found["already_correct"]["raw"]["p50"] == 11 and found["already_correct"]["refined"]["p50"] == 3
    assert found["failed"]["raw"]["rows"] == 3 and found["failed"]["refined"]["p50"] == 7
    assert found["already_correct"]["reference"] == found["all"]["reference"] | {
        "rows": 1, "mean": 5.0, "p5": 5, "p25": 5, "p50": 5, "p75": 5, "p95": 5, "max": 5
    }  # fmt: skip
    assert found["reference_rows"] == 4


def test_without_references_or_refinements_nothing_is_said_of_them():
    found = lengths_of(facts_of(row(0, y_o=response([1, 2]))))
    assert found == {"all": found["all"], "already_correct": found["already_correct"]} and list(found["all"]) == ["raw"]
    assert lengths_of(RowFacts()) is None


def test_of_many_references_some_are_chosen_by_their_names_and_in_any_order():
    names = [f"p{i}" for i in range(500)]
    chosen = []
    for order in (names, names[::-1]):
        references = References(most=20)
        references.add([None, "p0", *order, *order[:9]], ["x", "", *(f"text of {n}" for n in [*order, *order[:9]])])
        assert len(references) == 20
        chosen.append(references.tokens(lambda texts: [len(text) for text in texts]))
    assert chosen[0] == chosen[1] and all(count == len(f"text of {n}") for n, count in chosen[0].items())
    places = sorted(int(name[1:]) for name in chosen[0])
    assert places[0] < 150 and places[-1] > 350  # spread over all


def test_a_subset_keeps_what_train_subset_would_and_its_figures_are_its_own():
    found = {one["subset"]: one for one in subsets_of(facts_of(*ROWS, edited=[0.5, 0.25, 1.0] + [np.nan] * 4))}
    assert list(found) == ["all", "failed", "repaired", "passed"]
    assert [one["rows"] for one in found.values()] == [6, 3, 1, 2]
    assert found["failed"]["share"] == 0.5 and found["failed"]["y_r_passed"] == 0.5
    assert found["failed"]["tokens"] == 8 + 6 + 50  # y_o where nothing was refined
    assert found["failed"]["edited_share"] == 0.625 and found["passed"]["edited_share"] == 0.5
    assert found["all"]["kl"] == pytest.approx(10 / 6) and found["repaired"]["kl"] == 6.0
    assert found["passed"]["raw"] == 11 and found["passed"]["y_o_passed"] == 1.0
    assert subsets_of(RowFacts()) is None
    nothing = subsets_of(facts_of(row(0, y_o=response([1], True))))[1]
    assert nothing["rows"] == 0 and nothing["kl"] is None and nothing["raw"] is None


def test_a_run_s_problems_are_grouped_by_their_own_attempts():
    found = {one["label"]: one for one in buckets_of_rows(facts_of(*ROWS))}
    assert {label: (one["problems"], one["rows"]) for label, one in found.items()} == {
        "never": (1, 2), "26-50%": (1, 2), "always": (1, 1),
    }  # fmt: skip
    assert found["26-50%"]["y_r_passed"] == 1.0 and found["26-50%"]["kl"] == pytest.approx(10 / 3)
    assert buckets_of_rows(facts_of(*ROWS[:1], *ROWS[4:])) is None  # no problem has two attempts


def scored_as(name: str, step: int, passed: dict[str, list[bool]]):
    answers = [Answer(p, one, 5, False, True) for p, its in passed.items() for one in its]
    return score(answers, name=name, step=step, version=step, resamples=100, seed=0)


def test_held_out_problems_are_grouped_by_the_base_beside_what_was_evaluated_last(tmp_path):
    base = scored_as("base", 0, {"a": [False, False], "b": [True, True]})
    middle = scored_as("step-000002", 2, {"a": [False, True], "b": [True, True]})
    last = scored_as("trained", 4, {"a": [True, True], "b": [True, False]})
    other = scored_as("step-000009", 9, {"z": [True, True]})
    place = tmp_path / "evaluation"
    (place / "old").mkdir(parents=True)
    for one in (base, middle, last, other):
        (place / f"{one.name}.json").write_text(json.dumps(to_json(one)))
    (place / "old" / "base.json").write_text(json.dumps(to_json(base)))
    (place / "broken.json").write_text("{")
    (place / "aime.json").write_text(json.dumps({"benchmark": {"name": "aime"}, "buckets": [{"label": "never"}]}))
    found = evaluated_buckets(tmp_path, resamples=100, seed=0)
    assert found[""] == buckets_to_json(buckets(base, [last], resamples=100, seed=0))
    assert found["old"] == buckets_to_json(buckets(base, [], resamples=100, seed=0))
    assert found["aime"] == [{"label": "never"}]
    assert evaluated_buckets(tmp_path / "none", resamples=100, seed=0) is None
