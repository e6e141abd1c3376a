"""The watcher: it is fed what a run measures, step by step, and says which alarms begin and which end.

    step(12, metrics, events)  ->  Changes(begun, ended);  alarms: all so far;  metrics(): {"alarm/kl_spike": 1.0}

Pure: equal steps give equal alarms, so a run that goes on knows its alarms by feeding what is recorded (`replay.py`).
A silent alarm is kept and counted like the others; whoever tells of alarms leaves it out (`told`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trd_ray.alarms.around import Around
from trd_ray.alarms.conditions import CONDITIONS
from trd_ray.alarms.history import History

METRIC = "alarm/"


@dataclass
class Alarm:
    name: str
    since_step: int
    sentence: str  # what was found, with numbers
    means: str
    do: str  # what to set
    until_step: int | None = None  # the step at which it was over

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "since_step": self.since_step,
            "until_step": self.until_step,
            "sentence": self.sentence,
            "means": self.means,
            "do": self.do,
        }

    def __str__(self) -> str:
        return f"{self.name}: {self.sentence}{'' if self.sentence.endswith('.') else '.'} {self.do}"


@dataclass
class Changes:
    begun: list[Alarm] = field(default_factory=list)
    ended: list[Alarm] = field(default_factory=list)


class Watcher:
    def __init__(self, around: Around, silent: Collection[str] = ()):
        self.around = around
        self.silent = frozenset(silent)
        self.history = History(around)
        self.alarms: list[Alarm] = []  # all of the run, in the order in which they began
        self.lasting: dict[str, Alarm] = {}
        self._over: list[str] = []  # those that ended with the newest step

    def step(
        self,
        step: int,
        metrics: Mapping[str, Any],
        events: Sequence[Mapping[str, Any]] = (),
        details: Mapping[str, str] | None = None,
    ) -> Changes:
        """What the step `step`, counted from 1, changes. `events` are those of events.jsonl since the step before.

        `details` are what metrics do not say: by the name of an alarm, the end of its sentence where it begins now.
        """
        self.history.add(step, metrics, events)
        self._recall(step, events)
        changes = Changes()
        for condition in CONDITIONS:
            alarm = self.lasting.get(condition.name)
            if alarm is None:
                if said := condition.begins(self.history):
                    said += (details or {}).get(condition.name, "")
                    changes.begun.append(self._begin(condition.name, step, said))
            elif condition.ends(self.history):
                alarm.until_step = step
                del self.lasting[condition.name]
                changes.ended.append(alarm)
        self._over = [alarm.name for alarm in changes.ended]
        return changes

    def _recall(self, step: int, events: Sequence[Mapping[str, Any]]) -> None:
        """That the run stood still before this step, as an earlier start of it has recorded."""
        known = {(alarm.since_step, alarm.sentence) for alarm in self.alarms}
        for event in events:
            said = str(event.get("sentence"))
            began = event.get("kind") == "alarm" and event.get("name") == "no_progress" and not event.get("over")
            if began and (step, said) not in known:
                self.moves(step)
                self._begin("no_progress", step, said)

    def stands_still(self, step: int, said: str) -> Alarm | None:
        """Begin the alarm of a run that stands still before the step `step`; None where it lasts already."""
        return None if "no_progress" in self.lasting else self._begin("no_progress", step, said)

    def moves(self, step: int) -> Alarm | None:
        """End that alarm, since something moves again."""
        if alarm := self.lasting.pop("no_progress", None):
            alarm.until_step = step
        return alarm

    def metrics(self) -> dict[str, float]:
        """alarm/NAME is 1 for each that lasts, and 0 for one that ended with the newest step."""
        return dict.fromkeys((METRIC + name for name in self._over), 0.0) | dict.fromkeys(
            (METRIC + name for name in self.lasting), 1.0
        )

    def is_told(self, alarm: Alarm) -> bool:
        return alarm.name not in self.silent

    def told(self) -> list[dict[str, Any]]:
        """What alarms.json holds: all that are not silent, the newest last."""
        return [alarm.as_json() for alarm in self.alarms if self.is_told(alarm)]

    def _begin(self, name: str, step: int, said: str) -> Alarm:
        condition = next(one for one in CONDITIONS if one.name == name)
        words = self.around.words
        alarm = Alarm(name, step, said, condition.means.format_map(words), _sentence(condition.do.format_map(words)))
        self.alarms.append(alarm)
        self.lasting[name] = alarm
        return alarm


def _sentence(text: str) -> str:
    """With a capital at its beginning, which a word of the run may lack."""
    return text[:1].upper() + text[1:]
