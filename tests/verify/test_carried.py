"""What a function's file imports from its folder travels with it, and is imported as `python score.py` would."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trd_ray import config
from trd_ray.config import VerifyConfig
from trd_ray.config.imported_files import MAX_BYTES, MAX_FILES
from trd_ray.errors import UserError
from trd_ray.evaluate.samples import verifier_of
from trd_ray.record.directory import MAY_CHANGE, differences
from trd_ray.verify.chosen import Chosen
from trd_ray.verify.fitting import require_functions

ROW = {"problem_id": "p", "problem": "6 * 7?", "answer": "42", "reference": "", "tests": None}
FILES = {
    "score.py": """
import json, os.path
from helpers import last
import parts.words as words


def score(text, problem):
    from late import LATE
    return {"score": last(text) == problem["answer"], "feedback": f"{words.told()} {LATE}"}


if __name__ == "__main__":
    print(score("it is 42", {"answer": "42"})["feedback"])
""",
    "helpers.py": "def last(text):\n    import score\n    return text.split()[-1] if score.score else ''\n",
    "late.py": "LATE = 'late'\n",
    "parts/__init__.py": "from . import names\n",
    "parts/words.py": "from .names import NAME\nfrom .deep.er import DEEPER\nfrom parts import names\n"
    "from textwrap import dedent\n\n\ndef told():\n    return dedent(NAME + DEEPER + names.NAME)\n",
    "parts/names.py": "NAME = 'a'\n",
    "parts/deep/er.py": "from .. import names\nDEEPER = names.NAME.upper()\n",  # a folder without an __init__.py
    "textwrap.py": "def dedent(text):\n    return f'mine {text}'\n",  # comes before Python's own
    "numpy/data.py": "# not a package: numpy is installed\n",
    "other.py": "raise OSError('nobody imports this')\n",
}
TRAVEL = {"score.py", "helpers.py", "late.py", "textwrap.py"} | {f for f in FILES if f.startswith("parts/")}


def written(folder: Path, files: dict[str, str] = FILES) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A folder with a recipe, its function and what that imports; the working directory is another one."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    written(tmp_path / "mine")
    (tmp_path / "mine" / "mine.yaml").write_text("verify: {function: 'score.py:score'}\n")
    return tmp_path / "mine"


def read(folder: Path, *overrides: str) -> VerifyConfig:
    return config.load(str(folder / "mine.yaml"), list(overrides)).verify


def test_what_a_file_imports_from_its_folder_is_part_of_the_recipe_and_nothing_else(folder):
    verify = read(folder)
    assert verify.sources == {name: FILES[name] for name in TRAVEL}
    assert read(folder, f"verify.function={folder}/score.py:score").sources.keys() == {
        str(folder / name) for name in TRAVEL
    }
    assert read(folder, "verify.function=math").sources == {}


def test_a_package_that_is_installed_goes_before_a_folder_of_its_name_as_for_python(folder):
    (folder / "score.py").write_text("import numpy\nimport numpy.data\n")
    assert read(folder).sources.keys() == {"score.py"}
    (folder / "numpy" / "__init__.py").touch()
    assert read(folder).sources.keys() == {"score.py", "numpy/__init__.py", "numpy/data.py"}


def test_a_function_is_judged_with_its_files_where_their_folder_is_not(folder):
    shown = subprocess.run([sys.executable, "score.py"], cwd=folder, capture_output=True, text=True, check=True)
    verify = read(folder)
    shutil.rmtree(folder)
    chosen = Chosen(verify)
    verdict = chosen("it is 42", ROW)
    assert verdict.passed and verdict.feedback == shown.stdout.strip() == "mine aAa late"
    assert not chosen("it is 41", ROW).passed
    chosen.close()


def test_the_folder_comes_first_also_where_a_module_of_that_name_is_installed_or_imported_already(folder):
    for name in ("yaml", "json", "random"):
        (folder / f"{name}.py").write_text(f"HERE = {name!r}\n")
    (folder / "score.py").write_text(
        "import yaml, json, random\n\n\ndef score(text, problem):\n"
        "    return {'score': 1, 'feedback': yaml.HERE + json.HERE + random.HERE}\n"
    )
    chosen = Chosen(read(folder))
    assert chosen("any", ROW).feedback == "yamljsonrandom"
    chosen.close()


def test_an_error_in_a_file_beside_names_it_and_leaves_no_file(folder, tmp_path):
    (folder / "helpers.py").write_text("def last(text):\n    raise KeyError('here')\n")
    chosen = Chosen(read(folder))
    assert "KeyError: 'here'" in chosen("it is 42", ROW).detail
    chosen.close()
    (folder / "helpers.py").write_text("raise KeyError('at once')\n")
    with pytest.raises(UserError, match="cannot be imported \\(KeyError: 'at once'\\)"):
        require_functions(read(folder), [ROW])
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_changed_file_beside_is_another_verifier_and_another_run(folder, tmp_path):
    began = config.load(str(folder / "mine.yaml"))
    [line] = require_functions(began.verify, [ROW])
    assert ", with helpers.py, late.py, parts/__init__.py, parts/deep/er.py, parts/names.py" in line
    (tmp_path / "recipe.yaml").write_text(config.dump(began))
    (folder / "parts" / "names.py").write_text("NAME = 'b'\n")
    assert config.stored(tmp_path / "recipe.yaml") == began == config.load(str(tmp_path / "recipe.yaml"))
    now = config.load(str(folder / "mine.yaml"))
    [found] = differences(began.model_dump(mode="json"), now.model_dump(mode="json"), MAY_CHANGE)
    assert found.startswith("verify.sources.parts/names.py=")
    assert verifier_of(ROW, began.verify) != verifier_of(ROW, now.verify)
    assert require_functions(now.verify, [ROW]) != [line]


HALF = "a" * (MAX_BYTES // 2)
MANY = [f"m{i}" for i in range(MAX_FILES)]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"helpers.py": "def last(:\n"}, "line 1 of "),
        ({"helpers.py": f"x = '{'a' * MAX_BYTES}'\n"}, "helpers.py has more than 1048576 bytes"),
        (
            {"helpers.py": f"from late import x\ny = '{HALF}'\n", "late.py": f"x = '{HALF}'"},
            f"has more than {MAX_BYTES} bytes, which would travel to every task that verifies: make it a package",
        ),
        (
            {"helpers.py": f"import {', '.join(MANY)}\n"} | {f"{name}.py": "" for name in MANY},
            f"has more than {MAX_FILES} files",
        ),
    ],
)
def test_what_cannot_travel_is_refused_in_one_sentence(folder, files, said):
    written(folder, files)
    with pytest.raises(UserError) as refused:
        read(folder)
    [sentence] = refused.value.sentences
    assert sentence.startswith("verify.function: ") and said in sentence
