"""Every program begins and ends in one order: what is left out is named, and what is claimed is given back."""

import json
import shutil
import time
from pathlib import Path

import pytest
import ray

from trd_ray.config import load
from trd_ray.errors import RunFailed, UserError
from trd_ray.preflight.machines import Machine
from trd_ray.problems.set_aside import SetAside
from trd_ray.record.directory import RunDirectory
from trd_ray.record.elsewhere import Elsewhere
from trd_ray.session.beginning import begin
from trd_ray.session.cluster import Connection
from trd_ray.session.inputs import prepare

PROGRAMS = ["train", "refine", "evaluate", "compare"]
ODD = SetAside("p7", "How many?", "too long: its prompt of 9000 tokens")


@pytest.fixture
def recipe(tmp_path):
    return load("miniature_opsd", [f"run_dir={tmp_path / 'run'}", "cluster.memory_gib=64", "evaluation.path=null"])


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_was_set_aside_is_named_whatever_the_program(program, recipe, capsys):
    inputs = prepare(recipe)
    inputs.set_aside, inputs.notes = [ODD], ["data: 8 problems"]
    with begin(program, recipe.directory, recipe) as beginning:
        beginning.claimed(RunDirectory.create(recipe.directory, recipe), inputs, inputs)
    file = recipe.directory / "set_aside.jsonl"
    assert [json.loads(line)["problem_id"] for line in file.read_text().splitlines()] == ["p7"]
    said = capsys.readouterr().out.splitlines()
    assert said == ["data: 8 problems", f"problems: 1 set aside (1 too long), named in {file}"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_ends_a_program_says_what_is_kept_and_leaves_the_directory_free(program, recipe):
    told = pytest.raises(RunFailed, match="a plain bug.*three samples; the whole trace")
    with told, begin(program, recipe.directory, recipe) as beginning:
        beginning.claimed(RunDirectory.create(recipe.directory, recipe))
        beginning.kept = lambda folder: "three samples"
        raise ValueError("a plain bug")
    RunDirectory.create(recipe.directory, recipe, resume=True).release()


def test_a_local_ray_is_started_with_the_object_store_of_its_largest_plan(recipe, monkeypatch):
    monkeypatch.setattr(Connection, "machines", lambda self: [Machine("a", 64)])
    small, large = (prepare(recipe) for _ in range(2))
    large.recipe = recipe.model_copy(update={"rollouts_per_step": 2**20})
    with begin("train", recipe.directory, recipe) as beginning:
        beginning.require(small)
        assert beginning.connection.object_store_gib == 0.5
        beginning.require(small, large)
        planned = large.plan([Machine("a", 64)]).object_store_gib
        assert beginning.connection.object_store_gib == planned > 1


def test_kernels_are_compiled_where_engines_or_the_learner_are_on_gpus(recipe):
    inputs = prepare(recipe)
    on_gpus = {"learner.gpus": 1, "sampler.gpus": 0, "refiner.gpus": 0}
    assert not inputs.compiles_kernels([Machine("a", 8)])
    inputs.recipe = load("miniature_opsd", [f"{key}={value}" for key, value in on_gpus.items()])
    assert inputs.compiles_kernels([Machine("a", 8, gpus=1, gpu_gib=80)])
    inputs.recipe = load(
        "miniature_opsd", [f"{key}={value}" for key, value in (on_gpus | {"learner.compile": "false"}).items()]
    )
    assert not inputs.compiles_kernels([Machine("a", 8, gpus=1, gpu_gib=80)])


def test_a_local_ray_is_not_started_for_what_can_be_known_without_it(recipe):
    before = ray.is_initialized()
    with begin("train", recipe.directory, recipe) as beginning:
        inputs = prepare(recipe, connection=beginning.connection)
        beginning.require(inputs)
        assert not beginning.connection.connected and ray.is_initialized() == before
    too_large = prepare(load("miniature_opsd", [f"run_dir={recipe.directory}", "learner.cpus=64"]))
    with pytest.raises(UserError, match="64"), begin("train", recipe.directory, recipe) as beginning:
        beginning.require(too_large)
    assert not recipe.directory.exists()


def test_a_run_that_goes_on_waits_for_the_nodes_of_its_cluster_and_a_new_one_does_not(recipe, monkeypatch, capsys):
    """The head of a cluster is up before its workers are."""
    monkeypatch.setattr("trd_ray.session.beginning.LOOK_FOR_NODES_S", 0.0)
    looks = iter([[Machine("head", 0)], [Machine("head", 0)], [Machine("head", 0), Machine("worker", 64)]] * 2)
    monkeypatch.setattr(Connection, "machines", lambda self: next(looks))
    inputs = prepare(recipe)
    with begin("train", recipe.directory, recipe) as beginning:
        beginning.connection.local = False
        monkeypatch.setattr(beginning.connection, "require_sandboxes", lambda backend: None)
        with pytest.raises(UserError, match="CPU"):
            beginning.require(inputs)
        assert capsys.readouterr().out == ""
        beginning.require(inputs, wait_s=100)
    [said] = capsys.readouterr().out.splitlines()
    assert said.startswith("waiting up to 100 s (cluster.wait_for_nodes_s) for nodes, since ")


def breaks(place: Elsewhere, folder: Path) -> None:
    """The mirror is no longer there, once it has been written for the first time."""
    deadline = time.monotonic() + 200
    while place.read("mirror.json") is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    shutil.rmtree(folder)
    folder.write_text("no folder")


def test_a_run_that_is_done_fails_if_its_mirror_lacks_something_and_says_that_the_same_command_copies_it(
    recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr("trd_ray.record.mirror.STUCK_S", 0.3)
    place = Elsewhere.at(str(tmp_path / "there"), "run")
    broken = pytest.raises(RunFailed, match="the run is done, but the mirror .* lacks .*the same command copies it")
    with broken, begin("refine", recipe.directory, recipe) as beginning:
        directory = RunDirectory.create(recipe.directory, recipe)
        beginning.claimed(directory)
        beginning.mirror_to(place, directory, recipe, 0)
        breaks(place, tmp_path / "there")
        beginning.finish_mirror()
    (tmp_path / "there").unlink()
    monkeypatch.setattr("trd_ray.record.mirror.STUCK_S", 200)
    with begin("refine", recipe.directory, recipe) as beginning:
        directory = RunDirectory.create(recipe.directory, recipe, resume=True)
        beginning.claimed(directory)
        beginning.mirror_to(place, directory, recipe, 0)
        assert place.read("alive.json")
        beginning.finish_mirror()
    assert place.read("mirror.json") and place.read("recipe.yaml") and place.read("alive.json") is None


def test_a_run_that_failed_otherwise_says_so_and_not_what_its_mirror_lacks(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("trd_ray.record.mirror.STUCK_S", 0.3)
    place = Elsewhere.at(str(tmp_path / "there"), "run")
    with begin("refine", recipe.directory, recipe) as beginning:
        directory = RunDirectory.create(recipe.directory, recipe)
        beginning.claimed(directory)
        beginning.mirror_to(place, directory, recipe, 0)
        breaks(place, tmp_path / "there")
        beginning.finish_mirror(failed=True)
    assert "the mirror" in capsys.readouterr().out
