"""The process that has a user's function, and forks one process for each call under way.

    this process: imports the function's file once  --fork-->  a process that makes the class, then calls, call by call
    parent: {"do": "fork"} -> {"pid"} and the socket of the new process; {"do": "end", "pid"} -> {"code"}, how it ended

    {"text", "problem"}  ->  call.py  ->  the function  ->  returned.py  ->  {"score", "passed", "feedback", ...}

It is run as a script, is told by its first line where packages are, and speaks JSON alone: nothing is unpickled here or
by the parent. Standard output is nobody's: what the function prints is thrown away.

- Deadlines are the parent's, which kills a process that misses one. Signals and alarms are the function's to use.
- A process that calls may take so much memory and no more; the kernel gives MemoryError, and the parent a new process.
- When the parent ends, its end of the sockets closes, and this process kills what it has forked, then ends.
"""

import asyncio
import contextlib
import ctypes
import importlib
import importlib.util
import inspect
import json
import os
import re
import resource
import signal
import socket
import sys
import time
import types
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
MAX_TOLD_CHARS = 300  # of an exception


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    lines = control.makefile()
    asked = json.loads(lines.readline())
    sys.path[:] = asked["path"]
    try:
        found = Imported(asked)
    except BaseException as e:  # noqa: BLE001 - a file that is imported may do anything, also sys.exit()
        _send(control, {"error": str(e) if type(e).__name__ == "Unreadable" else f"cannot be imported ({_told(e)})"})
        return
    _send(control, {"shape": found.shape.to_json()})
    running: set[int] = set()
    try:
        for line in lines:
            request = json.loads(line)
            if request["do"] == "fork":
                ours, theirs = socket.socketpair()
                if (pid := os.fork()) == 0:
                    os.close(control.fileno())  # close() would wait for `lines`, which reads from it
                    ours.close()
                    serve(found, theirs, asked["memory_bytes"])
                theirs.close()
                running.add(pid)
                socket.send_fds(control, [_line({"pid": pid})], [ours.fileno()])
                ours.close()
            else:
                running.discard(request["pid"])
                _send(control, {"code": os.waitstatus_to_exitcode(os.waitpid(request["pid"], 0)[1])})
    finally:
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


class Imported:
    """What the name stands for, and its shape. Raises what the import raises, and Unreadable."""

    def __init__(self, asked: dict[str, Any]):
        shape, self._call, self._returned, carried = map(_beside, ("shape", "call", "returned", "carried"))
        place, _, name = asked["function"].rpartition(":")
        carried.Carried(asked["beside"], str(Path(place).parent)).install()
        module = _module(place, asked["source"], carried) if place.endswith(".py") else importlib.import_module(place)
        if not hasattr(module, name):
            there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise shape.Unreadable(
                f"is not in {place}, which has {', '.join(there) or 'no function'}: correct the name"
            )
        self._found = getattr(module, name)
        self._arguments = asked["arguments"]
        self._columns = asked["columns"]
        self.shape = shape.shape_of(self._found, self._arguments, asked["completions"])

    def make(self) -> None:
        """Make the class, in the process that will call it; a function is ready as it is."""
        if self.shape.is_class:
            self._found, self._arguments = self._found(**self._arguments), {}

    def reply(self, text: str, problem: dict[str, Any], runner: asyncio.Runner) -> dict[str, Any]:
        try:
            given = self._call.keywords(self.shape, text, problem, self._columns)
        except self._call.MissingColumn as e:
            return {"wrong": str(e)}
        try:
            value = self._found(**given | self._arguments)
            if inspect.isawaitable(value):
                value = runner.run(_awaited(value))
        except MemoryError:
            return {"memory": True}
        except BaseException as e:  # noqa: BLE001 - the function's own, sys.exit() among them
            return {"raised": _told(e)}
        try:
            return self._returned.read(value, self.shape.batched)
        except self._returned.WrongReturn as e:
            return {"wrong": str(e)}


def serve(found: Imported, parent: socket.socket, memory_bytes: int) -> None:
    """Answer the parent's questions until it closes the socket. Never returns."""
    try:
        os.setpgid(0, 0)  # so that it is killed with what it has started
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        taken = _data_bytes()
        resource.setrlimit(resource.RLIMIT_DATA, (taken + memory_bytes, taken + memory_bytes))
        try:
            found.make()
        except BaseException as e:  # noqa: BLE001 - as for a call
            _send(parent, {"error": f"cannot be made with verify.arguments ({_told(e)})"})
            return
        _send(parent, {})
        with asyncio.Runner() as runner:
            for line in parent.makefile():
                asked = json.loads(line)
                start = time.monotonic()
                reply = found.reply(asked["text"], asked["problem"], runner)
                _send(parent, reply | {"seconds": time.monotonic() - start})
    finally:
        os._exit(0)


def _beside(name: str) -> Any:
    """A module of this folder under its full name. Its packages are not imported for it, which would take longer."""
    full = f"trd_ray.verify.own.{name}"
    spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    sys.modules[full] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


async def _awaited(value: Any) -> Any:
    return await value


def _module(place: str, source: str, carried: Any) -> types.ModuleType:
    """The module of a file whose text came with the question."""
    name = re.sub(r"\W", "_", Path(place).stem)
    module = types.ModuleType(name)
    module.__file__ = place
    sys.modules[name] = module  # where dataclasses and pickle look for it
    carried.run_text(source, place, module)
    return module


def _data_bytes() -> int:
    """What of this process counts against RLIMIT_DATA."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmData:\s+(\d+)", status)
    return int(found[1]) << 10 if found else 0


def _told(e: BaseException) -> str:
    try:
        text = " ".join(f"{type(e).__name__}: {e}".split())
    except Exception:  # noqa: BLE001 - the exception's own
        text = type(e).__name__
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:MAX_TOLD_CHARS])  # a terminal may show it


def _send(to: socket.socket, reply: dict[str, Any]) -> None:
    to.sendall(_line(reply))


def _line(reply: dict[str, Any]) -> bytes:
    return json.dumps(reply).encode() + b"\n"


if __name__ == "__main__":
    main()
