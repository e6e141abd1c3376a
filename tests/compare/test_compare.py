"""The comparison: its grid, what it reads from finished runs, and a small one from its start to its table."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent import futures
from dataclasses import replace
from math import comb
from pathlib import Path
from statistics import fmean, stdev, variance

import numpy as np
import pytest
import ray
from ray.exceptions import RayTaskError
from scipy import stats as distributions

from runs import Finished, finish, held_out
from serving import greedy_requests, prompts
from trd_ray import config, miniature
from trd_ray.cli import main
from trd_ray.compare import command, grid, report
from trd_ray.compare.cell_tables import read_table
from trd_ray.compare.cells import kept
from trd_ray.compare.engine_groups import engine_groups
from trd_ray.compare.grid import Cell
from trd_ray.compare.plan import ComparisonPlan
from trd_ray.errors import UserError
from trd_ray.record.directory import RunDirectory
from trd_ray.rows import to_table
from trd_ray.score.stats import score, to_json

Y_O = "{set: {train: {trajectory: y_o}, teacher: {view: vanilla}}}"
SMALL = ["modes.opd=null", "methods.clipped_forward_kl=null", "methods.reverse_kl=null"]
SMALL += ["methods.reverse_kl_top_k=null", "set.evaluation.bootstrap=500"]


def comparison(tmp_path, *overrides: str) -> grid.Comparison:
    """OPSD, forward KL and TRD, in a folder of its own."""
    return grid.load("miniature", [*SMALL, f"directory={tmp_path}", *overrides])


# The grid


@pytest.mark.parametrize("name", ["miniature", "paper"])
def test_the_shipped_comparisons_hold_the_baselines_of_the_paper(name):
    c = grid.load(name)
    assert list(c.methods) == ["forward_kl", "clipped_forward_kl", "reverse_kl", "reverse_kl_top_k", "trd"]
    assert list(c.modes) == ["opd", "opsd"] and len(c.seeds) >= 3
    for mode in c.modes:
        recipes = {m: grid.recipe(c, Cell("final", mode, m, 0)) for m in c.methods}
        assert all(r.teacher.mode == mode for r in recipes.values())
        for method, r in recipes.items():
            on = ("y_r", "refine") if method == "trd" else ("y_o", "vanilla")
            assert (r.train.trajectory, r.teacher.view) == on
            assert r.loss.divergence == ("reverse_kl" if "reverse" in method else "forward_kl")
            assert r.loss.token_clip == ({"opd": 0.1, "opsd": 0.06}[mode] if "clipped" in method else None)
        k = {"paper": 32, "miniature": 4}[name]
        assert {m: r.loss.top_k for m, r in recipes.items() if r.loss.top_k} == {"reverse_kl_top_k": k}
        # All else is equal: what they start from, see and are scored on.
        for key in ("student", "data", "evaluation", "steps", "rollouts_per_step", "sampler", "learner", "seed"):
            assert len({repr(getattr(r, key)) for r in recipes.values()}) == 1, key


def test_the_comparison_of_trajectories_differs_in_nothing_else_and_shares_its_engines(tmp_path):
    c = grid.load("trajectories", [f"directory={tmp_path}"])
    recipes = {m: grid.recipe(c, Cell("final", "opd", m, 0)) for m in c.methods}
    trains = {m: (r.train.trajectory, r.refiner.n, r.refiner.select, r.teacher.view) for m, r in recipes.items()}
    assert trains == {
        "y_r": ("y_r", 1, "first", "refine"),
        "y_o": ("y_o", 1, "first", "vanilla"),
        "repair": ("repair", 1, "first", "refine"),
        "mixture": ("mixture", 1, "first", "refine"),
        "best_score": ("y_r", 4, "best_score", "refine"),
        "nearest": ("y_r", 4, "nearest", "refine"),
    }
    for key in ("student", "data", "evaluation", "steps", "rollouts_per_step", "sampler", "learner", "seed", "loss"):
        assert len({repr(getattr(r, key)) for r in recipes.values()}) == 1, key
    plan = ComparisonPlan(c)  # which also checks lengths, such as those of what is scored
    assert [g.methods for g in plan.groups] == [list(c.methods)] and len(c.seeds) == 3
    assert [r.refined_share for r in recipes.values()] == [1, 0, 1, 0.5, 1, 1]


def test_every_method_is_tuned_with_the_same_budget():
    c = grid.load("miniature")
    for mode in c.modes:
        tuned = [cell for cell in grid.cells(c, mode, list(c.methods)) if cell.kind == "tuning"]
        by_method = {m: [grid.recipe(c, cell) for cell in tuned if cell.method == m] for m in c.methods}
        budgets = {
            tuple((r.learner.lr, r.steps, r.seed, r.evaluation.path, r.evaluation.limit) for r in recipes)
            for recipes in by_method.values()
        }
        assert len(budgets) == 1 and len(tuned) == len(c.methods) * len(c.tuning.learning_rates)


def test_later_layers_win_and_lists_are_replaced(tmp_path):
    overrides = ["set={steps: 7, learner: {betas: [0.8, 0.9], warmup_ratio: 0.5}}"]
    overrides += ["methods.trd={set: {learner: {warmup_ratio: 0.3}}, modes: {opsd: {learner: {warmup_ratio: 0.2}}}}"]
    r = grid.recipe(comparison(tmp_path, *overrides), Cell("final", "opsd", "trd", 3), lr=0.5)
    assert (r.steps, r.learner.warmup_ratio, r.learner.betas, r.learner.lr) == (7, 0.2, (0.8, 0.9), 0.5)
    assert (r.seed, r.directory) == (3, tmp_path / "opsd/trd/seed-3")
    assert r.learner.updates_per_step == config.load("miniature_opsd").learner.updates_per_step


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("metods={}", "did you mean methods"),
        ("methods.trd.st=3", "did you mean set"),
        ("against=tdr", "did you mean trd"),
        ("methods.trd.modes.opds={}", "did you mean opsd"),
        ("methods.trd.set.steps=3", "must be equal for all methods"),
        ("methods.trd.set.learner.lr=0.1", "which is tuned"),
        ("set.seed=3", "comparison's seeds"),
        ("tuning.set.loss={}", "not for tuning alone"),
        ("methods.base={}", "cannot be the name"),
        ("seeds=[1, 1]", "seed twice"),
        ("seeds=[]", "seeds is empty"),
        ("tuning.learning_rates=fast", "learning_rates"),
    ],
)
def test_a_faulty_comparison_is_refused_with_its_remedy(tmp_path, override, sentence):
    with pytest.raises(UserError, match=sentence):
        comparison(tmp_path, override)


def test_a_fault_in_a_recipe_names_the_cell(tmp_path):
    with pytest.raises(UserError, match=r"^opsd/trd/.*loss.divergense \(did you mean divergence"):
        ComparisonPlan(comparison(tmp_path, "methods.trd={set: {loss: {divergense: jsd}}}"))


def test_a_mirror_is_refused_since_no_cell_would_be_fetched_from_it(tmp_path):
    with pytest.raises(UserError, match="have no mirror: set.checkpoint.mirror=null$"):
        ComparisonPlan(comparison(tmp_path, "set.checkpoint.mirror=s3://bucket/runs"))


def test_problems_to_tune_on_are_those_of_the_test_set_and_of_training_never():
    texts = {split: {row["problem"] for row in miniature.problems(split)} for split in ("train", "tune", "test")}
    assert len(texts["tune"]) == len(texts["test"]) == 200
    assert not (texts["tune"] & texts["test"] or texts["tune"] & texts["train"] or texts["test"] & texts["train"])


@pytest.mark.parametrize(
    "override", ["tuning.set.evaluation.path=miniature:test", "tuning.set.evaluation.path=miniature:train"]
)
def test_common_problems_are_refused(tmp_path, override):
    with pytest.raises(UserError, match="in common"):
        ComparisonPlan(comparison(tmp_path, override))


def test_methods_that_ask_other_things_of_the_engines_get_engines_of_their_own(tmp_path):
    plan = ComparisonPlan(
        comparison(tmp_path, "methods.long={set: {refiner: {max_model_len: 400}}}", f"methods.raw={Y_O}")
    )
    assert [g.methods for g in plan.groups] == [["forward_kl", "trd", "raw"], ["long"]]


def test_engines_that_drop_their_weights_at_rest_serve_no_method_that_samples_with_the_initial_ones(tmp_path):
    offline = "methods.offline={set: {stream: {max_staleness: never}}}"
    turns = ("modes.opsd.set.placement=timeshare", "modes.opsd.set.stream.max_staleness=0")
    assert [g.methods for g in engine_groups(comparison(tmp_path, offline))] == [["forward_kl", "trd", "offline"]]
    groups = engine_groups(comparison(tmp_path, offline, *turns))
    assert [g.methods for g in groups] == [["forward_kl", "trd"], ["offline"]]


def test_modes_share_the_base_that_would_answer_alike_and_no_other(tmp_path):
    two = ("modes.more={recipe: miniature_opsd}", "tuning=null", "seeds=[0]")
    alike = ("modes.more.set.sampler={replicas: 2, temperature: 0.5}", "modes.more.set.teacher.follow=ema")
    assert ComparisonPlan(comparison(tmp_path, *two, *alike)).base_mode == {"opsd": "opsd", "more": "opsd"}
    for other in ("evaluation.temperature=0.5", "verify.answer_in_prose=true"):
        plan = ComparisonPlan(comparison(tmp_path, *two, f"modes.more.set.{other}"))
        assert plan.base_mode == {"opsd": "opsd", "more": "more"}
    bases = "bases={a: {}, b: {modes: {more: {evaluation: {temperature: 0.5}}}}}"
    plan = ComparisonPlan(comparison(tmp_path, *two, bases))
    assert plan.base_mode == {"opsd": "opsd", "more": "more"}, "alike on the first base alone"


def test_a_dry_run_tells_what_there_is_to_know_of_the_problems(tmp_path, capsys):
    lines = [
        json.dumps({"id": i, "problem": p["problem"], "answer": p["answer"]})
        for i, p in enumerate(miniature.problems("test")[:2])
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    own = [f"set.evaluation.path=aime24:{tmp_path / 'test.jsonl'}", "tuning=null", "seeds=[0]"]
    own += ["set.refiner.replicas={max: 2}"]
    command.dry_run("miniature", [*SMALL, f"directory={tmp_path / 'runs'}", *own, "set.cluster.memory_gib=64"])
    said = capsys.readouterr().out
    assert said.startswith("aime24: 2 problems, where AIME 2024 (I and II) has 30\n")
    assert said.count("refiner.replicas are bounds") == 1 and "of the refiner stays at 1\n" in said
    assert not (tmp_path / "runs").exists()


# What finished cells say

STEPS = 12


def finished(plan: ComparisonPlan, cell: Cell, passed_PS: np.ndarray, steps: int = STEPS, **sets: np.ndarray) -> None:
    """A cell as a run leaves it: recipe, rows, metrics and the scores of these samples, and of those of the sets."""
    r = plan.recipe(cell)
    directory = RunDirectory.create(r.directory, r)
    base = cell.kind == "base"
    for of, passed in {"": passed_PS, **sets}.items():
        scored(directory, base, passed, of)
    with open(directory.path / "metrics.jsonl", "w") as metrics:
        for step in range(0 if base else steps):
            line = {
                "step": step + 1,
                "seconds/train": 0.5,
                "seconds/step": 2.0,
                "trained_tokens": 10.0,
                "kl/mean": 1.0 / (1 + step),
            }
            metrics.write(json.dumps(line) + "\n")
            text = dict.fromkeys(("problem_id", "problem", "answer", "reference"), "x")
            one = text | {"row": step, "step": step, "epoch": 0, "sample_index": 0, "seed": 0}
            directory.write_rows(step + 1, to_table([one | {"y_o": {"ids": [1] * step}, "y_r": {"ids": [1, 2, 3]}}]))
    directory.release()


def scored(directory: RunDirectory, base: bool, passed_PS: np.ndarray, of: str = "") -> None:
    rows = [
        {
            "problem_id": f"p{p:03}",
            "y_o": {"passed": bool(ok), "ids": [1] * 5, "finish": "stop", "extracted": "5"},
        }
        for p, samples in enumerate(passed_PS)
        for ok in samples
    ]
    found = score(rows, name="base" if base else "trained", step=0 if base else STEPS, version=0, resamples=100, seed=0)
    place = directory.path / "evaluation" / of / f"{found.name}.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(to_json(found)))


def samples(seed: int, rate: float, problems: int = 40, k: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((problems, k)) < rng.beta(4 * rate, 4 * (1 - rate), (problems, 1))


def tune(plan: ComparisonPlan, method: str, rates: dict[float, float]) -> None:
    for cell in plan.tuning_cells("opsd", method):
        finished(
            plan,
            cell,
            np.repeat([[True] * 8, [False] * 8], [round(100 * rates[cell.lr]), 100 - round(100 * rates[cell.lr])], 0),
        )


def test_the_learning_rate_of_the_best_tuning_score_goes_into_the_final_cells(tmp_path):
    c = comparison(tmp_path, "tuning.learning_rates=[0.1, 0.01, 0.001]")
    plan = ComparisonPlan(c)
    tune(plan, "trd", {0.1: 0.3, 0.01: 0.6, 0.001: 0.5})
    tune(plan, "forward_kl", {0.1: 0.7, 0.01: 0.7, 0.001: 0.5})
    assert plan.best_lr("opsd", "trd") == 0.01
    assert plan.best_lr("opsd", "forward_kl") == 0.01, "of equals the lowest"
    assert plan.recipe(Cell("final", "opsd", "trd", 1)).learner.lr == 0.01
    assert ComparisonPlan(c).recipe(Cell("final", "opsd", "trd", 1)).learner.lr == 0.01
    shown = {(e["method"], e["learning_rate"]): e for e in report.write(plan, {})["tuning"]}
    assert len(shown) == 6 and [k for k, e in shown.items() if e["chosen"]] == [("forward_kl", 0.01), ("trd", 0.01)]
    assert shown["trd", 0.1]["score"]["value"] == pytest.approx(0.3)


def test_no_learning_rate_is_chosen_before_all_are_scored(tmp_path):
    plan = ComparisonPlan(comparison(tmp_path, "tuning.learning_rates=[0.1, 0.01]"))
    finished(plan, plan.tuning_cells("opsd", "trd")[0], samples(0, 0.5))
    assert plan.best_lr("opsd", "trd") is None


def test_scores_and_differences_average_seeds_within_a_problem(tmp_path):
    plan = ComparisonPlan(comparison(tmp_path, "tuning=null", "seeds=[4, 5, 6]"))
    rates = {"base": 0.3, "forward_kl": 0.4, "trd": 0.6}
    drawn = {
        (m, s): samples(10 * i + s, rate) for i, (m, rate) in enumerate(rates.items()) for s in plan.comparison.seeds
    }
    for (method, seed), passed_PS in drawn.items():
        kind = "base" if method == "base" else "final"
        finished(plan, Cell(kind, "opsd", "" if kind == "base" else method, seed), passed_PS)
    found = report.write(plan, {})
    assert found["unfinished"] == []

    def naive(method: str, k: int | None) -> list[list[float]]:
        """Avg@8, or Pass@k by counting subsets, for each seed and problem."""

        def one(samples_S) -> float:
            n, c = len(samples_S), int(sum(samples_S))
            return c / n if k is None else 1 - comb(n - c, k) / comb(n, k)

        return [[one(drawn[method, s][p]) for p in range(40)] for s in (4, 5, 6)]

    def two_levels(values: list[list[float]]) -> tuple[float, float]:
        """The mean, and half of Student's interval: from variances of seeds, of problems, and of what is left."""
        seeds, problems = [fmean(row) for row in values], [fmean(column) for column in zip(*values, strict=True)]
        parts = [(variance(seeds) / 3, 2), (variance(problems) / 40, 39)]
        total = sum(v for v, _ in parts)
        freedom = total**2 / sum(v**2 / df for v, df in parts)
        mean = fmean(seeds)
        left = sum(
            (values[s][p] - seeds[s] - problems[p] + mean) ** 2 for s in range(3) for p in range(40)
        ) / (2 * 39)  # fmt: skip
        return mean, float(distributions.t.isf(0.025, freedom)) * (total + left / 120) ** 0.5

    for measure, k in (("avg@8", None), ("pass@4", 4), ("pass@8", 8)):
        for method in rates:
            line = found["modes"]["opsd"][method]
            values = naive(method, k)
            value, half = two_levels(values)
            said = line["scores"][measure]
            assert said["value"] == pytest.approx(value)
            assert said["low"] == pytest.approx(value - half, abs=0.15 * half)
            assert said["high"] == pytest.approx(min(1, value + half), abs=0.15 * half)
            for key, other in (("minus_base", "base"), ("minus_against", "trd")):
                if method in (other, "base"):
                    continue
                pairs = zip(values, naive(other, k), strict=True)
                value, half = two_levels([[a - b for a, b in zip(*rows, strict=True)] for rows in pairs])
                said = line[key][measure]
                assert said["value"] == pytest.approx(value)
                assert said["low_alone"] == pytest.approx(value - half, abs=0.15 * half)
                assert said["low"] < said["low_alone"], "three differences are told apart together"
    trd = found["modes"]["opsd"]["trd"]
    means = [float(drawn["trd", s].mean()) for s in (4, 5, 6)]
    assert trd["scores"]["avg@8"]["by_seed"] == pytest.approx(means)
    assert trd["scores"]["avg@8"]["std_over_seeds"] == pytest.approx(stdev(means))
    assert trd["scores"]["avg@8"]["worst"] == pytest.approx(min(means))
    assert "minus_against" not in trd and "minus_base" not in found["modes"]["opsd"]["base"]


def test_costs_are_those_that_the_runs_recorded(tmp_path):
    plan = ComparisonPlan(comparison(tmp_path, "tuning=null", "seeds=[0]"))
    finished(plan, Cell("final", "opsd", "trd", 0), samples(0, 0.5))
    line = report.write(plan, {})["modes"]["opsd"]["trd"]
    assert line["cost"]["tokens"] == {
        "sampled": sum(range(STEPS)),
        "refined": 3 * STEPS,
        "scored": 0,
        "trained": 10 * STEPS,
    }
    assert line["cost"]["seconds"]["train"] == 0.5 * STEPS and line["cost"]["seconds"]["step"] == 2 * STEPS
    assert line["trained_on"]["kl_first"] == pytest.approx(fmean([1, 1 / 2, 1 / 3]))


def test_a_cell_counts_as_finished_once_all_of_it_is_recorded(tmp_path):
    c = comparison(tmp_path, "tuning=null", "seeds=[0]")
    plan, cells = ComparisonPlan(c), [Cell("final", "opsd", m, 0) for m in ("forward_kl", "trd")]
    finished(plan, cells[0], samples(0, 0.5))
    finished(plan, cells[1], samples(0, 0.5), steps=STEPS - 1)  # killed between the evaluation and the last record
    assert plan.score(cells[0]) and plan.score(cells[1]) is None
    assert report.write(plan, {})["unfinished"] == ["opsd/base/seed-0", "opsd/trd/seed-0"]


def test_the_guards_of_a_cell_have_the_base_of_their_own_set(tmp_path):
    sets = "set.evaluation.sets={old: {path: 'miniature:tune', limit: 20, samples: 3, guard: true}}"
    plan = ComparisonPlan(
        comparison(tmp_path, sets, "set.evaluation.limit=10", "set.evaluation.samples=2", "tuning=null")
    )
    base, cell = plan.base("opsd", 0), Cell("final", "opsd", "trd", 0)
    assert [report.samples(plan.inputs(one), trains=False)[1] for one in (base, cell)] == [10 * 2 + 20 * 3] * 2
    finished(plan, base, samples(0, 0.5))
    finished(plan, cell, samples(1, 0.5))
    of_base, of_cell = (RunDirectory(plan.path / one.name) for one in (base, cell))
    of_base.write_evaluation(plan.scored(base, ""), [], of="old")
    command.copy_base(of_base.path / "evaluation", of_cell.path / "evaluation")
    assert [one.name for one in of_cell.read_evaluations()] == ["base", "trained"]
    assert [one.name for one in of_cell.read_evaluations("old")] == ["base"]


def test_a_cell_that_was_begun_with_another_recipe_is_refused(tmp_path):
    overrides = "tuning=null", "seeds=[0]"
    finished(plan := ComparisonPlan(comparison(tmp_path, *overrides)), Cell("final", "opsd", "trd", 0), samples(0, 0.5))
    ComparisonPlan(
        comparison(tmp_path, *overrides, "seeds=[0, 1]", "set.checkpoint.every_steps=3")
    )  # more cells, the same runs
    elsewhere = ("set.sampler.replicas=2", "set.learner.tokens_per_micro_batch=999", "set.verify.cpus=0.5")
    ComparisonPlan(comparison(tmp_path, *overrides, *elsewhere, "set.evaluation.every_steps=6"))  # of the same scores
    for change in ("set.steps=13", "set.evaluation.samples=4", "methods.trd={set: {loss: {token_clip: 1.0}}}"):
        with pytest.raises(UserError, match="opsd/trd/seed-0 was begun with another recipe"):
            ComparisonPlan(comparison(tmp_path, *overrides, change))
    assert plan.score(Cell("final", "opsd", "trd", 0))


def test_a_run_that_was_made_here_wins_over_a_table_from_elsewhere(tmp_path):
    c = comparison(tmp_path, "tuning=null", "seeds=[0]")
    plan, cell = ComparisonPlan(c), Cell("final", "opsd", "trd", 0)
    finished(plan, cell, samples(0, 0.5))
    mine = kept(plan, cell)
    place = plan.table_of(cell)
    strange = replace(mine.last.graded[""], correct=[1] * 40)
    place.write_text(replace(mine, points=[replace(mine.last, graded={"": strange})]).text())
    again = ComparisonPlan(c)
    assert again.elsewhere == {} and kept(again, cell) == read_table(place) == mine, "its table is put right"


def test_the_tables_show_what_is_there_and_name_what_failed(tmp_path):
    plan = ComparisonPlan(comparison(tmp_path, "tuning=null", "seeds=[0]"))
    finished(plan, Cell("base", "opsd", "", 0), np.array([[True, False]] * 4))
    finished(plan, Cell("final", "opsd", "trd", 0), np.array([[True, True]] * 4))
    report.write(plan, {"opsd/forward_kl/seed-0": "RuntimeError: | out of memory"})
    text = (tmp_path / "comparison.md").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("| opsd trd | 0.0015 | 100.0")]
    assert re.search(r"\+50.0 \\\[\S+, \S+\\\]", line) and line.count(" | ") == text.splitlines()[4].count(" | ")
    assert r"- opsd/forward\_kl/seed-0 failed: RuntimeError: \| out of memory" in text
    assert json.loads((tmp_path / "comparison.json").read_text())["failures"]


# Sets of held-out problems

SETS = "set.evaluation.sets={old: {path: 'miniature:test', limit: 30, samples: 8, guard: true}, new: {path: OWN}}"


def with_sets(tmp_path, *overrides: str) -> grid.Comparison:
    """A guard whose problems are also compared on, and problems of one's own."""
    own = held_out(tmp_path / "own.jsonl", 3)
    return comparison(tmp_path / "runs", SETS.replace("OWN", str(own)), "seeds=[0, 1]", *overrides)


def test_every_method_is_scored_on_each_set_beside_the_main_table(tmp_path):
    plan = ComparisonPlan(with_sets(tmp_path, "tuning=null"))
    rates = {"base": (0.3, 0.8, 0.5), "forward_kl": (0.6, 0.3, 0.5), "trd": (0.7, 0.85, 0.5)}
    drawn = {
        (m, s): [samples(100 * i + 10 * j + s, rate) for j, rate in enumerate(of)]
        for i, (m, of) in enumerate(rates.items())
        for s in (0, 1)
    }
    for (method, seed), (whole, old, new) in drawn.items():
        kind = "base" if method == "base" else "final"
        finished(plan, Cell(kind, "opsd", "" if kind == "base" else method, seed), whole, old=old, new=new)
    found = report.write(plan, {})
    assert found["unfinished"] == []
    for method in rates:
        line = found["modes"]["opsd"][method]
        assert list(line["sets"]) == ["old", "new"]
        for place, own in enumerate([line, line["sets"]["old"], line["sets"]["new"]]):
            by_problem = {m: np.mean([drawn[m, s][place].mean(axis=1) for s in (0, 1)], axis=0) for m in rates}
            assert own["scores"]["avg@8"]["value"] == pytest.approx(fmean(by_problem[method]))
            if method != "base":
                gain = by_problem[method] - by_problem["base"]
                assert own["minus_base"]["avg@8"]["value"] == pytest.approx(fmean(gain))
                half = 1.96 * stdev(gain) / 40**0.5
                assert own["minus_base"]["avg@8"]["low_alone"] < fmean(gain) - half, "seeds count too"
    guards = {m: line["sets"]["old"].get("guard") for m, line in found["modes"]["opsd"].items()}
    assert guards == {"base": None, "forward_kl": "lost", "trd": "kept"}
    assert not any("guard" in line["sets"]["new"] for line in found["modes"]["opsd"].values())

    shown = {title: (lines, note) for title, lines, note in report.tables(found)}
    assert list(shown)[:4] == ["Scores", "Scores on old (guard)", "Scores on new", "Coverage and variety"]
    assert "Guards are lost by opsd forward_kl (old): see their tables." in shown["Scores"][1]
    assert shown["Scores on old (guard)"][0][0][-1] == "guard" and "learning rate" in shown["Scores"][0][0]
    assert [line[-1] for line in shown["Scores on old (guard)"][0][1:]] == ["", "lost", "kept"]
    assert len(shown["Scores"][0][0]) == len(shown["Scores on new"][0][0]) + 1  # the learning rate
    report.write(plan, {})
    assert "## Scores on old (guard)" in (tmp_path / "runs" / "comparison.md").read_text()


def test_the_table_of_a_comparison_without_sets_is_as_it_was(tmp_path):
    plan = ComparisonPlan(comparison(tmp_path, "tuning=null", "seeds=[0]"))
    finished(plan, Cell("base", "opsd", "", 0), samples(0, 0.3))
    finished(plan, Cell("final", "opsd", "trd", 0), samples(1, 0.5))
    found = report.write(plan, {})
    assert all("sets" not in line for line in found["modes"]["opsd"].values())
    titles = [title for title, *_ in report.tables(found)]
    assert titles == ["Scores", "Coverage and variety", "Cost", "What they trained on"]
    assert "Guard" not in report.tables(found)[0][2]


def test_a_base_is_finished_once_it_is_scored_on_every_set_and_a_run_by_its_last_step(tmp_path):
    plan = ComparisonPlan(with_sets(tmp_path, "tuning=null"))
    base = Cell("base", "opsd", "", 0)
    finished(plan, base, samples(0, 0.3), old=samples(1, 0.8))
    assert plan.score(base) is None and plan.scored(base, "old") and plan.scored(base, "new") is None
    scored(RunDirectory(tmp_path / "runs" / base.name), True, samples(2, 0.5), "new")
    assert plan.score(base) and plan.score(base, "new")
    trained = Cell("final", "opsd", "trd", 0)
    finished(plan, trained, samples(3, 0.5), STEPS - 1, old=samples(4, 0.5), new=samples(5, 0.5))
    assert plan.score(trained) is None and plan.score(trained, "old") is None


def test_learning_rates_are_tuned_without_the_sets(tmp_path):
    best = "set.checkpoint.best=evaluation/old/avg"
    plan = ComparisonPlan(with_sets(tmp_path, best))
    tuned = plan.tuning_cells("opsd", "trd")[0]
    assert plan.recipe(tuned).evaluation.sets == {} and not plan.inputs(tuned).held_out_sets
    assert plan.recipe(tuned).checkpoint.best is None
    final = Cell("final", "opsd", "trd", 0)
    assert list(plan.inputs(final).held_out_sets) == ["old", "new"]
    assert plan.recipe(final).checkpoint.best == "evaluation/old/avg"
    # Cells of an older version, which were evaluated on the sets too, still count.
    directory = plan.recipe(tuned).directory
    finished(plan, tuned, samples(0, 0.5))
    began = config.stored(directory / "recipe.yaml")
    evaluation = began.evaluation.model_copy(update={"sets": plan.recipe(final).evaluation.sets})
    began = began.model_copy(update={"evaluation": evaluation})
    (directory / "recipe.yaml").write_text(config.dump(began))
    assert ComparisonPlan(with_sets(tmp_path, best)).score(tuned)


@pytest.mark.parametrize("path", ["miniature:train", "miniature:tune"])
def test_a_set_that_is_trained_or_tuned_on_is_refused(tmp_path, path):
    with pytest.raises(UserError, match=r"evaluation\.sets\.old"):
        ComparisonPlan(comparison(tmp_path, f"set.evaluation.sets={{old: {{path: '{path}'}}}}"))


def test_no_cell_is_told_that_its_guard_has_nothing_to_compare_with(tmp_path, caplog):
    ComparisonPlan(with_sets(tmp_path, "tuning=null"))
    assert "is a guard" not in caplog.text


def test_a_dry_run_says_what_is_scored_and_counts_its_samples(tmp_path, capsys):
    def said(*sets: str) -> str:
        one = ["tuning=null", "seeds=[0]", "set.cluster.memory_gib=64", "methods.forward_kl=null", *sets]
        command.dry_run("miniature", [*SMALL, f"directory={tmp_path / 'runs'}", *one])
        return capsys.readouterr().out

    def made(text: str) -> int:
        return int(re.search(r"and ([\d,]+) samples", text)[1].replace(",", ""))

    own = held_out(tmp_path / "own.jsonl", 3)
    alone, more = said(), said(SETS.replace("OWN", str(own)))
    assert "scored on" not in alone
    assert "opsd is scored on miniature:test 200 x 16, old (guard) 30 x 8, new 3 x 16\n" in more
    assert made(more) - made(alone) == 2 * (30 * 8 + 3 * 16)  # of the base and of TRD


def test_a_dry_run_plans_each_group_for_machines_that_are_not_here(tmp_path, capsys):
    cut = [*SMALL, "seeds=[0]", f"methods.raw={Y_O}", "methods.long={set: {refiner: {max_model_len: 400}}}"]
    place = f"directory={tmp_path / 'runs'}"
    assert main(["compare", "miniature", *cut, place, "--dry-run", "--on", "8x80GiB"]) == 0
    out = capsys.readouterr().out
    assert "runs and their bases; data, prompts and benchmarks were not read" in out
    assert "\nopsd: forward_kl, trd, raw\n" in out and "\nopsd: long\n" in out and "refiner" in out
    assert main(["compare", "paper", "--dry-run", "--on", "1x24GiB"]) == 2
    assert main(["compare", "miniature", "--on", "8x80GiB"]) == 2
    assert "--on say" in capsys.readouterr().err and not (tmp_path / "runs").exists()


# Engines that serve one run after another


def test_a_pool_serves_the_next_run_only_once_it_has_that_runs_weights(tied):
    """As between two cells: versions begin anew, and what the run before still waits for fails."""
    tied.perturb()
    assert tied.push() is None
    old = tied.begin(greedy_requests(prompts(1, 8), 5), min_version=tied.version + 1)
    tied.wait(lambda status: status["waiting"] == 1)
    ray.get(tied.pool.forget_weights.remote())
    with pytest.raises(RayTaskError, match="has ended"):
        tied.answers(old)
    new = tied.begin(greedy_requests(asked := prompts(3, 8), 20), min_version=0)
    assert tied.wait(lambda status: status["waiting"] == 3)["needs_weights"]
    assert not futures.wait(new, timeout=1).done
    tied.perturb()
    tied.version = -1
    assert tied.push() is None and tied.version == 0
    assert [(g.ids, g.version) for g in tied.answers(new)] == [(tied.greedy(p, 20), 0) for p in asked]
    tied.begin_anew()  # other tests start engines, whose weights are then those of version 0 too


# Whole


def compare(directory: Path, *overrides: str, interrupt_after: str | None = None) -> Finished:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with open(f"{directory}.out", "w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "trd_ray.cli", "compare", "tiny", f"directory={directory}", *overrides],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    deadline = time.monotonic() + 300
    while interrupt_after and not (directory / interrupt_after).exists() and process.poll() is None:
        assert time.monotonic() < deadline, Path(f"{directory}.out").read_text()[-3000:]
        time.sleep(0.2)
    if interrupt_after:
        os.killpg(process.pid, signal.SIGINT)
    return finish(process, directory)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_comparison_stops_resumes_and_ends_in_its_tables(tmp_path):
    directory = tmp_path / "comparison"
    stopped = compare(directory, interrupt_after="opsd/tuning/forward_kl/lr-0.001/rows/step-000001.parquet")
    assert stopped.code == 130, stopped.output[-3000:]
    assert stopped.left == []
    first = directory / "opsd/tuning/forward_kl/lr-0.0001/evaluation/trained.json"
    made = first.stat().st_mtime_ns

    done = compare(directory)
    assert done.code == 0, done.output[-3000:]
    assert done.left == []
    assert first.stat().st_mtime_ns == made, "a finished cell was run again"
    found = json.loads((directory / "comparison.json").read_text())
    assert found["unfinished"] == [] and found["failures"] == {}
    assert list(found["modes"]["opsd"]) == ["base", "forward_kl", "trd"]
    tried = [entry["learning_rate"] for entry in found["tuning"]]
    assert len(tried) == 3 and found["tuning"][0]["for"] == ["forward_kl", "trd"], "the best is at an end of two"
    assert len({line["learning_rate"] for line in found["modes"]["opsd"].values() if "learning_rate" in line}) == 1
    # Every cell starts from the base, whatever the engines served before: the same seeds give the same first rollouts.
    cells = {m: directory / f"opsd/{m}/seed-0" for m in ("forward_kl", "trd")}
    rows = {m: RunDirectory(cell).read_rows().to_table().to_pylist() for m, cell in cells.items()}
    assert [r["y_o"]["version"] for r in rows["trd"]] == [0] * 16 + [1] * 16
    pairs = list(zip(rows["forward_kl"][:16], rows["trd"][:16], strict=True))
    assert fmean(x == y for a, b in pairs for x, y in zip(a["y_o"]["ids"], b["y_o"]["ids"], strict=False)) >= 0.99
    assert any(
        a["y_o"]["ids"] != b["y_o"]["ids"] for a, b in zip(rows["forward_kl"][16:], rows["trd"][16:], strict=True)
    )
    for cell in cells.values():
        assert all(m["sync/gap_mean"] < 1e-3 for m in RunDirectory(cell).read_metrics())
        for of in ("", "old", "greedy"):
            assert [s.name for s in RunDirectory(cell).read_evaluations(of)] == ["base", "step-000001", "trained"]
        pair = RunDirectory(cell).read_evaluations("old")[-1].paired_with
        assert pair and pair.name == "base"
    assert not (first.parent / "old").exists(), "learning rates are tuned on evaluation.path alone"
    assert all(line["sets"]["old"]["samples"] == 2 for line in found["modes"]["opsd"].values())
    trd = found["modes"]["opsd"]["trd"]
    assert 0 <= trd["answers"]["greedy"] <= 1 <= trd["answers"]["unique"] <= 4
    assert [point["step"] for point in found["curves"][-1]["points"]] == [0, 1, 2]
    assert found["equal"]["tokens"]["modes"]["opsd"]["of"] == "forward_kl"
    page = (directory / "report.html").read_text()
    assert "Scores on old (guard)" in page and "At what cost" in page and "could not be made" not in page
    assert all((cell / "report.html").is_file() for cell in cells.values())
    assert (directory / "curves" / "opsd-avg-tokens.svg").is_file()

    # The committed tables alone say the same.
    again = tmp_path / "again"
    assert main(["compare", "tiny", f"directory={again}", "--from-cells", str(directory / "cells")]) == 0
    assert json.loads((again / "from-cells" / "comparison.json").read_text()) == found
