"""The command line before it starts anything: what it answers, how soon, and what it need not import for that."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trd_ray.cli import main
from trd_ray.config import dump, load

ROOT = Path(__file__).parent.parent
HEAVY = ["torch", "ray", "vllm", "transformers", "scipy", "datasets", "tensorboard"]
CALL = f"""
import json, sys, time
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


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
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
    assert said.startswith(f"there is no {kind} 'xyz': give a YAML file or one of miniature")
    names = re.findall(r"\w+", said.partition("one of ")[2])
    assert len(set(names)) == len(names) == {"recipe": 11, "comparison": 2}[kind]
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
