"""Where kernels are compiled there is a C compiler and Python's header, or the machine is refused."""

import sysconfig

import pytest

from trd_ray.config import from_tree
from trd_ray.preflight.compilers import compiles_kernels, no_compiler


def program(path, name):
    (path / name).touch(mode=0o755)


def test_a_compiler_is_what_triton_takes(monkeypatch, tmp_path):
    include = tmp_path / "include"
    include.mkdir()
    (include / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(include)})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert "neither gcc nor clang in PATH" in no_compiler() and "apt install gcc" in no_compiler()
    program(tmp_path, "clang")
    assert no_compiler() == ""
    monkeypatch.setenv("CC", "icx")
    assert "CC=icx, which is no program there" in no_compiler()
    program(tmp_path, "icx")
    assert no_compiler() == ""
    (include / "Python.h").unlink()
    assert f"no {include}/Python.h" in no_compiler() and "-dev" in no_compiler()


@pytest.mark.parametrize(
    ("compile_key", "engines", "learner", "compiles"),
    [
        (None, False, True, True),
        (False, False, True, False),
        (False, True, True, True),
        (True, False, False, False),
        (None, True, False, True),
    ],
)
def test_engines_on_gpus_compile_always_and_the_learner_unless_it_is_told_not_to(
    compile_key, engines, learner, compiles
):
    recipe = from_tree({"learner": {"compile": compile_key}})
    assert compiles_kernels(recipe, engines, learner) is compiles
