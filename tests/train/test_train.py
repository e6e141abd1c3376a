"""Whole runs on the miniature world: vLLM, Ray Data, Ray Train and the weight sync together, as a user starts them."""

import contextlib
import json
import os
import signal
import time
from operator import eq
from pathlib import Path
from statistics import fmean

import psutil
import pytest

from runs import (
    NO_EVALUATION,
    ROWS,
    SMALL,
    STEPS,
    Finished,
    descendants,
    finish,
    on_corpus,
    run,
    start,
    wait_for_checkpoint,
    wait_for_engines,
    wait_for_step,
)
from trd_ray import alarms, miniature
from trd_ray.cli import main
from trd_ray.diagnostics.whole import of_run
from trd_ray.record.events import last_events
from trd_ray.record.metrics import metric_names
from trd_ray.session.seen import look_at
from trd_ray.token_values import FIELDS
from trd_ray.verify.code.tests import Tests

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ADAPTERS = ["learner.lora={rank: 8, alpha: 16}", "sync.lora=adapter", "learner.lr=1.0e-2"]
ONE_POOL = ["placement=shared", "sampler.max_model_len=320"]  # a refinement's prompt is longer than a rollout's


@pytest.fixture(scope="module")
def opsd(tmp_path_factory) -> Finished:
    looked_at = ["diagnostics.rows=2", "diagnostics.every_steps=3"]
    return run(tmp_path_factory.mktemp("opsd") / "run", "train", "miniature_opsd", *SMALL, *looked_at)


def test_a_run_trains_evaluates_and_leaves_nothing_running(opsd):
    assert opsd.code == 0, opsd.output[-3000:]
    assert opsd.left == []
    assert len(opsd.metrics) == STEPS and len(opsd.rows) == ROWS
    scores = {
        name: json.loads((opsd.directory / "evaluation" / f"{name}.json").read_text()) for name in ("base", "trained")
    }
    assert scores["trained"]["version"] == STEPS and scores["trained"]["paired_with"]["name"] == "base"
    summary = (opsd.directory / "summary.md").read_text()
    for part in ("## Evaluation", "## Ledger", "## Lengths", "## Time", "overhead", "## Repaired examples"):
        assert part in summary
    page = (opsd.directory / "report.html").read_text()
    assert f"{STEPS} of {STEPS} steps · done" in page and "could not be made" not in page
    difference = scores["trained"]["paired_with"]["differences"]["avg@4"]["value"]
    assert f"held-out problems by {100 * difference:+.1f}" in page
    assert f"the page to open is {opsd.directory}/report.html" in opsd.output and "`report.html`" in summary


def test_every_number_of_a_step_is_one_that_checkpoint_best_may_name(opsd):
    assert {name for metrics in opsd.metrics for name in metrics} - {"step"} <= set(metric_names())


def test_a_sound_run_raises_no_alarm_and_says_what_its_object_store_spilled(opsd):
    assert alarms.read(opsd.directory) == [] and "alarm" not in opsd.output
    assert not any(name.startswith("alarm/") for metrics in opsd.metrics for name in metrics)
    assert [m["store/spilled_gib"] for m in opsd.metrics[1:]].count(0.0) == STEPS - 1
    assert all(m["disk/free_gib"] > 0 for m in opsd.metrics)
    told = [event for event in last_events(opsd.directory) if event["kind"] == "evaluation"]
    assert [event["name"] for event in told] == ["base", "trained"] and told[1]["best"]["name"] == "base"


def test_strictly_on_policy_rows_are_sampled_by_the_version_that_trains_on_them(opsd):
    assert [row["y_o"]["version"] for row in opsd.rows] == [row["step"] - 1 for row in opsd.rows]
    assert {row["y_r"]["version"] for row in opsd.rows} == {0}  # the frozen teacher


def test_every_row_has_its_problem_once_and_both_verdicts(opsd):
    assert [row["row"] for row in opsd.rows] == list(range(ROWS))
    assert len({row["problem_id"] for row in opsd.rows}) == ROWS
    assert all(
        row["train"] and row["y_o"]["passed"] is not None and row["y_r"]["passed"] is not None for row in opsd.rows
    )
    assert all(row["response_ids"] == row["y_r"]["ids"] for row in opsd.rows)


def test_what_the_learner_found_at_each_token_is_beside_the_row_and_makes_the_step_s_metrics(opsd):
    """With diagnostics of two rows in the first step and in the fourth."""
    for m in opsd.metrics:
        rows = [row for row in opsd.rows if row["step"] == m["step"]]
        trained = [row["scored"][0] for row in rows]
        for row, one in zip(rows, trained, strict=True):
            assert (one["trajectory"], one["view"], one["trained"]) == (row["trajectory"], "refine", True)
            assert {len(one[name]) for name in FIELDS} == {len(row["response_ids"])}
        for metric, name in (("kl/mean", "kl"), ("student/nll", "student_nll"), ("teacher/onset_mass", "onset")):
            assert fmean(n for one in trained for n in one[name]) == pytest.approx(m[metric], rel=2e-3, abs=1e-5)
        looked = [row for row in rows if len(row["scored"]) > 1]
        assert len(looked) == (2 if m["step"] in (1, 4) else 0) and ("seconds/diagnostics" in m) == bool(looked)
        for row in looked:
            views = {(one["trajectory"], one["view"]): one for one in row["scored"][1:]}
            assert len(views) == 4 and not any(one["trained"] for one in views.values())
            assert len(views["y_o", "vanilla"]["kl"]) == len(row["y_o"]["ids"])
            if row["row"] % 16 < 4:  # of the first of the step's four updates, so of the same weights
                assert views["y_r", "refine"]["kl"] == pytest.approx(row["scored"][0]["kl"], rel=1e-2, abs=1e-3)


def test_engine_and_learner_agree_on_log_probabilities_after_every_sync(opsd):
    assert len(opsd.metrics) == STEPS
    assert all(m["sync/gap_mean"] < 1e-3 for m in opsd.metrics)


def test_refinement_repairs_and_shortens_from_the_first_step(opsd):
    first = opsd.metrics[0]
    assert first["y_r/passed"] > first["y_o/passed"] + 0.2
    assert fmean(m["y_r/tokens_mean"] for m in opsd.metrics) < fmean(m["y_o/tokens_mean"] for m in opsd.metrics)


def test_what_diagnostics_say_of_the_rows_is_what_the_steps_measured(opsd, corpus):
    found = of_run(opsd.directory)
    for name in ("kept_share", "leaks", "y_o_nll", "y_r_nll", "y_o_repetition"):
        assert found["support"]["per_step"][name] == pytest.approx([m[f"support/{name}"] for m in opsd.metrics])
    trained = found["signal"]["kinds"]["trained"]  # float16 in rows, float32 in metrics
    assert trained["mean"] == pytest.approx([m["kl/mean"] for m in opsd.metrics], rel=2e-3)
    assert trained["tokens"] == [m["trained_tokens"] for m in opsd.metrics]
    refined = of_run(corpus.directory)
    assert "signal" not in refined and refined["support"]["all"]["kept_share"] > 0.3


def test_the_checkpoint_loads_in_transformers_and_differs_from_the_base(opsd):
    import torch
    from transformers import AutoModelForCausalLM

    from trd_ray.miniature import model_path

    trained = AutoModelForCausalLM.from_pretrained(opsd.directory / "checkpoints" / f"step-{STEPS:06d}" / "model")
    base = AutoModelForCausalLM.from_pretrained(model_path("student"))
    ids = torch.tensor([opsd.rows[0]["student_ids"]])
    assert not torch.allclose(trained(ids).logits, base(ids).logits, atol=1e-3)


def test_a_log_says_where_the_run_is_what_evaluations_found_and_training_once(opsd):
    lines = opsd.output.splitlines()
    assert f"run directory: {opsd.directory}" in lines and lines.count("training") == 1
    for name in ("base", "trained"):
        score = json.loads((opsd.directory / "evaluation" / f"{name}.json").read_text())["scores"]["avg@4"]["value"]
        assert f"{name}: {score:.1%} of 40 samples passed" in lines
    assert look_at(opsd.directory)["status"]["left_s"] is not None


def test_a_row_of_the_run_is_shown_with_the_numbers_of_its_tokens(opsd, capsys):
    mean = {row["row"]: fmean(map(float, row["scored"][0]["kl"])) for row in opsd.rows}
    worst = max(mean, key=lambda row: mean[row])
    assert main(["show", str(opsd.directory), "--worst", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert mean[told["row"]] == pytest.approx(mean[worst], rel=1e-3)
    assert len(told["scored"][0]["kl"]) == len(told["y_r"]["ids"]) == told["y_r"]["pieces"][-1][1]
    assert main(["show", str(opsd.directory), "--row", str(told["row"])]) == 0
    assert "view, which it trained under: KL " in capsys.readouterr().out


def test_a_stopped_run_leaves_a_checkpoint_and_resumes_where_it_was(opsd, tmp_path):
    """The same recipe as `opsd`, so the first step also shows that equal seeds give equal runs."""
    directory = tmp_path / "run"
    process = start(directory, "train", "miniature_opsd", *SMALL, *NO_EVALUATION)
    wait_for_step(process, directory, 1)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to the whole foreground group
    stopped = finish(process, directory)
    assert stopped.code == 130, stopped.output[-3000:]
    assert stopped.left == []
    done = len(stopped.metrics)
    assert 1 <= done < STEPS and (directory / "checkpoints" / f"step-{done:06d}" / "state.json").is_file()

    again = run(directory, "train", "miniature_opsd", *SMALL, *NO_EVALUATION, "--resume")
    assert again.code == 0, again.output[-3000:]
    assert [row["row"] for row in again.rows] == list(range(ROWS))
    assert [m["step"] for m in again.metrics] == list(range(1, STEPS + 1))
    assert [row["y_o"]["version"] for row in again.rows] == [row["step"] - 1 for row in again.rows]
    assert [m["lr"] for m in again.metrics] == pytest.approx([m["lr"] for m in opsd.metrics])

    fixed = ["problem_id", "seed", "student_prompt_ids"]
    for one, other in zip(opsd.rows, again.rows, strict=True):
        assert [one[c] for c in fixed] == [other[c] for c in fixed]
    pairs = [(a, b) for a, b in zip(opsd.rows[:16], again.rows[:16], strict=True)]
    same = fmean(x == y for a, b in pairs for x, y in zip(a["y_o"]["ids"], b["y_o"]["ids"], strict=False))
    assert same >= 0.99
    assert again.metrics[0]["loss"] == pytest.approx(opsd.metrics[0]["loss"], abs=1e-3)


def test_staleness_1_overlaps_sampling_with_training_and_keeps_its_bound(tmp_path):
    """With the newest student as its own refiner, on the sampler's engines."""
    live = ["teacher.follow=live", "placement=shared", "sampler.max_model_len=320"]
    done = run(tmp_path / "run", "train", "miniature_opsd", *SMALL, *NO_EVALUATION, *live, "stream.max_staleness=1")
    assert done.code == 0, done.output[-3000:]
    for row in done.rows:
        assert row["step"] - 2 <= row["y_o"]["version"] <= row["step"] - 1
    assert any(row["y_o"]["version"] == row["step"] - 2 for row in done.rows)
    # The next step's rows were being sampled before this step's weights were in the engines.
    recorded = {m["step"]: m["time_s"] for m in done.metrics}
    assert any(row["y_o"]["start_s"] < recorded[row["step"] - 1] for row in done.rows if row["step"] > 1)
    assert all(m["sync/gap_mean"] < 1e-3 for m in done.metrics if "sync/gap_mean" in m)
    assert any("sync/gap_mean" in m for m in done.metrics)


@pytest.mark.long  # tests/engine/test_adapters.py shows the same of a pool, without a run
def test_one_pool_samples_with_the_adapter_and_refines_without_it_as_pools_of_their_own_do(opsd, tmp_path):
    """In the first step all engines hold the initial weights, whatever trains."""
    shared = run(tmp_path / "run", "train", "miniature_opsd", *SMALL, *NO_EVALUATION, *ADAPTERS, *ONE_POOL)
    assert shared.code == 0, shared.output[-3000:]
    engines = [{log.stem for log in (done.directory / "logs").glob("*-?.log")} for done in (opsd, shared)]
    assert engines == [{"sampler-0", "refiner-0"}, {"sampler-0"}]
    answers_as(shared, opsd)
    rows = shared.rows
    assert [row["y_o"]["version"] for row in rows] == [row["step"] - 1 for row in rows]
    assert {row["y_r"]["version"] for row in rows} == {0}  # the base model
    assert {row[y]["engine"] for row in rows for y in ("y_o", "y_r")} == {"sampler-0"}
    assert all(m["sync/gap_mean"] < 1e-5 for m in shared.metrics)  # also of versions that are not the base


def answers_as(shared: Finished, separate: Finished) -> None:
    """In the first step y_o and y_r are the same, but for rounding in batches of another size."""
    first = [(a, b) for a, b in zip(shared.rows, separate.rows, strict=False) if a["step"] == 1]
    assert first
    for y in ("y_o", "y_r"):
        pairs = [(a[y], b[y]) for a, b in first]
        tokens = [same for a, b in pairs for same in map(eq, a["ids"], b["ids"])]
        assert fmean(tokens) >= 0.99
        gaps = [
            abs(p - q) for a, b in pairs if a["ids"] == b["ids"]
            for p, q in zip(a["logprobs"], b["logprobs"], strict=True)
        ]  # fmt: skip
        assert len(gaps) > len(tokens) / 2 and fmean(gaps) < 1e-5


@pytest.mark.long
def test_one_pool_and_two_with_adapters_answer_alike(tmp_path, capsys):
    two = run(tmp_path / "two", "train", "miniature_opsd", *SMALL, *NO_EVALUATION, *ADAPTERS)
    one = run(tmp_path / "one", "train", "miniature_opsd", *SMALL, *NO_EVALUATION, *ADAPTERS, *ONE_POOL)
    assert one.code == two.code == 0, one.output[-3000:] + two.output[-3000:]
    answers_as(one, two)
    assert one.metrics[0]["loss"] == pytest.approx(two.metrics[0]["loss"], abs=1e-4)
    assert {row["y_r"]["engine"] for row in two.rows} == {"refiner-0"}
    with capsys.disabled():
        seconds = [f"{fmean(m['seconds/step'] for m in run.metrics[1:]):.2f}" for run in (two, one)]
        print(f"\nseconds a step: two pools {seconds[0]}, one pool {seconds[1]}")


@pytest.mark.long  # tests/train/test_gpu_turns.py and tests/engine/test_phases.py show the order without engines
@pytest.mark.parametrize("adapters", [[], [*ADAPTERS, "sampler.max_model_len=320"]], ids=["whole weights", "adapters"])
def test_engines_and_learner_that_take_turns_give_what_they_give_apart(tmp_path, adapters, capsys):
    """On a CPU there is no memory to free, but the order is that of GPUs."""
    keys = [*SMALL, *adapters, "stream.max_staleness=0"]
    turns = run(tmp_path / "turns", "train", "miniature_opsd", *keys, "placement=timeshare")
    apart = run(tmp_path / "apart", "train", "miniature_opsd", *keys)
    assert turns.code == apart.code == 0, turns.output[-3000:] + apart.output[-3000:]
    assert turns.left == [] and len(turns.rows) == ROWS
    answers_as(turns, apart)
    assert turns.metrics[0]["loss"] == pytest.approx(apart.metrics[0]["loss"], abs=1e-3)
    assert [row["y_o"]["version"] for row in turns.rows] == [row["step"] - 1 for row in turns.rows]
    assert all(m["sync/gap_mean"] < 1e-3 and m["seconds/rest"] >= 0 and m["seconds/wake"] >= 0 for m in turns.metrics)
    assert not any("seconds/rest" in m for m in apart.metrics)
    worked = {m["step"]: (m["time_s"] - m["seconds/wake"] - m["seconds/train"], m["time_s"]) for m in turns.metrics}
    for row in turns.rows:
        begin, end = worked[row["step"]]
        assert not begin + 0.5 < row["y_o"]["start_s"] < end, "a rollout began in the learner's turn"
    with capsys.disabled():
        seconds = [f"{fmean(m['seconds/step'] for m in done.metrics[1:]):.2f}" for done in (apart, turns)]
        print(f"\nseconds a step: apart {seconds[0]}, in turns {seconds[1]}")


@pytest.mark.long
def test_a_run_in_turns_outlives_an_engine_and_its_learner_and_stops_and_resumes(tmp_path):
    keys = [*SMALL, *NO_EVALUATION, "placement=timeshare", "stream.max_staleness=0", "checkpoint.every_steps=1"]
    process = start(tmp_path / "run", "train", "miniature_opsd", *keys)
    wait_for_step(process, tmp_path / "run", 1)
    wait_for_engines(process, 2)[0].kill()
    ranks = [p for p in descendants(process.pid) if "ray::RayTrainWorker" in " ".join(p.cmdline())]
    assert ranks
    ranks[0].kill()
    wait_for_step(process, tmp_path / "run", 3)
    process.send_signal(signal.SIGTERM)
    stopped = finish(process, tmp_path / "run")
    assert stopped.left == [] and stopped.code == 128 + signal.SIGTERM
    done = run(tmp_path / "run", "train", "miniature_opsd", *keys, "--resume")
    assert done.code == 0, done.output[-3000:]
    assert [row["row"] for row in done.rows] == list(range(ROWS)) and done.left == []
    assert all(m["sync/gap_mean"] < 1e-3 for m in done.metrics if "sync/gap_mean" in m)


def test_a_killed_run_on_a_corpus_resumes_on_more_ranks_with_the_loss_curve_of_an_uninterrupted_one(corpus, tmp_path):
    arguments = [*SMALL, *on_corpus(corpus), "checkpoint.every_steps=2"]
    places = [tmp_path / "run0", tmp_path / "run1"]
    whole, killed = (start(place, "train", "miniature_opd", *arguments) for place in places)
    wait_for_checkpoint(killed, places[1])
    of_killed = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait()
    for process in of_killed:  # a driver that is killed leaves Ray's own agents behind
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    uninterrupted = finish(whole, places[0])
    assert uninterrupted.code == 0, uninterrupted.output[-3000:]
    resumed = run(places[1], "train", "miniature_opd", *arguments, "--resume", "learner.workers=2", "learner.cpus=0.25")
    assert resumed.code == 0, resumed.output[-3000:]
    curves = [[m["loss"] for m in r.metrics] for r in (uninterrupted, resumed)]
    assert len(curves[0]) == STEPS and curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert not any(row["scored"] for row in corpus.rows)
    for one, two in zip(uninterrupted.rows, resumed.rows, strict=True):  # one rank, and from the middle on two
        assert two["scored"][0]["kl"] == pytest.approx(one["scored"][0]["kl"], rel=1e-2, abs=1e-3)
    assert curves[1][:2] == curves[0][:2], "the resumed run has trained the steps before the checkpoint again"
    for r in (uninterrupted, resumed):
        assert [row["row"] for row in r.rows] == list(range(ROWS))
        assert [row["y_r"]["ids"] for row in r.rows] == [row["y_r"]["ids"] for row in corpus.rows]


def test_one_command_starts_goes_on_and_is_done_in_the_default_directory_and_stops_though_rows_are_always_ready(
    corpus, tmp_path
):
    """What a terminal, a retry loop, a spot notice and a machine that is lost do. A corpus always has the next rows."""
    command = ["miniature_opsd", "name=live", *on_corpus(corpus)]
    command += ["rollouts_per_step=2", "steps=40", "checkpoint.every_steps=30", "--resume", "auto"]
    command += [f"checkpoint.mirror={tmp_path / 'elsewhere'}"]
    directory = tmp_path / "runs" / "live"
    for number in (signal.SIGHUP, signal.SIGINT):
        process = start(None, "train", *command, cwd=tmp_path)
        wait_for_step(process, directory, 2 if number == signal.SIGHUP else 12, output=tmp_path / "run.out")
        before = len((directory / "metrics.jsonl").read_text().splitlines())
        os.killpg(process.pid, number)
        stopped = finish(process, directory, output=tmp_path / "run.out")
        assert stopped.code == 128 + number, stopped.output[-3000:]
        done = len(stopped.metrics)
        assert before <= done < 40 and stopped.left == []
        told = f"stopped by {number.name}; checkpoint {done} is kept in {directory / 'checkpoints'}: `trd train"
        assert told in stopped.output.splitlines()[-1] and stopped.output.rstrip().endswith("goes on from there")
        assert (directory / "checkpoints" / f"step-{done:06d}" / "state.json").is_file()
    directory.rename(tmp_path / "lost")
    for words in ("step 40/40", "has done its 40 steps: nothing is left to do"):
        process = start(None, "train", *command, cwd=tmp_path)
        ended = finish(process, directory, output=tmp_path / "run.out")
        assert ended.code == 0 and words in ended.output, ended.output[-3000:]
    assert f"mirror: going on from step {done} of {tmp_path / 'elsewhere' / 'live'}" in ended.output
    assert [m["step"] for m in ended.metrics] == list(range(1, 41))
    assert sorted(row["row"] for row in ended.rows) == list(range(80))
    assert not (directory / "rewound").exists()
    mirrored = sorted((tmp_path / "elsewhere" / "live" / "rows").iterdir())
    assert [p.name for p in mirrored] == [p.name for p in sorted((directory / "rows").iterdir())]
    assert not (tmp_path / "elsewhere" / "live" / "alive.json").exists()


def test_a_run_is_seen_and_steered_through_its_directory_from_its_first_second_on(corpus, tmp_path, capsys):
    directory = tmp_path / "run"
    command = ["miniature_opsd", *on_corpus(corpus)]
    process = start(directory, "train", *command, "rollouts_per_step=2", "steps=40", "checkpoint.every_steps=30")

    def trd(verb: str, *more: str) -> str:
        assert main([verb, str(directory), *more]) == 0, Path(f"{directory}.out").read_text()[-3000:]
        return capsys.readouterr().out

    def until(phase: str) -> dict:
        deadline = time.monotonic() + 200
        while phase not in (view := look_at(directory))["status"].get("shown", {}).get("phase", ""):
            assert process.poll() is None and time.monotonic() < deadline, view
            time.sleep(0.2)
        return view

    try:
        until("starting")
        trd("pause", "--timeout", "200")  # while learner and stream still start
        until("paused after step 0")
        trd("unpause", "--timeout", "200")
        wait_for_step(process, directory, 1)
        trd("pause", "--timeout", "200")
        view = until("paused after step ")
        done = view["status"]["shown"]["steps"][0]
        assert view["state"] == "paused" and 1 <= done < 40
        assert trd("checkpoint", "--timeout", "200").splitlines() == [
            f"checkpoint {done} is written now",
            f"checkpoint {done} is written",
        ]
        assert f"step {done} of 40" in (screen := trd("status")) and f"paused after step {done}" in screen, screen
        assert "checkpoint" in trd("stop", "--timeout", "200")
    finally:
        stopped = finish(process, directory)
    assert stopped.code == 128 + signal.SIGTERM and stopped.left == [], stopped.output[-3000:]
    assert f"stopped by trd stop; checkpoint {done} is kept" in stopped.output.splitlines()[-1]
    assert look_at(directory)["state"] == "stopped"
    kinds = [event["kind"] for event in last_events(directory)]
    assert [kinds.count(kind) for kind in ("start", "asked", "pause", "checkpoint", "end")] == [1, 5, 3, 1, 1]


def test_a_learner_that_is_killed_and_may_not_restart_is_one_sentence_with_the_command_that_goes_on(corpus, tmp_path):
    command = ["miniature_opsd", *on_corpus(corpus)]
    command += ["rollouts_per_step=2", "steps=40", "checkpoint.every_steps=2", "learner.max_restarts=0"]
    process = start(tmp_path / "run", "train", *command)
    wait_for_checkpoint(process, tmp_path / "run")
    [learner] = [p for p in descendants(process.pid) if "RayTrainWorker" in " ".join(p.cmdline())]
    learner.kill()
    ended = finish(process, tmp_path / "run")
    assert ended.code == 1 and ended.left == []
    assert "Traceback" not in ended.output and "(raylet)" not in ended.output
    last = ended.output.splitlines()[-1]
    for words in (
        "trd: the learner ended while",
        "a learner rank on node",
        "killed or it crashed",
        "--resume` goes on",
    ):
        assert words in last
    [trace] = (tmp_path / "run" / "logs").glob("failure-*.txt")
    assert str(trace) in last and "Traceback" in trace.read_text()


def test_a_checkpoint_can_be_evaluated_by_itself(opsd, tmp_path):
    model = opsd.directory / "checkpoints" / f"step-{STEPS:06d}" / "model"
    done = run(tmp_path / "run", "evaluate", "miniature_opsd", *SMALL, f"student.path={model}")
    assert done.code == 0, done.output[-3000:]
    score = json.loads((done.directory / "evaluation" / "miniature-test.json").read_text())
    inside = json.loads((opsd.directory / "evaluation" / "trained.json").read_text())
    assert score["problems"] == 10 and score["samples"] == 4
    agree = fmean(
        a == b
        for p in score["per_problem"]
        for a, b in zip(score["per_problem"][p], inside["per_problem"][p], strict=True)
    )
    assert agree > 0.9  # the same weights and seeds


def test_the_loop_runs_on_code_in_taco_s_schema_and_sets_aside_what_has_no_working_reference(tmp_path):
    published = [taco_row(problem) for problem in miniature.problems("code_train")[:40]]
    published[7]["solutions"] = json.dumps(["print('wrong')"])
    file = tmp_path / "taco.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in published))
    own = ["data.format=taco", f"data.path={file}", "evaluation.samples=2", "evaluation.limit=10"]
    done = run(tmp_path / "run", "train", "miniature_code_opsd", *SMALL, *own)
    assert done.code == 0, done.output[-3000:]
    assert done.left == []
    [aside] = (done.directory / "set_aside.jsonl").read_text().splitlines()
    assert "no solution passes" in aside and "39 problems, 1 set aside" in done.output
    assert len(done.rows) == ROWS and "tests" not in done.rows[0]
    assert len({row["problem"] for row in done.rows}) == 39
    failed = [row for row in done.rows if not row["y_o"]["passed"]]
    assert failed and all(row["y_o"]["detail"] and row["y_o"]["feedback"] for row in failed)
    assert done.metrics[0]["y_r/passed"] > done.metrics[0]["y_o/passed"] + 0.2
    score = json.loads((done.directory / "evaluation" / "trained.json").read_text())
    assert score["problems"] == 10 and score["answered"]["value"] > 0.9


def taco_row(problem: dict) -> dict:
    tests = Tests.unpack(problem["tests"])
    return {
        "question": problem["problem"],
        "solutions": json.dumps([problem["reference"].removeprefix("```python\n").removesuffix("\n```")]),
        "starter_code": "",
        "input_output": json.dumps({"inputs": tests.inputs, "outputs": tests.outputs}),
        "difficulty": "EASY",
        "name": problem["problem_id"],
    }


@pytest.mark.long
def test_a_real_checkpoint_trains_adapters_which_engines_and_export_get_as_they_are(tmp_path):
    """SmolLM2-135M-Instruct: tied embeddings, byte-level BPE, another architecture than the miniature's."""
    short = ["sampler.max_response_tokens=16", "refiner.max_response_tokens=16", "rollouts_per_step=2"]
    adapters = ["learner.lora={rank: 8, alpha: 16}", "sync.lora=adapter", "checkpoint.export=adapter"]
    done = run(tmp_path / "run", "train", "smollm2_smoke", *NO_EVALUATION, *short, *adapters, timeout_s=580)
    assert done.code == 0, done.output[-3000:]
    assert [m["version"] for m in done.metrics] == [1, 2]
    assert all(m["sync/gap_mean"] < 1e-3 for m in done.metrics)
    export = done.directory / "checkpoints" / "step-000002" / "model"
    assert (export / "adapter_model.safetensors").stat().st_size > 10_000 and not (
        export / "model.safetensors"
    ).exists()


@pytest.mark.long
def test_opd_with_two_engines_and_two_ranks_survives_the_death_of_an_engine(tmp_path):
    directory = tmp_path / "run"
    wide = ["sampler.replicas=2", "sampler.cpus=0.25", "learner.workers=2", "learner.cpus=0.25", "steps=10"]
    process = start(directory, "train", "miniature_opd", *SMALL, *NO_EVALUATION, *wide)
    engine, *_ = wait_for_engines(process, 3, timeout_s=200)  # before the steps, which may be over within seconds
    wait_for_step(process, directory, 1)
    engine.kill()
    done = finish(process, directory)
    assert done.code == 0, done.output[-3000:]
    assert done.left == []
    assert [row["row"] for row in done.rows] == list(range(160))
    assert [row["y_o"]["version"] for row in done.rows] == [row["step"] - 1 for row in done.rows]
    assert all(m["sync/gap_mean"] < 1e-3 for m in done.metrics)
    assert done.metrics[0]["y_r/passed"] > done.metrics[0]["y_o/passed"]
