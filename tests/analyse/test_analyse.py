"""`trd analyse`: tables of 80 columns that say what of_run() says, from files alone."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

sys.path.insert(0, str(Path(__file__).parents[1] / "diagnostics"))
from made_run import made_run  # noqa: E402

from trd_ray import usage  # noqa: E402
from trd_ray.analyse.analysis_tables import TABLES  # noqa: E402
from trd_ray.cli import main  # noqa: E402
from trd_ray.diagnostics.whole import PARTS, of_run  # noqa: E402

TITLES = ("Signal", "Mean KL", "Position", "Classes", "Departure", "Support", "Lengths", "Held-out", "Subsets")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("analyse") / "runs" / "mine"
    made_run(place, steps=12, count=4, diagnosed=2)
    return place


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # a wider terminal gets the same tables


def said(capsys, *arguments: str, code: int = 0) -> str:
    assert main(["analyse", *arguments]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_what_can_be_asked_for_is_what_there_is():
    assert set(usage.ANALYSED) == set(PARTS) == set(TABLES)


def test_everything_is_shown_in_80_columns_and_the_directory_stays_as_it_was(run, capsys):
    def state():
        return sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*"))

    before = state()
    out = said(capsys, str(run))
    assert state() == before
    assert out.startswith("mine: 48 rows, 12 steps, 1 to 12\n")
    assert [title for title in TITLES if f"\n{title}" not in out] == []
    assert [line for line in out.splitlines()[1:] if cell_len(line) > 80] == []
    assert "10 of 12 steps; --json has all." in out


def numbers(line: str) -> list[float]:
    return [float(one) for one in re.findall(r"-?\d+\.?\d*", line)]


def test_a_table_s_numbers_are_those_of_the_functions(run, capsys):
    found = of_run(run, only=("signal", "position", "lengths"))
    out = said(capsys, str(run), "signal")
    [line] = [one for one in out.splitlines() if one.startswith("trained ")]
    names = ("rows", "mean", "row_mean", "p50", "p95", "p99", "max", "ppl_student", "ppl_teacher", "onset")
    assert numbers(line) == pytest.approx([found["signal"]["all"]["trained"][n] for n in names], rel=3e-3)
    out = said(capsys, str(run), "position")
    [line] = [one for one in out.splitlines() if one.startswith("trained ")]
    its = found["position"]["trained"]
    assert numbers(line) == pytest.approx([*its["kl"], 100 * its["first_third"]], abs=6e-2)
    out = said(capsys, str(run), "lengths")
    [line] = [one for one in out.splitlines() if one.startswith("y_o failed: refined ")]
    its = found["lengths"]["failed"]["refined"]
    assert numbers(line)[0] == its["rows"] and numbers(line)[1] == pytest.approx(its["mean"], abs=0.06)


@pytest.mark.parametrize("what", usage.ANALYSED)
def test_each_is_a_command_of_its_own_for_people_and_for_scripts(run, capsys, what):
    out = said(capsys, str(run), what)
    assert any(f"\n{title}" in out for title in TITLES) and "No " not in out.splitlines()[-1]
    found = json.loads(said(capsys, str(run), what, "--json"))
    assert found == of_run(run, only=(what,)) and set(found) == {"about", what}


def test_steps_and_sources_narrow_it_down(run, capsys):
    assert said(capsys, str(run), "subsets", "--steps", "3:5").startswith("mine: 12 rows, 3 steps, 3 to 5\n")
    assert said(capsys, str(run), "subsets", "--steps", ":1").startswith("mine: 4 rows, step 1\n")
    assert said(capsys, str(run), "subsets", "--steps", "12").startswith("mine: 4 rows, step 12\n")
    assert said(capsys, str(run), "subsets", "--source", "maths").startswith("mine: 24 rows, 12 steps")
    assert "sources logic, maths" in said(capsys, str(run), "subsets", "--source", "x", code=2)


@pytest.mark.parametrize("steps", ["", ":", "a:b", "5:3", "1:2:3", "-1:2"])
def test_steps_that_are_none_are_refused_with_an_example(run, capsys, steps):
    with pytest.raises(SystemExit) as ended:
        main(["analyse", str(run), f"--steps={steps}"])
    assert ended.value.code == 2 and re.search("such as 10:20|begin before it ends", capsys.readouterr().err)


def test_a_run_is_found_by_its_name_and_a_wrong_one_is_answered_with_a_close_one(run, capsys, monkeypatch):
    monkeypatch.chdir(run.parents[1])
    assert said(capsys, "mine", "lengths").startswith("mine: 48 rows")
    assert "there is no run mime (did you mean mine?)" in said(capsys, "mime", code=2)
    assert "holds no rows" in said(capsys, str(run / "logs"), code=2)


def test_a_run_that_has_just_begun_says_so(tmp_path, capsys):
    made_run(tmp_path / "new", steps=0)
    out = said(capsys, str(tmp_path / "new"))
    assert out.startswith("new: no rows yet\n") and "Held-out" in out and "no step is" in out
    assert "no step is recorded" in said(capsys, str(tmp_path / "new"), "support", code=2)


def test_over_training_the_steps_are_shown_in_which_rows_were_looked_at(run, capsys, monkeypatch):
    found = of_run(run, only=("signal",))["signal"]
    for kind, its in found["kinds"].items():
        if kind != "trained":
            its["mean"] = [value if i in (0, 5, 11) else None for i, value in enumerate(its["mean"])]
    [*_, over] = TABLES["signal"](found)
    assert [line[0] for line in over.lines] == ["step", "1", "6", "12"] and "3 of 12 steps" in over.note


def test_what_is_not_there_is_named_with_what_to_set(tmp_path, capsys):
    made_run(tmp_path / "bare", steps=1, scored=False)
    out = said(capsys, str(tmp_path / "bare"))
    assert "No signal, position, classes: no row has" in out and "diagnostics.tokens=true" in out.replace("\n", " ")
    assert "Subsets" in out
    assert "set diagnostics.rows=8" in said(capsys, str(tmp_path / "bare"), "departure", code=2)


def test_a_hostile_text_cannot_control_the_terminal(tmp_path, capsys):
    rows = made_run(tmp_path / "bad", steps=1)
    from trd_ray.record.directory import write_parquet
    from trd_ray.rows import to_table

    leaky = "\x1b[2J\u202e the reference solution [bold]says[/bold] \r\n7"
    write_parquet(
        tmp_path / "bad" / "rows" / "step-000001.parquet",
        to_table([one | {"y_r": one["y_r"] | {"text": leaky}, "source": "\x1b[31m"} for one in rows]),
    )
    out = said(capsys, str(tmp_path / "bad"), "support")
    assert "reference solution" in out and "[bold]says" in out.replace("\n", "") and "\x1b[2J" not in out
    assert "\u202e" not in out
    assert "\x1b" not in said(capsys, str(tmp_path / "bad"), "--source", "none", code=2)


def test_a_reader_that_needs_no_model_needs_no_torch():
    import subprocess

    code = "import sys; from trd_ray.analyse import command; print([m for m in ('torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
