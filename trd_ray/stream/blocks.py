"""What leaves the stage of the graph: a few finished rows, packed so that Ray Data passes them on as they are.

    rows of a call  --finished--> pack() -> a table of one row, which Ray Data neither splits nor merges -> unpack()

A call of the stage makes the rows from `first` on, before `end`, which belong to one step. Its rows leave in the order
in which they finish. Every call packs the same number of blocks, however often it is made again (see flow.py).
"""

from dataclasses import dataclass

import pyarrow as pa

CALL = pa.schema([("step", pa.int32()), ("first", pa.int64()), ("end", pa.int64())])


@dataclass(frozen=True)
class RowBlock:
    """Rows that arrive together."""

    rows: pa.Table
    first: int  # of the call
    end: int  # not of the call any more
    last: bool  # the call has no more blocks


def pack(block: RowBlock) -> pa.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, block.rows.schema) as writer:
        writer.write_table(block.rows)
    buffer = sink.getvalue()
    offsets = pa.py_buffer(pa.array([0, buffer.size], pa.int64()).to_numpy())
    packed = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, buffer])
    return pa.table({"first": [block.first], "end": [block.end], "last": [block.last], "rows": packed})


def unpack(table: pa.Table) -> RowBlock:
    """The block again; its rows lie in the memory of `table`."""
    numbers = {name: table[name][0].as_py() for name in ("first", "end", "last")}
    with pa.ipc.open_stream(table["rows"][0].as_buffer()) as reader:
        return RowBlock(reader.read_all(), **numbers)


def calls(first: int, end: int, rows_per_step: int, rows_per_call: int) -> list[pa.Table]:
    """The calls that make the rows from `first` on, each a table of one row. No call spans two steps."""
    starts = [
        start
        for step_start in range(first, end, rows_per_step)
        for start in range(step_start, min(step_start + rows_per_step, end), rows_per_call)
    ]
    made = []
    for start in starts:
        step = start // rows_per_step
        last = min(start + rows_per_call, (step + 1) * rows_per_step, end)
        made.append(pa.table({"step": [step], "first": [start], "end": [last]}, schema=CALL))
    return made
