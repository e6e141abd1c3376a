"""The feed turns blocks of the stream into steps: exactly the rows of the next step, in order, whenever they arrive.

    blocks --thread--> queue --> Feed.take(step) -> a table of that step's rows

It takes each row once, whoever sent it twice, and says which row of a finished call never came.

A stream that ends because something it stood on is lost (a stage that Ray cannot start again, a node with blocks) is
begun again with the step that is waited for. What is here of it and of later steps stays. After AGAIN such ends without
a whole step between them, the feed gives up.

The thread only moves blocks, and runs at most AHEAD_STEPS steps ahead; rows of later steps wait here. It ends with the
stream, after `close` with the block that it waits for, or as a daemon with the process.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trd_ray.failures import Kind, kind_of
from trd_ray.problems.corpus import open_corpus
from trd_ray.rows import ROW, upgrade
from trd_ray.stream.blocks import RowBlock

POLL_S = 0.25
AGAIN = 3
AHEAD_STEPS = 4  # a corpus would otherwise be read whole into memory
# Of a corpus that a person judges: y_r is the one that trains, and all candidates would be stored once more. What the
# learner of another run found at the tokens is not this one's.
_TRAINED = [name for name in ROW.names if name not in ("review_candidates", "scored")]


class StreamEnded(RuntimeError):
    """The stream has no more rows, or failed; the cause says why."""


class Feed:
    def __init__(
        self,
        blocks: Iterable[RowBlock],
        *,
        rows_per_step: int,
        stall_timeout_s: float,
        problems: pa.Table | None = None,
        start_step: int = 0,
        again: Callable[[int, BaseException], Iterable[RowBlock]] | None = None,
    ):
        """`problems` is the table that the rows' `problem_number` counts in; rows of a corpus bring their problems.

        `again` begins the stream again with a step, after what ended it; None: then nothing can.
        """
        self.rows_per_step = rows_per_step
        self.stall_timeout_s = stall_timeout_s
        self.problems = problems
        if problems is not None:
            self.problems = problems.select([name for name in problems.column_names if name in ROW.names])
        self.next_step = start_step
        self.again = again
        self.ends = 0  # of the stream, since the last whole step
        self.waiting: dict[int, dict[int, pa.Table]] = {}  # step -> row -> the block's table with it
        self.queue: queue.SimpleQueue = queue.SimpleQueue()
        self.room = threading.Semaphore(AHEAD_STEPS * rows_per_step)
        self.closed = False
        self._begin(blocks)

    def _begin(self, blocks: Iterable[RowBlock]) -> None:
        self.thread = threading.Thread(target=self._move, args=(blocks,), name="feed", daemon=True)
        self.thread.start()

    def _move(self, blocks: Iterable[RowBlock]) -> None:
        try:
            for block in blocks:
                for _ in range(block.rows.num_rows):
                    self.room.acquire()
                if self.closed:
                    return
                self.queue.put(block)
            self.queue.put(StreamEnded("the stream ended before the step was complete"))
        except BaseException as e:  # noqa: BLE001 - handed to the loop
            self.queue.put(e)

    def close(self) -> None:
        """Take no more blocks: a stream without a reader stops, and so does its stage."""
        self.closed = True
        self.room.release(AHEAD_STEPS * self.rows_per_step)

    def arrived(self, step: int) -> int:
        """How many rows of the step are here."""
        return len(self.waiting.get(step, ()))

    def take(self, step: int, while_waiting: Callable[[], object], rows: int | None = None) -> pa.Table:
        """The rows of `step`, a table of rows.ROW sorted by row; steps are taken one after another.

        `while_waiting` is called several times a second and may raise to give up.
        """
        expected = rows or self.rows_per_step
        last_row = looked = time.monotonic()
        while self.arrived(step) < expected:
            if time.monotonic() - looked > POLL_S:  # also while rows arrive one after another
                while_waiting()
                looked = time.monotonic()
            try:
                item = self.queue.get(timeout=POLL_S)
            except queue.Empty:
                if time.monotonic() - last_row > self.stall_timeout_s:
                    raise TimeoutError(
                        f"no row came out of the stream for {self.stall_timeout_s:.0f} s (stream.stall_timeout_s) "
                        f"while step {step + 1} waited for {expected - self.arrived(step)} of {expected} rows"
                    ) from None
                continue
            if isinstance(item, BaseException):
                if self.again and self.ends < AGAIN and kind_of(item) is Kind.LOST:
                    self.ends += 1
                    self._begin(self.again(step, item))
                    continue
                raise StreamEnded(str(item)) from item
            last_row = time.monotonic()
            self.room.release(item.rows.num_rows)
            self._arrive(item)
        self.next_step = step + 1
        self.ends = 0
        return self._together(self.waiting.pop(step))

    def _arrive(self, block: RowBlock) -> None:
        """Keep the block's rows, but for those that have come before."""
        numbers = block.rows["row"].to_pylist()
        steps = block.rows["step"].to_pylist()
        for i, (step, row) in enumerate(zip(steps, numbers, strict=True)):
            if step >= self.next_step:
                self.waiting.setdefault(step, {}).setdefault(row, block.rows.slice(i, 1))
        if block.last and (step := block.first // self.rows_per_step) >= self.next_step:
            here = self.waiting.get(step, {})
            if lost := [row for row in range(block.first, block.end) if row not in here]:
                raise StreamEnded(
                    f"{len(lost)} rows of step {step + 1} were lost on their way from the stage, first row {lost[0]}"
                )

    def _together(self, here: dict[int, pa.Table]) -> pa.Table:
        table = pa.concat_tables(here[row] for row in sorted(here)).combine_chunks()
        if self.problems is None:
            return table
        problems = self.problems.take(table["problem_number"])
        columns = {name: (problems if name in problems.column_names else table)[name] for name in ROW.names}
        return pa.Table.from_arrays(list(columns.values()), schema=ROW)


def corpus_blocks(folder: str | Path, *, rows_per_step: int, start_step: int, passes: int = 1) -> Iterator[RowBlock]:
    """A corpus as the stream would deliver it: rows in the order in which they were made, in steps of this run.

    Every pass has the same steps. Its rows are other rows of this run than those of the pass before, of a later epoch.
    """
    corpus = open_corpus(folder)
    of_a_pass = corpus.count_rows() // rows_per_step
    epochs = 0  # of a pass, where there is a second one
    for step in range(start_step, passes * of_a_pass):
        earlier, again = divmod(step, of_a_pass)
        row = pc.field("row")
        first = again * rows_per_step
        table = corpus.to_table(_TRAINED, (row >= first) & (row < first + rows_per_step))
        table = upgrade(table)  # what was left out is null
        made = {"step": np.full(len(table), step)}
        if earlier:
            epochs = epochs or 1 + max(corpus.to_table(["epoch"])["epoch"].to_pylist())
            made["row"] = table["row"].to_numpy() + earlier * of_a_pass * rows_per_step
            made["epoch"] = table["epoch"].to_numpy() + earlier * epochs
        for name, values in made.items():
            field = ROW.field(name)
            column = pa.array(values.astype(field.type.to_pandas_dtype()))
            table = table.set_column(table.column_names.index(name), field, column)
        yield RowBlock(table, step * rows_per_step, (step + 1) * rows_per_step, last=True)
