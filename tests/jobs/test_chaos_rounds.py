"""What a campaign draws, finds and says, without a run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trd_ray import lineage

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
import chaos  # noqa: E402
from chaos_rounds import checks, processes, results, witness  # noqa: E402
from chaos_rounds.made_up import number_of  # noqa: E402
from chaos_rounds.struck_run import StruckRun, Told  # noqa: E402
from chaos_rounds.ways import KILL, STOP, Must, Strike, Way, drawn, must, named, ways  # noqa: E402

LEARNER = Way("learner", KILL, "train", "corpus", "cluster")
DRIVER = Way("driver", KILL, "sync", "stream", "cluster")


# The draw


def test_equal_seeds_draw_equal_rounds_and_others_do_not():
    among = ways(stand_ins=True)
    assert drawn(3, 40, among) == drawn(3, 40, among) != drawn(4, 40, among)


def test_a_longer_campaign_goes_on_with_the_rounds_of_a_shorter_one():
    among = ways(stand_ins=True)
    assert drawn(0, 60, among)[:20] == drawn(0, 20, among)


def test_twenty_rounds_meet_every_victim_and_as_many_as_there_are_ways_meet_each_way():
    among = ways(stand_ins=False)
    met = [strike.way.victim for [strike] in drawn(0, 20, among)]
    assert set(met) == {way.victim for way in among} and len(set(met)) == 16
    assert {strike.way for [strike] in drawn(0, len(among), among)} == set(among)


def test_every_way_is_met_at_a_moment_that_its_run_has():
    for way in ways(stand_ins=False):
        assert way.rows == "stream" or way.moment in ("start", "train", "checkpoint")
        assert way.moment != "start" or way.victim not in ("stage", "verifier")
    assert not any(way.victim == "engine core" for way in ways(stand_ins=True))


def test_rounds_share_a_run_only_if_they_need_the_same_and_each_comes_later_than_the_one_before():
    runs = drawn(0, 60, ways(stand_ins=True), together=4)
    assert [strike.number for run in runs for strike in run] == list(range(60))
    assert any(len(run) == 4 for run in runs)
    assert all(len({strike.way.victim for strike in run}) == len(run) for run in runs)
    for run in runs:
        assert len({(strike.way.rows, strike.way.ground) for strike in run}) == 1
        later = [strike.step for strike in run if strike.step]
        assert later == sorted(later)
        assert all(strike.way.moment != "start" for strike in run[1:])  # they come one after another


def test_a_way_can_be_named_alone():
    among = ways(stand_ins=True)
    assert {way.victim for way in named("pool", among)} == {"pool"}
    assert named("learner/KILL/train/corpus", among) == [LEARNER]
    assert {way.signal for way in named("driver/TERM", among)} == {signal.SIGTERM}
    assert named("learner/nosuch", among) == named("nobody", among) == []


@pytest.mark.parametrize(
    ("way", "goes_on", "codes"),
    [
        (LEARNER, True, ()),
        (DRIVER, False, (137,)),
        (Way("driver", signal.SIGTERM, "start", "corpus", "cluster"), False, (143,)),
        (Way("driver", STOP, "train", "stream", "cluster"), True, (137,)),
        (Way("gcs", KILL, "train", "stream", "local"), False, (1,)),
    ],
)
def test_what_must_follow(way, goes_on, codes):
    assert must(way) == Must(goes_on, codes)


# What is found in a directory


def row(number: int, **over) -> dict:
    return {"row": number, "step": number // 2 + 1, "problem_id": f"p{number}", "seed": number} | over


def test_rows_that_are_whole_have_no_flaw():
    assert checks.rows_flaws(map(row, range(6)), steps=3, rows_per_step=2) == []


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([0, 1, 2, 3, 4], "1 rows lost: 5"),
        ([0, 1, 2, 2, 3, 4, 5], "1 rows recorded twice: 2"),
        ([0, 1, 2, 3, 4, 5, 6], "1 rows beyond the last step: 6"),
    ],
)
def test_a_row_that_is_lost_or_recorded_twice_is_named(numbers, said):
    assert checks.rows_flaws(map(row, numbers), steps=3, rows_per_step=2) == [said]


def test_a_row_in_another_step_is_named():
    rows = [row(0), row(1), row(2, step=3), row(3), row(4), row(5)]
    assert checks.rows_flaws(rows, steps=3, rows_per_step=2) == ["1 rows in another step: 2"]


def test_another_problem_or_seed_than_undisturbed_is_named():
    calm = [row(n) for n in range(4)]
    assert checks.order_flaws(calm, calm) == []
    [said] = checks.order_flaws([row(0), row(1, seed=9), row(2), row(3, problem_id="q")], calm)
    assert "2 rows" in said and said.endswith("undisturbed: 1, 3")


def test_steps_must_be_recorded_once_and_in_order():
    assert checks.metric_flaws([{"step": 1}, {"step": 2}], steps=2) == []
    for numbers in ([1], [1, 2, 2], [2, 1]):
        assert checks.metric_flaws([{"step": n} for n in numbers], steps=2)


def test_what_an_unfinished_write_leaves_is_named(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "checkpoints" / ".step-000004.77.tmp").mkdir(parents=True)
    (tmp_path / "rows" / "step-000001.parquet").write_bytes(b"PAR1")
    (tmp_path / "state.json").write_text('{"a"')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    (tmp_path / "whole.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "rewound" / "1").mkdir(parents=True)
    (tmp_path / "rewound" / "1" / "metrics.jsonl").write_text("{")
    found = checks.half_written(tmp_path)
    assert [flaw.split(" ")[0] for flaw in found] == [
        "checkpoints/.step-000004.77.tmp", "metrics.jsonl", "rows/step-000001.parquet", "state.json",
    ]  # fmt: skip


def test_other_weights_are_named_and_equal_ones_are_not(tmp_path):
    for name, content in (("run", b"one"), ("same", b"one"), ("other", b"two")):
        model = tmp_path / name / "checkpoints" / "step-000006" / "model"
        model.mkdir(parents=True)
        (model / "model.safetensors").write_bytes(content)
    run = tmp_path / "run"
    assert checks.weight_flaws(run, tmp_path / "same") == []
    assert "model.safetensors differs" in checks.weight_flaws(run, tmp_path / "other")[0]
    later = tmp_path / "run" / "checkpoints" / "step-000008"
    later.mkdir()
    assert "step-000008, undisturbed it is step-000006" in checks.weight_flaws(run, tmp_path / "same")[0]


def test_a_checkpoint_that_other_rows_made_than_the_ledger_holds_is_named(tmp_path):
    (tmp_path / "rows").mkdir()
    made = lineage.START
    for step, rows in ((1, [0, 1]), (2, [3])):
        table = pa.table({"row": [2 * step - 2, 2 * step - 1], "train": [2 * step - 2 in rows, 2 * step - 1 in rows]})
        pq.write_table(table, tmp_path / "rows" / f"step-{step:06d}.parquet")
        made = lineage.advance(made, step, rows)
        folder = tmp_path / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"rows_sha256": made}))
    assert checks.lineage_flaws(tmp_path) == []
    again = lineage.advance(made, 2, [3])  # its last step twice
    (folder / "state.json").write_text(json.dumps({"rows_sha256": again}))
    [said] = checks.lineage_flaws(tmp_path)
    assert "other rows made step-000002" in said and again[:12] in said


def test_only_what_is_known_may_stay_in_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "LITTER_S", 0.0)
    for name in ("ray", "torchinductor_me", "token"):
        (tmp_path / name).mkdir()
    assert checks.litter(tmp_path, ("token",)) == []
    (tmp_path / "trd_ray-adapters-1").mkdir()
    assert checks.litter(tmp_path, ("token",)) == ["left in the temporary folder: trd_ray-adapters-1"]


def test_the_number_of_an_example_tells_its_row_and_its_ids_and_sums_are_exact():
    numbers = [number_of(r, [r, 2]) for r in range(100)]
    assert len(set(numbers)) == 100 and all(-1 <= n <= 1 for n in numbers)
    assert number_of(1, [2, 3]) != number_of(1, [3, 2])
    assert sum(numbers) == sum(reversed(numbers)) == sum(numbers[::2]) + sum(numbers[1::2])


# Whose process is whose


def test_a_process_is_found_by_its_role_below_its_root_and_only_there():
    command = ["/bin/sh", "-c", "exec -a 'ray::Engine.start' sleep 60 & exec -a ray::Pool sleep 60 & wait"]
    process = subprocess.Popen(["/bin/bash", *command[1:]])
    try:
        deadline = time.monotonic() + 60
        while len(found := [one for one in processes.below([process.pid]) if one.role]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert sorted(one.role for one in found) == ["engine", "pool"]
        [engine] = processes.of_role("engine", found)
        assert engine.parent == process.pid and engine.lives()
        assert processes.below([engine.pid]) == [engine]
        os.kill(engine.pid, signal.SIGKILL)
        while engine.lives():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for one in processes.below([process.pid]):
            os.kill(one.pid, signal.SIGKILL)
        process.wait()


def test_names_of_ray_s_workers_tell_their_roles():
    titles = {
        "ray::Pool": "pool", "ray::Pool.admit": "pool", "ray::Engine.start": "engine", "ray::EngineHost": None,
        "ray::Engine(refiner-0).generate": "engine", "ray::EngineKeeper.note": "keeper", "ray::Porter(run)": "porter",
        "ray::RayTrainWorker": "learner", "ray::Mailbox.result": "mailbox", "ray::TrainController.run": "controller",
        "ray::MapWorker(MapBatches(Flow)).submit": "stage", "ray::verdicts": "verifier", "ray::IDLE": None,
        "VLLM::EngineCore": "engine core", "/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=/s": "raylet",
        "/x/ray/core/src/ray/gcs/gcs_server --log_dir=/l": "gcs", "ray::_StatsActor": None,
    }  # fmt: skip
    assert {title: processes.Seen(1, 1, 0, "S", title).role for title in titles} == titles


def test_the_node_that_is_struck_is_no_head_and_has_most_of_the_run():
    def raylet(pid: int, head: bool) -> processes.Seen:
        return processes.Seen(pid, 1, 0, "S", f"/x/raylet/raylet --a{' --head' if head else ''}")

    def worker(pid: int, parent: int, title: str) -> processes.Seen:
        return processes.Seen(pid, 1, parent, "S", title)

    nodes = [raylet(1, True), raylet(2, False), raylet(3, False)]
    work = [worker(10, 1, "ray::Pool"), worker(11, 1, "ray::Engine"), worker(12, 3, "ray::Engine")]
    assert processes.of_role("node", [*nodes, *work]) == [nodes[2]]
    assert processes.of_role("node", [*nodes, *work[:2], worker(12, 3, "ray::IDLE")]) == []


# The strike


def test_the_witness_strikes_once_at_its_moment_and_not_in_a_later_start(tmp_path, monkeypatch):
    killed = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    strike = {"number": 4, "victim": "driver", "signal": int(KILL), "moment": "sync", "step": 3, "delay_s": 0.0}
    watching = witness.Witness(tmp_path, [], [strike])
    for step, moment in ((2, "sync"), (3, "train"), (3, "sync")):
        watching.step = step
        watching.at(moment)
        if watching.armed:
            watching.armed.join(60)
        assert len(killed) == ((step, moment) == (3, "sync"))
    assert killed == [(os.getpid(), signal.SIGKILL)]
    assert json.loads(witness.struck_file(tmp_path, 4).read_text())["step"] == 3
    again = witness.Witness(tmp_path, [], [strike])
    again.step = 3
    again.at("sync")
    assert again.armed is None and len(killed) == 1
    seen = [json.loads(line)["moment"] for line in (tmp_path / "moments.jsonl").read_text().splitlines()]
    assert seen == ["sync", "train", "sync", "sync"]


def test_a_run_that_a_strike_ends_is_not_struck_again_before_it_goes_on(tmp_path, monkeypatch):
    killed = []
    monkeypatch.setattr(os, "kill", lambda *call: killed.append(call))
    one = {"victim": "driver", "signal": int(signal.SIGTERM), "moment": "train", "step": 0, "delay_s": 0.0}
    strikes = [one | {"number": 0}, one | {"number": 1}]
    for starts in (1, 2):
        watching = witness.Witness(tmp_path, [], strikes)
        for _ in range(3):
            watching.at("train")
            if watching.armed:
                watching.armed.join(60)
            assert len(killed) == starts


def test_a_victim_that_is_not_there_is_told_and_nobody_is_struck(tmp_path, monkeypatch):
    monkeypatch.setattr(witness, "SEARCH_S", 0.0)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("struck"))
    strike = {"number": 0, "victim": "pool", "signal": int(KILL), "moment": "train", "step": 0, "delay_s": 0.0}
    watching = witness.Witness(tmp_path, [], [strike])
    watching.roots = []
    watching.at("train")
    assert watching.armed
    watching.armed.join(60)
    assert "no pool" in json.loads(witness.struck_file(tmp_path, 0).read_text())["missed"]


# The verdict


def told(codes: list[tuple[float, int]], struck: dict[int, float], **over) -> Told:
    facts = {number: {"when": when, "step": 2} for number, when in struck.items()}
    return Told(codes=codes, struck=facts, began=0.0, ended=200.0, **over)


STRIKES = [Strike(0, LEARNER, 2, 0.0), Strike(1, DRIVER, 4, 0.0)]
CALM = results.Calm(Path("calm"), seconds=60.0, starting_s=20.0)


def test_exit_codes_are_those_of_the_strike_before_them():
    good = told([(120.0, 137), (190.0, 0)], {0: 50.0, 1: 100.0})
    first, second = results.judged(STRIKES, good, [], [], CALM, "code")
    assert (first.verdict, first.exits) == ("ok", []) and (second.verdict, second.exits) == ("ok", [137, 0])
    ended = told([(60.0, 1), (120.0, 137), (190.0, 0)], {0: 50.0, 1: 100.0})
    first, second = results.judged(STRIKES, ended, [], [], CALM, "code")
    assert first.flaws == ["exit 1, but must: goes on"] and second.verdict == "ok"
    unmoved = told([(190.0, 0)], {0: 50.0, 1: 100.0})
    assert "exit 0, but must: exit 137" in results.judged(STRIKES, unmoved, [], [], CALM, "code")[1].flaws[0]


def test_a_hang_a_process_left_and_a_flaw_of_the_directory_fail_every_round_of_the_run():
    bad = told([(190.0, -9)], {0: 50.0}, hung=True, left=["ray::Pool"], shared={"/dev/shm/sem.mp-1"})
    found = results.judged(STRIKES[:1], bad, ["1 rows lost: 3"], [], CALM, "code")[0]
    text = "; ".join(found.flaws)
    for words in ("1 rows lost", "it hung", "ray::Pool", "/dev/shm/sem.mp-1"):
        assert words in text
    assert "1 hangs, 1 with processes left, 1 with rows lost" in results.summary([found])


def test_a_strike_whose_moment_never_came_is_missed_and_not_ok():
    found = results.judged(STRIKES[:1], told([(190.0, 0)], {}), [], [], CALM, "code")[0]
    assert (found.verdict, found.missed) == ("missed", "its moment never came")


def test_times_are_counted_from_the_strike_and_a_slow_recovery_is_a_flaw():
    events = [
        {"when": 49.0, "kind": "learner"},
        {"when": 51.0, "kind": "checkpoint"},
        {"when": 53.5, "kind": "learner"},
    ]
    moments = [{"when": 50.1, "moment": "train"}, {"when": 80.0, "moment": "recorded"}]
    run = told([(190.0, 0)], {0: 50.0}, moments=moments)
    found = results.judged(STRIKES[:1], run, [], events, CALM, "code")[0]
    assert (found.noticed_s, found.back_s, found.lost_s, found.verdict) == (3.5, 30.0, 140.0, "ok")
    moments[1]["when"] = 110.0
    found = results.judged(STRIKES[:1], run, [], events, CALM, "code")[0]
    assert found.flaws == ["the recovery took 56 s, longer than 30 s and a start (20 s)"]


def test_what_is_stopped_must_be_noticed_soon_after_the_heartbeat():
    strike = Strike(0, Way("pool", STOP, "start", "stream", "cluster"), 0, 0.0)
    events = [{"when": 80.0, "kind": "engine"}]
    run = told([(190.0, 0)], {0: 50.0})
    assert results.judged([strike], run, [], events, CALM, "code")[0].verdict == "ok"
    events[0]["when"] = 150.0
    found = results.judged([strike], run, [], events, CALM, "code")[0]
    assert found.flaws == ["it was noticed after 100 s, with a heartbeat_s of 20"]


def test_a_round_of_other_code_is_made_again(tmp_path):
    [found] = results.judged(STRIKES[:1], told([(190.0, 0)], {0: 50.0}), [], [], CALM, "code")
    results.save(found, tmp_path)
    assert results.saved(tmp_path, 0, "code") == found
    assert results.saved(tmp_path, 0, "other") is None and results.saved(tmp_path, 1, "code") is None
    assert (
        results.table([found]).splitlines()[2].startswith("| 0 | learner SIGKILL | train, corpus, step 2 | goes on |")
    )


# From outside


def test_a_run_that_does_not_end_is_killed_with_all_that_it_started_and_hangs(tmp_path, monkeypatch):
    script = tmp_path / "lead.py"
    script.write_text("import subprocess, sys\nsubprocess.Popen(['sleep', '600'])\nsubprocess.run(['sleep', '600'])\n")
    monkeypatch.setattr("chaos_rounds.struck_run.LEAD", script)
    run = StruckRun(tmp_path, [], lambda: dict(os.environ), [], stand_ins=False, heartbeat_s=1, patience_s=2)
    found = run.go()
    assert found.hung and found.codes[-1][1] == -signal.SIGKILL
    assert not any(one.lives() for one in run.seen)


def test_the_same_command_is_given_again_until_it_is_done_and_its_left_processes_are_named(tmp_path, monkeypatch):
    script = tmp_path / "lead.py"
    script.write_text(
        f"""
import subprocess, sys, time
from pathlib import Path
folder = Path({str(tmp_path)!r})
if not (folder / "begun").exists():
    (folder / "begun").touch()
    subprocess.Popen(["sleep", "601"])
    (folder / "to be seen").touch()
    while not (folder / "seen").exists():
        time.sleep(0.05)
    sys.exit(3)
"""
    )
    monkeypatch.setattr("chaos_rounds.struck_run.LEAD", script)
    monkeypatch.setattr("chaos_rounds.struck_run.LEAVE_S", 0.5)
    mended, looks = [], []

    def roots() -> list[int]:
        """Asked for at every look: at the third one that is made while the child is there, it has been seen."""
        looks.append((tmp_path / "to be seen").exists())
        if sum(looks) > 2:
            (tmp_path / "seen").touch()
        return []

    run = StruckRun(
        tmp_path, [], lambda: dict(os.environ), [Strike(0, DRIVER, 2, 0.0)], stand_ins=False, heartbeat_s=1,
        patience_s=250, roots=roots, mend=lambda: mended.append(1),
    )  # fmt: skip
    found = run.go()
    assert [code for _, code in found.codes] == [3, 0] and not found.hung and mended == [1]
    assert found.left == ["sleep 601"]


def test_a_dry_run_says_which_rounds_are_drawn_and_leaves_nothing(tmp_path, capsys):
    asked = ["miniature_opsd", "--rounds", "3", "--only", "learner/KILL/train/corpus", "--folder", str(tmp_path / "c")]
    assert chaos.main([*asked, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("round 0: learner SIGKILL in train, from step ")
    assert lines[0].endswith("(corpus, cluster): goes on") and not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ("miniature_opsd --rounds 0", "at least 1"),
        ("miniature_opsd --only nobody", "begins with one of engine"),
        ("miniature_opsd --local --only head", "--only head names no round"),
        ("nosuch_recipe", "nosuch_recipe"),
        ("miniature_opsd nosuch.key=1", "nosuch"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, remedy, capsys):
    assert chaos.main(arguments.split()) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1 and remedy in sentence
