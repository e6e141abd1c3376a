"""A function of a notebook or a script travels with what it uses and with nothing else; what cannot is refused."""

import functools
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from trd_ray import own_source
from trd_ray.errors import UserError
from trd_ray.own_code import load
from trd_ray.own_source import carried, reference_to

CELLS = [
    "import re\nfrom trd_ray.api import train\nNUMBER = re.compile(r'\\d+')",
    "LIMIT = 10\nlimits = [LIMIT]\nlimits = limits + [20]",
    "def first(text):\n    return NUMBER.search(text)\n\nthis is a cell that never ran",
    "def first(text):\n    found = NUMBER.search(text)\n    return found and int(found[0])",
    "def passes(text, problem):\n    '''By the first number.'''\n    run = first(text)\n    return run in limits",
    "run = train('miniature_opsd', verifier=passes)\nprint(run.metrics)",
]


def test_a_function_travels_with_what_it_uses_and_the_run_stays_behind():
    text = carried("passes", CELLS)
    assert "train" not in text and "print" not in text
    assert text.index("import re") < text.index("NUMBER =") < text.index("def first") < text.index("def passes")
    space: dict = {}
    exec(text, space)
    assert space["passes"]("10 apples", {}) and space["passes"]("20", {}) and not space["passes"]("11", {})


def test_the_last_definition_counts():
    assert carried("f", ["def f():\n    return 1", "def f():\n    return 2"]).count("return") == 1
    assert "return 2" in carried("f", ["def f():\n    return 1", "def f():\n    return 2"])


def test_a_class_with_a_base_a_decorator_and_defaults_travels():
    cells = [
        "from dataclasses import dataclass\ntry:\n    import numpy as np\nexcept ImportError:\n    np = None",
        "ZERO = 0\nclass Base:\n    pass",
        "@dataclass\nclass Watch(Base):\n    seen: int = ZERO\n    def on_step(self, step):\n"
        "        return [np.sum(x) for x in step]",
    ]
    text = carried("Watch", cells)
    assert all(part in text for part in ("dataclass", "import numpy", "ZERO = 0", "class Base", "class Watch"))


def test_future_imports_come_first():
    assert '"""\n\nfrom __future__' in carried("f", ["from __future__ import annotations\nx = 1", "def f(): return x"])


@pytest.mark.parametrize(
    "cells, said",
    [
        (["x = 1"], "the source of f is not to be had here"),
        (["def f(): return later"], "f uses later, which no import, def, class or assignment"),
        (["for n in range(3):\n    y = n", "def f(): return y"], "f uses y"),
        (["import os\nos.x = 1", "def f(): return g()", "def g(): return nowhere"], "f uses nowhere"),
    ],
)
def test_what_no_statement_defines_is_refused(cells, said):
    with pytest.raises(UserError, match=said):
        carried("f", cells)


def test_an_importable_function_is_named_and_nothing_is_written(tmp_path, monkeypatch):
    (tmp_path / "rewards_alone.py").write_text("def score(text, problem):\n    return 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import rewards_alone  # pyright: ignore

    assert reference_to(rewards_alone.score, tmp_path / "given") == f"{tmp_path / 'rewards_alone.py'}:score"
    assert reference_to(json.dumps, tmp_path / "given") == "json:dumps"
    assert reference_to(carried, tmp_path / "given") == "trd_ray.own_source:carried"
    assert reference_to("score.py:f", tmp_path / "given") == "score.py:f"
    assert not (tmp_path / "given").exists()


def test_a_notebook_s_function_is_written_once_and_loads(tmp_path, monkeypatch):
    main = type(sys)("__main__")
    main.In = ["", *CELLS]  # type: ignore[attr-defined]
    for cell in (CELLS[0].replace("from trd_ray.api import train\n", ""), CELLS[1], CELLS[3], CELLS[4]):
        exec(cell, main.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", main)
    passes = main.passes  # type: ignore[attr-defined]
    reference = reference_to(passes, tmp_path)
    assert reference == reference_to(passes, tmp_path) and len(list(tmp_path.iterdir())) == 1
    assert load(reference)("20", {}) is True


def test_a_decorated_function_is_named_like_any_other(tmp_path, monkeypatch):
    (tmp_path / "rewards_wrapped.py").write_text(
        "import functools\n\ndef twice(f):\n    @functools.wraps(f)\n    def inner(*a):\n        return 2 * f(*a)\n"
        "    return inner\n\n@twice\ndef score(text, problem):\n    return 0.5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import rewards_wrapped  # pyright: ignore

    assert load(reference_to(rewards_wrapped.score, tmp_path))("", {}) == 1.0


def test_what_has_no_name_to_load_it_by_is_refused_with_the_remedy(tmp_path):
    def inner(text, problem):
        return True

    for given, said in [
        (lambda text, problem: True, "a lambda has no name"),
        (inner, "inner is defined inside another function, .*define it at the top of a file"),
        (functools.partial(carried, "f"), "cannot be sent to the processes of a run: give a function, a class"),
        (7, "an object of type int cannot be sent"),
        ("no", "names no code"),
    ]:
        with pytest.raises(UserError, match=said):
            reference_to(given, tmp_path)
    renamed = type(carried)(carried.__code__, carried.__globals__, "carried")
    with pytest.raises(UserError, match="trd_ray.own_source.carried is another object than the one that was given"):
        reference_to(_like(renamed, own_source), tmp_path)
    assert list(tmp_path.iterdir()) == []


def _like(function, module):
    function.__module__, function.__qualname__ = module.__name__, "carried"
    return function


def test_a_script_that_starts_something_gives_its_function_and_does_not_start_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from pathlib import Path
        from trd_ray.own_source import reference_to

        def passes(text, problem):
            return text == "yes"

        print("started")
        print(reference_to(passes, Path(sys.argv[1])))
        """)
    )
    root = str(Path(own_source.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True, text=True, timeout=60, env={"PYTHONPATH": root},
    )  # fmt: skip
    started, reference = done.stdout.split()
    assert started == "started", done.stderr
    assert load(reference)("yes", {}) is True
