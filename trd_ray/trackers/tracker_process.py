"""The process of one tracker: it takes the run's messages one after another, and says what went wrong.

    lines of JSON on standard input  ->  begin, step, rows, end of a class such as to_wandb.WandbRun
    lines of JSON on the pipe        <-  {"said": "...", "warns": true}, and last {"over": true}

- A step that fails is said once, and the next one is tried: a server may come back.
- A tracker that cannot begin is over.
- Standard input that breaks means that the run's process has died. The tracker's run is then closed as failed, within
  LOST_S, after which an alarm of the kernel ends this process whatever it hangs in.

Standard output and error are logs/tracker-NAME.txt in the run directory.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Protocol

from trd_ray.trackers.kept_run import KeptRun
from trd_ray.trackers.measured import numbers

LOST_S = 8.0  # to close a run whose driver has died: less than a run's supervisor waits for what is left (LEAVE_S)
NICENESS = 5  # engines and learner come first


class Tracker(Protocol):
    """What each tracker can do. Whatever it raises is said and costs nothing but what it did not take."""

    def begin(self, facts: dict[str, Any], kept: KeptRun) -> str:
        """Begin the tracker's run, or go on with the one that is kept; returns where a person finds it."""
        ...

    def step(self, step: int, metrics: dict[str, float]) -> None: ...

    def rows(self, step: int, columns: list[str], rows: list[list[Any]]) -> None:
        """A few rows of a step, as a table. The texts are a model's: nothing but data."""
        ...

    def end(self, how: str, said: str, summary: dict[str, float], text: str, files: list[Path]) -> None:
        """Close the tracker's run, which is "done", "stopped", "failed" or "lost" (its process has died)."""
        ...


class TrackerProcess:
    def __init__(self, name: str, tracker: Tracker, answers: int):
        self.name = name
        self.tracker = tracker
        self.answers = answers
        self.kept: KeptRun | None = None
        self._told: set[str] = set()
        self._given = 0  # the step that the tracker was given last
        self._skipped = False  # a step that is done again, which is said once

    def run(self) -> None:
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if not getattr(self, f"_{message.pop('do')}")(**message):
                return
        self._end("lost", "", {}, "", [])

    def _begin(self, facts: dict[str, Any]) -> bool:
        directory = Path(facts["directory"])
        self.kept = KeptRun(directory, self.name)
        try:
            place = self.tracker.begin(facts, self.kept)
        except (Exception, SystemExit) as e:
            self._say(f"{self._failure('begin', e)}; the run goes on without it", warns=True, over=True)
            return False
        self._say(f"{self.name}: {place}")
        self._catch_up(directory, facts["done"])
        return True

    def _catch_up(self, directory: Path, done: int) -> None:
        """Give the tracker the steps that it lacks of those that were done before this start."""
        assert self.kept
        with contextlib.suppress(OSError), open(directory / "metrics.jsonl", "rb") as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    metrics = json.loads(line)
                    if self.kept.step < metrics["step"] <= done:
                        self._step(int(metrics["step"]), numbers(metrics))

    def _step(self, step: int, metrics: dict[str, float]) -> bool:
        assert self.kept
        if step > self.kept.step:
            self._given = step
            if self._tried("step", lambda: self.tracker.step(step, metrics)):
                self.kept.has(step)
        elif not self._skipped:
            self._skipped = True
            self._say(f"{self.name} has the steps up to {self.kept.step} already, and keeps what it has of them")
        return True

    def _rows(self, step: int, columns: list[str], rows: list[list[Any]]) -> bool:
        """The rows of a step come after it; those of one that is done again are left out, as it is."""
        if step == self._given:
            self._tried("rows", lambda: self.tracker.rows(step, columns, rows))
        return True

    def _end(self, how: str, said: str, summary: dict[str, float], text: str, files: list[str]) -> bool:
        places = [place for place in map(Path, files) if place.is_file()]
        self._tried("end", lambda: self.tracker.end(how, said, summary, text, places))
        self._say("", over=True)
        return False

    def _tried(self, what: str, call: Any) -> bool:
        try:
            call()
        except (Exception, SystemExit) as e:
            if what not in self._told:
                self._told.add(what)
                self._say(f"{self._failure(what, e)}; metrics.jsonl has every number", warns=True)
            return False
        return True

    def _failure(self, what: str, e: BaseException) -> str:
        why = " ".join(str(e).split())[:300]
        print(f"{self.name} {what}: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
        return f"the tracker {self.name} failed in its {what} ({type(e).__name__}{f': {why}' if why else ''})"

    def _say(self, said: str, *, warns: bool = False, over: bool = False) -> None:
        with contextlib.suppress(OSError):  # the driver has died
            os.write(self.answers, json.dumps({"said": said, "warns": warns, "over": over}).encode() + b"\n")


def _end_with_the_driver() -> None:
    """Once nobody holds the other end of standard input, the kernel ends this process after LOST_S."""
    poll = select.poll()
    poll.register(0, 0)  # what is always told: that the other end is closed
    while not any(event & select.POLLHUP for _, event in poll.poll()):
        pass
    signal.setitimer(signal.ITIMER_REAL, LOST_S)


def main() -> None:
    name, where, answers = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    os.set_inheritable(int(answers), False)
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    module, _, kind = where.partition(":")
    try:
        tracker = getattr(importlib.import_module(module), kind)()
    except Exception as e:
        said = f"the tracker {name} cannot be loaded ({type(e).__name__}: {e}): the run goes on without it"
        os.write(int(answers), json.dumps({"said": said, "warns": True, "over": True}).encode() + b"\n")
        raise
    TrackerProcess(name, tracker, int(answers)).run()


if __name__ == "__main__":
    main()
