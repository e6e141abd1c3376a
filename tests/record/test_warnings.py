"""Warnings: what must be said above a run's numbers, with the key to set, and what must never be said."""

import io

import pytest
from rich.console import Console

from trd_ray.config import from_tree, load
from trd_ray.evaluate import report
from trd_ray.record import warnings
from trd_ray.record.directory import RunDirectory
from trd_ray.record.display import Display
from trd_ray.record.summary import write_summary
from trd_ray.rows import to_table
from trd_ray.score.stats import Answer, compare, score, to_json

RECIPE = load("smollm2_smoke")


def fact(raw: bool, refined: bool | None, **changes) -> dict:
    """A row as the ledger sees it: both texts ended by themselves and hold an answer, unless told otherwise."""
    made: dict = {"train": True, "dropped_because": ""}
    for y, passed in (("y_o", raw), ("y_r", refined)):
        made |= {f"{y}_passed": passed, f"{y}_finish": "stop", f"{y}_extracted": "5", f"{y}_detail": ""}
        made[f"{y}_tokens"] = None if passed is None else 30
    return made | changes


def scored(problems: int, *, passed=0.5, cut=0.0, answered=1.0, name: str = "base", samples: int = 4):
    answers = [
        Answer(f"p{p}", i < passed * samples, 10, i < cut * samples, i < answered * samples)
        for p in range(problems)
        for i in range(samples)
    ]
    return score(answers, name=name, step=0, version=0, resamples=100, seed=0)


def test_a_run_as_it_should_be_is_warned_of_nothing():
    facts = [fact(i % 2 == 0, True) for i in range(64)] + [fact(True, False), fact(False, False)]
    assert warnings.of_rows(facts, RECIPE) == {}
    assert warnings.of_rows([fact(i % 2 == 0, None, train=None, dropped_because=None) for i in range(8)], RECIPE) == {}
    assert warnings.of_rows([], RECIPE) == {}
    assert warnings.of_score(scored(200), RECIPE, 128) == {}
    assert warnings.of_score(scored(10, cut=0.5, answered=0.5), RECIPE, 128) == {}


def test_rows_that_nobody_could_judge_warn_of_nothing_and_held_out_samples_do():
    facts = [fact(True, True) for _ in range(8)]
    assert warnings.of_rows([*facts, *[fact(False, False, fault="y_o: not judged") for _ in range(64)]], RECIPE) == {}
    assert warnings.of_unjudged(["", "not equal", "empty"]) == {}
    [text] = warnings.of_unjudged(["", "not judged (it died twice)", "not judged (x)"]).values()
    assert text.startswith("2 held-out samples could not be judged and count as not passed") and "it died twice" in text


def test_hard_problems_of_which_a_few_pass_are_warned_of_nothing():
    facts = [fact(i == 0, i < 8, y_o_detail="not equal") for i in range(64)]
    assert warnings.of_rows(facts, RECIPE) == {}


@pytest.mark.parametrize(("y", "pool"), [("y_o", "sampler"), ("y_r", "refiner")])
def test_texts_cut_at_the_limit_name_the_limit_and_its_key(y, pool):
    facts = [fact(True, True) for _ in range(3)]
    facts += [fact(False, False, **{f"{y}_finish": "length", f"{y}_extracted": ""}) for _ in range(5)]
    [text] = warnings.of_rows(facts, RECIPE).values()
    assert "5 of 8 (62%)" in text and "cut at 96 tokens" in text and "5 hold no answer" in text
    assert f"raise {pool}.max_response_tokens" in text


def test_texts_without_an_answer_name_the_prompts_and_prose():
    facts = [fact(True, False, y_r_extracted="", y_r_detail="no answer") for _ in range(7)] + [fact(True, True)]
    text = warnings.of_rows(facts, RECIPE)["no answer y_r"]
    assert "7 of 8 (88%) refined" in text
    assert "prompts.refine" in text and "verify.answer_in_prose=true" in text
    prose = load("smollm2_smoke", ["verify.answer_in_prose=true"])
    assert "verify.answer_in_prose" not in warnings.of_rows(facts, prose)["no answer y_r"]
    code = load("smollm2_smoke", ["prompts.task=code"])
    assert "Python" in warnings.of_rows(facts, code)["no answer y_r"]


def test_a_passed_text_counts_as_answered_whatever_was_extracted():
    assert warnings.of_rows([fact(True, True, y_o_extracted="", y_r_extracted="") for _ in range(8)], RECIPE) == {}


def test_verdicts_that_all_fail_alike_are_quoted_as_code_and_cannot_leave_it():
    hostile = "case 3 of 9 failed: ``` <b> \x1b[2J **x**\n# y"
    facts = [fact(False, None, y_o_detail=hostile.replace("3", str(i))) for i in range(8)]
    text = warnings.of_rows(facts, RECIPE)["none passed y_o"]
    assert "None of 8 raw rollouts passed" in text and "data.columns" in text
    assert "```` case N of N failed" in text and "\x1b" not in text and "\n" not in text
    assert warnings.of_rows(facts[:7], RECIPE) == {}, "seven failures prove nothing"


def test_a_refinement_that_harms_is_warned_of_only_when_chance_does_not_explain_it():
    harmed = [fact(True, False) for _ in range(9)] + [fact(False, True) for _ in range(2)]
    text = warnings.of_rows(harmed + [fact(True, True)] * 50, RECIPE)["refined below raw"]
    assert "9 passed only before it and 2 only after" in text and "train.when_refinement_fails=raw_if_passed" in text
    assert warnings.of_rows([fact(True, False)] * 3 + [fact(True, True)] * 50, RECIPE) == {}


def test_rows_that_are_all_dropped_name_the_reasons_and_the_keys():
    facts = [fact(False, False, train=False, dropped_because="refinement failed", y_o_extracted="4") for _ in range(4)]
    [text] = warnings.of_rows(facts, RECIPE).values()
    assert (
        "None of 4 rows was trained on: refinement failed (4)" in text and "train.when_refinement_fails=train" in text
    )
    facts[0] |= {"train": True, "dropped_because": ""}
    assert warnings.of_rows(facts, RECIPE) == {}


def test_refinements_of_several_teachers_are_cut_at_the_limits_of_each():
    own = {name: {"refiner": {"max_response_tokens": limit}} for name, limit in (("maths", 40), ("code", 90))}
    recipe = from_tree({"teachers": own})
    facts = [fact(True, True, y_r_finish="length") for _ in range(8)]
    [text] = warnings.of_rows(facts, recipe).values()
    assert "cut at 40 or 90 tokens" in text and "or teachers.code.refiner.max_response_tokens." in text


def test_an_evaluation_of_few_problems_cut_samples_or_no_answers_names_each_with_its_key():
    found = list(warnings.of_score(scored(4, passed=0, cut=1, answered=0), RECIPE, 64).values())
    assert len(found) == 2
    assert "4 held-out problems" in found[0] and "evaluation.path" in found[0] and "evaluation.limit" in found[0]
    assert "16 of 16 (100%)" in found[1] and "64 tokens" in found[1] and "evaluation.max_response_tokens" in found[1]
    [mute] = warnings.of_score(scored(20, passed=0, answered=0.25), RECIPE, 64).values()
    assert "60 of 80 (75%)" in mute and "prompts.solve" in mute
    [none] = warnings.of_score(scored(20, passed=0), RECIPE, 64, where="aime24").values()
    assert "None of 80" in none and "aime24" in none


def test_a_warning_is_shown_once():
    console = Console(file=io.StringIO(), width=80)
    with Display(3, console) as d:
        assert d.warn({"cut y_o": "5 of 8 are cut."}) == ["warning: 5 of 8 are cut."]
        assert d.warn({"cut y_o": "6 of 8 are cut.", "other": "[b]more[/b]"}) == ["warning: [b]more[/b]"]
    assert console.file.getvalue() == "warning: 5 of 8 are cut.\nwarning: [b]more[/b]\n"


def test_warnings_stand_above_the_headline_of_a_summary(tmp_path):
    directory = RunDirectory.create(tmp_path / "r", RECIPE)
    rows = []
    for i in range(8):
        row = {"row": i, "step": 0, "epoch": 0, "sample_index": 0, "seed": 0, "problem_id": f"p{i}", "problem": "?"}
        row |= {"answer": "5", "reference": "", "train": True, "dropped_because": ""}
        for y in ("y_o", "y_r"):
            row[y] = {"ids": [1] * 96, "text": "hm", "finish": "length", "passed": False}
            row[y] |= {"extracted": "", "detail": "no answer"}
        rows.append(row)
    directory.write_rows(1, to_table(rows))
    base, trained = (scored(4, passed=0, cut=1, answered=0, name=name) for name in ("base", "trained"))
    directory.write_evaluation(base, rows)
    directory.write_evaluation(compare(trained, base, resamples=100, seed=0), rows)
    text = write_summary(directory)
    directory.release()
    above, _, below = text.partition("OPSD on refined rollouts")
    for said in ("8 of 8 (100%) raw", "8 of 8 (100%) refined", "4 held-out problems", "held-out samples (trained)"):
        assert said in above
    assert "Training moved Avg@4" in below and "Warning" not in below


def test_an_evaluations_warnings_stand_above_its_tables(tmp_path):
    benchmark = {"name": "own", "title": "own", "notes": [], "source": "own.jsonl"}
    made = to_json(scored(4, cut=1, name="mine")) | {"benchmark": benchmark, "thinking": "", "model": "m", "base": None}
    made |= {"base_differs": [], "buckets": [], "settings": {"evaluation": {"max_response_tokens": 77}}}
    console = Console(file=io.StringIO(), width=120)
    report.show(console, [made], RECIPE)
    report.write(_folder(tmp_path), made)
    for text in (console.file.getvalue(), report.write_markdown(tmp_path, RECIPE).read_text()):
        above, _, below = text.partition("Avg@")
        assert "4 held-out problems" in above and "cut at 77 tokens" in above and "arning" not in below


def _folder(tmp_path):
    (tmp_path / "evaluation").mkdir()
    return tmp_path
