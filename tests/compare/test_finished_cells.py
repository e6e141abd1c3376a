"""Finished cells as small tables: what is taken from a run, equal costs, coverage, curves, and tables without runs."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from trd_ray.cli import main
from trd_ray.compare import cell_tables, cells, command, grid, report, results
from trd_ray.compare.cell_tables import CellTable, Graded, Point
from trd_ray.compare.grid import Cell
from trd_ray.compare.plan import ComparisonPlan, pending
from trd_ray.compare.spending import at_budget
from trd_ray.errors import UserError
from trd_ray.record.directory import RunDirectory
from trd_ray.report import curve_svg
from trd_ray.report.comparison_tables import unfinished
from trd_ray.rows import to_table
from trd_ray.score.stats import pass_at_k, score

PROBLEMS, SAMPLES = 40, 8


def graded(correct) -> Graded:
    correct = [int(c) for c in correct]
    n = len(correct)
    return Graded(SAMPLES, f"of-{n}", correct, [float(c > SAMPLES / 2) for c in correct], [2] * n, [0.5] * n, 9.0)


def correct(rate: float, seed: int, n: int = PROBLEMS) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.binomial(SAMPLES, rng.beta(6 * rate, 6 * (1 - rate), n))


def table(method, seed, rates, tokens=100, mode="opsd", base="", seconds=None, **more) -> CellTable:
    """A run whose scores on the way have these rates; each evaluation costs as many tokens more."""
    points = [
        Point(4 * i, tokens * i, 2 * tokens * i, float((seconds or tokens) * i),
              {"": graded(correct(rate, 100 * seed + i if i else 7)), "greedy": Graded(1, "g", [1, 0], None)})
        for i, rate in enumerate(rates)
    ]  # fmt: skip
    cost = {"tokens": {"sampled": 1, "refined": 2, "scored": 0, "trained": 3}, "prefill": 4}
    cost |= {"seconds": dict.fromkeys(["step", *cells.STAGES], 1.0)}
    trained_on = dict.fromkeys([*cells.TRAINED_ON, "kl_first", "kl_last"], 1.0) | more
    return CellTable("final", mode, method, seed, base, 1e-3, cost, trained_on, points)


def comparison(tmp_path, *overrides):
    cut = ["modes.opd=null", "methods.clipped_forward_kl=null", "methods.reverse_kl_top_k=null", "tuning=null"]
    place = [f"directory={tmp_path}", "set.evaluation.bootstrap=500"]
    return grid.load("miniature", [*cut, *place, *overrides])


THREE = [
    *(table("forward_kl", s, (0.3, 0.4, 0.45, 0.5)) for s in (0, 1, 2)),
    *(table("reverse_kl", s, (0.3, 0.5, 0.5, (0.6, 0.6, 0.02)[s])) for s in (0, 1, 2)),
    *(table("trd", s, (0.3, 0.5, 0.7, 0.9), tokens=200) for s in (0, 1, 2)),
]


def found_of(tmp_path, tables=THREE, *overrides):
    c = comparison(tmp_path, *overrides)
    return results.from_cells(c, tables, {}, results.missing(c, tables))


# What a run leaves


def test_a_table_holds_what_the_run_scored_and_spent_on_its_way(tmp_path):
    c = comparison(tmp_path, "methods.trd={set: {}}")
    cell = Cell("final", "opsd", "trd", 0)
    r = grid.recipe(c, cell)
    run = RunDirectory.create(r.directory, r)
    text = dict.fromkeys(("problem", "answer", "reference"), "x")
    answers = {"p0": ["7", "7", "3", None], "p1": ["1", "2", "1", "2"]}
    right = {"p0": "7", "p1": "2"}
    for name, step in (("base", 0), ("step-000002", 2), ("trained", 3)):
        rows = [
            text | {"problem_id": p, "row": i, "step": 0, "epoch": 0, "sample_index": k, "seed": 0}
            | {"y_o": {"ids": [1] * 5, "passed": a == right[p], "extracted": a, "finish": "stop"}}
            for i, p in enumerate(answers) for k, a in enumerate(answers[p])
        ]  # fmt: skip
        run.write_evaluation(score(rows, name=name, step=step, version=0, resamples=100, seed=0), rows)
    with open(run.path / "metrics.jsonl", "w") as metrics:
        for step in (1, 2, 3):
            metrics.write(json.dumps({"step": step, "seconds/step": 2.0, "y_o/passed": 0.5}) + "\n")
            one = text | {"problem_id": "p", "row": step, "step": step, "epoch": 0, "sample_index": 0, "seed": 0}
            one |= {"student_prompt_ids": [1] * 10, "refine_prompt_ids": [1] * 20, "refine_scored_tokens": 4}
            run.write_rows(step, to_table([one | {"y_o": {"ids": [1] * step}, "y_r": {"ids": [1, 2]}}]))
    run.release()
    made = cells.taken(cell, run)
    assert [(p.step, p.tokens, p.prefill, p.seconds) for p in made.points] == [
        (0, 0, 0, 0.0),
        (2, 1 + 2 + 2 * 2, 2 * (10 + 20 + 4), 4.0),
        (3, 1 + 2 + 3 + 3 * 2, 3 * (10 + 20 + 4), 6.0),
    ]
    last = made.last.graded[""]
    assert last.correct == [2, 2] and last.samples == 4
    assert last.majority == [1.0, 0.5], "of two answers as common, half is right"
    assert last.unique == [2, 2]
    assert last.entropy == pytest.approx(
        [-(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3), math.log(2)], abs=1e-4
    )
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "one.jsonl").write_text(made.text())
    assert cell_tables.read(tmp_path / "cells") == [made]
    assert made.cell == cell and made.lr == r.learner.lr and made.recipe == cell_tables.recipe_of(r)


def test_a_table_is_small_enough_to_be_committed():
    hundred = [Point(4 * i, 1000, 1000, 9.9, {"": graded(correct(0.5, i, 100))}) for i in range(5)]
    one = CellTable("final", "opsd", "trd", 0, "", 1e-3, THREE[0].cost, THREE[0].trained_on, hundred)
    assert len(one.text()) < 8_000


# Equal costs


def test_a_score_at_a_budget_lies_on_the_line_between_two_evaluations():
    run = table("trd", 0, (0.3, 0.5, 0.7), tokens=200)
    ends = [np.array(point.graded[""].correct) / SAMPLES for point in run.points]
    assert at_budget(run, "tokens", 250)["avg@8"] == pytest.approx(0.75 * ends[1] + 0.25 * ends[2])
    assert at_budget(run, "tokens", 400)["avg@8"] == pytest.approx(ends[2])
    assert at_budget(run, "tokens", 0)["avg@8"] == pytest.approx(ends[0])
    passes = [pass_at_k(SAMPLES, np.array(p.graded[""].correct), 4) for p in run.points]
    assert at_budget(run, "prefill", 100)["pass@4"] == pytest.approx(0.75 * passes[0] + 0.25 * passes[1])
    assert at_budget(run, "tokens", 404)["avg@8"] == pytest.approx(ends[2]), "it ends 1% short of it"
    assert at_budget(run, "tokens", 410) is None, "it never spends so much"


def test_equal_steps_equal_tokens_and_equal_seconds_are_three_tables_of_the_same_runs(tmp_path):
    tables = [*THREE[:6], *(table("trd", s, (0.3, 0.5, 0.7, 0.9), tokens=200, seconds=100) for s in (0, 1, 2))]
    found = found_of(tmp_path, tables)
    whole = found["modes"]["opsd"]["trd"]["scores"]["avg@8"]["value"]
    tokens, seconds = (found["equal"][axis]["modes"]["opsd"] for axis in ("tokens", "seconds"))
    assert (tokens["of"], tokens["budget"]) == ("forward_kl", 300)
    halfway = np.mean([at_budget(t, "tokens", 300)["avg@8"].mean() for t in tables[6:]])
    assert tokens["methods"]["trd"]["scores"]["avg@8"]["value"] == pytest.approx(halfway)
    assert seconds["methods"]["trd"]["scores"]["avg@8"]["value"] == pytest.approx(whole)
    assert whole > halfway
    titles = [title for title, *_ in report.tables(found)]
    assert titles[:3] == ["Scores", "Scores at equal generated tokens", "Scores at equal seconds"]


def test_a_method_that_never_spends_the_budget_says_what_it_spends(tmp_path):
    cheap = [table("trd", s, (0.3, 0.5, 0.7, 0.9), tokens=50) for s in (0, 1, 2)]
    ended = [table("reverse_kl", s, (0.3, 0.6)) for s in (0, 1, 2)]
    found = found_of(tmp_path, [*THREE[:3], *ended, *cheap])
    [shown] = [lines for title, lines, _ in report.tables(found) if "tokens" in title]
    assert "spends 150" in [line[1] for line in shown if line[0] == "opsd trd"]
    assert "evaluated at its end alone" in [line[1] for line in shown if line[0] == "opsd reverse_kl"]


# Seeds, collapses, coverage


def test_the_spread_the_worst_seed_and_collapses_stand_in_the_table(tmp_path):
    found = found_of(tmp_path)
    lines = found["modes"]["opsd"]
    assert {m: lines[m]["collapses"] for m in ("forward_kl", "reverse_kl", "trd")} == {
        "forward_kl": 0, "reverse_kl": 1, "trd": 0,
    }  # fmt: skip
    _, shown, note = report.tables(found)[0]
    header = shown[0]
    row = next(line for line in shown if line[0] == "opsd reverse_kl")
    assert row[header.index("collapsed")] == "1 of 3"
    assert float(row[header.index("worst")]) == pytest.approx(
        100 * min(lines["reverse_kl"]["scores"]["avg@8"]["by_seed"]), abs=0.1
    )
    assert float(row[header.index("could tell")]) > 10, "with such a spread three seeds tell little"
    assert "below half of their base" in note and "corrected for how many" in note
    wide = lines["reverse_kl"]["minus_base"]["avg@8"]
    assert wide["low"] < 0 < wide["high"]


def test_coverage_counts_what_no_sample_of_the_base_ever_solves(tmp_path):
    found = found_of(tmp_path)
    base = np.array([t.points[0].graded[""].correct for t in THREE[:3]])
    never = (base == 0).all(axis=0)
    assert never.any()
    line = found["modes"]["opsd"]["trd"]["never"]
    assert line["problems"] == {"": int(never.sum())}
    solved = [np.mean(np.array(t.last.graded[""].correct)[never] > 0) for t in THREE[6:]]
    assert line["score"]["value"] == pytest.approx(np.mean(solved))
    [shown] = [lines for title, lines, _ in report.tables(found) if title == "Coverage and variety"]
    assert {"solved of never", "maj", "greedy", "different answers", "entropy"} <= set(shown[0])
    assert all(line[shown[0].index("greedy")] == "50.0" for line in shown[1:])


def test_bases_stand_beside_each_other_and_none_is_resampled(tmp_path):
    bases = "bases={a: {}, b: {set: {student: {path: 'miniature:student_1'}}}}"
    tables = [table(m, s, (0.3, 0.5, rate), base=b) for m in ("forward_kl", "trd") for s in (0, 1, 2)
              for b, rate in (("a", 0.8), ("b", 0.4))]  # fmt: skip
    found = found_of(tmp_path, tables, bases)
    by_base = found["modes"]["opsd"]["trd"]["scores"]["avg@8"]["by_base"]
    assert by_base["a"] > 0.7 and by_base["b"] < 0.5
    assert found["modes"]["opsd"]["trd"]["runs"] == 6 and "on each of 2 bases" in report.tables(found)[0][2]
    of_one = found_of(tmp_path, [one for one in tables if one.base == "a"], bases)
    assert "bases" not in report.tables(of_one)[0][2], "the other has no finished cell"


def test_what_is_not_finished_is_named_or_where_it_is_much_counted():
    few = [f"opsd/trd/seed-{n}" for n in range(3)]
    assert unfinished([]) == "" and unfinished(few) == f"Not finished: {', '.join(few)}."
    many = [*few, *(f"opd/trd/seed-{n}" for n in range(10))]
    assert unfinished(many) == "Not finished: 3 of opsd/trd, 10 of opd/trd."


# Curves


def test_curves_are_means_over_runs_and_every_picture_is_whole(tmp_path):
    found = found_of(tmp_path)
    [trd] = [one for one in found["curves"] if one["method"] == "trd"]
    assert [p["tokens"] for p in trd["points"]] == [0, 200, 400, 600]
    means = [np.mean(t.last.graded[""].correct) / SAMPLES for t in THREE[6:]]
    value, error = trd["points"][-1]["scores"]["avg"]
    assert value == pytest.approx(np.mean(means)) and error == pytest.approx(np.std(means, ddof=1) / 3**0.5)
    assert set(trd["points"][0]["scores"]) == {"avg", "pass", "maj", "greedy"}
    pictures = curve_svg.pictures(found)
    assert len(pictures) == 4 * 2
    for name, text in pictures.items():
        root = ElementTree.fromstring(text)
        assert sum(child.tag.endswith("circle") for child in root) == 3 * 4, name
        assert {"forward_kl", "reverse_kl", "trd"} <= {child.text for child in root}
        assert "<script" not in text


# Tables without runs


def committed(folder, tables=THREE):
    for one in tables:
        place = folder / f"{one.cell.name}.jsonl"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(one.text())
    return folder


def test_anyone_makes_the_tables_from_committed_cells(tmp_path, capsys):
    folder = committed(tmp_path / "cells")
    cut = ["modes.opd=null", "methods.clipped_forward_kl=null", "methods.reverse_kl_top_k=null", "tuning=null"]
    place = [f"directory={tmp_path / 'out'}", "set.evaluation.bootstrap=500"]
    assert main(["compare", "miniature", *cut, *place, "--from-cells", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "made from 9 cells" in said
    out = tmp_path / "out" / command.FROM_CELLS
    assert json.loads((out / "comparison.json").read_text()) == json.loads(json.dumps(found_of(tmp_path)))
    assert "At what cost" in (out / "report.html").read_text()
    assert "![opsd-avg-tokens.svg](curves/opsd-avg-tokens.svg)" in (out / "comparison.md").read_text()
    assert (out / "curves" / "opsd-pass-seconds.svg").is_file()
    # Fewer cells than asked for: the tables of those there are, what is missing by name, and exit code 1.
    (folder / "opsd/trd/seed-2.jsonl").unlink()
    assert main(["compare", "miniature", *cut, *place, "--from-cells", str(folder)]) == 1
    assert json.loads((out / "comparison.json").read_text())["unfinished"] == ["opsd/trd/seed-2"]


def test_a_comparison_goes_on_from_cells_that_were_finished_elsewhere(tmp_path, capsys):
    """Learning rates and runs are those of the tables; the base is scored here."""
    cut = ["modes.opd=null", "methods.clipped_forward_kl=null", "methods.reverse_kl_top_k=null", "seeds=[0]"]
    cut += ["methods.reverse_kl=null", "tuning.learning_rates=[0.01, 0.1]", "set.evaluation.limit=40"]
    here = grid.load("miniature", [*cut, f"directory={tmp_path / 'here'}"])
    plan = ComparisonPlan(here)

    def taken(cell: Cell, rate: float, lr: float) -> CellTable:
        ids = plan.inputs(cell).held_out["problem_id"].to_pylist()
        last = Point(12, 1, 1, 1.0, {"": replace(graded(correct(rate, 3)), problems=cell_tables.digest(ids))})
        of = cell_tables.recipe_of(grid.recipe(here, cell, lr))
        spent = THREE[0].cost
        return CellTable(cell.kind, cell.mode, cell.method, cell.seed, cell.base, lr, spent, {}, [last], of)

    tuned = [cell for method in ("forward_kl", "trd") for cell in plan.tuning_cells("opsd", method)]
    trd = Cell("final", "opsd", "trd", 0)
    tables = [taken(cell, 0.2 if cell.lr == 0.1 else 0.7, cell.lr) for cell in tuned] + [taken(trd, 0.9, 0.01)]
    there = committed(tmp_path / "there" / "cells", tables)
    asked = [*cut, f"directory={there.parent}"]
    assert main(["compare", "miniature", *asked, "--dry-run"]) == 0
    assert "7 cells, 5 done, 2 left: 12 optimizer steps" in capsys.readouterr().out
    moved = ComparisonPlan(grid.load("miniature", asked))
    left = [cell.name for group in moved.groups for cell in pending(moved, group, {})]
    assert left == ["opsd/base/seed-0", "opsd/forward_kl/seed-0"]
    assert moved.best_lr("opsd", "forward_kl") == 0.01
    assert report.write(moved, {})["unfinished"] == left

    place = there / f"{trd.name}.jsonl"
    loss = tables[-1].recipe["loss"]
    for changed, why in (
        ({"recipe": tables[-1].recipe | {"loss": loss | {"top_k": 4}}}, "put back loss.top_k=4 (now null), set"),
        ({"recipe": tables[-1].recipe | {"learner": {"lora": {"rank": 8}}}}, 'put back learner.lora={"rank": 8} (now'),
        ({"points": [Point(12, 1, 1, 1.0, {"": graded([1])})]}, "put back the problems of evaluation, set"),
        ({"points": [Point(8, 1, 1, 1.0, tables[-1].last.graded)]}, "ends at step 8 of 12: put it back, or delete it"),
        ({"recipe": {}}, "is of an older version, which kept no recipe: delete it"),
    ):
        moved.elsewhere[trd.name] = replace(tables[-1], **changed)
        with pytest.raises(UserError, match=re.escape(str(place))) as refused:
            moved._as_taken(trd)
        assert why in str(refused.value)
    without = {name: value for name, value in loss.items() if name != "span"}  # a key that came later
    moved.elsewhere[trd.name] = replace(tables[-1], recipe=tables[-1].recipe | {"loss": without})
    moved._as_taken(trd)
    # With another rate than the one that is best here it is run, and one in another cell's place is refused.
    moved.elsewhere[trd.name] = replace(tables[-1], lr=0.1)
    assert [cell.name for group in moved.groups for cell in pending(moved, group, {})] == [*left, trd.name]
    place.rename(there / "opsd/trd/seed-1.jsonl")
    with pytest.raises(
        UserError, match=f"seed-1.jsonl is the table of {trd.name}: move it to {re.escape(str(place))}, or"
    ):
        ComparisonPlan(grid.load("miniature", asked))


def test_a_hostile_name_of_a_set_cannot_leave_its_place(tmp_path, capsys):
    hostile = "x[/red] [here](javascript:1)\n# Mine"
    tables = [table("trd", seed, (0.3, 0.5)) for seed in (0, 1)]
    for point in (point for one in tables for point in one.points):
        point.graded[hostile] = point.graded.pop("greedy")
    c = comparison(tmp_path)
    found = report.write_found(tmp_path, results.from_cells(c, tables, {}, []), c, tables)
    told = (tmp_path / "comparison.md").read_text()
    assert "\n# Mine" not in told and "[here](" not in told
    Console(width=200).print(report.rendered(found))
    assert "x[/red] [here]" in capsys.readouterr().out


def test_cells_that_say_nothing_or_other_things_are_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="holds no tables of cells"):
        cell_tables.read(tmp_path)
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"bad.jsonl is no table of a cell .*: delete it, or take it anew"):
        cell_tables.read(tmp_path)
    other = table("trd", 0, (0.3, 0.5))
    other.points[-1].graded[""] = Graded(SAMPLES, "others", [1] * PROBLEMS)
    with pytest.raises(UserError, match="scored on different problems: delete the cells of one"):
        found_of(tmp_path, [*THREE[:6], other])
    folder = committed(tmp_path / "cells", [table("trd", 0, (0.3, 0.5), mode="elsewhere")])
    assert main(["compare", "miniature", f"directory={tmp_path}", "--from-cells", str(folder)]) == 2
    assert "holds no cell of compare-miniature" in capsys.readouterr().err
    assert main(["compare", "miniature", "--from-cells", str(folder), "--dry-run"]) == 2
    assert "leave --dry-run out" in capsys.readouterr().err
