"""Whether a run stands still: nothing of what its door shows has changed for longer than that part of a step takes.

    look(what is seen, the part of the step, since when, now, history)  ->  a sentence, once for each standstill

What is seen is anything that changes as the run goes on: rows, tokens in the engines, samples judged, the phase.
A rest that somebody asked for is none. The process above a run says where one hangs whose driver does not even look.
"""

from collections.abc import Mapping
from statistics import median
from typing import Any

from trd_ray.alarms import thresholds as t
from trd_ray.alarms.history import History

RESTS = ("pause",)
SLEEP_S = 60.0  # between two looks, of which one is made every second: then it was this process that stood still
DOING = {
    "wait": "rows are awaited",
    "probe": "log-probabilities are awaited from engine and learner",
    "train": "the learner is awaited, which trains",
    "sync": "the engines are awaited, which get new weights",
    "rest": "the engines are awaited, which answer what they hold and leave their GPUs to the learner",
    "wake": "learner and engines are awaited, of which the one leaves the GPUs to the others",
    "evaluate": "held-out samples are awaited",
    "checkpoint": "a checkpoint is awaited",
    "start": "engines and learner are awaited, which start",
}


class Standstill:
    def __init__(self) -> None:
        self._seen: Any = None
        self._since = 0.0  # when what is seen was seen first
        self._looked = 0.0
        self.told = False

    def look(self, seen: Any, doing: Mapping[str, Any] | None, now: float, history: History) -> str | None:
        """`doing` holds `what`, `since` (Unix seconds) and perhaps `waits_for`, as status.json does."""
        what = str(doing["what"]) if doing else ""
        asleep = now - self._looked > SLEEP_S
        self._looked = now
        if seen != self._seen or not doing or what in RESTS or asleep:
            self._seen, self._since, self.told = seen, now, False
            return None
        still_s = now - self._since
        if self.told or still_s < patience_s(what, history):
            return None
        self.told = True
        of = f" from {doing['waits_for']}" if doing.get("waits_for") else ""
        awaited = DOING.get(what, f"the step is at its part {what}")
        return (
            f"Nothing has moved for {still_s / 60:.0f} min: {awaited}{of}, since {(now - doing['since']) / 60:.0f} min"
        )


def patience_s(what: str, history: History) -> float:
    """How long that part of a step may stand still before it is said."""
    if len(history.lines) < t.STILL_KNOWN:
        return t.STILL_FIRST_S
    known = [took for line in history.newest(t.PACE_STEPS) if (took := line.get(f"seconds/{what}")) is not None]
    return max(t.STILL_S, t.STILL_TIMES * median(known) if known else 0.0)
