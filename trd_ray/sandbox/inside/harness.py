"""Process 1 of the sandbox: starts the untrusted program, watches it, and reports to the outside.

    outside ==socket==> harness --fork--> program (script: one a case; function: one for all calls)
                           |  whenever something moves, and every 20 ms: time, CPU, memory, files, output
                           '- at the end of a case: kills every other process of the namespace

- The program cannot stop this process. It is process 1 of the namespace, so no signal from inside reaches it, and it is
  not traceable.
- It ends when the socket closes, however the outside ended, and when the process that started the namespace dies. All
  other processes of the namespace end with it.
- Its reports prove nothing: only right outputs pass, and it never sees those.
"""

import contextlib
import gc
import importlib
import os
import re
import select
import signal
import sys
import time
from functools import partial
from types import CodeType

from . import confine, frames, program
from .child import REPLIES, REQUESTS, Child, Processes, limited_memory, queued_s

TICK_S = 0.02
MAX_FILES = 10_000  # in the temporary folder: each takes kernel memory on top of its contents
_POLLRDHUP = 0x2000
# What programs import most. It is imported once, here, where it is trusted, and every fork shares it.
_WARM = {"bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools", "math"}
_WARM |= {"numpy", "operator", "random", "re", "statistics", "string", "typing"}
_IMPORTED = re.compile(r"^[ \t]*(?:from|import)[ \t]+(\w+)", re.MULTILINE)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open("/dev/null", os.O_RDWR)
    channel = os.dup(0)
    os.dup2(null, 0)
    os.dup2(null, 1)
    config, _ = frames.receive(channel)
    if config["isolated"]:
        if os.getpid() != 1:
            raise SystemExit("the harness is not process 1 of a namespace of its own")
        if config["uid"] is not None:
            confine.enter_user_namespace(config["uid"])
        confine.confine()
        confine.die_with_parent()
    else:
        confine.adopt_orphans()
    os.chdir(config["folder"])
    warm(config)
    frames.send(channel, {"ready": True})
    os.dup2(null, 2)
    os.close(null)
    with contextlib.suppress(EOFError, BrokenPipeError):
        Harness(channel, config).serve()


def warm(config: dict) -> None:
    sys.path[:] = [path for path in sys.path if path != config["harness_path"]] + config["packages"]
    for name in sorted(_WARM.intersection(_IMPORTED.findall(config["prelude"] + "\n" + config["source"]))):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # a collection in a child would otherwise write to, and so copy, every page of ours


class Events:
    """What moves while the harness waits: the channel to the outside, and the child's pipes and end."""

    def __init__(self, channel: int, child: Child | None, processes: Processes, asked: bool = False):
        """`asked`: a request from the outside is awaited; otherwise only the outside's end is noticed."""
        self.channel = channel
        self.child = child
        self.processes = processes
        self.asked = asked
        self.rest = memoryview(b"")  # what the child has not read yet
        self.close_after = False
        self.sinks = {sink.fd: sink for sink in child.sinks} if child else {}
        self.poll = select.poll()
        self.poll.register(channel, select.POLLIN if asked else _POLLRDHUP)
        if child is not None:
            self.poll.register(child.pidfd, select.POLLIN)
        for fd in self.sinks:
            self.poll.register(fd, select.POLLIN)

    def feed(self, text: bytes, then_close: bool) -> None:
        """Write this to the child as it reads."""
        assert self.child is not None
        self.rest = memoryview(text)
        self.close_after = then_close
        if text:
            self.poll.register(self.child.feed, select.POLLOUT)
        elif then_close:
            self.child.end_of_input()

    def serve(self, until: float | None) -> bool:
        """Wait for something to move, until a time if one is given, and read or write what there is.

        True when the outside asks. EOFError when the outside has gone.
        """
        wait_ms = None if until is None else max(0.0, until - time.monotonic()) * 1000 + 1
        child = self.child
        for fd, event in self.poll.poll(wait_ms):
            if fd == self.channel:
                if self.asked and event & select.POLLIN:
                    return True
                raise EOFError
            if fd in self.sinks:
                if not self.sinks[fd].read():
                    self.poll.unregister(fd)
            elif child is not None and fd == child.feed:
                self.write(child)
            elif child is not None and fd == child.pidfd:
                self.processes.reap(child)
        return False

    def write(self, child: Child) -> None:
        try:
            self.rest = self.rest[os.write(child.feed, self.rest) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it closed its stdin
            self.rest = self.rest[:0]
        if not self.rest:
            self.poll.unregister(child.feed)
            if self.close_after:
                child.end_of_input()


class Harness:
    def __init__(self, channel: int, config: dict):
        self.channel = channel
        self.config = config
        self.limits = config["limits"] | {"isolated": config["isolated"], "script": not config["entry_point"]}
        self.processes = Processes(config["isolated"])
        self.child: Child | None = None

    def serve(self) -> None:
        answer = partial(self.case, self.compiled()) if self.limits["script"] else self.call
        try:
            while True:
                self.idle()
                _, body = frames.receive(self.channel)
                start = time.monotonic()
                report, payload = answer(body)
                report |= {"seconds": time.monotonic() - start, "left_files": self.left_files()}
                frames.send(self.channel, report, payload)
        finally:
            self.processes.kill()

    def compiled(self) -> CodeType | str:
        """The code of the script, or why there is none. Compiling runs nothing of it; at worst it ends this sandbox."""
        try:
            with limited_memory(self.limits["memory_bytes"]):
                return program.compiled(self.config["source"])
        except Exception as e:
            return program.described(e)

    def case(self, code: CodeType | str, stdin: bytes) -> tuple[dict, bytes]:
        """Run the script once. The payload is its output."""
        if isinstance(code, str):
            return {"stderr": code} | _ending(1 << 8, code), b""
        child = self.child = Child(self.limits, True, partial(program.run_script, code, self.config["source"]))
        status, detail = self.watch(stdin)
        self.end_program()
        if child.out.overflowed:
            status = "output"
            detail = f"more than {self.limits['output_bytes'] >> 10} KiB of output"
        report = {"status": status, "detail": detail, "stderr": child.err.data.decode(errors="replace")}
        if status == "ended":
            assert child.ended is not None
            report |= _ending(child.ended, report["stderr"])
        return report, bytes(child.out.data)

    def call(self, arguments: bytes) -> tuple[dict, bytes]:
        """Call the function, in a program that is started first where none runs. The payload is its reply."""
        status = "loaded"
        detail = ""
        if self.child is None:
            c = self.config
            body = partial(program.serve_calls, REQUESTS, REPLIES, c["source"], c["prelude"], c["entry_point"])
            self.child = Child(self.limits, False, body)
            status, detail = self.watch()
            if status == "answered" and self.child.reply.data == program.LOADED:
                status = "loaded"
        child = self.child
        running = status == "loaded"
        if running:
            for sink in child.sinks:
                sink.clear()
            status, detail = self.watch(arguments + b"\n")
        if status == "answered":
            for sink in child.sinks:
                sink.read_what_is_there()
        if status != "answered" or not running:
            self.end_program()
        if status == "ended":
            assert child.ended is not None
            status = "died"
            detail = _ending(child.ended, "")["detail"] or "exit code 0"
        payload = bytes(child.reply.data) if status == "answered" else b""
        report = {"status": status, "detail": detail, "stderr": child.err.data.decode(errors="replace")}
        return report | {"stdout": child.out.data.decode(errors="replace")}, payload

    def end_program(self) -> None:
        """End every process but this one, and read what they have written."""
        child, self.child = self.child, None
        self.processes.kill()
        self.processes.reap(child, block=True)
        if child is not None:
            for sink in child.sinks:
                sink.read_what_is_there()
            child.close()

    def left_files(self) -> bool:
        try:
            return bool(os.listdir("."))
        except OSError:  # the program locked or removed it
            return True

    def idle(self) -> None:
        """Wait until the outside asks. A program that waits for its next call ends here if it breaks a limit."""
        child = self.child
        events = Events(self.channel, child, self.processes, asked=True)
        next_tick = time.monotonic() + TICK_S
        while not events.serve(None if child is None else next_tick):
            if child is None:
                continue
            broken = None
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + TICK_S
                self.processes.reap(child)
                broken = self.broken_limit()
            if broken or child.ended is not None:
                self.end_program()
                return self.idle()

    def watch(self, feed: bytes = b"") -> tuple[str, str]:
        """Wait until the child has answered or ended, or broken a limit.

        Returns a status and its detail: "answered", "ended", "time", "memory", "output", "error".
        """
        child = self.child
        assert child is not None
        events = Events(self.channel, child, self.processes)
        events.feed(feed, then_close=self.limits["script"])
        start = time.monotonic()
        deadline = start + self.limits["time_s"]
        next_tick = start + TICK_S
        cpu_before = self.processes.cpu_s()
        queued_before = queued_s(child.pid)
        while True:
            if time.monotonic() >= deadline:
                queued = queued_s(child.pid) - queued_before
                deadline = start + min(self.limits["time_s"] + queued, self.limits["wall_s"])
                if time.monotonic() >= deadline:
                    return "time", f"more than {self.limits['time_s']:g} s"
            events.serve(min(next_tick, deadline))
            if reached := self.reached(child):
                return reached
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + TICK_S
                self.processes.reap(child)
                if broken := self.broken_limit(cpu_before):
                    return broken

    def reached(self, child: Child) -> tuple[str, str] | None:
        """What the child has come to by itself, None while it runs."""
        if b"\n" in child.reply.data:
            return "answered", ""
        if child.answer.overflowed:
            return "output", f"more than {self.limits['output_bytes'] >> 10} KiB of output"
        return None if child.ended is None else ("ended", "")

    def broken_limit(self, cpu_before: float | None = None) -> tuple[str, str] | None:
        """The first limit that all processes together have broken; that of CPU time only when counted from before."""
        if self.processes.memory_bytes() > self.limits["memory_bytes"]:
            return "memory", f"more than {self.limits['memory_bytes'] >> 20} MiB in all processes together"
        if cpu_before is not None and self.processes.cpu_s() - cpu_before > self.limits["time_s"]:
            return "time", f"more than {self.limits['time_s']:g} s of CPU in all processes together"
        if not self.config["isolated"] and len(self.processes.pids()) > self.limits["processes"]:
            return "error", f"more than {self.limits['processes']} processes"
        space = os.statvfs(self.config["folder"])
        if self.config["isolated"] and space.f_files - space.f_ffree > MAX_FILES:
            return "error", f"more than {MAX_FILES} files"
        return None


def _ending(wait_status: int, stderr: str) -> dict:
    """The status, exit code and detail that a script's wait status stands for."""
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        name = next((s.name for s in signal.Signals if s == number), f"signal {number}")
        late = number == signal.SIGXCPU
        return {"status": "time" if late else "error", "exit_code": -number, "detail": f"killed by {name}"}
    code = os.WEXITSTATUS(wait_status)
    last = stderr.rstrip().rpartition("\n")[2]
    if code == 0:
        return {"status": "ok", "exit_code": 0, "detail": ""}
    if code == 1 and "MemoryError" in last.partition(":")[0]:
        return {"status": "memory", "exit_code": 1, "detail": "MemoryError"}
    return {"status": "error", "exit_code": code, "detail": last[:200] if code == 1 and last else f"exit code {code}"}
