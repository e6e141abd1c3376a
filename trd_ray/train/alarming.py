"""The alarms of a run that goes on: the watcher gets what each step measured, and whoever should hear of it is told.

    a step's metrics, what the machines show, events.jsonl  ->  step()  ->  metrics alarm/NAME, for metrics.jsonl
                                                            ->  tell()  ->  screen, train.log, events.jsonl, alarms.json
    the door's look, about once a second                    ->  look()  ->  the same of a run that stands still

A run that goes on feeds the watcher what is recorded, so the alarms of steps that it does again are taken back. One of
alarms.stop_on stops the run where it begins, as `trd stop` does; a run that goes on is not stopped by one that lasts.

Nothing here ends a run, or waits: what a full disk does not take is written with the next alarm.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from trd_ray.alarms import kept
from trd_ray.alarms.conditions import TOLD_ELSEWHERE
from trd_ray.alarms.events_file import NewEvents
from trd_ray.alarms.replay import of_run
from trd_ray.alarms.standstill import Standstill
from trd_ray.alarms.watcher import Alarm, Changes
from trd_ray.record.ledger import facts_of_rows
from trd_ray.record.warnings import common_details
from trd_ray.session.session import Session
from trd_ray.train.store_spills import StoreSpills

GIB = 2**30
Worked = Iterable[tuple[int, str, float, float]]  # rank, what, begin, end


class Alarming:
    def __init__(self, session: Session, done: int, doing: Callable[[], Mapping[str, Any] | None] = lambda: None):
        """`done` steps are recorded and stay. `doing` says which part of a step is under way, as status.json does."""
        self.session = session
        self.place: Path = session.directory.path
        self.doing = doing
        self.done = done
        self.stop_on = session.recipe.alarms.stop_on
        self.watcher = of_run(self.place, done, session.recipe)
        self._with_their_sentences()
        self.new_events = NewEvents(self.place)
        self.standstill = Standstill()
        self.spills = StoreSpills()
        self.over = False
        self._changes = Changes()
        self._write()
        session.display.alarms(self.lasting())
        session.door.at_look(self.look)
        if lasting := [alarm for alarm in self.watcher.lasting.values() if self.watcher.is_told(alarm)]:
            names = ", ".join(f"{alarm.name} (since step {alarm.since_step})" for alarm in lasting)
            session.display.say(f"alarms that last: {names}; see {kept.FILE}")

    def step(self, step: int, metrics: Mapping[str, Any], rows: list[dict], worked: Worked = ()) -> dict[str, float]:
        """What is added to the metrics of a step before it is recorded: what the machines show, and alarm/NAME.

        `rows` are the step's, light (see trd_ray.rows).
        """
        events = self.new_events.read()
        measured = self._disk(events) | self.spills.take() | slowest_rank(worked)
        none_passed = 0 in (metrics.get("y_o/passed"), metrics.get("y_r/passed"))
        details = common_details(facts_of_rows(rows)) if none_passed else {}
        self._changes = self.watcher.step(step, {**metrics, **measured}, events, details)
        self.done = step
        return measured | self.watcher.metrics()

    def tell(self) -> None:
        """Tell of what began and ended with the step, which is recorded by now."""
        changes, self._changes = self._changes, Changes()
        self._tell(changes)

    def look(self) -> None:
        """Whether anything has moved since the last look, in a wait of any kind."""
        if self.over:  # no row is awaited any more
            return
        # Tokens are counted when their answer is there; until then it fills the engine's cache.
        tokens = {name: (pool.get("tokens"), pool.get("cache")) for name, pool in self.session.figures.last.items()}
        seen = (self.done, self.session.display.shown(), tokens)
        said = self.standstill.look(seen, self.doing(), time.time(), self.watcher.history)
        changes = Changes()
        if said and (alarm := self.watcher.stands_still(self.done + 1, said)):
            changes.begun.append(alarm)
        elif not self.standstill.told and (alarm := self.watcher.moves(self.done + 1)):
            changes.ended.append(alarm)
        self._tell(changes)

    def close(self) -> None:
        """No step comes any more: nothing that stands still from here on is told."""
        self.over = True
        self.spills.close()

    def lasting(self) -> list[str]:
        """Names, for status.json."""
        return [name for name, alarm in self.watcher.lasting.items() if self.watcher.is_told(alarm)]

    def _tell(self, changes: Changes) -> None:
        begun, ended = ([one for one in found if self.watcher.is_told(one)] for found in (changes.begun, changes.ended))
        for alarm in begun:
            if alarm.name not in TOLD_ELSEWHERE:
                self._show(alarm)
            self.session.directory.event("alarm", said=str(alarm), **alarm.as_json())
        for alarm in ended:
            said = f"{alarm.name} is over: it began at step {alarm.since_step}"
            self.session.directory.event("alarm", said=said, over=True, **alarm.as_json())
        if begun or ended:
            self._write()
            self.session.display.alarms(self.lasting())
        for alarm in changes.begun:  # also of a silent one: it was asked for by name
            if alarm.name in self.stop_on:
                self.session.stop.ask(f"the alarm {alarm.name} (alarms.stop_on)")

    def _show(self, alarm: Alarm) -> None:
        said = self.session.display.warn({f"alarm {alarm.name} {alarm.since_step}": str(alarm)}, "alarm")
        with contextlib.suppress(OSError), open(self.place / "train.log", "a") as log:
            log.write("".join(f"{text}\n" for text in said))

    def _write(self) -> None:
        told = self.watcher.told()
        if told != kept.read(self.place):
            with contextlib.suppress(OSError):
                kept.write(self.place, told)

    def _with_their_sentences(self) -> None:
        """Those that an earlier start told of: their ends hold what no metric says."""
        told = {(one["name"], one["since_step"]): one["sentence"] for one in kept.read(self.place)}
        for alarm in self.watcher.alarms:
            alarm.sentence = told.get((alarm.name, alarm.since_step), alarm.sentence)

    def _disk(self, events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        found: dict[str, float] = {}
        with contextlib.suppress(OSError):
            found["disk/free_gib"] = shutil.disk_usage(self.place).free / GIB
            for event in events:
                if event.get("kind") == "checkpoint" and "step" in event:
                    folder = self.place / "checkpoints" / f"step-{event['step']:06d}"
                    found["checkpoint/gib"] = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / GIB
        return found


def slowest_rank(worked: Worked) -> dict[str, float]:
    """Which rank trained for the longest, and how many times as long as the others; nothing of a single rank."""
    took: dict[int, float] = {}
    for rank, what, begin, end in worked:
        if what == "train":
            took[rank] = took.get(rank, 0.0) + end - begin
    if len(took) < 2:
        return {}
    slowest = max(took, key=lambda rank: took[rank])
    others = median(seconds for rank, seconds in took.items() if rank != slowest)
    if others <= 0:
        return {}
    return {"learner/slowest_rank": float(slowest), "learner/slowest_rank_ratio": took[slowest] / others}
