"""A running sandbox as the outside sees it: a socket to its harness, and a sure way to end all of it.

Every wait has a deadline and nothing blocks. What comes through the socket is untrusted, so its length is checked
before it is read.

When this process crashes, the kernel closes the socket. That ends the harness, which is process 1, and with it every
process of the namespace. Threads do not matter for this: any thread may start, use and close a sandbox.
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import time
from dataclasses import dataclass

from trd_ray.sandbox.inside import frames
from trd_ray.sandbox.interpreter import HARNESS, PACKAGES

START_TIMEOUT_S = 30.0  # on a busy machine; measured on an idle one: 0.04
END_TIMEOUT_S = 10.0  # for the kernel to end all processes of a namespace
ENDING_S = 2.0  # for the tool that started the harness to end after it
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)  # bubblewrap ends as the harness did
_MAX_HEADER_BYTES = 1 << 20
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


@dataclass(frozen=True)
class Launch:
    """How one sandbox is started."""

    command: list[str]
    environment: dict[str, str]
    isolated: bool = True
    uid: int | None = None  # the user that the harness turns into, None to remain what it is
    user: int | None = None  # the user that the command runs as, None for ours
    base: str = ""  # the folder of the host that stands for "/" where there is no isolation; removed in the end


class Broken(Exception):
    """The harness is gone, or what it said makes no sense."""


class Process:
    """A sandbox that is started, confined and ready. Raises RuntimeError, with what the tools said, where it fails."""

    def __init__(self, launch: Launch, config: dict):
        self._launch = launch
        self._pidfd = -1
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            with theirs:
                self._popen = subprocess.Popen(
                    launch.command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env=launch.environment,
                    cwd="/",
                    umask=0o022,  # the folders that the tools make are for another user to enter
                    start_new_session=True,  # Ctrl-C is not for the sandbox, and what it signals is not for us
                    user=launch.user,
                    group=launch.user,
                    extra_groups=None if launch.user is None else [],
                )
        except BaseException:
            self._socket.close()
            self._remove_folder()
            raise
        try:
            config = config | {"isolated": launch.isolated, "uid": launch.uid, "folder": launch.base + "/tmp"}
            config |= {"harness_path": launch.base + HARNESS, "packages": [launch.base + PACKAGES]}
            self.ask(config, b"", START_TIMEOUT_S, 0)
            self._pidfd = os.pidfd_open(self._harness_pid)
        except (Broken, TimeoutError, OSError) as e:
            why = self._complaint() or f"no answer in {START_TIMEOUT_S:g} s"
            self.close()
            raise RuntimeError(why) from e
        except BaseException:
            self.close()
            raise

    def ask(self, header: dict, body: bytes, timeout_s: float, max_body_bytes: int) -> tuple[dict, bytes]:
        """Send one message and receive one. Raises TimeoutError or Broken; the sandbox is of no more use then."""
        deadline = time.monotonic() + timeout_s
        self._send(memoryview(frames.packed(header, body)), deadline)
        header_bytes, body_bytes = frames.LENGTHS.unpack(self._receive(frames.LENGTHS.size, deadline))
        if header_bytes > _MAX_HEADER_BYTES or body_bytes > max_body_bytes:
            raise Broken("an answer that is too long")
        text = self._receive(header_bytes, deadline)
        answer = self._receive(body_bytes, deadline)
        try:
            report = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise Broken("an answer that is not JSON") from e
        if not isinstance(report, dict):
            raise Broken("an answer that is no report")
        return report, bytes(answer)

    def was_killed(self) -> bool:
        """Of a sandbox that is Broken: whether somebody outside killed it, as the system does when memory runs out.

        The harness is process 1 of its namespace, which no signal from inside reaches. Without isolation a program may
        have done it.
        """
        try:
            ended_as = self._popen.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            return False
        # The harness itself complains of nothing once it is ready. `unshare` cannot end by SIGKILL, and says so.
        return self._launch.isolated and (ended_as in _KILLED or bool(self._complaint()))

    def close(self) -> None:
        """End the sandbox. Returns when no process of it is left."""
        if self._launch.isolated and self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # also where a fork of ours holds another copy of it
        self._socket.close()
        if self._pidfd >= 0:  # readable when process 1 has ended, which the kernel lets happen last
            _wait_for(self._pidfd, select.POLLIN, time.monotonic() + END_TIMEOUT_S)
            os.close(self._pidfd)
            self._pidfd = -1
        try:
            self._popen.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        assert self._popen.stderr
        self._popen.stderr.close()
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._launch.base:
            # Not shutil.rmtree(), which recurses: a program can nest folders deeper than Python's stack.
            subprocess.run(["rm", "-rf", self._launch.base], stderr=subprocess.DEVNULL)

    def _complaint(self) -> str:
        """The last line of what the tools, or the harness, wrote on stderr."""
        assert self._popen.stderr
        pipe = self._popen.stderr.fileno()
        os.set_blocking(pipe, False)
        _wait_for(pipe, select.POLLIN, time.monotonic() + 1)
        try:
            said = os.read(pipe, 1 << 16).decode(errors="replace").strip()
        except BlockingIOError:
            return ""
        return said.rpartition("\n")[2][:500]

    def _send(self, rest: memoryview, deadline: float) -> None:
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                if not _wait_for(self._socket.fileno(), select.POLLOUT, deadline):
                    raise TimeoutError from None
            except OSError as e:
                raise Broken("the sandbox has ended") from e

    def _receive(self, count: int, deadline: float) -> bytearray:
        data = bytearray()
        while len(data) < count:
            if not _wait_for(self._socket.fileno(), select.POLLIN, deadline):
                raise TimeoutError
            try:
                piece, about, _, _ = self._socket.recvmsg(min(count - len(data), 1 << 16), socket.CMSG_SPACE(12))
            except OSError as e:
                raise Broken("the sandbox has ended") from e
            if not piece:
                raise Broken("the sandbox has ended")
            data += piece
            if self._pidfd < 0:  # the kernel says who wrote this, by the number it has in our namespace
                self._harness_pid = next(
                    _CREDENTIALS.unpack(c[:12])[0] for _, kind, c in about if kind == socket.SCM_CREDENTIALS
                )
        return data


def _wait_for(fd: int, event: int, deadline: float) -> bool:
    """Whether the descriptor is ready by the deadline."""
    poll = select.poll()  # not select(): it refuses descriptors above 1023, which a Ray worker can have
    poll.register(fd, event)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
