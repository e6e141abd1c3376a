"""How long a run will still take: the steps that are left, at the pace of the last ones, and the evaluations still due.

    plans(due), step(done), evaluating(name, done, total), stands_still()  ->  TimeLeft.left()  ->  "about 4 min left"

The live display and status.json ask the same object. What counts:

- A step takes from the end of the one before to its own end, without the evaluations in between. The median of the last
  PACE_STEPS is the pace: it leaves out the one step that waited for an engine to start.
- The first step of a start has no step before it. Until there is another one, its own `seconds/step` is the pace.
- An evaluation takes what the last one of its set took. Of a set that has none yet, each sample takes what it took in
  the others. Where none was made at all, evaluations are left out, and the words say so.
- A rest that `trd pause` asked for counts for nothing.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

PACE_STEPS = 10


@dataclass(frozen=True)
class Due:
    """An evaluation that the run will make after so many steps."""

    steps: int
    name: str  # "step-000010" | "trained"
    of: str  # the set; "" is evaluation.path
    samples: int

    @property
    def shown(self) -> str:
        return shown_name(self.name, self.of)


@dataclass(frozen=True)
class Left:
    seconds: float
    unmeasured: int = 0  # evaluations that are due and not in the seconds

    def __str__(self) -> str:
        return f"about {duration(self.seconds)} {'+ evaluations' if self.unmeasured else 'left'}"


@dataclass(frozen=True)
class UnderWay:
    """An evaluation that is being made."""

    shown: str
    began: float
    done: int
    total: int


class TimeLeft:
    def __init__(self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic):
        """`done` steps were finished by earlier starts."""
        self.total = total
        self.done = done
        self.clock = clock
        self.due: tuple[Due, ...] = ()
        self._began: float | None = None  # the step under way, where that is known
        self._steps: tuple[float, ...] = ()  # what the last ones took
        self._first: float | None = None
        self._evaluated_s = 0.0  # since the step under way began
        self._made: frozenset[str] = frozenset()
        self._took: dict[str, tuple[float, int]] = {}  # by set: seconds, samples
        self._evaluation: UnderWay | None = None

    def plans(self, due: Iterable[Due]) -> None:
        """What will be evaluated; what is over already may be in it."""
        self.due = tuple(due)

    def step(self, done: int, seconds: float | None = None) -> None:
        """A step has ended, after which `done` steps are; `seconds` is what it says that it took."""
        now = self.clock()
        if self._began is not None and done > self.done:
            took = (now - self._began - self._evaluated_s) / (done - self.done)
            self._steps = (*self._steps, max(0.0, took))[-PACE_STEPS:]
        self._first = seconds if seconds is not None else self._first
        self.done, self._began, self._evaluated_s = done, now, 0.0

    def evaluating(self, shown: str, done: int, total: int) -> None:
        """So many samples of an evaluation have a verdict. Its first call, with `done` 0, is when it begins."""
        now = self.clock()
        evaluation = self._evaluation
        if evaluation is None or evaluation.shown != shown:
            evaluation = UnderWay(shown, now, done, total)
        self._evaluation = UnderWay(shown, evaluation.began, done, total)
        if done >= total:
            self._evaluation = None
            if total:
                self._took[_set_of(shown)] = now - evaluation.began, total
            self._evaluated_s += now - evaluation.began
            self._made |= {shown}

    def stands_still(self) -> None:
        """What comes now, until the next step has ended, is no sign of the pace."""
        self._began = None

    def of_evaluation(self) -> float | None:
        """Seconds that the evaluation under way will take by its own pace; None where there is none, or no pace."""
        evaluation = self._evaluation
        if evaluation is None or not evaluation.done:
            return None
        took = self.clock() - evaluation.began
        return took / evaluation.done * (evaluation.total - evaluation.done)

    def left(self) -> Left | None:
        """None while nothing is known of the pace."""
        steps = self.total - self.done
        pace = median(self._steps) if self._steps else self._first
        if steps > 0 and pace is None:
            return None
        seconds = steps * (pace or 0.0)
        if steps > 0 and pace and self._began is not None:
            in_evaluations = self._evaluated_s
            if self._evaluation:
                in_evaluations += self.clock() - self._evaluation.began
            seconds -= min(pace, max(0.0, self.clock() - self._began - in_evaluations))
        of_evaluations, unmeasured = self._evaluations()
        return Left(seconds + of_evaluations, unmeasured)

    def _evaluations(self) -> tuple[float, int]:
        """Seconds of the evaluations that are due or under way, and how many cannot be told."""
        took = dict(self._took)
        of_this = self.of_evaluation()
        if self._evaluation and of_this is not None:
            own = _set_of(self._evaluation.shown)
            whole = self.clock() - self._evaluation.began + of_this
            took.setdefault(own, (whole, self._evaluation.total))
        of_a_sample = sum(s for s, _ in took.values()) / sum(n for _, n in took.values()) if took else None
        seconds, unmeasured = of_this or 0.0, 0
        for one in self.due:
            under_way = self._evaluation is not None and one.shown == self._evaluation.shown
            if one.steps <= self.done or one.shown in self._made or (under_way and of_this is not None):
                continue
            if one.of in took:
                seconds += took[one.of][0]
            elif of_a_sample is not None:
                seconds += of_a_sample * one.samples
            else:
                unmeasured += 1
        return seconds, unmeasured


def shown_name(name: str, of: str) -> str:
    """What an evaluation is called where people read of it; `of` is its set, "" that of evaluation.path."""
    return f"{name} on {of}" if of else name


def _set_of(shown: str) -> str:
    return shown.partition(" on ")[2]


def duration(seconds: float) -> str:
    """In the unit that a person would say."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def elapsed(seconds: float) -> str:
    """As a clock shows it: 0:01:23."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}"
