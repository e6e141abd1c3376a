"""Inside a run's driver: what moment it is, and the strike when its moment has come.

    the loop's spans, a checkpoint begun, an evaluation begun -> Witness.at(moment) -> moments.jsonl
                                                              -> a thread: delay, look for the victim, strike
                                                              -> struck-003.json, written before the signal

It strikes from inside because a moment such as a sync lasts for some hundredths of a second. A strike that has its file
is never done again, so the same command goes on undisturbed. Nothing else of the run is changed.
"""

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray

from chaos_rounds.processes import Seen, below, of_role
from chaos_rounds.ways import LEADS
from trd_ray.files import write_atomically

SPANS = {"start": "start", "wait": "sampling", "train": "train", "sync": "sync"}  # of the loop's clock -> moment
SEARCH_S = 60.0  # for a victim that is not always there, such as a verifier task
POLL_S = 0.02


def struck_file(folder: Path, number: int) -> Path:
    return folder / f"struck-{number:03d}.json"


def install(plan: dict[str, Any]) -> None:
    """Watch the run that this process will lead. `plan` holds `folder`, `roots` and `strikes`, one after another."""
    from trd_ray.record.clock import Clock
    from trd_ray.record.directory import RunDirectory
    from trd_ray.session.session import Session
    from trd_ray.train.loop import Training

    witness = Witness(Path(plan["folder"]), plan["roots"], plan["strikes"])
    span, begin, evaluate = Clock.span, RunDirectory.begin_checkpoint, Session.evaluate
    step, record = Training.step, Training.record

    @contextlib.contextmanager
    def spanned(clock: Clock, name: str) -> Iterator[None]:
        with span(clock, name):
            if name in SPANS:
                witness.at(SPANS[name])
            yield

    def begun(directory: RunDirectory, *arguments: Any, **named: Any) -> Any:
        folder = begin(directory, *arguments, **named)
        witness.at("checkpoint")
        return folder

    def evaluated(session: Session, *arguments: Any, **named: Any) -> Any:
        witness.at("evaluation")
        return evaluate(session, *arguments, **named)

    def stepped(training: Training, number: int) -> Any:
        witness.step = number + 1
        if training.session.pools:
            witness.refining = lambda: _refines(training.session)
        return step(training, number)

    def recorded(training: Training, *arguments: Any) -> None:
        record(training, *arguments)
        witness.at("recorded")

    patched: Any = Clock, RunDirectory, Session, Training
    patched[0].span, patched[1].begin_checkpoint, patched[2].evaluate = spanned, begun, evaluated
    patched[3].step, patched[3].record = stepped, recorded


def _refines(session: Any) -> bool:
    with contextlib.suppress(Exception):  # the run itself says what has died
        found: Any = ray.get([pool.status.remote() for pool in session.refiners().values()], timeout=5)
        return any(status["running"] > 0 for status in found)
    return False


class Witness:
    def __init__(self, folder: Path, roots: list[int], strikes: list[dict[str, Any]]):
        """`roots` are processes besides the run's own below which its processes may be: a cluster's nodes."""
        self.folder, self.roots, self.strikes = folder, [*roots, os.getppid()], strikes
        self.step = 0  # the one under way, counted from 1
        self.refining: Callable[[], bool] = lambda: False
        self.armed: threading.Thread | None = None
        self.ending = False  # what was struck takes this run along: the next strike is that of the run that goes on

    @property
    def next(self) -> dict[str, Any] | None:
        """The first strike that has not been done."""
        return next((one for one in self.strikes if not struck_file(self.folder, one["number"]).exists()), None)

    def at(self, moment: str) -> None:
        """It is this moment now."""
        with open(self.folder / "moments.jsonl", "a") as log:
            log.write(json.dumps({"when": time.time(), "moment": moment, "step": self.step}) + "\n")
        strike = self.next
        if strike is None or self.ending or (self.armed and self.armed.is_alive()) or self.step < strike["step"]:
            return
        if moment == strike["moment"] or (moment == "sampling" and strike["moment"] in ("refining", "verify")):
            self.armed = threading.Thread(target=self._strike, args=(strike,), name="witness", daemon=True)
            self.armed.start()

    def _strike(self, strike: dict[str, Any]) -> None:
        if strike["moment"] == "refining":
            self._until(lambda: [True] if self.refining() else [])
        elif strike["moment"] == "verify":
            self._until(lambda: of_role("verifier", below(self.roots)))
        time.sleep(strike["delay_s"])
        victims = self._until(lambda: self.victims(strike["victim"]))
        if not victims:
            return self._note(strike, missed=f"no {strike['victim']} was found in {SEARCH_S:.0f} s")
        victim = random.Random(strike["number"]).choice(victims)
        self.ending = strike["victim"] in LEADS and strike["signal"] != signal.SIGSTOP
        self._note(strike, pid=victim.pid, title=victim.title[:200])
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, strike["signal"])

    def _until(self, found: Callable[[], list]) -> list:
        deadline = time.monotonic() + SEARCH_S
        while not (here := found()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return here

    def victims(self, victim: str) -> list[Seen]:
        seen = below(self.roots)
        numbers = {"driver": os.getpid(), "supervisor": os.getppid()}
        if victim in numbers:
            return [one for one in seen if one.pid == numbers[victim]]
        if victim == "head":
            return [one for one in of_role("gcs", seen)]
        return of_role(victim, seen)

    def _note(self, strike: dict[str, Any], **facts: Any) -> None:
        facts |= {"when": time.time(), "step": self.step, "signal": signal.Signals(strike["signal"]).name}
        write_atomically(struck_file(self.folder, strike["number"]), json.dumps(facts))
