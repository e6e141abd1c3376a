"""What the README tells a user to do with data and a model of their own works as it is printed."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from trd_ray.cli import main

README = Path(__file__).parents[1] / "README.md"
MACHINE = ["cluster.memory_gib=64", "cluster.local_cpus=16"]  # what else runs here is no part of the claims


def section(heading: str) -> str:
    parts = re.split(r"^## ", README.read_text(), flags=re.MULTILINE)
    [found] = [part for part in parts if heading in part.splitlines()[0]]
    return found


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    lines = "".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [found[1:] for found in words if found and Path(found[0]).name == "trd"]


def dry(text: str) -> list[list[str]]:
    """The commands that start nothing."""
    return [found for found in commands(text) if "--dry-run" in found or found[0] == "init"]


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A folder with the README's my.yaml, of a model that is at hand, and the problems that it names."""
    monkeypatch.chdir(tmp_path)
    [text] = blocks(section("Your own data"), "yaml")
    recipe = yaml.safe_load(text)
    columns = recipe["data"]["columns"]
    for group in ("student", "teacher"):
        if "path" in recipe.get(group, {}):
            recipe[group]["path"] = "smollm2"
        recipe.get(group, {}).pop("chat_template_kwargs", None)  # SmolLM2 has no thinking mode to choose
    for path, numbers in ((recipe["data"]["path"], range(64)), (recipe["evaluation"]["path"], range(64, 76))):
        rows = [
            {
                columns["problem"]: f"Ada has {i} apples and buys {i + 3} more. How many has she?",
                columns["answer"]: str(2 * i + 3),
                columns.get("reference", "reference"): f"{i} + {i + 3} = {2 * i + 3}, so \\boxed{{{2 * i + 3}}}.",
            }
            for i in numbers
        ]
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("my.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return tmp_path


def test_the_readme_s_recipe_fits_with_one_s_own_data(own, capsys):
    printed = dry(section("Your own data"))
    assert any("--dry-run" in found for found in printed)
    for arguments in printed:
        if arguments[0] == "init":
            arguments = [*arguments, "--model", "smollm2"]
            Path("my.yaml").rename("printed.yaml")  # init overwrites nothing
        else:
            arguments = [*arguments, *MACHINE]
        code = main(arguments)
        said, refused = capsys.readouterr()
        assert code == 0, (arguments, refused, said[-500:])
        assert arguments[0] == "init" or "fits: yes" in said, (arguments, said[-500:])
        if Path("printed.yaml").exists():
            Path("printed.yaml").replace("my.yaml")
