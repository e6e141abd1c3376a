"""The command line before it starts anything: what it answers, how soon, and what it need not import for that."""

import argparse
import json
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import trd_ray
from trd_ray import cli, shipped
from trd_ray.cli import main
from trd_ray.config import dump, from_tree, load
from trd_ray.evaluate.target import target

ROOT = Path(__file__).parents[1]
SHIPPED = [p.stem for p in (ROOT / "trd_ray" / "recipes").glob("*.yaml")]
ON_GPUS = ("paper", "qwen3")  # how the names of what needs GPUs begin
HEAVY = ["torch", "ray", "vllm", "transformers", "scipy", "datasets", "tensorboard"]
CALL = f"""
import json, sys, time
import trd_ray
from trd_ray import cli, shipped
from trd_ray.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as e:
    code = e.code or 0
print(json.dumps([code, time.process_time(), [name for name in {HEAVY!r} if name in sys.modules]]))
"""


def called(*arguments: str, where: Path = ROOT) -> tuple[int, float, list[str], subprocess.CompletedProcess]:
    """Exit code, CPU seconds, heavy modules that were imported, and what was printed, of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", CALL, *arguments],
        cwd=where,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(where)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    code, seconds, heavy = json.loads(done.stdout.splitlines()[-1])
    return code, seconds, heavy, done


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "miniature_opsd", "learner.lrr=1"],
        ["train", "miniature_opsd", "--dry-run", "steps=many"],
        ["train", "no_such_recipe"],
        ["refine", "miniature_opsd", "teacher.mode=opd"],
        ["evaluate", "miniature_opsd", "miniature:test", "learner.lrr=1"],
        ["evaluate", "miniature:student", "gsm9k"],
        ["reproduce", "miniature_opsd", "learner.lrr=1"],
        ["reproduce", "paper_opsd_4b"],
        ["reproduce", "miniature_opsd", "aime24"],
        ["compare", "miniature", "sed=1"],
        ["compare", "miniature", "set.learner.lrr=1"],
        ["compare", "miniature", "tuning.set.evaluation.samples=none"],
    ],
)
def test_a_mistake_is_answered_before_anything_heavy_is_imported(arguments):
    code, seconds, heavy, done = called(*arguments)
    assert code == 2
    assert done.stderr.startswith("trd: ")
    assert heavy == []
    assert seconds < 1.0


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "--help"], ["--version"], ["recipes"]])
def test_help_is_printed_before_anything_heavy_is_imported(arguments):
    code, seconds, heavy, done = called(*arguments)
    assert (code, heavy, done.stderr) == (0, [], "")
    assert seconds < 1.0


def refused(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("trd: ") and "\n" not in said
    return said.removeprefix("trd: ")


@pytest.mark.parametrize("command, kind", [("train", "recipe"), ("compare", "comparison")])
def test_an_unknown_name_is_refused_with_the_list_of_shipped_ones_once(capsys, command, kind):
    said = refused(capsys, command, "xyz")
    first = {"recipe": "miniature", "comparison": "claims_code"}[kind]
    assert said.startswith(f"there is no {kind} 'xyz': give a YAML file or one of {first}")
    names = re.findall(r"\w+", said.partition("one of ")[2])
    assert len(set(names)) == len(names) == {"recipe": 20, "comparison": 6}[kind]
    assert "(did you mean miniature" in refused(capsys, command, "miniatur")


def test_a_folder_is_told_from_a_recipe_that_does_not_exist(capsys, tmp_path):
    for command, kind in (("train", "recipe"), ("compare", "comparison")):
        folder = tmp_path / command
        folder.mkdir()
        assert refused(capsys, command, str(folder)) == f"{folder} is a folder, not a {kind}: name a YAML file"
        (folder / "mine.yaml").write_text("name: mine")
        assert refused(capsys, command, str(folder)).endswith(f"name a YAML file, such as {folder}/mine.yaml")


def test_a_recipe_given_to_compare_is_recognised_in_one_short_sentence(capsys, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(dump(load("miniature_opsd")))
    for name in ("miniature_opsd", str(mine)):
        said = refused(capsys, "compare", name)
        assert said.startswith(f"{name} is a recipe, not a comparison: run it with `trd train {name}`")
        assert len(said) < 100 + 2 * len(name)


@pytest.mark.parametrize("command", ["train", "refine", "evaluate"])
def test_a_comparison_given_to_another_command_is_recognised_in_one_short_sentence(capsys, tmp_path, command):
    mine = tmp_path / "mine.yaml"
    mine.write_text((ROOT / "trd_ray" / "recipes" / "compare" / "miniature.yaml").read_text())
    for name in ("miniature", str(mine)):
        said = refused(capsys, command, name)
        assert said == f"{name} is a comparison of recipes, not a recipe: run it with `trd compare {name}`"


BAD_NAMES = ["../../etc/x", "''", "/abs", '"two\\nlines"', ".", "..", "a/b", "-x", '"nul\\0"', '"two words"']


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_name_of_a_folder_is_refused_at_load(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for command, recipe in (("train", "miniature_opsd"), ("evaluate", "miniature_opsd"), ("compare", "miniature")):
        said = refused(capsys, command, recipe, f"name={name}")
        assert said.startswith("name names a folder") and "run_dir" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ['"a\\nb"', '"a\\0b"'])
def test_a_path_with_a_control_character_is_refused_at_load(capsys, path):
    assert "run_dir must be a path without control characters" in refused(
        capsys, "train", "miniature_opsd", f"run_dir={path}"
    )
    assert "directory must be a path without control characters" in refused(
        capsys, "compare", "miniature", f"directory={path}"
    )


def test_usual_names_and_any_other_path_are_accepted():
    for name in ("run", "opsd-8b", "v0.1_final", "7b", "Modell-7"):
        assert load("miniature_opsd", [f"name={name}"]).directory == Path("runs").absolute() / name
    assert load("miniature_opsd", ["run_dir=~/my runs/ü"]).directory == Path.home() / "my runs" / "ü"


@pytest.mark.parametrize("folder", ["_hidden", ".dot", "模型", "a b"])
def test_an_evaluation_of_a_model_in_any_folder_has_a_name_that_its_directory_can_be_read_back_with(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "config.json").write_text("{}")
    recipe = target(str(tmp_path / folder), []).recipe
    assert from_tree(recipe.model_dump(mode="json")) == recipe


def test_trd_alone_prints_every_command_with_an_example_that_can_be_parsed(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    places = [said.index(f"\n  {command} ") for command in cli.EXAMPLES]
    assert places == sorted(places)
    for command, example in cli.EXAMPLES.items():
        assert f"  {example}\n" in said
        program, *arguments = shlex.split(example)
        assert (program, arguments[0]) == ("trd", command)
        if command != "miniature":  # which has a parser of its own
            assert cli._parser().parse_known_args(arguments)[0].command == command


def test_every_command_is_in_the_help():
    [commands] = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert set(commands.choices) == set(cli.EXAMPLES)


def test_an_unknown_command_is_answered_with_the_one_that_may_be_meant(capsys):
    assert "no command 'trian' (did you mean train?)" in refused(capsys, "trian", "miniature_opsd")
    assert "known here: recipes," in refused(capsys, "xyz")


def test_the_version_names_the_package_and_what_its_results_depend_on(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split(", commit ")[0] == f"trd_ray {trd_ray.__version__}"
    for package in ("torch", "ray", "transformers"):
        assert f"{package} {metadata.version(package)}" in second


def test_recipes_lists_what_ships_with_what_each_needs(capsys):
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in (*SHIPPED, "paper", "miniature"))
    assert [s.name for s in shipped.recipes()] == sorted(SHIPPED, key=lambda n: (n.startswith(ON_GPUS), n))
    for s in [*shipped.recipes(), *shipped.comparisons()]:
        on_gpus = s.name.startswith(ON_GPUS)
        machine = {"paper": "8 GPUs of 80 GB", "qwen3": r"1 GPU of (24|80) GB|2 nodes of 8 GPUs of 80 GB"}
        assert re.fullmatch(machine.get(s.name.split("_")[0], "2 cores without a GPU"), s.machine)
        assert bool(s.fetched) == on_gpus, "what is shipped here needs no network, the paper's models and data do"
        assert s.text.endswith(".") and "GPU" not in s.text
    [opd] = [s for s in shipped.recipes() if s.name == "paper_opd_1p7b"]
    assert {"Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B", "agentica-org/DeepScaleR-Preview-Dataset"} < set(opd.fetched)


def test_recipes_with_a_name_prints_a_file_to_start_from(capsys, tmp_path):
    for name in SHIPPED:
        assert main(["recipes", name]) == 0
        (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
        assert load(str(tmp_path / "mine.yaml")) == load(name)
    assert "(did you mean paper_opd_4b?)" in refused(capsys, "recipes", "paper_opd_4")


def test_a_reader_that_goes_away_is_no_traceback():
    """As `trd recipes | head -1` does."""
    shell = f"{sys.executable} -m trd_ray.cli recipes | head -c 1; sleep 1"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
