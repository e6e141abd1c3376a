"""What kernels for a GPU are compiled with, on the machine that runs them.

Triton compiles a small C extension in every process that starts a kernel. Those are the engines, and the learner ranks
whose loss is compiled, as it is on a GPU unless learner.compile=false. Triton takes $CC, gcc or clang, and Python's own
header (triton/runtime/build.py). Without them an engine dies minutes after its start.

`trd doctor` asks too, also where nothing is installed, so nothing is imported here.
"""

import os
import shutil
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trd_ray.config import Recipe


def no_compiler() -> str:
    """What of that is missing here, as the end of a sentence; "" if nothing is."""
    named = os.environ.get("CC")
    if not (shutil.which(named) if named else any(map(shutil.which, ("gcc", "clang")))):
        found = f"CC={named}, which is no program there," if named else "neither gcc nor clang in PATH"
        return f"has {found} and Triton compiles with it: install one (apt install gcc), or set CC to another"
    folder = sysconfig.get_paths()["include"]
    if not (Path(folder) / "Python.h").is_file():
        version = sysconfig.get_python_version()
        return f"has no {folder}/Python.h, which Triton compiles with: install it (apt install python{version}-dev)"
    return ""


def compiles_kernels(recipe: "Recipe", engines_on_gpu: bool, learner_on_gpu: bool) -> bool:
    return engines_on_gpu or (learner_on_gpu and recipe.learner.compile is not False)
