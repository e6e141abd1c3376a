"""Warnings: what must be said above a run's numbers, with the key to set, and what must never be said."""

import io
import json

from rich.console import Console

from trd_ray.alarms.around import Around
from trd_ray.alarms.watcher import Watcher
from trd_ray.config import load
from trd_ray.evaluate import report
from trd_ray.record import warnings
from trd_ray.record.directory import RunDirectory
from trd_ray.record.display import Display
from trd_ray.record.ledger import facts_of_rows, ledger, row_metrics
from trd_ray.record.summary import write_summary
from trd_ray.rows import light, to_table
from trd_ray.score.stats import Answer, compare, score, to_json

RECIPE = load("smollm2_smoke")
ROW = dict.fromkeys(facts_of_rows([{}])[0])  # every fact, as it is where nothing is known


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


def alarms_of(facts: list[dict]) -> list[str]:
    """What a step of these rows raises, by what the ledger says of them."""
    seen = Watcher(Around.of(RECIPE))
    seen.step(1, ledger([ROW | one for one in facts]))
    return [alarm.name for alarm in seen.alarms]


def test_a_run_as_it_should_be_is_warned_of_nothing():
    facts = [fact(i % 2 == 0, True) for i in range(64)] + [fact(True, False), fact(False, False)]
    assert alarms_of(facts) == []
    assert alarms_of([fact(i % 2 == 0, None, train=None, dropped_because=None) for i in range(8)]) == []
    assert alarms_of([]) == []
    assert warnings.of_score(scored(200), RECIPE, 128) == {}
    assert warnings.of_score(scored(10, cut=0.5, answered=0.5), RECIPE, 128) == {}


def test_rows_that_nobody_could_judge_warn_of_nothing_and_held_out_samples_do():
    facts = [fact(True, True) for _ in range(8)]
    unjudged = [fact(False, False, fault="y_o: not judged", dropped_because="bad row") for _ in range(64)]
    assert alarms_of([*facts, *unjudged]) == ["bad_rows"]
    assert warnings.of_unjudged(["", "not equal", "empty"]) == {}
    [text] = warnings.of_unjudged(["", "not judged (it died twice)", "not judged (x)"]).values()
    assert text.startswith("2 held-out samples could not be judged and count as not passed") and "it died twice" in text


def test_verdicts_that_all_fail_alike_are_quoted_as_code_and_cannot_leave_it():
    hostile = "case 3 of 9 failed: ``` <b> \x1b[2J **x**\n# y"
    facts = [fact(False, None, y_o_detail=hostile.replace("3", str(i))) for i in range(8)]
    text = warnings.common_details(facts)["none_passed_y_o"]
    assert "```` case N of N failed" in text and "\x1b" not in text and "\n" not in text
    assert warnings.common_details([*facts, fact(False, None, y_o_detail="not equal")]) == {}
    assert warnings.common_details([*facts, fact(True, None)]) == {}
    assert warnings.common_details([fact(False, None, y_o_detail="not equal")] * 8) == {}


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


def test_alarms_and_warnings_stand_above_the_headline_of_a_summary(tmp_path):
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
    line = {"step": 1} | row_metrics(light(to_table(rows)), 0)
    (directory.path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    base, trained = (scored(4, passed=0, cut=1, answered=0, name=name) for name in ("base", "trained"))
    directory.write_evaluation(base, rows)
    directory.write_evaluation(compare(trained, base, resamples=100, seed=0), rows)
    text = write_summary(directory)
    directory.release()
    above, _, below = text.partition("OPSD on refined rollouts")
    for said in (
        "8 of 8 (100%) attempts",
        "8 of 8 (100%) refinements",
        "4 held-out problems",
        "held-out samples (trained)",
    ):
        assert said in above
    assert "Training moved Avg@4" in below and "Warning" not in below and "Alarm" not in below


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
