"""Pages of everything else: several runs, one that crashed or is damaged, evaluations, comparisons; the command."""

import copy
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

from browsed import a_run
from opened_pages import Page, number, per_problem
from recorded_runs import BEGAN, recorded
from trd_ray import cli
from trd_ray.config import dump, from_tree
from trd_ray.record.directory import RunDirectory
from trd_ray.report import written
from trd_ray.report.html_page import html_page
from trd_ray.report.panels_of_results import of_every_method
from trd_ray.report.panels_of_run import drawn_diagnostics
from trd_ray.report.recipe_shown import recipes_panel
from trd_ray.report.recorded import Recorded
from trd_ray.score import buckets, stats

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
file.write("process 1 on elsewhere since today")
file.flush()
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def text_of(html: str) -> str:
    """What a page says, without its markup, scripts and data."""
    html = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def page_text(*paths, **options) -> str:
    return text_of(written.page_of(list(paths), **options))


# Several runs


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    return [
        recorded(root / "slow", gain=0.1, learner={"lr": 1e-5}),
        recorded(root / "fast", gain=0.6, steps=4, seed=0, learner={"lr": 1e-4}),
    ]


def test_several_runs_stand_over_each_other_with_differences_and_recipes_apart(browser, pair, tmp_path):
    page = Page(browser, written.write_report(pair, tmp_path / "both.html"))
    page.draw("curves", "ledger")
    lines = page.chart("KL")
    assert lines[0] == [
        "step",
        *(f"{run}: over {what}" for run in ("slow", "fast") for what in ("tokens", "trajectories")),
    ]
    for i, run in enumerate(pair):
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
            [shown] = [row for row in lines[1:] if row[0] == str(line["step"])]
            assert number(shown[1 + 2 * i]) == pytest.approx(line["kl/mean"], rel=1e-3)
    assert [row[3] for row in lines[1:] if int(row[0]) > 4] == ["-", "-"]  # the shorter one has ended
    slow, fast = (per_problem(run, "trained").map(fmean) for run in pair)
    difference = f"{100 * (fast - slow).mean():+.1f}"
    assert f"fast is above slow, by {difference}" in page.page.locator("#verdict").inner_text()
    assert page.titled("scores", "fast against slow")[1][1].startswith(difference)
    keys = {line[0]: line[1:] for line in page.titled("recipe", "Where the recipes differ")}
    assert keys["learner.lr"] == ["1e-05", "0.0001"] and keys["steps"] == ["6", "4"]
    assert not {"name", "run_dir", "seed"} & set(keys)
    assert page.said == [] and page.asked == [page.page.url]
    page.page.set_viewport_size({"width": 360, "height": 800})
    page.page.wait_for_timeout(50)
    assert page.page.evaluate("document.documentElement.scrollWidth") == 360
    page.context.close()


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [recorded(tmp_path / place / "run", steps=1, evaluated=()) for place in ("a", "b")]
    text = page_text(*runs)
    assert "run (1)" in text and "run (2)" in text


def test_what_is_the_same_in_all_runs_is_said_once(tmp_path):
    runs = [Recorded(RunDirectory(recorded(tmp_path / name, steps=1, evaluated=())), name) for name in ("a", "b")]
    for run in runs:
        run.starts[0]["command"] = "trd train own.yaml"
    text = text_of(recipes_panel(runs).html)
    assert "every run" in text and text.count("CPU") == 1
    assert text.count("trd train own.yaml") == 1 and "a: trd train" not in text
    runs[1].starts[-1]["commit"] = "another"
    runs[1].starts[0]["command"] = "trd train other"
    text = text_of(recipes_panel(runs).html)
    assert "every run" not in text and "a: trd train own.yaml" in text and "b: trd train other" in text


def test_the_curves_of_many_cells_leave_no_method_out(tmp_path):
    places = [tmp_path / method / f"seed-{seed}" for method in ("a", "b", "c") for seed in range(3)]
    cells = [Recorded(RunDirectory(place), f"{place.parent.name}{place.name[-1]}") for place in places]
    assert [run.label for run in of_every_method(cells, 4)] == ["a0", "a1", "b0", "c0"]
    assert of_every_method(cells, 12) == cells


# Runs that are not done


def test_a_run_that_crashed_says_where_and_what_is_kept(tmp_path):
    run = recorded(tmp_path / "r", steps=3, ended=None, evaluated=("base",))
    (run / "checkpoints" / "step-000002").mkdir(parents=True)
    text = page_text(run)
    assert "Whether it helped is not known" in text and "The run crashed at step 3 of 3" in text
    assert "Checkpoint 2 is kept: the same command with --resume goes on." in text


def test_a_score_on_the_way_says_of_which_step_it_is(tmp_path):
    run = recorded(tmp_path / "r", steps=3, ended=None)
    assert "the last that was evaluated" not in page_text(run)
    place = run / "evaluation" / "trained.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"step": 2}))
    assert "by step 2, the last that was evaluated." in page_text(run)


def test_a_run_that_goes_on_says_so(tmp_path):
    run = recorded(tmp_path / "r", steps=3, ended=None, evaluated=("base",))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    text = page_text(run)
    holder.communicate()
    assert "The run still goes on, at step 3 of 3" in text and "not yet" in text and "--resume" not in text


def test_the_run_itself_writes_its_page_at_its_end_while_it_holds_the_directory(tmp_path):
    place = recorded(tmp_path / "r", ended=None)
    directory = RunDirectory.create(place, Recorded(RunDirectory(place), "r").recipe, resume=True)
    assert "crashed" not in page_text(place) and "6 of 6 steps · done" in page_text(place)
    directory.release()


def test_a_run_that_has_not_begun_has_a_page_of_sentences(browser, tmp_path):
    run = tmp_path / "r"
    RunDirectory.create(run, from_tree({"evaluation": {"path": "miniature:test"}, "steps": 4})).release()
    page = Page(browser, written.write_report([run]))
    text = page.page.locator("main").inner_text()
    for sentence in (
        "No step is finished",
        "Nothing was refined",
        "There is no timeline.json",
        "no finished evaluation",
    ):
        assert sentence in text
    assert page.said == [] and "could not be made" not in text
    page.context.close()


def test_a_damaged_file_costs_the_panel_that_needs_it_which_says_so(tmp_path):
    run = recorded(tmp_path / "r")
    (run / "timeline.json").write_text('{"traceEvents": [{"ph": "X"}]}')
    (run / "evaluation" / "trained.json").write_text("{")
    text = page_text(run)
    assert "timeline.json is damaged" in text
    assert "trained.json is damaged" in text and "delete it" in text
    assert "rollouts whose attempt and refinement were judged" in text  # the ledger is there


def test_a_run_of_refine_is_a_corpus(tmp_path):
    run = recorded(tmp_path / "r", evaluated=())
    (run / "status.json").write_text(json.dumps({"program": "refine", "ended": {"how": "done"}}))
    text = page_text(run)
    assert "A corpus, not a training" in text and "keeps 48 rollouts" in text and "trd refine" in text


# What it costs


def test_gpu_hours_are_what_the_recipe_reserves_times_the_time(tmp_path):
    run = recorded(tmp_path / "r", steps=3, evaluated=(), sampler={"replicas": 2}, learner={"workers": 4})
    starts = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps([{**starts[0], "gpus": ["NVIDIA H100, 81559 MiB"] * 8}]))
    text = page_text(run, price=24)
    assert "0.0583 GPU-hours on 7 GPUs, 1.40 at 24 a GPU-hour" in text  # 2 + 1 engines, 4 ranks, half a minute


def test_time_between_two_starts_costs_nothing(tmp_path):
    again = {"when": BEGAN + 1e5, "kind": "start", "said": "process 2 on there starts"}
    run = recorded(tmp_path / "r", steps=3, events=(again, {"when": BEGAN + 1e5 + 9, "kind": "warning", "said": "w"}))
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    (run / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events if e["kind"] != "end"))
    assert Recorded(RunDirectory(run), "r").spans == [(BEGAN, BEGAN + 30), (BEGAN + 1e5, BEGAN + 1e5 + 9)]


def test_the_time_of_a_run_with_many_events_is_that_of_all_of_them(tmp_path):
    many = [{"when": BEGAN + 40, "kind": "bad_row", "said": "w" * 10_000}] * 120
    run = Recorded(RunDirectory(recorded(tmp_path / "r", steps=3, events=many)), "r")
    assert len(run.events) > 120 and run.spans[0][0] == BEGAN


# How large it is


def test_the_first_start_counts_in_the_time_however_many_events_follow_it(tmp_path):
    run = recorded(tmp_path / "r")
    before = Recorded(RunDirectory.open(run), "r").spans
    events = run / "events.jsonl"
    first, *rest = events.read_text().splitlines(keepends=True)
    many = json.dumps({"when": json.loads(first)["when"] + 1, "kind": "bad_row", "said": "x" * 1_000}) + "\n"
    events.write_text("".join([first, *[many] * 1_500, *rest]))
    assert before and Recorded(RunDirectory.open(run), "r").spans == before


def test_a_page_of_300_steps_is_small_and_one_of_thousands_is_thinned_and_says_so(tmp_path):
    run = recorded(tmp_path / "r", steps=3)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    sizes = []
    for steps in (300, 6_000):
        noise = random.Random(0)
        again = (
            {k: v * noise.uniform(0.9, 1.1) for k, v in lines[i % 3].items()} | {"step": i + 1} for i in range(steps)
        )
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in again))
        page = written.page_of([run])
        sizes.append(len(page))
        assert ("One of 3 steps is drawn." in page) == (steps == 6_000)
    assert sizes[0] < 1_000_000 and sizes[1] < 4_000_000


# Diagnostics

FOUND = json.loads(Path(__file__).with_name("diagnosed.json").read_text())  # in the form of diagnostics.whole.of_run


def test_the_diagnostics_are_drawn_as_they_were_found_and_what_is_missing_says_how_to_get_it(browser, tmp_path):
    place = tmp_path / "d.html"
    place.write_text(html_page("d", [drawn_diagnostics([("d", FOUND)])]))
    page = Page(browser, place)
    page.draw("diagnostics")
    lines = page.chart("KL signal", "diagnostics")
    assert lines == [["step", "trained", "y_o, vanilla view"], ["1", "0.3", "0.5"], ["2", "0.2", "0.6"]]
    whole = {line[0]: line[1:] for line in page.titled("diagnostics", "Signal over all steps")}
    assert whole["trained"][:2] == ["16", "0.25"] and whole["y_r of the rows with both, vanilla view"][:2] == [
        "4",
        "0.15",
    ]
    assert page.titled("diagnostics", "First third")[1] == ["trained", "46.0%", "33.0%"]
    assert [line[0] for line in page.chart("KL by tenth of the trajectory", "diagnostics")[1:]] == [
        str(i) for i in range(1, 11)
    ]
    assert page.titled("diagnostics", "Token classes, trained")[1:] == [
        ["number", "70.0%", "25.0%", "0.4", "80"],
        ["</td><b>", "30.0%", "75.0%", "0.1", "240"],
    ]
    assert page.titled("diagnostics", "Where the teacher would have left y_o")[1][1:3] == ["16", "50.0%"]
    assert page.chart("Leaks", "diagnostics")[2] == ["2", "12.5%"]
    assert page.titled("diagnostics", "Leaks")[1] == ["reference", "1", "as in <i>the\ufffd reference", "9"]
    assert page.titled("diagnostics", "Tokens")[2][:3] == ["raw, already correct", "9", "20.25"]
    assert page.titled("diagnostics", "What train.subset would keep")[1][:4] == ["repaired", "5", "31.3%", "0.0%"]
    assert "Every problem has one rollout: set sampler.n=4" in page.page.locator("[data-part=buckets]").inner_text()
    assert page.said == [] and page.page.locator("#diagnostics i, #diagnostics td b").count() == 0
    page.context.close()


def test_a_kind_that_is_what_trained_is_not_drawn_again_and_other_classes_are_folded(browser, tmp_path):
    found = copy.deepcopy(FOUND)
    for tree in (found["signal"]["kinds"], found["signal"]["all"], found["position"], found["classes"]):
        tree["y_r_refine"] = copy.deepcopy(tree["trained"])
    found["classes"]["y_o_vanilla"] = {"number": found["classes"]["trained"]["number"]}
    place = tmp_path / "d.html"
    place.write_text(html_page("d", [drawn_diagnostics([("d", found)])]))
    page = Page(browser, place)
    page.draw("diagnostics")
    text = page.page.locator("#diagnostics").inner_text()
    assert text.count("y_r, refine view") == 1 and "What trained is y_r, refine view, which is not repeated." in text
    assert page.chart("KL signal", "diagnostics")[0] == ["step", "trained", "y_o, vanilla view"]
    shown = page.page.locator("[data-part=classes] caption").all()
    assert [one.is_visible() for one in shown] == [True, False]
    page.page.locator("[data-part=classes] summary").click()
    assert shown[1].is_visible() and page.said == []
    page.context.close()


# Evaluations and comparisons


def scored(rates: list[float], name: str) -> stats.Score:
    answers = [
        stats.Answer(f"p{i}", k < round(4 * rate), 9, False, True) for i, rate in enumerate(rates) for k in range(4)
    ]
    return stats.score(answers, name=name, step=0, version=0, resamples=200, seed=0)


def an_evaluation(place):
    (place / "evaluation").mkdir(parents=True)
    (place / "recipe.yaml").write_text(dump(from_tree({"name": "exam", "student": {"path": "org/<model>"}})))
    base = scored([0.0, 0.25, 0.5, 1.0] * 3, "base")
    mine = stats.compare(scored([0.5, 0.5, 0.75, 1.0] * 3, "mine"), base, resamples=200, seed=0)
    about = {"name": "aime24", "title": "AIME 2024", "notes": [], "source": "x", "set": None}
    found = stats.to_json(mine) | {"benchmark": about, "thinking": "-", "model": "m", "base": stats.to_json(base)}
    found |= {"base_differs": [], "settings": {"evaluation": {"max_response_tokens": 64}}}
    found["buckets"] = buckets.to_json(buckets.buckets(base, [mine], resamples=200, seed=0))
    (place / "evaluation" / "aime24.json").write_text(json.dumps(found))
    (place / "status.json").write_text(json.dumps({"program": "evaluate", "ended": {"how": "done"}}))
    (place / "environment.json").write_text(json.dumps([{"gpus": ["NVIDIA H100, 81559 MiB"]}]))
    events = [{"kind": "start", "when": BEGAN}, {"kind": "end", "when": BEGAN + 3600}]
    (place / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return place


def test_an_evaluation_has_a_page_with_its_tables(tmp_path):
    text = page_text(an_evaluation(tmp_path / "e"))
    assert "aime24: mine has Avg@4 68.8" in text and "against base +25.0" in text  # means of the rates above
    assert "by how often base solves a problem" in text and "org/&lt;model&gt;" in text
    assert "could not be made" not in text and "trd evaluate" in text


def test_an_evaluation_says_what_it_cost(tmp_path):
    text = page_text(an_evaluation(tmp_path / "e"), price=2.5)
    assert "tokens generated 432 wall time 1 h 00 min" in text  # 12 problems, 4 answers of 9 tokens
    assert "GPU-hours (1 GPUs reserved) 1.00 money at 2.5 a GPU-hour 2.50" in text  # one engine


def a_comparison(place):
    cells = [recorded(place / "opsd" / method / "seed-0", steps=2) for method in ("trd", "forward_kl")]
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "by_seed": [0.5], "std_over_seeds": None}
    line = {"seeds": [0], "problems": 40, "samples": 4, "tokens_mean": 12.0, "truncated": 0.0, "answered": 1.0}
    line |= {"scores": {"avg@4": estimate, "pass@4": estimate}}
    gain = {"avg@4": {"value": 0.125, "low": 0.05, "high": 0.2}, "pass@4": {"value": 0.1, "low": -0.1, "high": 0.2}}
    found = {
        "name": "c",
        "level": 0.95,
        "seeds": [0],
        "against": None,
        "tuning": [],
        "unfinished": ["opsd/topk/seed-0"],
    }
    found |= {"failures": {"opsd/rkl/seed-0": "out of <memory>"}}
    found["modes"] = {"opsd": {"base": line, "trd": line | {"minus_base": gain}}}
    points = [
        {"step": 4 * i, "tokens": 2000 * i, "prefill": 0, "seconds": 9.0 * i, "scores": {"avg": [0.25 * (1 + i), 0.02]}}
        for i in range(3)
    ]
    found["curves"] = [{"mode": "opsd", "method": method, "points": points} for method in ("trd", "forward_kl")]
    (place / "comparison.json").write_text(json.dumps(found))
    (place / "comparison.yaml").write_text("name: c\nmethods: {trd: {}}\n")
    return place, cells


def test_a_comparison_has_a_page_with_its_tables_and_the_curves_of_its_runs(browser, tmp_path):
    place, cells = a_comparison(tmp_path / "c")
    page = Page(browser, written.write_report([place]))
    page.draw("curves")
    text = page.page.locator("#verdict").inner_text()
    assert "opsd trd: it helped, by +12.5 [+5.0, +20.0] points of Avg@4." in text
    assert "opsd/rkl/seed-0 failed: out of <memory>" in text and "Not finished: opsd/topk/seed-0" in text
    lines = page.chart("KL")
    for i, run in enumerate(("opsd/forward_kl/seed-0", "opsd/trd/seed-0")):
        first = json.loads((place / run / "metrics.jsonl").read_text().splitlines()[0])
        assert lines[0][1 + 2 * i].startswith(run)
        assert number([line for line in lines if line[0] == "1"][0][1 + 2 * i]) == pytest.approx(
            first["kl/mean"], rel=1e-3
        )
    page.draw("spending")
    lines = page.chart("opsd: Avg@k over generated tokens, thousands", "spending")
    assert lines[0][1:] == ["trd", "forward_kl"] and [line[0] for line in lines[1:]] == ["0", "2", "4"]
    assert lines[2][1:] == ["50.0%", "50.0%"]
    assert page.titled("scores", "Scores")[2][:1] == ["opsd trd"]
    assert page.said == [] and len(cells) == 2
    page.context.close()


# The command


def test_the_command_writes_the_page_into_the_run_or_where_it_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recorded(tmp_path / "runs" / "mine", steps=1)
    recorded(tmp_path / "runs" / "other", steps=1)
    assert cli.main(["report", "mine"]) == 0
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    assert cli.main(["report", "runs/mine", "other"]) == 0
    assert "mine against other" in (tmp_path / "report.html").read_text()
    assert cli.main(["report", "mine", "--to", "pages/a.html", "--price", "3"]) == 0
    assert f"the report is {tmp_path}/pages/a.html" in capsys.readouterr().out


def test_a_price_is_a_positive_number(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["report", "mine", "--price", "-1"])
    assert "--price: must be a number greater than 0, such as 2.5, but is -1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "there is no run nothing"),
        (["."], "holds no run"),
        (["notes.txt"], "is a file"),
        (["mine", "mine"], "is named twice"),
        (["mine", "--to", "runs"], "is a folder"),
        (["mine", "--to", "notes.txt"], "is no report of trd"),
        (["mine", "exam"], "holds no run but an evaluation"),
        (["broken"], "is no recipe of this version"),
    ],
)
def test_what_a_user_can_fix_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    recorded(tmp_path / "runs" / "mine", steps=1, evaluated=())
    an_evaluation(tmp_path / "exam")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "recipe.yaml").write_text("stepz: 1\n")
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "Traceback" not in error
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_page_that_cannot_be_made_fails_no_run_and_leaves_no_older_one(tmp_path, monkeypatch, capsys):
    run = recorded(tmp_path / "r", steps=1)
    written.report(run)
    assert (run / "report.html").is_file()
    monkeypatch.setattr(written, "page_of", lambda *_: 1 / 0)
    written.report(run)
    assert not (run / "report.html").exists()
    assert "report.html could not be written (division by zero)" in capsys.readouterr().out


def test_a_second_ctrl_c_ends_the_page_that_is_made_and_leaves_no_older_one(tmp_path, monkeypatch):
    def asked_again(*_: object) -> str:
        raise KeyboardInterrupt

    (tmp_path / "report.html").write_text("of an earlier start")
    monkeypatch.setattr(written, "page_of", asked_again)
    with pytest.raises(KeyboardInterrupt):
        written.report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_end_of_a_run_waits_for_its_page_only_so_long(tmp_path, monkeypatch):
    run = a_run(tmp_path / "r", steps=2).path
    monkeypatch.setattr(written, "MOST_S", 0.0)
    written.report(run)
    text = text_of((run / "report.html").read_text())
    why = f"This part could not be made (the end of a run has 0 s for its page: trd report {run} takes its time)."
    assert text.count(why) == 2  # diagnostics and samples, which read every row
    assert "This part could not be made" not in page_text(run)


def test_a_run_that_is_stopped_at_once_writes_no_page_and_keeps_no_older_one(tmp_path, capsys):
    run = recorded(tmp_path / "r", steps=1)
    written.report(run)
    written.report(run, hurried=True)
    assert not (run / "report.html").exists()
    assert f"the run was stopped at once: trd report {run} writes it" in capsys.readouterr().out
