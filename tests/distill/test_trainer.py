"""The worker group under Ray Train, without engines: steps, checkpoints in the background, failures as sentences."""

import contextlib
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util import placement_group_table

from runs import descendants
from serving import make_tiny_model
from trd_ray import config
from trd_ray.config import ONLY
from trd_ray.distill import trainer
from trd_ray.distill.batches import Example
from trd_ray.distill.controller import ranks_up
from trd_ray.distill.mailbox import CONTROLLER
from trd_ray.distill.trainer import LearnerLost, Trainer
from trd_ray.errors import UserError
from trd_ray.record.directory import RunDirectory
from trd_ray.record.metrics import require_metric
from trd_ray.rows import to_table
from trd_ray.train.checkpoints import Checkpoints
from trd_ray.train.living import Circumstances, LivingLearner

pytestmark = pytest.mark.timeout(300)
ROWS = [Example(row, [2, 3], [4, 2, 3], [5, 6, 7 + row]) for row in range(4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tied", tied=True)


class Run:
    """A run reduced to its learner: the same step again and again."""

    def __init__(self, model: str, place: Path, ranks: int, checkpoint: Path | None = None, **keys: Any):
        self.recipe = config.from_tree(
            {
                "steps": 8,
                "student": {"path": model},
                "learner": {"dtype": "float32", "lr": 1e-3, "workers": ranks, "cpus": 0.5},
                "checkpoint": keys,
            }
        )
        self.directory = RunDirectory(place)
        (place / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.trainer = Trainer(
            {
                "recipe": self.recipe,
                "student_path": model,
                "teacher_path": model,
                "tokenizer_path": model,
                "total_steps": 8,
                "resume_from": str(checkpoint) if checkpoint else None,
                "pools": {},
                "sync_backend": "gloo",
                "engine_dtype": "float32",
            },
            cpus=0.5,
            gpus=0,
            storage=place / "ray_train",
        )
        self.checkpoints = Checkpoints(self.recipe, self.directory, self.trainer, saved=0)

    def __enter__(self) -> "Run":
        self.trainer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.trainer.stop()

    def step(self) -> float:
        ranks = self.recipe.learner.workers
        shares = [[ray.put(([[ROWS[rank::ranks]]], [[ONLY]]))] for rank in range(ranks)]
        return self.trainer.call("step", 120, per_rank=shares)["loss"]


@pytest.fixture(scope="module")
def trained(ray_cluster, model, tmp_path_factory) -> tuple[list[float], RunDirectory]:
    """Losses of five steps on two ranks, and the directory of a run that saved after each, in the background."""
    with Run(model, tmp_path_factory.mktemp("run"), ranks=2, keep_last=1, best="loss", best_is="min") as run:
        losses = []
        for steps in range(1, 6):
            losses.append(run.step())
            run.checkpoints.finish(wait=False)
            run.checkpoints.begin(steps, steps, {"loss": {2: 0.1}.get(steps, 1.0)})
        run.checkpoints.begin(5, 5, {})  # it is being written already
        run.checkpoints.finish(wait=True)
    return losses, run.directory


def test_the_newest_and_the_best_of_the_checkpoints_written_between_steps_are_there(trained):
    assert [steps for steps, _ in trained[1].checkpoints()] == [2, 5]
    assert trained[1].resume_point()[0] == 5


def test_a_resumed_group_does_the_same_steps_and_outlives_a_full_disk(trained, model, tmp_path):
    losses, directory = trained
    with Run(model, tmp_path / "again", ranks=1, checkpoint=directory.checkpoints()[0][1]) as again:
        assert [again.step() for _ in range(3)] == pytest.approx(losses[2:], rel=1e-5)
        folder = _folder_on_a_full_disk(tmp_path / "full")
        again.trainer.call("begin_checkpoint", 120, folder=str(folder))
        again.checkpoints.writing = (3, folder)
        with pytest.raises(UserError, match="checkpoint 3 could not be written .*No space left on device.*--resume"):
            again.checkpoints.finish(wait=True)
        again.step()


def _folder_on_a_full_disk(folder: Path) -> Path:
    (folder / "learner").mkdir(parents=True)
    (folder / "learner" / "__0_0.distcp").symlink_to("/dev/full")
    return folder


def test_a_group_that_dies_or_hangs_is_replaced_by_one_that_does_the_same_steps(trained, model, tmp_path):
    """Ray Train's controller is killed, and then a rank is stopped, which Ray itself would notice after ten minutes."""
    losses, _ = trained
    with Run(model, tmp_path / "run", ranks=2) as run:
        (run.directory.path / "rows").mkdir()
        nothing: Any = lambda *_: None  # noqa: E731
        seats = lambda _: (run.trainer.ranks, [])  # noqa: E731
        around = Circumstances(
            max_restarts=1, look=nothing, seats=seats, spec=dict, release=nothing, say=nothing, phase=nothing
        )
        living = LivingLearner(run.trainer, run.directory, 0, around)

        def step(number: int) -> None:
            learned = living.step(ROWS)
            assert learned.metrics["loss"] == pytest.approx(losses[number - 1], rel=1e-5)
            assert {row: n.shape for row, n in learned.tokens.by_key().items()} == {row: (4, 3) for row in range(4)}
            run.directory.write_rows(number, to_table([stored(example) for example in ROWS]))
            living.record(number)

        step(1)
        ranks = rank_processes()
        ray.kill(run.trainer.group.members[CONTROLLER])
        _, alive = psutil.wait_procs(ranks, timeout=60)  # until they have ended with it, they still do a step
        assert len(ranks) == 2 and not alive
        step(2)
        assert living.restarts == 1
        run.trainer.group.silence_s = 5.0
        ranks = rank_processes()
        assert len(ranks) == 2
        ranks[0].suspend()
        step(3)
        assert living.restarts == 2 and not ranks[0].is_running()
    events = (run.directory.path / "events.jsonl").read_text()
    assert "Ray Train's controller on node" in events and "has not been heard of for 5 s (heartbeat_s)" in events
    deadline = time.monotonic() + 120
    while left := [g for g in placement_group_table().values() if g["state"] != "REMOVED"]:  # also the first group's
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def rank_processes() -> list[psutil.Process]:
    return [p for p in descendants(os.getpid()) if "ray::RayTrainWorker" in " ".join(p.cmdline())]


def stored(example: Example) -> dict[str, Any]:
    fixed = {"problem_id": "p", "problem": "?", "answer": "", "reference": "", "epoch": 0, "sample_index": 0, "seed": 0}
    ids = {name: getattr(example, name) for name in ("student_ids", "teacher_ids", "response_ids")}
    return fixed | ids | {"row": example.row, "step": 0, "train": True}


def test_a_rank_that_cannot_start_tells_the_user_why(trained, model, tmp_path):
    damaged = shutil.copytree(trained[1].checkpoints()[0][1], tmp_path / "step-000002")
    for shards in (damaged / "learner").glob("*.distcp"):
        shards.write_bytes(bytes(shards.stat().st_size))
    told = pytest.raises(UserError, match=f"checkpoint {damaged} cannot be read .*delete it")
    with Run(model, tmp_path / "run", ranks=1, checkpoint=damaged) as run, told:
        run.step()


def test_the_learner_s_start_has_a_deadline_of_its_own_and_can_be_given_up(ray_cluster, model, tmp_path):
    class GivenUp(Exception):
        pass

    def give_up() -> None:
        raise GivenUp

    with Run(model, tmp_path / "given-up", ranks=1) as run:
        with pytest.raises(GivenUp):
            run.trainer.wait_until_started(give_up)
        run.trainer.wait_until_started(lambda: None)
        run.step()
    with Run(model, tmp_path / "late", ranks=1) as run:
        run.recipe.learner.start_timeout_s = 1.0
        with pytest.raises(TimeoutError, match=r"waited 1 s \(learner.start_timeout_s\) for the learner to start"):
            run.trainer.wait_until_started(lambda: None)
        assert run.trainer.lost  # so nobody waits for it again


def test_a_rank_that_is_stopped_before_its_first_sign_of_life_is_missed(ray_cluster, model, tmp_path, monkeypatch):
    stopped: list[psutil.Process] = []

    def stop_the_first() -> None:
        while not stopped:
            with contextlib.suppress(psutil.Error):
                stopped.extend(rank_processes()[:1])
        stopped[0].suspend()

    run = Run(model, tmp_path / "run", ranks=2)
    run.recipe.heartbeat_s = run.trainer.group.silence_s = 6.0
    monkeypatch.setattr(trainer, "IMPORTS", 1)  # it may be stopped while it is made
    with run:
        threading.Thread(target=stop_the_first, daemon=True).start()
        missed = r"rank [01] of the learner has not been heard of for 6 s \(heartbeat_s\) while it was asked to start"
        with pytest.raises(LearnerLost, match=missed):
            run.trainer.wait_until_started(lambda: None)
    psutil.wait_procs(stopped, timeout=60)
    assert not stopped[0].is_running()


def test_a_rank_has_a_process_before_it_is_ready_and_none_while_it_waits_for_a_place(ray_cluster):
    class RayTrainWorker:
        def __init__(self) -> None:
            threading.Event().wait()

    class Controller:
        def make(self) -> None:
            kind = ray.remote(RayTrainWorker)
            self.ranks = [kind.options(num_cpus=0).remote(), kind.options(resources={"nowhere": 1}).remote()]

    controller: Any = ray.remote(Controller).options(num_cpus=0).remote()
    ray.get(controller.make.remote())
    deadline = time.monotonic() + 60
    while (up := ranks_up(controller)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.1)
    ray.kill(controller)
    assert up == (1, 0)


def test_a_best_metric_that_nothing_measures_is_refused_with_what_was_meant():
    measured = ["loss", "evaluation/avg", "kl/mean"]
    require_metric("kl/mean", measured)
    with pytest.raises(UserError, match=r"checkpoint.best=evaluation/avg@16 .*did you mean evaluation/avg\?"):
        require_metric("evaluation/avg@16", measured)
    with pytest.raises(UserError, match=r"there are evaluation/avg, kl/mean, loss"):
        require_metric("xyz", measured)
