"""The porter does beside the run what its directory allows, for a program that reaches only the cluster."""

import threading
from pathlib import Path

import pytest
import ray

from trd_ray.config import from_tree
from trd_ray.errors import UserError
from trd_ray.record.directory import RunDirectory
from trd_ray.record.events import last_events
from trd_ray.session import porter as porter_module
from trd_ray.session.door import Door
from trd_ray.session.porter import NAMESPACE, porter, porters
from trd_ray.steer.reach import There


def test_a_run_is_seen_asked_and_read_through_its_porter_which_ends_with_it(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_x"}}')
    directory = RunDirectory.create(tmp_path / "mine", from_tree({"name": "mine"}))
    (directory.path / "logs" / "sampler-0.log").write_text("one\ntwo\n")
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            door.look(now=True)

    with Door(directory.path, "train") as door, porter(door):
        [(actor, known)] = [(name, of_it) for name, of_it in porters().items() if of_it[0] == "mine"]
        assert known == ("mine", ray.get_runtime_context().get_job_id(), "raysubmit_x")
        there = There(ray.get_actor(actor, namespace=NAMESPACE), "mine")
        door.on("pause", lambda _: "resting")
        thread = threading.Thread(target=look)
        thread.start()
        try:
            view = there.look()
            assert (view["state"], view["directory"]) == ("running", str(directory.path))
            assert there.ask("pause", {}, "me", timeout_s=120) == "resting"
            with pytest.raises(UserError, match="does not know dance"):
                there.ask("dance", {}, "me", timeout_s=120)
            assert [event["kind"] for event in there.events(9)][:1] == ["start"]
            assert there.logs() == {"sampler-0": 8}
            assert there.log("sampler-0", 1) == ("two\n", 8) and there.log("sampler-0", None, 4) == ("two\n", 8)
            with pytest.raises(UserError, match="has no log 'ray'"):
                there.log("ray", 1)
        finally:
            done.set()
            thread.join()
    directory.release()
    assert "mine" not in {folder for folder, _, _ in porters().values()}
    with pytest.raises(UserError, match="the run mine has ended"):
        there.look()


def test_a_run_goes_on_without_a_porter_if_none_can_be_made(tmp_path, monkeypatch):
    def refuse(directory: Path) -> None:
        raise RuntimeError("the control service\nis busy")

    monkeypatch.setattr(porter_module, "_porter", refuse)
    ran = False
    with Door(tmp_path, "train") as door, porter(door):
        ran = True
    assert ran
    [said] = [event["said"] for event in last_events(tmp_path) if event["kind"] == "warning"]
    assert said == "the run is not found by its name on the cluster (the control service is busy)"
