"""What a Python program needs of the host's files to run: the interpreter, its standard library, the shared libraries.

The prefix around them stays hidden, and so does the virtual environment. Every mount adds about a millisecond to a
start, so the system's library folders are shown whole, and NumPy only to programs that name it.
"""

import compileall
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

HARNESS = "/harness"  # where the sandbox shows the files of this package that run inside
PACKAGES = "/packages"
_SYSTEM_FOLDER = re.compile(r"(/usr)?/lib(64)?(/[a-z0-9_]+-linux-gnu)?")
_LIBRARY = re.compile(r"(/\S+) \(0x")
# Extension modules that need many shared libraries, and that no program here needs.
_UNUSED = ("_tkinter", "_curses", "nis", "readline", "_gdbm", "_dbm", "ossaudiodev")

Binds = tuple[tuple[str, str], ...]  # files and folders of the host, and where the sandbox shows them, read-only


@dataclass(frozen=True)
class Interpreter:
    executable: str
    files: Binds
    packages: Binds
    hidden: tuple[str, ...]  # folders of these that the sandbox shows empty
    library_path: str  # LD_LIBRARY_PATH inside, "" where the loader's own folders do


@lru_cache(maxsize=1)
def this_interpreter() -> Interpreter:
    """The interpreter of this process, with NumPy where that is installed."""
    executable = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    base = {"base": sys.base_prefix, "installed_base": sys.base_prefix}
    base |= {"platbase": sys.base_exec_prefix, "installed_platbase": sys.base_exec_prefix}
    folders = sorted({os.path.realpath(sysconfig.get_path(name, vars=base)) for name in ("stdlib", "platstdlib")})
    packages = _numpy()
    extensions = [str(path) for folder in folders for path in Path(folder, "lib-dynload").glob("*.so")]
    extensions = [path for path in extensions if not os.path.basename(path).startswith(_UNUSED)]
    extensions += [str(path) for folder in packages for path in Path(folder).glob("**/*.so*")]
    libraries = [path for path in _shared_libraries([executable, *extensions]) if not path.startswith(tuple(packages))]
    elsewhere = [path for path in libraries if not _SYSTEM_FOLDER.fullmatch(os.path.dirname(path))]
    system = {os.path.dirname(path) for path in libraries} - {os.path.dirname(path) for path in elsewhere}
    system = {folder for folder in system if not any(str(parent) in system for parent in Path(folder).parents)}
    shown = [(path, path) for path in (executable, *folders, *sorted(system), *elsewhere)]
    hidden = [f"{folder}/{name}" for folder in folders for name in ("site-packages", "dist-packages")]
    return Interpreter(
        executable=executable,
        files=(*shown, *_harness()),
        packages=tuple((path, f"{PACKAGES}/{os.path.basename(path)}") for path in packages),
        hidden=tuple(filter(os.path.isdir, hidden)),
        library_path=":".join(sorted({os.path.dirname(path) for path in elsewhere})),
    )


def _harness() -> Binds:
    inside = Path(__file__).with_name("inside")
    if not sys.dont_write_bytecode:  # most of it is imported only inside, where nothing can be written
        compileall.compile_dir(inside, quiet=2)
    return ((str(inside), f"{HARNESS}/inside"),)


def _numpy() -> list[str]:
    spec = importlib.util.find_spec("numpy")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = spec.submodule_search_locations[0]
    return [path for path in (folder, folder + ".libs") if os.path.isdir(path)]


def _shared_libraries(files: list[str]) -> list[str]:
    """What the dynamic loader maps for these files, under the names it asks for."""
    listed = subprocess.run(["ldd", *files], capture_output=True, text=True, timeout=60).stdout
    return sorted(path for path in map(os.path.normpath, set(_LIBRARY.findall(listed))) if os.path.exists(path))
