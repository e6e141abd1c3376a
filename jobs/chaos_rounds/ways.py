"""Who is struck, how and when, and what must follow: the table of a campaign, and the rounds that are drawn from it.

    seed, number -> drawn() -> Strike: victim, signal, moment, step, delay -> must(): what the run has to do

The rounds are the ways in a shuffled order in which the victims take turns, so a few rounds meet each victim once, and
as many rounds as there are ways meet every way.
"""

import random
import signal
from dataclasses import dataclass
from typing import Literal

Rows = Literal["stream", "corpus"]
Ground = Literal["cluster", "nodes", "local"]  # a shared cluster, one of several nodes, or a Ray that ends with the run

KILL, STOP = signal.SIGKILL, signal.SIGSTOP
# A run's moments, in the order in which a step meets them.
STREAM = ("start", "sampling", "refining", "verify", "train", "sync", "checkpoint", "evaluation")
CORPUS = ("start", "train", "checkpoint")
SAMPLES = ("sampling", "refining", "verify", "evaluation")

HEARTBEAT_S = 20.0  # a stopped process is noticed so soon in a campaign, where nothing compiles for long
STEPS = 6
EVERY_CHECKPOINT, EVERY_EVALUATION = 2, 3
FIRST_STRUCK = 2  # the first step that may be struck: there is something to lose
LONGEST_DELAY_S = {"start": 6.0, "sampling": 0.3, "train": 0.2, "sync": 0.2, "checkpoint": 0.2, "evaluation": 0.3}


@dataclass(frozen=True)
class Way:
    victim: str
    signal: int
    moment: str
    rows: Rows
    ground: Ground


@dataclass(frozen=True)
class Strike:
    """One round: a way, and what is drawn for it."""

    number: int
    way: Way
    step: int  # the first step at whose moment it may come; 0: at the start
    delay_s: float  # after the moment has begun

    @property
    def must(self) -> "Must":
        return must(self.way)

    def __str__(self) -> str:
        way = self.way
        when = f"{way.moment}, from step {self.step}" if self.step else way.moment
        return f"{way.victim} {signal.Signals(way.signal).name} in {when} ({way.rows}, {way.ground}): {self.must}"


@dataclass(frozen=True)
class Must:
    """What the run that is struck has to do."""

    goes_on: bool  # by itself, to exit code 0; else it ends with one of `codes`, and the same command goes on
    codes: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.codes and self.goes_on:
            return "goes on, or the same command does"
        return "goes on" if self.goes_on else f"exit {' or '.join(map(str, self.codes))}, the same command goes on"


RECOVERS = {
    # victim -> (moments in a stream, moments on a corpus)
    "engine": (STREAM, ()),
    "engine core": (STREAM, ()),
    "pool": (STREAM, ()),
    "keeper": (("sampling", "sync"), ()),
    "stage": (SAMPLES[:3], ()),
    "verifier": (("verify",), ()),
    "learner": (STREAM, CORPUS),
    "mailbox": (STREAM, CORPUS),
    "controller": (STREAM, CORPUS),
    "porter": (("train",), ("train",)),
    "node": (("sampling", "refining", "train", "sync"), ()),
}
STOPPED = ("engine", "pool", "learner", "mailbox")  # SIGSTOP: they live, and no longer answer
LEADS: dict[str, dict[int, tuple[int, ...]]] = {
    # victim -> signal -> exit codes of the command
    "driver": {
        KILL: (128 + KILL,),
        signal.SIGTERM: (128 + signal.SIGTERM,),
        signal.SIGINT: (128 + signal.SIGINT,),
        signal.SIGHUP: (128 + signal.SIGHUP,),
    },
    "supervisor": {KILL: (-KILL,)},
    "raylet": {KILL: (1,)},
    "gcs": {KILL: (1,)},
    "head": {KILL: (1,)},
}
GROUNDS: dict[str, Ground] = {"raylet": "local", "gcs": "local", "node": "nodes", "head": "nodes"}


def ways(stand_ins: bool) -> list[Way]:
    """Every way there is. Stand-ins have no process of an engine's own."""
    found = []
    for victim, (stream, corpus) in RECOVERS.items():
        if victim == "engine core" and stand_ins:
            continue
        signals = (KILL, STOP) if victim in STOPPED else (KILL,)
        found += [_way(victim, number, moment, "stream") for number in signals for moment in stream]
        found += [_way(victim, number, moment, "corpus") for number in signals for moment in corpus]
    for victim, signals in LEADS.items():
        for number in signals:
            found += [_way(victim, number, moment, "stream") for moment in STREAM]
            if victim != "head":
                found += [_way(victim, number, moment, "corpus") for moment in CORPUS]
    return found + [_way("driver", STOP, moment, "stream") for moment in ("sampling", "train")]


def named(name: str, among: list[Way]) -> list[Way]:
    """The ways of a name such as `learner`, `learner/KILL/train` or `driver/corpus`; none where it names nothing."""
    victim, *parts = name.split("/")
    return [
        way for way in among
        if way.victim == victim and set(parts) <= {way.moment, way.rows, signal.Signals(way.signal).name[3:]}
    ]  # fmt: skip


def _way(victim: str, number: int, moment: str, rows: Rows) -> Way:
    return Way(victim, int(number), moment, rows, GROUNDS.get(victim, "cluster"))


def must(way: Way) -> Must:
    if way.victim in RECOVERS:
        return Must(goes_on=True)
    if way.signal == STOP:  # it goes on when it is let, unless the process above it has given it up by then
        return Must(goes_on=True, codes=LEADS[way.victim][KILL])
    return Must(goes_on=False, codes=tuple(map(int, LEADS[way.victim][way.signal])))


def drawn(seed: int, rounds: int, among: list[Way], together: int = 1) -> list[list[Strike]]:
    """The strikes of each run: one, or up to `together` of different victims that need the same kind of run.

    They come one after another, so only the first of them can come at the start.
    """
    runs: list[list[Strike]] = []
    order: list[Way] = []
    number = 0
    while number < rounds:
        order = order or in_turns(among, random.Random(f"{seed}:order:{number}"))
        first = order[0]
        fitting: dict[str, Way] = {}  # of each victim one
        for way in order:
            if way is first or ((way.rows, way.ground) == (first.rows, first.ground) and way.moment != "start"):
                fitting.setdefault(way.victim, way)
        chosen = list(fitting.values())[: min(together, rounds - number)]
        order = [way for way in order if way not in chosen]
        runs.append([])
        for place, way in enumerate(chosen):
            runs[-1].append(_drawn(number, way, place, random.Random(f"{seed}:{number}")))
            number += 1
    return runs


def _drawn(number: int, way: Way, place: int, chance: random.Random) -> Strike:
    first = FIRST_STRUCK + place
    step = 0 if way.moment == "start" else first + chance.randrange(2)
    return Strike(number, way, step, round(chance.uniform(0, LONGEST_DELAY_S.get(way.moment, 0.1)), 3))


def in_turns(among: list[Way], chance: random.Random) -> list[Way]:
    """All of them in a random order in which the victims take turns."""
    of: dict[str, list[Way]] = {}
    for way in chance.sample(among, len(among)):
        of.setdefault(way.victim, []).append(way)
    found: list[Way] = []
    while any(of.values()):
        found += [rest.pop() for rest in of.values() if rest]
    return found


def steps_for(together: int) -> int:
    """How many steps the runs of a campaign have: some after the last strike. Not every step meets every moment."""
    return STEPS + 2 * (together - 1)
