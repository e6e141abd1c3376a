"""The responses of a corpus on a reviewer's desk: which comes next, and what was said of each.

    RUN/review/queue.jsonl, verdicts.jsonl  ->  Desk.next()  ->  Queued
    PersonsVerdict                          ->  Desk.give()  ->  a line of verdicts.jsonl, on the disk at once

The files are read again when they have changed: `trd refine` may still add to the queue, and other programs may append
verdicts. One desk is open at a time, by a file lock that the kernel drops when its process ends.
"""

import fcntl
import getpass
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trd_ray.errors import UserError
from trd_ray.verify.review.given_verdicts import GivenVerdicts, PersonsVerdict, append_given, read_given
from trd_ray.verify.review.review_queue import FOLDER, Queued, given_place, queue_place, read_queue, still_wanted


class Desk:
    def __init__(self, run: Path, reviewer: str):
        """Raises UserError where the files cannot be read."""
        self.run = run
        self.reviewer = reviewer
        self._queue: dict[str, Queued] = {}
        self._given = GivenVerdicts()
        self._read: tuple[object, object] = (None, None)  # what the files were when they were read
        self._skipped: set[str] = set()
        self._done: list[str] = []  # keys, in the order in which they were judged here
        self.look()

    @property
    def complaint(self) -> str:
        return self._given.complaint(given_place(self.run))

    def look(self) -> None:
        """Read what has changed."""
        found = (_state(queue_place(self.run)), _state(given_place(self.run)))
        if found == self._read:
            return
        try:
            self._queue, self._given = read_queue(self.run), read_given(given_place(self.run))
        except OSError as e:
            raise UserError(f"{e.filename} cannot be read ({e.strerror}): put it right, or move it away") from e
        self._read = found

    @property
    def left(self) -> list[Queued]:
        """What nobody has judged, and what is still to be judged, those last that were skipped here."""
        wanted = [
            one for one in self._queue.values() if not self._is_judged(one.key) and still_wanted(one, self._has_passed)
        ]
        return sorted(wanted, key=lambda one: one.key in self._skipped)

    def next(self) -> Queued | None:
        """None where everything is judged, or was skipped here."""
        self.look()
        return next((one for one in self.left if one.key not in self._skipped), None)

    def give(self, one: Queued, passed: bool | None, score: float | None = None, feedback: str = "") -> None:
        """Raises UserError where it cannot be kept."""
        self._append(one.key, PersonsVerdict(passed, score, feedback, self.reviewer))
        self._done.append(one.key)

    def skip(self, one: Queued) -> None:
        self._skipped.add(one.key)

    def take_back(self) -> Queued | None:
        """Take back what was said last here, and return what it was about, None if nothing was said here."""
        if not self._done:
            return None
        key = self._done.pop()
        self._append(key, PersonsVerdict(reviewer=self.reviewer))
        self._skipped.discard(key)
        return self._queue.get(key)

    def _append(self, key: str, said: PersonsVerdict) -> None:
        place = given_place(self.run)
        try:
            append_given(place, key, said, at=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        except OSError as e:
            raise UserError(f"the verdict could not be kept in {place} ({e.strerror}): make room there") from e
        self.look()

    def _is_judged(self, key: str) -> bool:
        return key in self._given.by_key and not self._given.by_key[key].withdrawn

    def _has_passed(self, key: str) -> bool:
        said = self._given.by_key.get(key)
        if said is None or said.withdrawn:
            return False
        if said.passed is not None or said.score is None:
            return bool(said.passed)
        return key in self._queue and said.score >= self._queue[key].pass_at


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Nobody else has the run's responses on a desk in the block; raises UserError where somebody has."""
    place = run / FOLDER / ".lock"
    try:
        lock = os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as e:
        raise UserError(f"{place.parent} cannot be written to ({e.strerror}): give write permission there") from e
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = os.read(lock, 200).decode(errors="replace") or "somebody else"
            raise UserError(
                f"{run} is under review by {holder}: wait until that has ended, or append verdicts to "
                f"{given_place(run)}, which is safe meanwhile"
            ) from e
        except OSError:
            pass  # a file system without locks; verdicts are appended line by line all the same
        os.ftruncate(lock, 0)
        os.write(lock, f"{name_of_user()} (process {os.getpid()} on {socket.gethostname()})".encode())
        yield
    finally:
        os.close(lock)


def name_of_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return "reviewer"


def _state(place: Path) -> object:
    try:
        found = place.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
