"""How much Ray's object store writes to disk, since its memory is full: asked of a raylet, beside the run.

    a thread, every ASK_S:  raylet --FormatGlobalMemoryInfo-->  statistics of all nodes  ->  take(): GiB since then

It is what `ray memory --stats-only` prints (ray._private.internal_api), without a process and without the list of
objects. The totals count from the start of each raylet, and those of a cluster are of all that run on it. Whatever
fails, also since Ray has changed, leaves the metric out. `close` ends the thread, which is a daemon, within its ask.
"""

import threading
from typing import Any

ASK_S = 30.0
ANSWER_S = 10.0
GIB = 2**30


class StoreSpills:
    def __init__(self, ask: Any = None, ask_s: float = ASK_S):
        """`ask` returns the reply of a raylet."""
        self._ask = ask or asked
        self._ask_s = ask_s
        self._bytes: int | None = None  # in all, as was told last
        self._taken: int | None = None  # of those, what was taken
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="store-spills", daemon=True)
        self._thread.start()

    def take(self) -> dict[str, float]:
        """GiB that were spilled since the last call; nothing before there is something to compare with."""
        total, before = self._bytes, self._taken
        self._taken = total
        if total is None or before is None:
            return {}
        return {"store/spilled_gib": max(0, total - before) / GIB}  # a raylet that is new counts from 0

    def close(self) -> None:
        self._over.set()

    def _work(self) -> None:
        while not self._over.is_set():
            try:
                self._bytes = spilled_bytes(self._ask())
            except Exception:  # noqa: BLE001 - of gRPC, of a raylet that ends, of another version of Ray
                self._bytes = None
            self._over.wait(self._ask_s)


def spilled_bytes(reply: Any) -> int:
    """What a raylet's reply says of all nodes together."""
    return int(reply.store_stats.spilled_bytes_total)


def asked() -> Any:
    from ray._private.internal_api import get_memory_info_reply
    from ray._private.state import state

    return get_memory_info_reply(state, timeout_seconds=ANSWER_S)
