"""A checkpoint of a run that goes on: evaluated in that run's Ray on one engine, and not deleted meanwhile."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trd_ray.config import from_tree
from trd_ray.evaluate.beside import beside, hold, is_whole
from trd_ray.evaluate.target import target
from trd_ray.record.claim import is_read
from trd_ray.record.directory import RunDirectory
from trd_ray.session import room_beside as room
from trd_ray.session.door import Door

ADDRESS = "10.0.0.1:6379"


@pytest.fixture
def run(tmp_path, monkeypatch) -> Iterator[RunDirectory]:
    """A run with a checkpoint and three engines, held by this process."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    recipe = from_tree({"name": "mine", "sampler": {"replicas": 3}, "student": {"path": "x"}})
    directory = RunDirectory.create(tmp_path / "mine", recipe)
    checkpoint = directory.commit_checkpoint(directory.begin_checkpoint(4, {"metrics": {}}))
    (checkpoint / "model").mkdir()
    yield directory
    directory.release()


def asked(run: RunDirectory, *overrides: str) -> tuple[str, Any]:
    return beside(target(str(run.path), list(overrides)).recipe, list(overrides))


def in_ray(run: RunDirectory, local: bool = True, **facts: Any) -> Door:
    door = Door(run.path, "train")
    door.is_in_ray(ADDRESS, local)
    door._facts |= facts
    return door


def test_a_run_that_lives_lends_its_ray_and_one_engine_has_room_there(run):
    with in_ray(run) as door:
        door.look(now=True)
        name, recipe = asked(run)
        assert (name, recipe.cluster.address, recipe.sampler.replicas) == ("mine", ADDRESS, 1)
        _, wished = asked(run, "sampler.replicas=2", "cluster.address=10.0.0.9:6379")
        assert (wished.cluster.address, wished.sampler.replicas) == ("10.0.0.9:6379", 2)
    run.release()
    name, recipe = asked(run)
    assert (name, recipe.cluster.address, recipe.sampler.replicas) == ("", None, 3)


def test_a_local_ray_of_another_machine_is_no_place_to_go(run):
    with in_ray(run, host="elsewhere"):
        assert asked(run)[0] == ""
    with in_ray(run, local=False, host="elsewhere"):
        assert asked(run)[0] == "mine"
    assert socket.gethostname() != "elsewhere"


def test_what_is_no_run_is_evaluated_as_ever(tmp_path, run):
    shutil.copytree(run.checkpoints()[0][1] / "model", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    assert beside(target(str(tmp_path / "model"), []).recipe, [])[0] == ""


def test_a_checkpoint_stays_while_it_is_evaluated_and_one_that_has_gone_is_noticed(run):
    model = run.checkpoints()[0][1] / "model"
    with ExitStack() as stack:
        assert hold(str(model), stack)
        run.commit_checkpoint(run.begin_checkpoint(5, {"metrics": {}}))
        run.keep_checkpoints(last=1)
        assert [steps for steps, _ in run.checkpoints()] == [4, 5]
    run.keep_checkpoints(last=1)
    assert [steps for steps, _ in run.checkpoints()] == [5]
    with ExitStack() as stack:
        assert not hold(str(model), stack)
        assert hold("Qwen/Qwen3-8B", stack)


def test_the_newest_checkpoint_that_is_still_there_is_taken_and_held(run, monkeypatch):
    """The run deletes the one that was found first, in the moment before it is held."""
    from trd_ray.evaluate import command

    def found(argument: str, overrides: list[str]) -> Any:
        asked = target(argument, overrides)
        if len(run.checkpoints()) == 1 and run.checkpoints()[0][0] == 4:
            newer = run.commit_checkpoint(run.begin_checkpoint(5, {"metrics": {}}))
            (newer / "model").mkdir()
            run.keep_checkpoints(last=1)
        return asked

    monkeypatch.setattr(command, "target", found)
    with ExitStack() as stack:
        assert command._held(str(run.path), [], stack) == str(run.checkpoints()[0][1])
        assert run.checkpoints()[0][0] == 5 and is_read(run.checkpoints()[0][1])
        assert command._held("miniature:student", [], stack) == "miniature:student"


class Group:
    """A placement group that is ready at the third look."""

    def __init__(self) -> None:
        self.looks = 0

    def wait(self, seconds: float) -> bool:
        self.looks += 1
        return self.looks > 2


@pytest.mark.parametrize("ends", [False, True])
def test_who_waits_for_room_says_so_once_and_gives_back_what_it_queued_for(monkeypatch, ends):
    made: list[Any] = []
    removed: list[Any] = []
    said: list[str] = []

    def placement_group(bundles: list, strategy: str) -> Group:
        made.append(bundles)
        return Group()

    def look() -> None:
        if ends:
            raise RuntimeError("stopped")

    monkeypatch.setattr(room, "placement_group", placement_group)
    monkeypatch.setattr(room, "remove_placement_group", removed.append)
    monkeypatch.setattr(room, "SETTLE_S", 0.0)
    spec = SimpleNamespace(cpus=0.5, gpus=1.0, replicas=2)
    plan: Any = SimpleNamespace(specs={"sampler": spec})
    if ends:
        with pytest.raises(RuntimeError, match="stopped"):
            room.wait_for_room(plan, "sampler", "mine", verifier_cpus=0.25, while_waiting=look, say=said.append)
    else:
        room.wait_for_room(plan, "sampler", "mine", verifier_cpus=0.25, while_waiting=look, say=said.append)
    assert made == [[{"CPU": 0.5, "GPU": 1.0}] * 2 + [{"CPU": 0.25}] * 2] and len(removed) == 1
    assert (
        len(said) == 1
        and "waits for room for an engine (0.5 CPUs, 1 GPUs) and for verifiers beside run mine" in said[0]
    )


def test_room_that_the_run_has_just_lost_is_given_back_to_it(monkeypatch):
    """An engine of the run dies while an evaluation waits: Ray gives the evaluation what the engine had."""
    made: list[Group] = []
    removed: list[Any] = []
    lacks = [False] * 6 + [True] * 3 + [False] * 99

    def placement_group(bundles: list, strategy: str) -> Group:
        made.append(Group())
        return made[-1]

    monkeypatch.setattr(room, "placement_group", placement_group)
    monkeypatch.setattr(room, "remove_placement_group", removed.append)
    ticks = count()
    monkeypatch.setattr(room, "time", SimpleNamespace(sleep=lambda _: None, monotonic=lambda: float(next(ticks))))
    monkeypatch.setattr(room, "SETTLE_S", 5.0)
    plan: Any = SimpleNamespace(specs={"sampler": SimpleNamespace(cpus=1.0, gpus=0.0, replicas=1)})
    room.wait_for_room(
        plan, "sampler", "mine", verifier_cpus=1, while_waiting=lambda: None, say=lambda said: None,
        is_whole=lambda: not lacks.pop(0),
    )  # fmt: skip
    assert len(made) == 2 and removed == made


@pytest.mark.parametrize(
    ("facts", "whole"),
    [
        ({"pools": {"sampler": {"engines": 2, "up": 2}}, "learner": {"restarting": False}}, True),
        ({"pools": {"sampler": {"engines": 2, "up": 1}}}, False),
        ({"pools": {"sampler": {"engines": 2, "up": 2}}, "learner": {"restarting": True}}, False),
        ({"shown": {"starting": {"learner": [0, 1]}}}, False),
        ({"pools": {"sampler": {"failure": "ActorDiedError: "}}}, True),
        ({"pools": {"error": "ActorDiedError: its engines have gone"}}, True),
    ],
)
def test_a_run_that_lacks_an_engine_or_ranks_says_so_in_its_status(run, facts, whole):
    with in_ray(run) as door:
        for name, fact in facts.items():
            door.shows(name, lambda fact=fact: fact)
        door.look(now=True)
        assert is_whole(run.path) is whole
    run.release()
    assert is_whole(run.path)


def test_room_for_nothing_is_not_waited_for():
    plan: Any = SimpleNamespace(specs={"sampler": SimpleNamespace(cpus=0, gpus=0, replicas=2)})
    room.wait_for_room(plan, "sampler", "mine", verifier_cpus=1, while_waiting=lambda: None, say=lambda said: None)


def test_the_model_of_a_run_that_was_moved_is_a_plain_folder(tmp_path, run):
    moved = tmp_path / "moved"
    shutil.copytree(run.checkpoints()[0][1], moved)
    with ExitStack() as stack:
        assert hold(str(moved / "model"), stack) and Path(moved).exists()
