"""A reproduction: the figures that ship, how they are judged, and a small one from its start to its table."""

import json
import re
import signal
from pathlib import Path

import pytest
import yaml

from runs import SMALL, finish, run, start, wait_for_step
from trd_ray import config
from trd_ray.cli import main
from trd_ray.errors import UserError
from trd_ray.problems.benchmarks.catalogue import BY_NAME
from trd_ray.record.metrics import metric_names
from trd_ray.reproduce import command, figures, judged, report
from trd_ray.reproduce.figures import Figure, Figures
from trd_ray.reproduce.judged import JudgedFigure
from trd_ray.reproduce.plan import plan
from trd_ray.score import stats
from trd_ray.score.stats import Answer, Estimate

REPO = Path(__file__).parents[2]
QUICKSTART = "miniature:test"


def fact(**keys: float) -> Figure:
    return Figure.model_validate(keys)


def scored(name: str, rates: list[float], samples: int = 16) -> stats.Score:
    """Problem p passes in the first rates[p] of its samples."""
    answers = [
        Answer(f"p{p:03}", sample < rate * samples, 10, False, True)
        for p, rate in enumerate(rates)
        for sample in range(samples)
    ]
    return stats.score(answers, name=name, step=0, version=0, resamples=500, seed=0)


# The figures


@pytest.mark.parametrize("name", figures.names())
def test_figures_are_of_a_recipe_its_benchmarks_and_its_metrics(name):
    found = figures.load(name)
    recipe = config.load(name)
    for benchmark, measures in found.benchmarks.items():
        assert benchmark == recipe.evaluation.path or BY_NAME[benchmark].task == recipe.task
        assert {int(measure.partition("@")[2]) for measure in measures} == {recipe.evaluation.samples}
    assert set(found.rollouts) <= set(metric_names())
    assert re.search("^# .*Written down|^# The quickstart", (figures.FOLDER / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", figures.names())
def test_a_result_equal_to_the_report_passes_and_one_far_below_it_does_not(name):
    for measures in figures.load(name).benchmarks.values():
        for measure, figure in measures.items():
            assert report.criteria(figure), "a benchmark is judged"
            as_said = [figure.reported or 0.0, figure.gain or 0.0]
            for off, verdict in ((0.0, judged.PASSES), (-60.0, judged.FAILS)):
                score, gain = (Estimate(v + off, v + off - 0.01, v + off + 0.01) for v in as_said)
                line = JudgedFigure("b", measure, figure, score=score, gain=gain)
                falls = figure.gain_below is not None and figure.score_at_least is None
                assert line.verdict == (judged.PASSES if falls else verdict)


def test_the_quickstart_s_figures_are_those_of_the_readme():
    shown = (REPO / "README.md").read_text()
    [figure] = figures.load("miniature_opsd").benchmarks[QUICKSTART].values()
    base, trained, gain = re.findall(r"([+\d.]+) \[", re.search(r"^Avg@16 .*", shown, re.M)[0])
    assert (figure.reported, figure.gain) == (float(trained), float(gain))
    assert float(base) + float(gain) == pytest.approx(float(trained))


def test_every_recipe_of_the_paper_with_known_figures_has_them():
    known = {"paper_opd_1p7b", "paper_opd_4b", "paper_opsd_8b", "paper_opd_code_1p7b", "paper_opd_code_4b"}
    assert set(figures.names()) == known | {"miniature_opsd"}


# The verdicts


@pytest.mark.parametrize(
    ("criteria", "score", "gain", "verdict"),
    [
        ({"score_at_least": 40}, (40.0, 30, 50), None, "passes"),  # by its value
        ({"score_at_least": 40}, (39.9, 30, 50), None, "fails"),
        ({"gain_above": 0}, (50.0, 40, 60), (3.0, 0.1, 6.0), "passes"),
        ({"gain_above": 0}, (50.0, 40, 60), (3.0, -0.1, 6.0), "undecided"),
        ({"gain_above": 0}, (50.0, 40, 60), (-3.0, -6.0, -0.1), "fails"),
        ({"gain_above": 0}, (50.0, None, None), (3.0, None, None), "undecided"),
        ({"gain_below": 1}, (50.0, 40, 60), (-1.0, -2.0, 0.9), "passes"),
        ({"gain_below": 1}, (50.0, 40, 60), (1.5, 1.1, 2.0), "fails"),
        ({"gain_below": 1}, (50.0, 40, 60), (0.5, 0.0, 1.1), "undecided"),
        ({"score_at_least": 40, "gain_above": 0}, (50.0, 40, 60), (3.0, -1.0, 6.0), "undecided"),  # the worse
        ({"score_at_least": 60, "gain_above": 0}, (50.0, 40, 60), (3.0, -1.0, 6.0), "fails"),
        ({"gain_above": 0}, None, None, "not measured"),
        ({"reported": 40}, (1.0, 0, 2), None, "-"),
    ],
)
def test_a_figure_is_judged_by_its_worst_criterion(criteria, score, gain, verdict):
    ours = {name: Estimate(*e) if e else None for name, e in (("score", score), ("gain", gain))}
    assert JudgedFigure("b", "avg@16", fact(**criteria), **ours).verdict == verdict


def test_lines_hold_our_scores_in_percent_and_the_means_over_steps():
    base = scored("base", [0.25] * 20)
    trained = stats.compare(scored("trained", [0.75] * 20), base, resamples=500, seed=0)
    found = Figures.model_validate(
        {
            "source": "s",
            "benchmarks": {"a": {"avg@16": {"reported": 70}}, "b": {"pass@16": {"reported": 1}}},
            "rollouts": {"y_r/passed": {"reported": 60}, "y_r/tokens_p50": {}, "kl/mean": {}},
        }
    )
    steps = [{"y_r/passed": 0.5, "y_r/tokens_p50": 100}, {"y_r/passed": 0.7, "y_r/tokens_p50": 300}]
    a, b, passed, tokens, kl = judged.lines(found, {"a": (base, trained)}, steps)
    assert [e and e.value for e in (a.base, a.score, a.gain)] == pytest.approx([25, 75, 50])
    assert (b.base, b.score, b.gain) == (None, None, None)
    assert passed.score.value == pytest.approx(60) and passed.score.low is not None
    assert (tokens.score, kl.score) == (Estimate(200, None, None), None)
    text = {row[0]: row[1:] for row in report.table([a, b, passed, tokens])}
    assert text["y_r/tokens_p50"] == ["-", "", "200", "", "", "-"]
    assert text["a avg@16"][0] == "70.0" and text["a avg@16"][3].startswith("+50.0 [")


def test_a_reproduction_is_one_where_every_figure_passes_and_says_what_does_not():
    passing = JudgedFigure("b", "avg@16", fact(score_at_least=1), score=Estimate(2, 1, 3))
    shown = JudgedFigure("b", "avg@16", fact(reported=1))
    assert report.reproduced([passing, shown])
    assert report.conclusion([passing, shown]) == "Reproduced: 1 of 1 figures pass."
    unknown = JudgedFigure("b", "avg@16", fact(gain_above=0), gain=Estimate(1, -1, 2))
    missing = JudgedFigure("c", "avg@16", fact(gain_above=0))
    assert not report.reproduced([passing, unknown])
    assert report.conclusion([passing, unknown, missing]) == (
        "Not reproduced: 1 of 3 figures pass, 1 undecided, 1 not measured."
    )


# What is refused


def refused(capsys, *arguments: str) -> str:
    assert main(["reproduce", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("trd: ") and "\n" not in said
    return said


def written(folder: Path, **tree) -> str:
    place = folder / "figures.yaml"
    place.write_text(yaml.safe_dump({"source": "mine", "benchmarks": {QUICKSTART: {"avg@4": {}}}} | tree))
    return str(place)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["paper_opsd_4b"], "no figures to compare paper_opsd_4b with (there are for miniature_opsd, paper_opd_1p7b"),
        (["no_such"], "there is no recipe 'no_such'"),
        (["miniature"], "trd compare miniature"),
        (["miniature_opsd", "learner.lrr=1"], "did you mean lr"),
        (["miniature_opsd", "aime24"], "the figures have no benchmark aime24 (known here: miniature:test): name some"),
        (["paper_opsd_8b", "aime5"], "did you mean aime25"),
        (["miniature_opsd", "--figures", "no/such.yaml"], "there is no file no/such.yaml"),
        (["miniature_opsd", "evaluation.samples=4"], "avg@16 of miniature:test, which is not measured with 4 samples"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_starts(capsys, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"benchmarks": {QUICKSTART: {"avg16": {}}}}, "has the measure avg16, but a measure is avg@N or pass@N"),
        ({"benchmarks": {}}, "benchmarks is empty"),
        ({"benchmark": {}}, "unknown key benchmark (did you mean benchmarks?)"),
        ({"benchmarks": {QUICKSTART: {"avg@4": {"gain_over": 1}}}}, "gain_over (did you mean gain_"),
        ({"benchmarks": {QUICKSTART: {"avg@4": {"reported": "much"}}}}, "found 'much'"),
        ({"rollouts": {"y_r/passed": {"gain_above": 1}}}, "y_r/passed has a gain"),
    ],
)
def test_a_fault_in_figures_of_ones_own_names_the_file_and_the_key(capsys, tmp_path, tree, sentence):
    place = written(tmp_path, **tree)
    said = refused(capsys, "miniature_opsd", "--figures", place)
    assert place in said and sentence in said


def test_a_metric_that_no_step_measures_is_refused(tmp_path):
    found = figures.load("miniature_opsd", written(tmp_path, rollouts={"y_r/pased": {}}))
    with pytest.raises(UserError, match="y_r/pased, which no step measures.*did you mean y_r/passed"):
        plan("miniature_opsd", ["evaluation.samples=4"], found, figures.asked(found, []))


def test_a_benchmark_may_be_named_with_its_place_and_is_then_the_only_one():
    found = figures.load("paper_opsd_8b")
    assert figures.asked(found, ["aime25:/data/a.jsonl"]) == {"aime25": "aime25:/data/a.jsonl"}
    assert list(figures.asked(found, [])) == ["aime25", "hmmt25", "beyondaime", "amobench"]


# Whole


def test_a_dry_run_shows_the_figures_the_parts_and_the_placement_and_makes_nothing(capsys, tmp_path):
    directory = tmp_path / "reproduction"
    arguments = [f"run_dir={directory}", "cluster.memory_gib=64", "cluster.local_cpus=16"]
    assert main(["reproduce", "miniature_opsd", *arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    for part in ("score >= 85.5, gain > 50", "93.5 (+61.6)", f"the run: to do, {directory}/run", "fits: yes"):
        assert part in said
    assert not directory.exists()


def test_a_dry_run_for_a_cluster_that_is_not_here_needs_no_benchmark(capsys):
    assert main(["reproduce", "paper_opsd_8b", "--dry-run", "--on", "8xH100"]) == 0
    said = capsys.readouterr().out
    assert "61.5 (+20.5)" in said and "fits: yes" in said


def test_a_dry_run_shows_the_figures_also_where_a_benchmark_is_not_at_hand(capsys, tmp_path):
    assert main(["reproduce", "paper_opd_1p7b", f"aime24:{tmp_path / 'no.jsonl'}", "--dry-run"]) == 2
    said, refusal = capsys.readouterr()
    assert "49.4 (+4.6)" in said and "score >= 46.4, gain > 0" in said
    assert "no.jsonl" in refusal


def test_what_two_evaluations_left_becomes_the_table(tmp_path, capsys):
    found = figures.load("miniature_opsd", written(tmp_path, benchmarks={QUICKSTART: {"avg@16": {"gain_above": 30}}}))
    planned = plan("miniature_opsd", [f"run_dir={tmp_path}"], found, figures.asked(found, []))
    base = scored("base", [0.25] * 20)
    trained = stats.compare(scored("trained", [0.75] * 20), base, resamples=500, seed=0)
    about = {"name": planned.files[QUICKSTART], "notes": ["19 problems, where 20 were published"]}
    left = stats.to_json(trained) | {"base": stats.to_json(base), "benchmark": about, "base_differs": []}
    (planned.trained / "evaluation").mkdir(parents=True)
    (planned.trained / "evaluation" / f"{about['name']}.json").write_text(json.dumps(left))
    assert command.conclude(planned) == 0
    assert "Reproduced: 1 of 1 figures pass." in capsys.readouterr().out
    text = (tmp_path / "reproduction.md").read_text()
    assert "Note: miniature-test: 19 problems, where 20 were published." in text
    assert re.search(r"\| miniature:test avg@16 \| - \| 25.0 .* \| 75.0 .* \| \\?\+50.0 .* \| passes \|", text)
    kept = json.loads((tmp_path / "reproduction.json").read_text())
    assert kept["reproduced"] and kept["figures"][0]["our_gain"]["value"] == pytest.approx(50)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_reproduction_stops_goes_on_and_ends_in_its_table(tmp_path):
    """Ctrl-C in the training, then to the end, then once more with nothing left."""
    place = written(
        tmp_path,
        benchmarks={QUICKSTART: {"avg@4": {"reported": 50, "score_at_least": 0}, "pass@4": {"gain_above": 100}}},
        rollouts={"y_r/passed": {"score_at_least": 10}},
    )
    directory = tmp_path / "reproduction"
    small = ["--figures", place, *SMALL]
    process = start(directory, "reproduce", "miniature_opsd", *small)
    wait_for_step(process, directory / "run", 1, output=Path(f"{directory}.out"))
    process.send_signal(signal.SIGINT)
    stopped = finish(process, directory)
    assert stopped.code == 130 and stopped.left == [], stopped.output[-3000:]
    assert "--figures" in stopped.output and "--resume" not in stopped.output, "the same command goes on"

    done = run(directory, "reproduce", "miniature_opsd", *small)
    assert done.code == 1 and done.left == [], done.output[-3000:]
    assert "Not reproduced: 2 of 3 figures pass, 1" in done.output
    found = json.loads((directory / "reproduction.json").read_text())
    assert [f["verdict"] for f in found["figures"]][::2] == ["passes", "passes"]
    made = {file: file.stat().st_mtime_ns for file in directory.glob("*/evaluation/*.jsonl")}

    again = run(directory, "reproduce", "miniature_opsd", *small)
    assert again.code == 1 and again.output.count("nothing is left to do") == 1
    assert {file: file.stat().st_mtime_ns for file in made} == made, "something was sampled again"
