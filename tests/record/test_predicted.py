"""Predicted beside measured in summary.md, and a run as what another is estimated like."""

import json
from dataclasses import replace

import pytest

from trd_ray import config
from trd_ray.economics import run_cost
from trd_ray.errors import UserError
from trd_ray.known_models import facts_of_recipe
from trd_ray.preflight import placement
from trd_ray.preflight.machines import Machine
from trd_ray.record import predicted
from trd_ray.record.directory import RunDirectory
from trd_ray.record.metrics import Metrics
from trd_ray.record.summary import write_summary
from trd_ray.rows import to_table

QWEN = ["student.path=Qwen/Qwen3-1.7B", "teacher.path=Qwen/Qwen3-8B"]
STEP_S, TRAIN_S = 20.0, 5.0


def made(y: str, tokens: int, start: float, seconds: float, engine: str) -> dict:
    return {"ids": [1] * tokens, "text": "", "finish": "stop", "passed": True, "start_s": start, "seconds": seconds,
            "engine": engine, "extracted": "1", "detail": ""}  # fmt: skip


def rows(step: int) -> list[dict]:
    """Four rows on two samplers and one refiner: sampled in 4 to 7 s, refined in 2."""
    found = []
    for i in range(4):
        begin, seconds = STEP_S * step, 4.0 + i
        found.append(
            {"problem_id": f"p{i}", "problem": "", "answer": "1", "reference": "", "row": 4 * step + i, "step": step,
             "epoch": 0, "sample_index": 0, "seed": 0, "train": True, "dropped_because": "", "trajectory": "y_r",
             "student_prompt_ids": [1] * 10, "refine_prompt_ids": [1] * 50, "student_ids": [1] * 10,
             "teacher_ids": [1] * 50, "response_ids": [1] * 20,
             "y_o": made("y_o", 100 * (i + 1), begin, seconds, f"sampler-{i % 2}"),
             "y_r": made("y_r", 20 + i, begin + seconds, 2.0, "refiner-0")}
        )  # fmt: skip
    return found


@pytest.fixture
def run(tmp_path, monkeypatch):
    recipe = config.load(
        "paper_opd_1p7b", ["rollouts_per_step=4", "steps=5", "stream.max_staleness=0", "name=r", "evaluation.path=null"]
    )
    directory = RunDirectory.create(tmp_path / "r", recipe)
    seconds = {"step": STEP_S, "sample": 7.0, "refine": 5.0, "train": TRAIN_S, "sync": 1.0, "overhead": 3.0}
    with Metrics(directory.path, 5) as metrics:
        for step in range(5):
            directory.write_rows(step + 1, to_table(rows(step)))
            metrics.log(step + 1, {f"seconds/{name}": value for name, value in seconds.items()})
    yield directory
    directory.release()


def with_gpus(run: RunDirectory, *gpus: str) -> None:
    starts = json.loads((run.path / "environment.json").read_text())
    starts[-1]["gpus"] = list(gpus)
    (run.path / "environment.json").write_text(json.dumps(starts))


def test_the_summary_sets_predicted_beside_measured(run):
    with_gpus(run, *["NVIDIA H100 80GB HBM3, 81559 MiB"] * 8)
    text = write_summary(run)
    cost = text.partition("## Cost")[2].partition("\n## ")[0]
    assert "|  | predicted | measured |" in cost and "of H100, with the lengths of this run" in cost
    assert "| GPUs idle |" in cost
    for line in ("| step, s |", "| sample, s |", "| refine, s |", "| train, s |", "| sync, s |", "| learner MFU |"):
        assert line in cost, line
    assert "| 20.00 |" in cost and "| 5.00 |" in cost
    assert "With assumed lengths, as `--dry-run` has them, a step was" in cost


def test_idle_shares_are_what_the_requests_leave_of_the_steps(run):
    lines = predicted.steady(config.stored(run.path / "recipe.yaml"), run.read_metrics())
    assert [line["step"] for line in lines] == [2, 3, 4, 5], "the first was under way before the run went"
    found = predicted.idle_shares([row for row in predicted.timed_rows(run.read_rows()) if row.step > 1], lines)
    assert found["sampler"] == pytest.approx(1 - (6 + 7) / 2 / STEP_S)  # the union of each engine's requests
    assert found["refiner"] == pytest.approx(1 - 5 / STEP_S)  # from 4 to 9
    assert found["learner"] == pytest.approx(1 - TRAIN_S / STEP_S)


def test_steps_without_all_of_a_steps_work_are_not_measured():
    lines = [{"step": n, "seconds/step": 1.0} for n in range(1, 13)]
    for k, steps in ((0, range(2, 13)), (1, range(3, 12)), (4, range(6, 9))):
        recipe = config.load("miniature_opsd", ["steps=12", f"stream.max_staleness={k}"])
        assert [line["step"] for line in predicted.steady(recipe, lines)] == [*steps], "the last k sample nothing"
    short = config.load("miniature_opsd", ["steps=3", "stream.max_staleness=1"])
    assert [line["step"] for line in predicted.steady(short, lines[:3])] == [3], "or there would be none"


def test_mfu_is_the_flops_of_the_rows_that_no_checkpointing_repeats_over_what_the_card_could(run):
    with_gpus(run, *["NVIDIA H100 80GB HBM3, 81559 MiB"] * 8)
    recipe = config.stored(run.path / "recipe.yaml")
    case = predicted.case_of(run, recipe)
    table = predicted.section(run, recipe, run.read_metrics())
    flops = 4 * (2 * 1.41e9 * 2 * 30 + 2 * 6.95e9 * 70 + 21 * 2 * 151_936 * (4096 + 2 * 2048))
    said = [cell.strip() for cell in table.partition("| learner MFU |")[2].partition("\n")[0].split("|")]
    assert said[1] == f"{flops / TRAIN_S / case.gpu[0].flops:.0%}" and case.gpu[0].name == "H100"


def test_without_gpus_the_learner_s_rate_stands_in_place_of_its_share(run):
    recipe = config.stored(run.path / "recipe.yaml")
    table = predicted.section(run, recipe, run.read_metrics())
    assert "GFLOP/s a rank" in table and "MFU" not in table and "CPU cores" in table


def test_one_slow_step_does_not_move_the_rate_away_from_the_seconds_that_stand_above_it(run):
    recipe, metrics = config.stored(run.path / "recipe.yaml"), run.read_metrics()
    late = [line | {"seconds/train": 40 * TRAIN_S} if line["step"] == 3 else line for line in metrics]
    usual, found = (
        predicted.section(run, recipe, lines).partition("GFLOP/s a rank")[2].partition("\n")[0]
        for lines in (metrics, late)
    )
    assert found == usual


def test_a_run_without_times_has_no_such_table(run):
    recipe = config.stored(run.path / "recipe.yaml")
    assert predicted.section(run, recipe, []) == ""
    assert predicted.section(run, recipe, [{"step": 1}, {"step": 2}]) == ""


def test_lengths_are_taken_from_any_run_and_rates_from_one_of_the_same_models(run):
    recipe = config.stored(run.path / "recipe.yaml")
    student, teachers = facts_of_recipe(recipe)
    placed = placement.plan(recipe, student, teachers, [Machine("here", 4.0)])
    same = predicted.Case(recipe, student, teachers, placed)
    found = predicted.measured(run, same)
    assert found.slower and found.error is not None and found.lengths.of_run[0].raw == 100
    other = config.load("paper_opsd_8b")
    student, teachers = facts_of_recipe(other)
    found = predicted.measured(run, replace(same, recipe=other, student=student, teachers=teachers))
    assert found.slower is None and found.sampler is None and found.lengths.of_run[0].raw == 100
    assert "it trained Qwen/Qwen3-1.7B, taught by Qwen/Qwen3-8B, this trains Qwen/Qwen3-8B" in found.differs


def test_rates_of_one_kind_of_gpu_are_not_those_of_another(run):
    with_gpus(run, *["NVIDIA H100 80GB HBM3, 81559 MiB"] * 8)
    of = predicted.case_of(run, config.stored(run.path / "recipe.yaml"))
    assert predicted.measured(run, of).slower
    with_gpus(run, *["NVIDIA A100-SXM4-80GB, 81920 MiB"] * 8)
    found = predicted.measured(run, of)
    assert found.slower is None and found.lengths.of_run[0].raw == 100
    assert found.differs == "it ran on A100-80G, this is for H100"


def test_a_run_without_timed_rows_says_so(tmp_path):
    directory = RunDirectory.create(tmp_path / "r", config.load("paper_opd_1p7b", []))
    with pytest.raises(UserError, match="none of its rows says how long its sampling took"):
        predicted.measured(directory)
    directory.release()


def test_an_answer_without_a_token_is_timed_and_a_refinement_that_was_kept_whole_is_not(tmp_path):
    directory = RunDirectory.create(tmp_path / "r", config.load("paper_opd_1p7b", []))
    empty, whole, tail, plain = rows(0)
    empty["y_o"]["ids"] = []
    whole["refine_kept_tokens"], tail["refine_kept_tokens"] = 21, 15
    directory.write_rows(1, to_table([empty, whole, tail, plain]))
    found = predicted.timed_rows(directory.read_rows())
    directory.release()
    assert [row.sampled.tokens for row in found] == [0, 200, 300, 400]
    asked = [row.refined and (row.refined.prompt, row.refined.tokens) for row in found]
    assert asked == [(50, 20), None, (50 + 15, 22 - 15), (50, 23)]
    recipe = config.load("paper_opd_1p7b", [*QWEN, "refiner.from=relay"])
    case = predicted.case_of(directory, recipe)
    responses = [run_cost.trained(case, row) for row in run_cost.chosen(case, [row.lengths for row in found])]
    assert [one.response for one in responses] == [20, 200, 22, 23], "what is kept of an attempt trains too"


def test_in_turn_a_gpu_is_idle_while_neither_engines_nor_learner_work(run):
    with_gpus(run, *["NVIDIA H100 80GB HBM3, 81559 MiB"] * 2)
    settled = ["rollouts_per_step=4", "steps=5", "evaluation.path=null", "name=r"]
    two = ["sampler.replicas=2", "refiner.replicas=2", "learner.workers=2"]
    recipe = config.load("paper_opd_1p7b_onpolicy", [*settled, *two])
    (run.path / "recipe.yaml").write_text(config.dump(recipe))
    case = predicted.case_of(run, recipe)
    assert case.gpus == 2 and case.gpus_of("sampler") == case.gpus_of("refiner") == case.gpus_of("learner") == 2
    rows = [row for row in predicted.timed_rows(run.read_rows()) if row.step > 1]
    lines = predicted.steady(recipe, run.read_metrics())
    # The first GPU samples for 6 s, and refines from 4 to 9 s; the second samples for 7. Then both train.
    assert predicted.idle_gpus(case, rows, lines) == pytest.approx(1 - ((9 + 7) / 2 + TRAIN_S) / STEP_S)
    turns = [line | {"seconds/rest": 1.25, "seconds/wake": 0.5} for line in run.read_metrics()]
    table = predicted.section(run, recipe, turns)
    assert "| GPUs idle |" in table and "have the same machine in turn" in table
    assert "| rest and wake, s |" in table and "| 1.75 |" in table


def test_a_run_on_a_corpus_has_a_learner_and_no_times_of_who_made_its_rows(run, monkeypatch):
    with_gpus(run, *["NVIDIA H100 80GB HBM3, 81559 MiB"] * 8)
    recipe = config.stored(run.path / "recipe.yaml")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": "corpus"})})
    lines = [
        {k: v for k, v in line.items() if k not in ("seconds/sample", "seconds/refine")} for line in run.read_metrics()
    ]
    table = predicted.section(run, recipe, lines)
    assert "| train, s |" in table and "| learner MFU |" in table and "| learner idle |" in table
    assert "sampler" not in table and "refine" not in table and "| sample, s |" not in table
    ranks = recipe.learner.ranks
    assert f"| {1 - TRAIN_S / STEP_S:.0%} |" in table and f"| {1 - ranks * TRAIN_S / STEP_S / ranks:.0%} |" in table


def test_the_gpus_idle_are_those_of_all_pools(run):
    with_gpus(run, *["NVIDIA H100 80GB HBM3, 81559 MiB"] * 8)
    case = predicted.case_of(run, config.stored(run.path / "recipe.yaml"))
    rows, lines = predicted.timed_rows(run.read_rows()), predicted.steady(case.recipe, run.read_metrics())
    shares = predicted.idle_shares([row for row in rows if row.step > 1], lines)
    gpus = {pool: case.gpus_of(pool) for pool in shares}
    assert sum(gpus.values()) == case.gpus == 8
    found = predicted.idle_gpus(case, [row for row in rows if row.step > 1], lines)
    assert found == pytest.approx(sum(shares[pool] * n for pool, n in gpus.items()) / 8)
