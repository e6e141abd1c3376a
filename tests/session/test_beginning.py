"""Every program begins and ends in one order: what is left out is named, and what is claimed is given back."""

import json

import pytest
import ray

from trd_ray.config import load
from trd_ray.errors import RunFailed, UserError
from trd_ray.preflight.machines import Machine
from trd_ray.problems.set_aside import SetAside
from trd_ray.record.directory import RunDirectory
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
