"""What the user's own code is told of a run: a metric function and callbacks, which the driver calls.

    metrics.function: my.py:measure   a step's rows                ->  {"length": 12.5}  ->  the metric own/length
    callbacks: [my.py:Watch]          on_step(step, metrics, rows)         after a step is recorded
                                      on_evaluation(name, step, scores)    after an evaluation is written
                                      on_checkpoint(step, folder)          after a checkpoint has its name
                                      on_end(how, said)                    last: "done", "stopped" or "failed"

A callback has any of these methods; its class is made once, when the run starts. It returns nothing, or "stop": then
the run stops as `trd stop` would have it.

Whatever such code raises costs nothing but what it would have given. The first time it is a warning of one sentence,
with the trace in logs/own-code.txt; a callback is called again at the next step. It runs in the driver, between two
steps, so the run waits for it. One that hangs is named after `heartbeat_s`, as any other silence of the driver is.
"""

import contextlib
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from trd_ray.config import Recipe
from trd_ray.errors import UserError
from trd_ray.own_code import load, made
from trd_ray.rows import dicts
from trd_ray.score.stats import Score
from trd_ray.session.session import Session
from trd_ray.session.stop import Stopped

EVENTS = ("on_step", "on_evaluation", "on_checkpoint", "on_end")
STOP = "stop"
GROUP = "own/"  # of metrics
MOST = 200  # metrics that one function may add
LOG = Path("logs") / "own-code.txt"
_METRIC = re.compile(r"\w[\w.@/-]{0,79}")


class Hooks:
    """The own code of one run. Without any, every method returns at once."""

    def __init__(self, measure: Callable[..., Any] | None = None, callbacks: Mapping[str, Any] | None = None):
        self._measure = measure
        self._callbacks = dict(callbacks or {})
        self._session: Session | None = None
        self._told: set[str] = set()  # whose fault is said already

    @classmethod
    def of(cls, recipe: Recipe) -> "Hooks":
        """Load what the recipe names. Raises UserError, before anything starts."""
        function = recipe.metrics.function
        measure = load(function) if function else None
        if measure is not None and (not callable(measure) or isinstance(measure, type)):
            raise UserError(f"metrics.function={function} is no function: name one that takes a step's rows")
        callbacks = {reference: made(reference, load(reference)) for reference in recipe.callbacks}
        for reference, callback in callbacks.items():
            if not any(callable(getattr(callback, event, None)) for event in EVENTS):
                raise UserError(f"{reference} of callbacks has none of the methods {', '.join(EVENTS)}: give it one")
        return cls(measure, callbacks)

    @contextlib.contextmanager
    def during(self, session: Session) -> Iterator[None]:
        """The run is in the block; `on_end` is told how it ended, unless it is ended at once."""
        self._session = session
        how, said = "done", ""
        try:
            yield
        except BaseException as e:
            how, said = ("stopped" if isinstance(e, Stopped | KeyboardInterrupt) else "failed"), str(e)
            raise
        finally:
            if not session.stop.hurried:
                self._tell("on_end", lambda: (how, said))

    def measured(self, table: pa.Table) -> dict[str, float]:
        """The metrics own/NAME of a step's rows; none where the function fails."""
        measure = self._measure
        if measure is None:
            return {}
        return self._guarded("metrics.function", lambda: _numbers(measure(_Step(table).rows))) or {}

    def step(self, step: int, metrics: dict[str, Any], table: pa.Table) -> None:
        """A step is recorded; steps count from 1."""
        made_once = _Step(table)
        self._tell("on_step", lambda: (step, dict(metrics), made_once.rows))

    def evaluation(self, score: Score, of: str = "") -> None:
        """`of` is the set of evaluation.sets; its name stands before that of the score, as in the run directory."""
        name = f"{of}/{score.name}" if of else score.name
        scores = {name: estimate.value for name, estimate in score.scores.items()}
        self._tell("on_evaluation", lambda: (name, score.step, dict(scores)))

    def checkpoint(self, step: int, folder: Path) -> None:
        self._tell("on_checkpoint", lambda: (step, folder))

    def _tell(self, event: str, arguments: Callable[[], tuple[Any, ...]]) -> None:
        for reference, callback in self._callbacks.items():
            method = getattr(callback, event, None)
            if callable(method):
                who = f"{event} of {reference}"
                said = self._guarded(who, lambda method=method: method(*arguments()))
                if isinstance(said, str) and said == STOP and event != "on_end" and self._session:
                    self._session.stop.ask(f"the callback {reference}")

    def _guarded(self, who: str, call: Callable[[], Any]) -> Any:
        """What the call returns, None where it raises."""
        try:
            return call()
        except (Exception, SystemExit) as e:
            if who not in self._told:
                self._told.add(who)
                self._say(who, e)
            return None

    def _say(self, who: str, e: BaseException) -> None:
        session = self._session
        assert session is not None  # nothing is called outside of `during`
        why = " ".join(str(e).split())[:200]
        said = f"{who} failed ({type(e).__name__}{f': {why}' if why else ''}), and the run goes on without it"
        try:
            with open(session.directory.path / LOG, "a") as log:
                log.write(f"{who}\n{''.join(traceback.format_exception(e))}\n")
            said += f"; the trace is in {LOG}"
        except OSError:
            said += "; its trace could not be written"
        session.warn({f"own code: {who}": said})


class _Step:
    """The rows of a step as own code gets them: without token ids and log-probabilities, which are many."""

    def __init__(self, table: pa.Table):
        self._table = table

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A trajectory is a dict (None where the row has none), in which `text` is the response."""
        columns = []
        for field in self._table.schema:
            if pa.types.is_struct(field.type):
                columns += [f"{field.name}.{one.name}" for one in field.type if not pa.types.is_list(one.type)]
            elif not pa.types.is_list(field.type):
                columns.append(field.name)
        return dicts(self._table, columns)


def _numbers(found: Any) -> dict[str, float]:
    """Raises TypeError or ValueError for what is no dict of numbers with plain names."""
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise TypeError(f"it returned a {type(found).__name__}, not a dict of numbers")
    if len(found) > MOST:
        raise ValueError(f"it returned {len(found)} metrics, and a step has room for {MOST} of them")
    for name in found:
        if not (isinstance(name, str) and _METRIC.fullmatch(name)):
            raise ValueError(f"{name!r:.80} is no name of a metric: letters, digits, _ . @ / and - are")
    return {f"{GROUP}{name}": float(value) for name, value in found.items() if value is not None}
