"""A forked child of the harness, with pipes for what it reads and writes, and what all processes use together.

Runs inside the sandbox.
"""

import contextlib
import os
import resource
import signal
import sys

from . import confine

STDERR_BYTES = 4096  # the last ones are kept
FUNCTION_STDOUT_BYTES = 64 << 10  # what a function prints is nobody's answer
REQUESTS, REPLIES = 3, 4  # descriptors of a function's child, after its standard ones
_PARKED = 100  # above every descriptor that the harness holds
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class Sink:
    """The reading end of a pipe: the first or the last `limit` bytes of what is written to the other."""

    def __init__(self, limit: int, keep: str):
        self.limit = limit
        self.keep = keep
        self.data = bytearray()
        self.overflowed = False
        self.fd, self.writer = os.pipe()
        os.set_blocking(self.fd, False)

    def read(self) -> bool:
        """False at the end of the file."""
        piece = os.read(self.fd, 1 << 16)
        self.data += piece
        if len(self.data) > self.limit:
            self.overflowed = True
            if self.keep == "tail":
                del self.data[: -self.limit]
            else:
                del self.data[self.limit :]
        return bool(piece)

    def read_what_is_there(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.read():
                pass

    def clear(self) -> None:
        self.data.clear()
        self.overflowed = False


class Child:
    """A new process that runs `body()`. Its stdin (a script) or its requests (a function) come from `feed`."""

    def __init__(self, limits: dict, script: bool, body):
        self.out = Sink(limits["output_bytes"] if script else FUNCTION_STDOUT_BYTES, "head")
        self.err = Sink(STDERR_BYTES, "tail")
        self.reply = Sink(limits["output_bytes"], "head")  # of a function; a script has none
        self.sinks = (self.out, self.err, self.reply)
        self.answer = self.out if script else self.reply
        reader, self.feed = os.pipe()
        os.set_blocking(self.feed, False)
        self.ended: int | None = None  # its wait status
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.setsid()
                empty = os.open("/dev/null", os.O_RDONLY)
                ends = [reader if script else empty, self.out.writer, self.err.writer]
                if not script:
                    ends += [reader, self.reply.writer]
                _become_descriptors(ends)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                confine.limit_resources(limits)
                status = body()
            except BaseException as e:
                sys.__excepthook__(type(e), e, e.__traceback__)
            finally:
                os._exit(status)
        self.pidfd = os.pidfd_open(self.pid)
        os.close(reader)
        for sink in self.sinks:
            os.close(sink.writer)

    def end_of_input(self) -> None:
        if self.feed >= 0:
            os.close(self.feed)
            self.feed = -1

    def close(self) -> None:
        self.end_of_input()
        for fd in (self.pidfd, *(sink.fd for sink in self.sinks)):
            os.close(fd)


def _become_descriptors(ends: list[int]) -> None:
    """Make these descriptors 0, 1, ... of this process, and close all others."""
    parked = [os.dup2(fd, _PARKED + i) for i, fd in enumerate(ends)]
    os.closerange(0, _PARKED)
    for i, fd in enumerate(parked):
        os.dup2(fd, i, inheritable=i < 3)
    os.closerange(_PARKED, 4 * _PARKED)


class Processes:
    """All processes of the sandbox but the harness: those of the namespace, or, without one, our descendants."""

    def __init__(self, isolated: bool):
        self.isolated = isolated

    def pids(self) -> list[int]:
        if self.isolated:
            return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]
        found = []
        new = [os.getpid()]
        while new:
            parent = new.pop()
            with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{parent}/children") as file:
                children = [int(pid) for pid in file.read().split()]
                found += children
                new += children
        return found

    def cpu_s(self) -> float:
        """User and system time of those that live and of those that were waited for."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        ticks = 0
        for pid in self.pids():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
                ticks += sum(map(int, file.read().rpartition(b")")[2].split()[11:15]))
        return children.ru_utime + children.ru_stime + ticks / _CLOCK_TICKS

    def memory_bytes(self) -> int:
        """Private and shared pages; what several processes map is counted for each."""
        return sum(map(_memory_bytes, self.pids()))

    def kill(self) -> None:
        """End all of them, also those that left their parent and session. Returns when none is left."""
        if self.isolated:
            if os.getpid() != 1:
                raise RuntimeError("not process 1 of a namespace: kill(-1) would reach the host")
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        else:
            while pids := self.pids():  # orphans become our children, for we are a subreaper
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self.reap(None)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(-1, 0)

    def reap(self, child: Child | None, block: bool = False) -> None:
        """Wait for those that have ended (for all, if `block`), and note how `child` ended."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, 0 if block else os.WNOHANG)
                if pid == 0:
                    return
                if child is not None and pid == child.pid:
                    child.ended = status


def _memory_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for thread in (pid, *map(int, os.listdir(f"/proc/{pid}/task"))):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/status", "rb") as file:
                sizes = [int(line.split()[1]) for line in file if line.startswith((b"RssAnon:", b"RssShmem:"))]
                if sizes:  # a thread that has ended, though it be the first, says nothing of the memory of the others
                    return sum(sizes) << 10
    return 0


@contextlib.contextmanager
def limited_memory(limit_bytes: int):
    """Limit the address space while this process itself works on untrusted text."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def queued_s(pid: int) -> float:
    """How long a process that was ready to run has waited for a processor, which is not the program's fault."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[1]) / 1e9
    return 0.0
