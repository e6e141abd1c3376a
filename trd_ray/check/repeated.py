"""The same texts asked about again: a verdict may depend on its text and its row alone, and takes how long?

    verify, replies        ->  in_another_order()     ->  Repetition: which verdicts differ
    make, rows, replies    ->  in_another_process()   ->  the same, by a verifier that a new process makes for itself
    seconds of all calls   ->  VerdictPace                   ->  p50, p95, longest, verdicts a second

The process gets the rows pickled by this one, and answers in JSON. It is ended when it has not answered in time.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe

import numpy as np

from trd_ray.preflight.known_texts import KnownText, Reply, Row, Verify, asked

Make = Callable[[], Verify]  # pickled by its name: a function of a module, or a functools.partial of one
SAME_SCORE = 1e-9
END_S = 5.0  # for the other process to end what its verifier has started


@dataclass(frozen=True)
class Repetition:
    asked: int  # texts that were asked about again
    differing: tuple[tuple[Reply, bool, float], ...] = ()  # what was said first, and what passed and scored now
    missing: str = ""  # why nothing was asked again

    @property
    def rows(self) -> int:
        return len({reply.asked.row for reply, *_ in self.differing})

    def __str__(self) -> str:
        if self.missing:
            return f"not asked: {self.missing}"
        many = len(self.differing)
        return f"{many or 'none'} of {self.asked} verdicts differ{'s' if many == 1 else ''}"


@dataclass(frozen=True)
class VerdictPace:
    """How long verdicts take. The first and the longest may include what the verifier starts."""

    seconds: tuple[float, ...]
    first: float

    @classmethod
    def of(cls, replies: Sequence[Reply]) -> "VerdictPace":
        """`replies` in the order in which they were given. Empty text is left out: nothing is compared for it."""
        seconds = [reply.seconds for reply in replies[1:] if reply.asked.kind != "empty"]
        return cls(tuple(seconds or [replies[0].seconds]), replies[0].seconds)

    @property
    def mean(self) -> float:
        """Without the longest one."""
        return float(np.mean(sorted(self.seconds)[: max(1, len(self.seconds) - 1)]))

    def __str__(self) -> str:
        p50, p95 = np.percentile(self.seconds, [50, 95])
        times = ((shown_time(p50), "p50"), (shown_time(p95), "p95"), (shown_time(max(self.seconds)), "longest"))
        a_second = 1 / max(self.mean, 1e-9)
        rate = f"{a_second:,.0f}" if a_second >= 10 else f"{a_second:.2g}"
        told = ", ".join(f"{name} {time}" for time, name in times)
        return f"{told}, the first {shown_time(self.first)}; {rate} a second a core"


def shown_time(seconds: float) -> str:
    return (
        f"{1000 * seconds:.2g} ms" if seconds < 0.0995 else f"{seconds:.2f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    )


def in_another_order(
    verify: Verify, rows: Sequence[Row], replies: Sequence[Reply], until: float
) -> tuple[Repetition, list[Reply]]:
    """The last row first. Also returns what was said now."""
    again = asked(verify, rows, [reply.asked for reply in reversed(replies)], until)
    said = {reply.asked: (reply.verdict.passed, reply.verdict.score) for reply in again}
    return _compared(replies, said), again


def in_another_process(make: Make, rows: Sequence[Row], replies: Sequence[Reply], limit_s: float) -> Repetition:
    texts = [reply.asked for reply in replies]
    context = multiprocessing.get_context("spawn")  # a fork would bring this process's memory along
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_judge, args=(theirs, make, list(rows), texts, limit_s), daemon=False)
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit_s):
            return Repetition(0, missing=f"the other process gave no verdicts within {limit_s:.0f} s")
        answer = json.loads(ours.recv_bytes())
        process.join(END_S)
    except EOFError:
        process.join()
        return Repetition(0, missing=f"the other process ended with exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()
        ours.close()
    if isinstance(answer, str):
        return Repetition(0, missing=f"the other process could not make the verifier: {answer}")
    return _compared(replies, {texts[i]: (passed, score) for i, passed, score in answer})


def _judge(pipe: Pipe, make: Make, rows: list[Row], texts: list[KnownText], limit_s: float) -> None:
    """What the other process does: every second text, then those between them."""
    until = time.monotonic() + limit_s / 2
    order = [*range(0, len(texts), 2), *range(1, len(texts), 2)]
    try:
        verify = make()
        replies = asked(verify, rows, [texts[i] for i in order], until)
        said = [(i, r.verdict.passed, r.verdict.score) for i, r in zip(order, replies, strict=False)]
        pipe.send_bytes(json.dumps([(i, bool(passed), float(score)) for i, passed, score in said]).encode())
        close = getattr(verify, "close", None)
        if close:
            close()
    except Exception as e:  # noqa: BLE001 - told by the process that asked
        pipe.send_bytes(json.dumps(f"{type(e).__name__}: {' '.join(str(e).split())[:200]}").encode())


def _compared(replies: Sequence[Reply], said: dict[KnownText, tuple[bool, float]]) -> Repetition:
    differing = []
    for reply in replies:
        if reply.asked in said and reply.verdict.judged:
            passed, score = said[reply.asked]
            if passed != reply.verdict.passed or abs(score - reply.verdict.score) > SAME_SCORE:
                differing.append((reply, passed, score))
    return Repetition(len(said), tuple(differing))
