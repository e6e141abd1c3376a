"""The clock of a run: named spans of the driver's time, which give the seconds of a step and the timeline.

    with clock.span("train"): ...      each part of a step, as it happens
    clock.seconds(rows)                the step's seconds/* and tokens_per_s/*, once its weights are in the engines
    clock.draw(rows, ranks)            the same step in timeline.json (see trd_ray.record.timeline)
    clock.close()                      the timeline's last write, however the run ends

What is counted:

- A step lasts from the end of the previous sync to the end of its own. Pauses within it (evaluations, checkpoints,
  rests that `trd pause` asked for) do not count as its time.
- A span within a span is drawn, but not counted, except where the GPUs are handed over.
- An error or a signal closes the span that it leaves, so the timeline shows what the run was doing when it ended.
- A span begins at wall time, which can be compared with the times of other processes; its length is monotonic.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from trd_ray.record.ledger import stage_seconds, union_seconds
from trd_ray.record.timeline import Timeline
from trd_ray.rows import part

PAUSES = ("evaluate", "checkpoint", "pause")
HANDOVERS = ("rest", "wake")  # of GPUs that engines and learner have in turn


class Span(NamedTuple):
    name: str
    begin: float  # Unix seconds
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


class Clock:
    def __init__(
        self,
        timeline: Timeline,
        *,
        sampled: bool = True,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ):
        """`sampled` is false if the rows come from a corpus: their times are those of the run that made the corpus."""
        self.timeline = timeline
        self.sampled = sampled
        self.wall = wall
        self.monotonic = monotonic
        self.spans: list[Span] = []  # the closed spans that the step under way may count
        self.under_way: list[tuple[str, float]] = []  # the open spans and when they began, the outermost first
        self.first = True
        self.began = wall()  # when the step under way did
        self.step = Span("", self.began, self.began)  # the last step that `seconds` closed

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        begin = self.wall()
        ticks = self.monotonic()
        self.under_way.append((name, begin))
        try:
            yield
        finally:
            self.under_way.pop()
            span = Span(name, begin, begin + self.monotonic() - ticks)
            self.timeline.span(*span)
            if not self.under_way or name in HANDOVERS:
                self.spans.append(span)

    def start(self) -> None:
        """Begin the first step now; the time before belongs to no step."""
        self.began = self.wall()
        self.spans = []
        self.first = True

    def seconds(self, rows: list[dict]) -> dict[str, float]:
        """End the step of these light rows; returns its seconds by stage, and the tokens a second of busy engines.

        Overhead is the time in which nothing sampled, verified, refined or trained: scheduling, feeding, sync. What
        diagnostics take is part of the step, and a number of its own in the steps that have them.
        """
        last = {span.name: span for span in self.spans}
        wait, train, sync = last["wait"], last["train"], last["sync"]
        if self.first:  # before the first sample the stages were starting
            starts = [row["y_o"]["start_s"] for row in rows if row["y_o"]] if self.sampled else []
            self.began = max(self.began, min(starts, default=wait.begin))
            self.first = False
        window = self.began, sync.end
        pauses = [(span.begin, span.end) for span in self.spans if span.name in PAUSES]
        handed = {name: [span for span in self.spans if span.name == name] for name in HANDOVERS}
        in_sync_s = sum(s.seconds for spans in handed.values() for s in spans if sync.begin <= s.begin < sync.end)
        looked = last.get("diagnostics")
        work = [(span.begin, span.end) for span in (train, looked) if span]
        stages = stage_seconds(rows, window, others=[*work, *pauses])
        out = {f"seconds/{stage}": stages[stage] for stage in ("sample", "verify", "refine")}
        out |= {
            "seconds/step": sync.end - self.began - union_seconds(pauses, window),
            "seconds/wait": wait.seconds,
            "seconds/train": train.seconds,
            "seconds/sync": sync.seconds - in_sync_s,
            "seconds/overhead": sync.end - self.began - stages["busy"],
            "time_s": sync.end,
        }
        out |= {f"seconds/{name}": sum(span.seconds for span in spans) for name, spans in handed.items() if spans}
        if looked:
            out["seconds/diagnostics"] = looked.seconds
        made = {
            ("sampler", "sample"): sum(part(row, "y_o", "tokens") or 0 for row in rows),
            # Also of the refinements that were not chosen, which rows of an older corpus do not tell.
            ("refiner", "refine"): sum(
                (part(row, "y_r", "tokens") or 0) if row.get("refine_tokens") is None else row["refine_tokens"]
                for row in rows
            ),
        }
        out |= {f"tokens_per_s/{pool}": n / stages[stage] for (pool, stage), n in made.items() if stages[stage]}
        self.step = Span(f"step {rows[0]['step'] + 1}", *window)
        self.began = sync.end
        self.spans = []
        return out

    def draw(self, rows: list[dict], ranks: Iterable[tuple[int, str, float, float]] = ()) -> None:
        """Draw the step that `seconds` closed, its rows, and what the ranks did (rank, what, begin, end)."""
        self.timeline.step(*self.step)
        if self.sampled:
            self.timeline.rows(rows)
        self._ranks(ranks)
        self.timeline.save_if_due()

    def close(self, ranks: Iterable[tuple[int, str, float, float]] = ()) -> None:
        """Write the timeline, with what the ranks did since the last step was drawn."""
        self._ranks(ranks)
        self.timeline.close()

    def _ranks(self, ranks: Iterable[tuple[int, str, float, float]]) -> None:
        for rank, name, begin, end in ranks:
            self.timeline.work("learner", f"rank {rank}", name, [(begin, end)])
