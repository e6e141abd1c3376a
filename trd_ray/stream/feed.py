"""The feed turns blocks of the stream into steps: exactly the rows of the next step, in order, whenever they arrive.

    dataset --thread--> queue --> Feed.take(step) -> rows of that step

The thread only moves blocks, and runs at most AHEAD_STEPS steps ahead; rows of later steps wait here. It ends with the
dataset, after `close` with the block that it waits for, or as a daemon with the process.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from trd_ray.problems.corpus import open_corpus
from trd_ray.rows import to_table

POLL_S = 0.25
AHEAD_STEPS = 4  # a corpus would otherwise be read whole into memory


class StreamEnded(RuntimeError):
    """The stream has no more rows, or failed; the cause says why."""


class Feed:
    def __init__(self, tables: Iterable[pa.Table], *, rows_per_step: int, stall_timeout_s: float):
        self.rows_per_step = rows_per_step
        self.stall_timeout_s = stall_timeout_s
        self.waiting: dict[int, list[dict]] = {}
        self.queue: queue.SimpleQueue = queue.SimpleQueue()
        self.room = threading.Semaphore(AHEAD_STEPS * rows_per_step)
        self.closed = False
        self.thread = threading.Thread(target=self._move, args=(tables,), name="feed", daemon=True)
        self.thread.start()

    def _move(self, tables: Iterable[pa.Table]) -> None:
        try:
            for table in tables:
                for _ in range(table.num_rows):
                    self.room.acquire()
                if self.closed:
                    return
                self.queue.put(table)
            self.queue.put(StreamEnded("the stream ended before the step was complete"))
        except BaseException as e:  # noqa: BLE001 - handed to the loop
            self.queue.put(e)

    def close(self) -> None:
        """Take no more blocks: a stream without a reader stops, and so do its stages."""
        self.closed = True
        self.room.release(AHEAD_STEPS * self.rows_per_step)

    def arrived(self, step: int) -> int:
        """How many rows of the step are here."""
        return len(self.waiting.get(step, ()))

    def take(self, step: int, while_waiting: Callable[[], object], rows: int | None = None) -> pa.Table:
        """The rows of `step`, sorted; `while_waiting` is called several times a second and may raise to give up."""
        expected = rows or self.rows_per_step
        last_row = time.monotonic()
        while len(self.waiting.get(step, ())) < expected:
            try:
                item = self.queue.get(timeout=POLL_S)
            except queue.Empty:
                while_waiting()
                if time.monotonic() - last_row > self.stall_timeout_s:
                    raise TimeoutError(
                        f"no row came out of the stream for {self.stall_timeout_s:.0f} s (stream.stall_timeout_s) "
                        f"while step {step + 1} waited for {expected - len(self.waiting.get(step, ()))} of {expected} "
                        "rows"
                    ) from None
                continue
            if isinstance(item, BaseException):
                raise StreamEnded(str(item)) from item
            last_row = time.monotonic()
            self.room.release(item.num_rows)
            for row in item.to_pylist():
                self.waiting.setdefault(row["step"], []).append(row)
        return to_table(sorted(self.waiting.pop(step), key=lambda row: row["row"]))


def corpus_tables(folder: str | Path, *, rows_per_step: int, start_step: int) -> Iterator[pa.Table]:
    """A corpus as the stream would deliver it: rows in the order in which they were made, in steps of this run."""
    corpus = open_corpus(folder)
    for step in range(start_step, corpus.count_rows() // rows_per_step):
        row = pc.field("row")
        first = step * rows_per_step
        table = corpus.to_table(where=(row >= first) & (row < first + rows_per_step))
        yield table.set_column(table.column_names.index("step"), "step", pa.array([step] * len(table), pa.int32()))
