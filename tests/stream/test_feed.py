"""Steps come out of the feed complete and in order, whatever the stream does; a corpus is fed as a stream would be."""

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.exceptions import ActorDiedError

from trd_ray.errors import RunFailed, UserError
from trd_ray.failures import Failure
from trd_ray.rows import IN_STREAM, PROBLEM, ROW, to_table
from trd_ray.stream.blocks import RowBlock, calls, pack, unpack
from trd_ray.stream.feed import AGAIN, AHEAD_STEPS, Feed, StreamEnded, corpus_blocks, open_corpus


def row(number: int, rows_per_step: int = 4) -> dict:
    text = {name: f"{name} {number}" for name in ("problem_id", "problem", "answer", "reference")}
    return {**text, "row": number, "step": number // rows_per_step, "epoch": 0, "sample_index": 0, "seed": number}


def table(*numbers: int, rows_per_step: int = 4) -> pa.Table:
    return to_table([row(n, rows_per_step) for n in numbers])


def block(*numbers: int, last: bool = False) -> RowBlock:
    """Rows of the call that makes the whole step of the first of them."""
    first = numbers[0] - numbers[0] % 4
    return RowBlock(table(*numbers), first, first + 4, last)


def feed(blocks, stall_timeout_s: float = 60) -> Feed:
    return Feed(blocks, rows_per_step=4, stall_timeout_s=stall_timeout_s)


def numbers(rows: pa.Table) -> list[int]:
    return rows["row"].to_pylist()


def nothing() -> None:
    pass


@pytest.mark.parametrize(
    "order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], *(random.Random(i).sample(range(6), 6) for i in range(3))]
)
def test_steps_come_complete_and_sorted_whatever_order_blocks_arrive_in(order):
    arriving = [block(2 * half + 1, 2 * half) for half in order]
    source = feed(arriving)
    for step in range(3):
        taken = source.take(step, nothing)
        assert taken.equals(table(*range(4 * step, 4 * step + 4)), check_metadata=True)
    assert not source.waiting


def test_rows_of_later_steps_wait_until_their_step_is_taken():
    gate = threading.Event()

    def stream() -> Iterator[RowBlock]:
        yield block(4, 5)
        yield block(0, 1, 2, 3)
        gate.wait(10)
        yield block(6, 7)

    source = feed(stream())
    assert numbers(source.take(0, nothing)) == [0, 1, 2, 3]
    assert (source.arrived(1), source.arrived(2)) == (2, 0)
    gate.set()
    assert numbers(source.take(1, nothing)) == [4, 5, 6, 7]


def test_the_only_step_of_a_short_run_is_complete_with_fewer_rows():
    assert numbers(feed([block(0, 2), block(1)]).take(0, nothing, rows=3)) == [0, 1, 2]


def test_an_exception_in_the_stream_reaches_the_one_who_takes():
    def stream() -> Iterator[RowBlock]:
        yield block(0, 1, 2, 3)
        raise ZeroDivisionError("a stage failed")

    source = feed(stream())
    assert numbers(source.take(0, nothing)) == [0, 1, 2, 3]
    with pytest.raises(StreamEnded, match="a stage failed") as failed:
        source.take(1, nothing)
    assert isinstance(failed.value.__cause__, ZeroDivisionError)


class Streams:
    """Streams that end with an error after so many blocks, each begun with the step that is told."""

    def __init__(self, error: Exception, *made: list[RowBlock]):
        self.error, self.made, self.begun = error, list(made), []

    def begin(self, step: int = 0, why: BaseException | None = None) -> Iterator[RowBlock]:
        self.begun.append((step, why))
        yield from self.made.pop(0)
        raise self.error


LOST = ActorDiedError()


def test_a_stream_whose_stage_is_lost_begins_again_with_the_step_that_is_waited_for_and_no_row_comes_twice():
    first, second = [block(0, 1), block(4), block(2, 3), block(5)], [block(6, 5), block(4, 7, last=True)]
    streams = Streams(LOST, first, second, [block(8, 9)], [block(10)], [block(11)])
    source = Feed(streams.begin(), rows_per_step=4, stall_timeout_s=60, again=streams.begin)
    assert [numbers(source.take(step, nothing)) for step in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert numbers(source.take(2, nothing)) == [8, 9, 10, 11]
    assert streams.begun == [(0, None), (1, LOST), (2, LOST), (2, LOST), (2, LOST)] and not source.waiting


def test_a_stream_that_is_lost_again_and_again_without_a_step_in_between_ends():
    streams = Streams(LOST, *[[block(0)]] * (AGAIN + 1))
    source = Feed(streams.begin(), rows_per_step=4, stall_timeout_s=60, again=streams.begin)
    with pytest.raises(StreamEnded) as failed:
        source.take(0, nothing)
    assert failed.value.__cause__ is LOST and len(streams.begun) == AGAIN + 1


@pytest.mark.parametrize("error", [Failure("bug", "KeyError: 'y_o'"), RunFailed("engine p-0 died twice"), KeyError(1)])
def test_a_stream_that_ends_for_another_reason_is_not_begun_again(error):
    streams = Streams(error, [block(0)], [block(1, 2, 3)])
    source = Feed(streams.begin(), rows_per_step=4, stall_timeout_s=60, again=streams.begin)
    with pytest.raises(StreamEnded):
        source.take(0, nothing)
    assert len(streams.begun) == 1


def test_a_stream_that_ends_within_a_step_says_so():
    with pytest.raises(StreamEnded, match="ended before the step was complete"):
        feed([block(0, 1, 2)]).take(0, nothing)


@pytest.fixture
def stalled() -> Iterator[Iterator[RowBlock]]:
    """A stream that gives three rows of step 2 and then nothing."""
    over = threading.Event()

    def stream() -> Iterator[RowBlock]:
        yield block(8, 9, 11)
        over.wait(30)

    yield stream()
    over.set()


def test_a_stalled_stream_ends_at_the_deadline_and_says_what_was_waited_for(stalled):
    with pytest.raises(TimeoutError, match=r"stream\.stall_timeout_s.* step 3 waited for 1 of 4 rows"):
        feed(stalled, stall_timeout_s=0.1).take(2, nothing)


def test_one_who_waits_is_asked_several_times_a_second_and_may_give_up(stalled):
    asked = []

    def give_up() -> None:
        asked.append(time.monotonic())
        if len(asked) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        feed(stalled).take(2, give_up)
    assert asked[2] - asked[0] < 2


def test_one_who_waits_may_give_up_also_while_rows_arrive_one_after_another():
    def stream() -> Iterator[RowBlock]:
        for number in range(60):
            time.sleep(0.05)
            yield RowBlock(table(number, rows_per_step=60), 0, 60, False)

    source = Feed(stream(), rows_per_step=60, stall_timeout_s=60)

    def give_up() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source.take(0, give_up)
    assert 0 < source.arrived(0) < 30
    source.close()


def test_no_more_than_a_few_steps_are_read_before_they_are_wanted():
    read = []

    def stream() -> Iterator[RowBlock]:
        for step in range(50):
            read.append(step)
            yield block(*range(4 * step, 4 * step + 4))

    source = feed(stream())
    for step in range(50):
        assert numbers(source.take(step, nothing)) == list(range(4 * step, 4 * step + 4))
        if step == 0:
            time.sleep(0.2)  # in which everything could be read
        assert max(read) <= step + AHEAD_STEPS + 1


def test_a_row_that_comes_twice_is_taken_once_also_when_its_step_is_over():
    source = feed([block(0, 1), block(1, 0, 2, 3, last=True), block(0, 1, 2, 3, last=True), block(4, 5, 6, 7)])
    assert numbers(source.take(0, nothing)) == [0, 1, 2, 3]
    assert numbers(source.take(1, nothing)) == [4, 5, 6, 7]
    assert not source.waiting


def test_a_row_that_a_finished_call_did_not_bring_is_missed_at_once():
    source = feed([block(0, 1), block(3, last=True), block(4, 5, 6, 7)])
    with pytest.raises(StreamEnded, match="1 rows of step 1 were lost .* first row 2"):
        source.take(0, nothing)


def test_rows_get_the_texts_of_their_problems_when_their_step_is_taken():
    names = [field.name for field in PROBLEM if field.name in ROW.names]
    problems = pa.table({name: [f"{name} {n}" for n in range(5)] for name in names})
    made = [row(n) | {"problem_number": 4 - n} for n in (2, 0, 1, 3)]
    source = Feed(
        [RowBlock(to_table(made, IN_STREAM), 0, 4, True)], rows_per_step=4, stall_timeout_s=60, problems=problems
    )
    taken = source.take(0, nothing)
    assert taken.schema.equals(ROW, check_metadata=True) and numbers(taken) == [0, 1, 2, 3]
    assert taken.select(names).to_pylist() == problems.take([4, 3, 2, 1]).select(names).to_pylist()


# Blocks


@pytest.mark.parametrize(
    ("first", "rows_per_call", "expected"),
    [
        (0, 8, [(0, 0, 8), (1, 8, 16), (2, 16, 20)]),
        (8, 3, [(1, 8, 11), (1, 11, 14), (1, 14, 16), (2, 16, 19), (2, 19, 20)]),
        (20, 8, []),
    ],
)
def test_calls_make_every_row_once_and_none_spans_two_steps(first, rows_per_call, expected):
    made = [call.to_pylist()[0] for call in calls(first, 20, rows_per_step=8, rows_per_call=rows_per_call)]
    assert [tuple(call.values()) for call in made] == expected


@pytest.mark.parametrize("numbers", [(3, 1, 2), ()])
def test_a_block_is_one_row_on_its_way_and_comes_out_as_it_was(numbers):
    rows = [row(n) | {"problem_number": n, "student_prompt_ids": [1] * n} for n in numbers]
    sent = RowBlock(to_table(rows, IN_STREAM), 0, 4, last=True)
    packed = pack(sent)
    assert packed.num_rows == 1
    assert unpack(packed) == sent and unpack(packed).rows.schema.equals(IN_STREAM, check_metadata=True)


# Corpora


@pytest.fixture
def corpus(tmp_path) -> Path:
    """22 rows made in steps of 6, as jobs/refine.py leaves them."""
    (tmp_path / "rows").mkdir()
    for step in range(4):
        part = table(*range(6 * step, min(6 * step + 6, 22)), rows_per_step=6)
        pq.write_table(part, tmp_path / "rows" / f"step-{step:06d}.parquet")
    return tmp_path


@pytest.mark.parametrize("start_step", [0, 2, 5])
def test_a_corpus_is_numbered_into_the_steps_of_the_run_and_resumes_at_a_step(corpus, start_step):
    fed = list(corpus_blocks(corpus, rows_per_step=4, start_step=start_step))
    assert [b.rows["step"].to_pylist() for b in fed] == [[step] * 4 for step in range(start_step, 5)]
    source = feed(corpus_blocks(corpus, rows_per_step=4, start_step=start_step))
    for step in range(start_step, 5):
        taken = source.take(step, nothing)
        assert numbers(taken) == list(range(4 * step, 4 * step + 4))
        assert taken["problem_id"].to_pylist() == [f"problem_id {n}" for n in numbers(taken)]
    with pytest.raises(StreamEnded):  # two rows are left, which make no step
        source.take(5, nothing)


@pytest.mark.parametrize("start_step", [0, 7])
def test_in_a_later_pass_the_rows_of_a_corpus_are_other_rows_of_the_run_of_a_later_epoch(corpus, start_step):
    source = feed(corpus_blocks(corpus, rows_per_step=4, start_step=start_step, passes=3))
    for step in range(start_step, 15):
        taken = source.take(step, nothing)
        assert numbers(taken) == list(range(4 * step, 4 * step + 4)), "each row of a run has a number of its own"
        assert taken["step"].to_pylist() == [step] * 4 and taken["epoch"].to_pylist() == [step // 5] * 4
        again = step % 5
        assert taken["problem_id"].to_pylist() == [f"problem_id {n}" for n in range(4 * again, 4 * again + 4)]
    with pytest.raises(StreamEnded):
        source.take(15, nothing)


@pytest.mark.parametrize("version", [2, 3])
def test_a_corpus_of_an_older_version_feeds_the_same_rows(corpus, version):
    new = [b.rows for b in corpus_blocks(corpus, rows_per_step=4, start_step=0)]
    for part in sorted(corpus.glob("rows/*"))[:2]:  # and what came later is of this version
        made = [r | {"y_o_ids": [1, 2], "y_o_passed": True} for r in pq.read_table(part).to_pylist()]
        for r in made:
            del r["y_o"], r["y_r"]
        pq.write_table(pa.Table.from_pylist(made).replace_schema_metadata({"trd_ray.rows": str(version)}), part)
    old = [b.rows for b in corpus_blocks(corpus, rows_per_step=4, start_step=0)]
    assert [t.drop_columns("y_o") for t in old] == [t.drop_columns("y_o") for t in new]
    y_o = [y_o for t in old for y_o in t["y_o"].to_pylist()]
    assert all(y["ids"] == [1, 2] and y["passed"] and y["text"] is None for y in y_o[:12]) and y_o[12:] == [None] * 8


def _no_folder(folder: Path) -> Path:
    return folder / "absent"


def _no_rows(folder: Path) -> Path:
    for part in folder.glob("rows/*"):
        part.unlink()
    return folder


def _truncated(folder: Path) -> Path:
    part = folder / "rows/step-000001.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    return folder


def _foreign(folder: Path) -> Path:
    for part in folder.glob("rows/*"):
        pq.write_table(pa.table({"text": ["a"]}), part)
    return folder


def _lost(folder: Path) -> Path:
    (folder / "rows/step-000001.parquet").unlink()
    return folder


def _twice(folder: Path) -> Path:
    pq.write_table(table(3, rows_per_step=6), folder / "rows/step-000009.parquet")
    return folder


def _of_a_later_version(folder: Path) -> Path:
    part = folder / "rows/step-000002.parquet"
    pq.write_table(pq.read_table(part).replace_schema_metadata({"trd_ray.rows": "99"}), part)
    return folder


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_no_folder, r"absent holds no corpus .*jobs/refine\.py"),
        (_no_rows, r"holds no corpus"),
        (_truncated, r"cannot be read .*step-000001\.parquet"),
        (_foreign, r"cannot be read .*row"),
        (_lost, r"row number 6 in order has number 12"),
        (_twice, r"row number 4 in order has number 3"),
        (_of_a_later_version, r"step-000002\.parquet: these rows are of version 99"),
    ],
)
def test_a_corpus_that_is_not_whole_is_refused_before_anything_starts(corpus, harm, says):
    with pytest.raises(UserError, match=says):
        open_corpus(harm(corpus))
