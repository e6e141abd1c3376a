"""A second place for what a run leaves, from which the same command goes on on a fresh machine.

    a checkpoint has its name  ->  committed(12)  ->  in the background: rows and metrics of steps 1 to 12, the small
                                                      files, the checkpoint's files, and last mirror.json, the list of
                                                      all that is there
    mirror.json, on a fresh machine  ->  Mirrored.restore()  ->  the run directory, whole or not at all

The rules:

- What mirror.json lists is complete. What it does not list does not count.
- The run never waits for its mirror but at its end. What cannot be copied is tried again until it can be, with pauses,
  and then the newest checkpoint is copied, not each one in between.
- A checkpoint that is being copied stays on the disk until it is.
- The mirror keeps the checkpoints that `checkpoint.keep_last` and `checkpoint.best` keep.

At the end of a run `close` waits until all is copied, or until nothing has moved for STUCK_S. After a crash the mirror
is as its last mirror.json says.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from trd_ray.config import Recipe
from trd_ray.errors import RunFailed
from trd_ray.record.beacon import Beacon
from trd_ray.record.claim import reading
from trd_ray.record.directory import RunDirectory
from trd_ray.record.elsewhere import Copy, Elsewhere, digest_of, short
from trd_ray.record.mirrored import AT_ONCE, SMALL_FILES, Manifest

STUCK_S = 120.0  # without a byte that moves, `close` gives up
PAUSES_S = (5.0, 15.0, 60.0)  # before what failed is tried again; the last one repeats
POLL_S = 0.2


class GivenUp(Exception):
    """`close` no longer waits for the copy under way."""


class Mirror:
    """The mirror of a run that is under way. A thread of its own copies; every method returns at once but `close`."""

    def __init__(
        self,
        directory: RunDirectory,
        place: Elsewhere,
        recipe: Recipe,
        beacon: Beacon | None = None,
        pauses_s: Sequence[float] = PAUSES_S,
    ):
        """`beacon` is lit already, and is put out by `close`."""
        self.directory = directory
        self.root = directory.path
        self.place = place
        self.keep = recipe.checkpoint
        self.beacon = beacon
        self.pauses_s = pauses_s
        self.copied: Manifest | None = None  # what is there; None until it has been read
        self.problem: str | None = None  # why it is behind
        self.moved_at = time.monotonic()  # when the last bytes went over
        self._steps = 0  # the newest that were committed
        self._asked = 0  # how often there was something to copy
        self._done = 0  # up to which of these all is copied
        self._small: dict[str, bytes] = {}  # digests of the small files that this start has copied
        self._news: list[str] = []
        self._lock = threading.Condition()
        self._closing = self._abandoned = False
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        directory.on_commit = self.committed
        self._thread.start()

    def committed(self, steps: int) -> None:
        """Rows, metrics and, where one is made, the checkpoint of `steps` steps are on the disk."""
        with self._lock:
            self._steps = steps
            self._asked += 1
            self._lock.notify_all()

    def news(self) -> list[str]:
        """What a person should know, each once: that it falls behind, and that it has caught up.

        Raises RunFailed if another start of the run has taken over.
        """
        if self.beacon and self.beacon.taken_by:
            raise RunFailed(
                f"the run goes on elsewhere: {self.beacon.taken_by} has taken over its mirror {self.place.url}, while "
                "this start could not reach it"
            )
        with self._lock:
            news, self._news = self._news, []
            return news

    def facts(self) -> dict[str, Any]:
        """Where it is, how many steps are in it, and why it is behind."""
        with self._lock:
            steps = self.copied.steps if self.copied else None
            return {"place": self.place.url, "steps": steps, "problem": self.problem}

    def close(self, while_waiting: Callable[[], object] = lambda: None) -> str | None:
        """Copy what has come since, and wait for it; returns what the mirror lacks, None if it lacks nothing.

        `while_waiting` may raise to give up. Nothing more is begun when this has returned.
        """
        with self._lock:
            self._closing = True
            self._asked += 1
            self._lock.notify_all()
        self.moved_at = time.monotonic()
        try:
            while self._thread.is_alive() and time.monotonic() - self.moved_at < STUCK_S:
                while_waiting()
                self._thread.join(POLL_S)
        finally:
            with self._lock:
                self._abandoned = True
                self._lock.notify_all()
        self._thread.join(POLL_S)
        if self.beacon:
            self.beacon.put_out()
        with self._lock:
            if self._done == self._asked:
                return None
            there = f"what came after step {self.copied.steps}" if self.copied else "what this start has made"
            why = self.problem or f"nothing moved for {STUCK_S:.0f} s"
            return (
                f"the mirror {self.place.url} lacks {there} ({why}): the same command copies it once that is put right"
            )

    def _work(self) -> None:
        failures = 0
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._done < self._asked or self._closing)
                if self._abandoned or self._done == self._asked:
                    return
                asked = self._asked
            try:
                self._copy()
            except GivenUp:
                return
            except Exception as e:
                pause_s = self.pauses_s[min(failures, len(self.pauses_s) - 1)]
                failures += 1
                self._failed(e)
                with self._lock:
                    self._lock.wait_for(lambda: self._abandoned, pause_s)
            else:
                failures = 0
                self._succeeded(asked)

    def _failed(self, e: Exception) -> None:
        with self._lock:
            if not self.problem:
                self._news.append(
                    f"mirror: {self.place.url} takes no copies ({short(e)}): the run goes on, and what is missing is "
                    "copied as soon as it does"
                )
            self.problem = short(e)

    def _succeeded(self, asked: int) -> None:
        with self._lock:
            self._done = asked
            if self._done < self._asked:
                return
            if self.problem and self.copied:
                self._news.append(f"mirror: {self.place.url} has caught up, and holds {self.copied.steps} steps")
            self.problem = None

    def _copy(self) -> None:
        """Bring all that is committed over, and then delete what is no longer kept."""
        if self.copied is None:
            listed = Manifest.read(self.place) or Manifest()
            copied = self._what_is_still_true(listed)
            if copied != listed:
                copied.write(self.place)  # first, since what differs is now written over
            self.copied = copied
        copied = self.copied
        with ExitStack() as stack:
            found = self._read_newest(stack)
            steps = found[-1][0] if found else self._steps
            rows = [f"rows/{file.name}" for number, file in self.directory.row_files() if number <= steps]
            self._put(copied, rows)
            self._put_small(steps)
            if found:
                self._put_checkpoint(copied, found[-1][1])
            self._moved(0)  # the last look at who else is there
            copied.steps = steps
            copied.write(self.place)
        self._put_older(copied, [folder for _, folder in found[:-1]])
        self._forget(copied, set(rows))

    def _read_newest(self, stack: ExitStack) -> list[tuple[int, Path]]:
        """All checkpoints; the newest of them is not deleted while the `stack` is open."""
        while found := self.directory.checkpoints():
            try:
                stack.enter_context(reading(found[-1][1]))
                return found
            except FileNotFoundError:  # newer ones have come meanwhile, and it was deleted
                continue
        return []

    def _put_older(self, copied: Manifest, folders: list[Path]) -> None:
        """Copy the checkpoints that stay beside the newest one, as the best one does."""
        names = tuple(folder.name for folder in folders)
        for folder in folders:
            missing = folder.name not in copied.checkpoints
            if missing and folder.name in copied.kept(self.keep.keep_last, self.keep.best, self.keep.best_is, names):
                try:
                    with reading(folder):
                        self._put_checkpoint(copied, folder)
                except FileNotFoundError:
                    if folder.exists():
                        raise
                    continue  # the run has deleted it meanwhile
                copied.write(self.place)

    def _put_checkpoint(self, copied: Manifest, folder: Path) -> None:
        if folder.name not in copied.checkpoints:
            metrics = json.loads((folder / "state.json").read_text())["metrics"]
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            self._put(copied, [str(file.relative_to(self.root)) for file in files])
            copied.checkpoints[folder.name] = metrics

    def _put_small(self, steps: int) -> None:
        for pattern in SMALL_FILES:
            for file in sorted(self.root.glob(pattern)):
                if file.is_file() and not file.name.startswith("."):
                    self._replace(str(file.relative_to(self.root)), file.read_bytes())
        lines = [line for line in self.directory.read_metrics() if line["step"] <= steps]
        self._replace("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())

    def _replace(self, name: str, content: bytes) -> None:
        if self._small.get(name) != (digest := hashlib.blake2b(content).digest()):
            self.place.replace(name, content)
            self._small[name] = digest
        self._moved(len(content))

    def _put(self, copied: Manifest, names: list[str]) -> None:
        """Copy those of the files that are not there yet, several at a time."""

        def put(name: str) -> tuple[str, Copy]:
            return name, self.place.put(self.root / name, name, self._moved)

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="mirror") as pool:
            for name, copy in pool.map(put, [name for name in names if name not in copied.files]):
                copied.files[name] = copy

    def _moved(self, _size: int) -> None:
        self.moved_at = time.monotonic()
        if self._abandoned or (self.beacon and self.beacon.taken_by):
            raise GivenUp

    def _forget(self, copied: Manifest, rows: set[str]) -> None:
        """Take from the list what is no longer kept, and then delete it."""
        kept = copied.kept(self.keep.keep_last, self.keep.best, self.keep.best_is)
        copied.checkpoints = {name: metrics for name, metrics in copied.checkpoints.items() if name in kept}
        before = len(copied.files)
        listed = {name: name.split("/")[1] for name in copied.files}
        copied.files = {name: copy for name, copy in copied.files.items() if name in rows or listed[name] in kept}
        if len(copied.files) < before:
            copied.write(self.place)
        for checkpoint in {name.split("/")[0] for name in self.place.listing("checkpoints")} - kept:
            self.place.delete_folder(f"checkpoints/{checkpoint}")

    def _what_is_still_true(self, found: Manifest) -> Manifest:
        """What of a list holds for the run that is here: another machine may have gone on differently.

        A row file counts if it is the same here, a checkpoint if it is here the same or all rows before it are.
        """
        rows = [name for name in found.files if name.startswith("rows/")]
        same = {name for name in rows if self._is_here(name, found.files[name])}
        checkpoints = {}
        for name, metrics in found.checkpoints.items():
            sums = f"checkpoints/{name}/checksums.json"
            if (self.root / sums).is_file():
                holds = sums in found.files and self._is_here(sums, found.files[sums])
            else:
                holds = all(row in same for row in rows if _number(row) <= _number(name))
            if holds:
                checkpoints[name] = metrics
        files = {name: found.files[name] for name in same}
        for name in checkpoints:
            files |= found.of(name)
        steps = min([found.steps, *(_number(row) - 1 for row in rows if row not in same)])
        return Manifest(steps, checkpoints, files)

    def _is_here(self, name: str, copy: Copy) -> bool:
        file = self.root / name
        self._moved(0)
        return file.is_file() and file.stat().st_size == copy.size and digest_of(file) == copy


def _number(name: str) -> int:
    """The steps in "checkpoints/step-000012" or "rows/step-000012.parquet"."""
    return int(Path(name).stem.removeprefix("step-"))
