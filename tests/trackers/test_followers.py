"""What a run gives its followers: the rows that a table shows, the last scores, and how it ended."""

import json
from pathlib import Path
from typing import Any

import pytest

from trd_ray.config import from_tree
from trd_ray.record.directory import RunDirectory
from trd_ray.rows import to_table
from trd_ray.score.stats import Answer, compare, score
from trd_ray.session.followers import Followers, final_scores
from trd_ray.session.stop import Stopped, StopSignals
from trd_ray.trackers.following import facts_of
from trd_ray.trackers.shown_rows import COLUMNS, LONGEST, few


@pytest.fixture
def directory(tmp_path):
    made = RunDirectory.create(tmp_path / "r", from_tree({"name": "mine"}))
    yield made
    made.release()


def answers(passed: int) -> list[Answer]:
    return [Answer(f"p{i}", i < passed, 3, False, True) for i in range(12)]


def followers(directory: RunDirectory, **tree: Any) -> tuple[Followers, list[tuple[str, str]]]:
    said: list[tuple[str, str]] = []
    warn = lambda found: said.extend(("warning", text) for text in found.values())  # noqa: E731
    given = from_tree({"name": "mine"} | tree)
    return Followers(given, directory, StopSignals(), lambda text: said.append(("said", text)), warn), said


def row(number: int, raw: bool | None, refined: bool | None, text: str = "so 4") -> dict[str, Any]:
    order = {"row": number, "step": 0, "epoch": 0, "sample_index": 0, "seed": 0, "train": bool(refined)}
    made = {"problem_id": f"p{number}", "problem": "2 + 2?", "answer": "4", "reference": "", "trajectory": "y_r"}
    attempt = {"ids": [1, 2], "text": text, "passed": raw, "extracted": "4", "detail": "" if raw else "not equal"}
    y_r = {"y_r": attempt | {"passed": refined}} if refined is not None else {}
    return made | order | {"y_o": attempt} | y_r


def test_the_rows_of_a_table_come_from_every_cell_of_the_ledger_first():
    cells = [(True, True)] * 5 + [(False, True), (False, False), (True, None), (False, True)]
    found = few(to_table([row(i, raw, refined) for i, (raw, refined) in enumerate(cells)]), step=7, most=5)
    shown = [dict(zip(COLUMNS, one, strict=True)) for one in found]
    assert [(one["y_o_passed"], one["y_r_passed"]) for one in shown] == [
        (True, True), (False, True), (False, False), (True, None), (True, True),
    ]  # fmt: skip
    assert [one["row"] for one in shown] == [0, 5, 6, 7, 1] and {one["step"] for one in shown} == {7}
    assert shown[3]["y_r"] is None and shown[3]["trained_on"] is None and shown[0]["trained_on"] == "y_r"
    assert (shown[0]["y_o_verdict"], shown[1]["y_o_verdict"]) == ("4", "4: not equal")


def test_texts_of_a_table_are_whole_or_say_how_long_they_are():
    [found] = few(to_table([row(0, True, True, "<b>" * LONGEST)]), step=1, most=1)
    text = dict(zip(COLUMNS, found, strict=True))["y_o"]
    assert len(text) < LONGEST + 40 and text.endswith(f"... ({3 * LONGEST} characters)") and text.startswith("<b><b>")
    json.dumps(found)


def test_the_last_scores_are_those_of_the_base_and_the_newest_weights_with_the_gain(directory):
    base = score(answers(3), name="base", step=0, version=0, resamples=200, seed=0)
    middle = score(answers(5), name="step-000002", step=2, version=2, resamples=200, seed=0)
    trained = score(answers(9), name="trained", step=4, version=4, resamples=200, seed=0)
    for one in (base, compare(middle, base, resamples=200, seed=0), compare(trained, base, resamples=200, seed=0)):
        directory.write_evaluation(one, [])
    directory.write_evaluation(base, [], of="old")
    found = final_scores(directory)
    assert found["final/base/avg@1"] == 0.25 and found["final/trained/avg@1"] == 0.75
    assert found["final/trained/avg@1_gain"] == pytest.approx(0.5)
    assert found["final/trained/avg@1_gain_low"] < 0.5 < found["final/trained/avg@1_gain_high"]
    assert found["final/old/base/avg@1"] == 0.25 and not any("step-000002" in name for name in found)


@pytest.mark.parametrize(
    ("raised", "how", "said"),
    [
        (None, "done", ""),
        (Stopped(15), "stopped", "SIGTERM"),
        (KeyboardInterrupt(2), "stopped", "2"),
        (ValueError("a\nb"), "failed", "a b"),
    ],
)
def test_followers_know_how_a_run_ended_and_what_it_left(directory, raised, how, said):
    (directory.path / "summary.md").write_text("# mine")
    made, _ = followers(directory)
    end = made._ending(raised)
    assert (end.how, end.said, end.text) == (how, said, "# mine")
    assert [file.name for file in end.files] == ["report.html", "summary.md", "recipe.yaml"]


def test_a_run_without_trackers_starts_nothing_and_says_nothing(directory):
    made, said = followers(directory)
    before = {file for file in directory.path.rglob("*")}
    with made.during("train", 0, lambda: None):
        made.recorded(1, {"loss": 1.0}, to_table([row(0, True, True)]))
        made.look()
        figures = {"sampler": {"up": 1}}
        assert made.pools(figures) is figures
    assert said == [] and {file for file in directory.path.rglob("*")} == before


def test_what_trackers_say_is_shown_and_what_went_wrong_is_a_warning(directory, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    made, said = followers(directory)
    made.following.classes = {"Notes": "stub_trackers:Notes", "Leaves": "stub_trackers:Leaves"}
    with made.during("train", 0, lambda: None):
        made.recorded(1, {"loss": 1.0}, to_table([row(0, True, True)]))
    assert ("said", "Notes: in notes.jsonl") in said
    assert [text for kind, text in said if kind == "warning" and "Leaves ended by itself (exit code 3)" in text]
    lines = [json.loads(line) for line in (directory.path / "notes.jsonl").read_text().splitlines()]
    told = [line for line in lines if line[0] != "begin"]  # with which the other one may come at any time
    assert [line[0] for line in told] == ["step", "rows", "end"]
    assert told[-1][1] == "done" and told[-1][5] == ["recipe.yaml"]


def test_long_texts_of_a_recipe_stay_in_the_run_directory():
    given = from_tree({"name": "mine", "prompts": {"solve": "{problem} " + "x" * 5000}})
    facts = facts_of(given, "train", 0, {})
    assert "5010 characters, all of them in recipe.yaml" in facts["recipe"]["prompts"]["solve"]
    assert len(json.dumps(facts)) < 20_000
