"""One run with its strikes, from the first start of its command to the last, and what was seen of it from outside.

    StruckRun.go(): start lead.py -> watch its processes -> it ends -> who is left? -> the same command again

A run that has not ended by its deadline hangs: all of its processes are killed, and the round has failed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from chaos_rounds.lead import PLAN
from chaos_rounds.processes import OF_A_RUN, Seen, below, look, shared_memory
from chaos_rounds.ways import STOP, Strike
from chaos_rounds.witness import struck_file

LEAD = Path(__file__).with_name("lead.py")
POLL_S = 0.3
LOOK_AT_MEMORY_S = 3.0
LEAVE_S = 60.0  # for the processes of a run that has ended, on a cluster that goes on
MORE_STARTS = 2  # than a run has strikes
MEND_S = 10.0
MISTAKE = 2  # exit code of what the user can fix, which the same command meets again


@dataclass
class Told:
    """What a run left to be checked."""

    codes: list[tuple[float, int]] = field(default_factory=list)  # (when, exit code) of each start
    hung: bool = False
    left: list[str] = field(default_factory=list)  # titles of processes that outlived it
    shared: set[str] = field(default_factory=set)  # files in /dev/shm that outlived it
    output: str = ""
    began: float = 0.0
    ended: float = 0.0
    moments: list[dict] = field(default_factory=list)
    struck: dict[int, dict] = field(default_factory=dict)  # by the number of the strike

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def starting_s(self) -> float:
        """From the command to the first step."""
        first = next((one["when"] for one in self.moments if one["moment"] in ("sampling", "train")), self.ended)
        return first - self.began


class StruckRun:
    def __init__(
        self,
        folder: Path,
        arguments: list[str],
        environment: Callable[[], dict[str, str]],
        strikes: list[Strike],
        *,
        stand_ins: bool,
        heartbeat_s: float,
        patience_s: float,
        roots: Callable[[], list[int]] = list,
        mend: Callable[[], object] = lambda: None,
    ):
        """`roots` are the nodes of its cluster. `mend` puts nodes in the place of those that have died.

        It is called MEND_S after a node has been struck, and before the command is given again.
        """
        self.folder, self.arguments, self.environment, self.strikes = folder, arguments, environment, strikes
        self.stand_ins, self.heartbeat_s, self.patience_s = stand_ins, heartbeat_s, patience_s
        self.roots, self.mend = roots, mend
        self.seen: set[Seen] = set()
        self.shared: set[str] = set()
        self.looked = 0.0
        self.helped: set[int] = set()  # numbers of the strikes after which `_help` has done its part

    def go(self) -> Told:
        told = Told(began=time.time())
        for _ in range(len(self.strikes) + MORE_STARTS):
            code = self._start()
            told.codes.append((time.time(), -signal.SIGKILL if code is None else code))
            told.hung = code is None
            told.left += [one.title[:60] for one in self._left()]
            if code in (0, None, MISTAKE):
                break
            self.mend()
        told.ended = time.time()
        told.shared = {file for file in self.shared if os.path.exists(file)}
        told.output = (self.folder / "run.out").read_text(errors="replace")
        moments = self.folder / "moments.jsonl"
        told.moments = [json.loads(line) for line in moments.read_text().splitlines()] if moments.exists() else []
        told.struck = {strike.number: facts for strike in self.strikes if (facts := self._struck(strike))}
        return told

    def _start(self) -> int | None:
        """Give the command once; returns its exit code, None if it hung."""
        strikes = [
            {
                "number": s.number, "victim": s.way.victim, "signal": s.way.signal, "moment": s.way.moment,
                "step": s.step, "delay_s": s.delay_s,
            }
            for s in self.strikes
        ]  # fmt: skip
        plan = {"folder": str(self.folder), "roots": self.roots(), "strikes": strikes, "stand_ins": self.stand_ins}
        place = self.folder / "plan.json"
        place.write_text(json.dumps(plan, indent=2))
        with open(self.folder / "run.out", "a") as out:
            process = subprocess.Popen(
                [sys.executable, str(LEAD), *self.arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment() | {PLAN: str(place)},
                start_new_session=True,
            )
        deadline = time.monotonic() + self.patience_s
        try:
            while process.poll() is None and time.monotonic() < deadline:
                self._look(process.pid)
                time.sleep(POLL_S)
        except BaseException:
            self._end(process)
            raise
        if process.poll() is None:
            self._end(process)
            return None
        return process.returncode

    def _look(self, pid: int) -> None:
        """Remember every process that the run has."""
        now = below([pid]) + [one for one in below(self.roots()) if one.role in OF_A_RUN]
        self.seen |= set(now)
        if time.monotonic() - self.looked > LOOK_AT_MEMORY_S:
            self.looked = time.monotonic()
            for one in now:
                self.shared |= shared_memory(one.pid)
        self._help()

    def _help(self) -> None:
        """What comes from outside after a strike: another node, and SIGCONT for a driver that was stopped."""
        for strike in self.strikes:
            stopped = strike.way.victim == "driver" and strike.way.signal == STOP
            if strike.number in self.helped or not (stopped or strike.way.victim == "node"):
                continue
            facts = self._struck(strike)
            if facts is None or "pid" not in facts:
                continue
            if time.time() - facts["when"] < (1.5 * self.heartbeat_s if stopped else MEND_S):
                continue
            self.helped.add(strike.number)
            if not stopped:
                self.mend()
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(facts["pid"], signal.SIGCONT)

    def _struck(self, strike: Strike) -> dict | None:
        place = struck_file(self.folder, strike.number)
        return json.loads(place.read_text()) if place.exists() else None

    def _left(self) -> list[Seen]:
        """The processes that outlive the run, after they had time to end; they are ended then."""
        deadline = time.monotonic() + LEAVE_S
        while (left := _living(self.seen)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        for one in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)
        self.seen = set()
        return left

    def _end(self, process: subprocess.Popen) -> None:
        """Kill a run that hangs, with all that it has started; what of it is on a cluster too."""
        for one in [*below([process.pid]), *_living(self.seen)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)
        process.wait()


def _living(seen: Iterable[Seen]) -> list[Seen]:
    """Those that live, by the names they have now: a process has its parent's until it has become what it is.

    A worker of a cluster that has become idle is the cluster's again.
    """
    now = [look(one.pid) for one in seen if one.lives()]
    return [one for one in now if one and not one.title.startswith("ray::IDLE")]
