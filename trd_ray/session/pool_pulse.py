"""What the pools say of themselves, asked with a deadline: one that is stopped or hangs is ended, and so starts again.

    statuses() --status--> every pool --> what became of its engines, each news told once
    soon(), also in a weight sync     --> the same
                                      --> nothing for heartbeat_s: its process is killed, Ray starts it again
                                                                   and makes the call again
    either           --pulse--> the keeper of every pool (keeper.py), which is ended alike, and its engines with it

A pool's process lives on the driver's node (launch.py), and the next one goes on with its engines (keeper.py).
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil
import ray
from ray._private.state import state as gcs  # the public API of actors needs a dashboard

from trd_ray.engine.launch import keeper_of
from trd_ray.engine.life import in_words

LOOK_EVERY_S = 1.0
START_S = 300.0  # that a process of Ray may need to start: it hears nothing before it is up, unless it is stopped


class PoolPulse:
    def __init__(
        self, pools: Mapping[str, Any], heartbeat_s: float, tell: Callable[[str, str, dict[str, Any]], object]
    ):
        """`tell(pool, sentence, facts)` is called for each news, also when the process of a pool is ended."""
        self.pools, self.heartbeat_s, self.tell = pools, heartbeat_s, tell
        self.pids: dict[str, int] = {}  # as each pool told last
        self.began = time.time()
        self.told: dict[str, float] = {}  # pool -> when the last of its news was
        self.asking: dict[str, tuple[Any, float]] = {}  # pools that `soon` has asked -> the question, since when
        self.keepers: dict[str, tuple[Any, float]] = {}  # pools whose keeper was asked -> the question, since when

    def statuses(self, while_waiting: Callable[[], object]) -> dict[str, dict[str, Any]]:
        asked = {name: pool.status.remote() for name, pool in self.pools.items()}
        refs = list(asked.values())
        since, late = dict.fromkeys(asked, time.monotonic()), refs
        while late:
            self._look_after_keepers()
            late = ray.wait(refs, num_returns=len(refs), timeout=LOOK_EVERY_S)[1]
            if late:
                while_waiting()
                now = time.monotonic()
                for name in [name for name, ref in asked.items() if ref in late]:
                    if self._ends(name, now - since[name]):
                        since[name] = now
        found = dict(zip(asked, ray.get(refs), strict=True)) if refs else {}
        self._hear(found)
        return found

    def soon(self, timeout_s: float) -> dict[str, dict[str, Any]]:
        """The statuses of the pools that answer so soon. A pool whose process still starts answers to a later call."""
        self._look_after_keepers()
        now = time.monotonic()
        for name, pool in self.pools.items():
            if name not in self.asking:
                self.asking[name] = pool.status.remote(), now
        refs = [ref for ref, _ in self.asking.values()]
        overdue = [name for name, (_, since) in self.asking.items() if now - since > self.heartbeat_s]
        if overdue:  # this process may have been stopped itself, and has not read the answer yet
            timeout_s = max(timeout_s, LOOK_EVERY_S)
        late = ray.wait(refs, num_returns=len(refs), timeout=timeout_s)[1] if refs else []
        found = {name: ray.get([ref])[0] for name, (ref, _) in self.asking.items() if ref not in late}
        for name in overdue:
            if name not in found and self._ends(name, now - self.asking[name][1]):
                self.asking[name] = self.asking[name][0], now
        for name in found:
            del self.asking[name]
        self._hear(found)
        return found

    def _hear(self, found: Mapping[str, dict[str, Any]]) -> None:
        self.pids |= {name: status["pid"] for name, status in found.items()}
        for name, status in found.items():
            self._tell_news(name, status["news"])

    def _tell_news(self, name: str, news: list[dict[str, Any]]) -> None:
        """What was before this run on a pool that it borrows is not its own."""
        told = self.told.setdefault(name, self.began)
        for one in news:
            if one["when"] > told:
                self.told[name] = one["when"]
                self.tell(name, in_words(one), {key: one[key] for key in one if key != "when"})

    def _ends(self, name: str, silent_s: float) -> bool:
        """Whether the process of a pool that has been silent for so long is taken for one that hangs, and is ended."""
        if silent_s <= self.heartbeat_s:
            return False
        told = self.pids.pop(name, None)
        pid = told or _pid_of(self.pools[name], self.heartbeat_s, silent_s)
        if pid and _kill(pid, "Pool" if told else "ray::"):
            self.tell(name, f"the pool {name} gave no sign of life for {self.heartbeat_s:g} s (heartbeat_s)", {})
        return pid is not None

    def _look_after_keepers(self) -> None:
        """Ask the keepers whether they live, without waiting. A pool starts no engine without its keeper."""
        for name, pool in self.pools.items():
            keeper = keeper_of(pool)
            if keeper is None:
                continue
            now = time.monotonic()
            asked, since = self.keepers.get(name, (None, now))
            overdue = now - since > self.heartbeat_s
            # This process may have been stopped itself, and has not read the answer yet.
            if asked is None or ray.wait([asked], timeout=LOOK_EVERY_S if overdue else 0)[0]:
                self.keepers[name] = keeper.pulse.remote(), now
            elif overdue and (pid := _pid_of(keeper, self.heartbeat_s, now - since)):
                self.keepers[name] = asked, now
                if _kill(pid, "ray::"):
                    why = f"what keeps the engines of {name} gave no sign of life for {self.heartbeat_s:g} s"
                    self.tell(name, f"{why} (heartbeat_s): they start again", {})


def _pid_of(actor: Any, heartbeat_s: float, silent_s: float) -> int | None:
    """The process of an actor as Ray knows it; None while that may still start, or was up for less than heartbeat_s."""
    row = gcs.actor_table(actor._actor_id.hex())
    if not row:
        return None
    if row["State"] == "ALIVE":
        up_s = time.time() - row["Timestamp"] / 1000  # when its state changed last
        return row["Pid"] if up_s > heartbeat_s else None
    return row["Pid"] if silent_s > START_S or _is_stopped(row["Pid"]) else None


def _is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process (SIGSTOP), which then starts no further. There may be none yet (0)."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    return False


def _kill(pid: int, name: str) -> bool:
    """Kill the process, and no other that has its number by now; returns whether it did."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if name in " ".join(process.cmdline()):
            process.kill()
            return True
    return False
