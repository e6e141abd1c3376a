"""The page about Python imports only the public surface, names all of it, and each of its examples runs as a script."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trd_ray import api

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "trd_ray" / "API.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
STARTS_ENGINES = "# starts engines\n"
SHOWN = {  # what an example prints, by a part of it
    "verify(": "[True, False] no \\boxed{} answer",
    "except UserError": "unknown key learner.lrr (did you mean lr?)",
    "refine(": "step",
    "evaluate(": "avg@2",
    "Enough": "the callback ",
    "passes": "y_o/passed",
}


def examples(start_engines: bool) -> list[str]:
    return [example for example in EXAMPLES if example.startswith(STARTS_ENGINES) == start_engines]


def run(example: str, folder: Path, timeout_s: float) -> str:
    script = folder / "example.py"
    script.write_text(example)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, timeout=timeout_s,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_every_example_is_told_what_it_shows():
    assert [sum(part in example for part in SHOWN) for example in EXAMPLES] == [1] * len(EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_imports_nothing_but_the_public_surface(example):
    for node in ast.walk(ast.parse(example)):
        assert not isinstance(node, ast.Import)
        if isinstance(node, ast.ImportFrom):
            assert node.module == "trd_ray.api" and {alias.name for alias in node.names} <= set(api.__all__)


def test_the_page_names_the_whole_surface_and_it_is_there():
    assert [name for name in api.__all__ if f"`{name}" not in PAGE or not hasattr(api, name)] == []


def test_the_first_run_is_short():
    assert len([line for line in examples(True)[0].splitlines() if line and not line.startswith("#")]) <= 15


@pytest.mark.parametrize("example", examples(False))
def test_an_example_without_engines_runs(example, tmp_path):
    [shown] = [text for part, text in SHOWN.items() if part in example]
    assert shown in run(example, tmp_path, 120)


@pytest.mark.long
@pytest.mark.parametrize("example", examples(True))
def test_an_example_with_engines_runs(example, tmp_path):
    [shown] = [text for part, text in SHOWN.items() if part in example]
    assert shown in run(example, tmp_path, 900)
    assert any((tmp_path / "runs").iterdir())
