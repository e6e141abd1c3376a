"""The most memory that a process and all below it have held, while a block lasts.

    with Peak(pid) as peak: ...  ->  peak.mib

Each process counts its own pages, and of shared ones its part (PSS), so Ray's object store is counted once.
"""

import contextlib
import threading
from typing import Any

import psutil

TICK_S = 1.0


class Peak:
    def __init__(self, pid: int):
        self.mib = 0.0
        self._root = psutil.Process(pid)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.mib = max(self.mib, held_mib(self._root))
            if self._end.wait(TICK_S):
                return


def held_mib(root: psutil.Process) -> float:
    held = 0
    with contextlib.suppress(psutil.Error):
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                held += process.memory_full_info().pss
    return held / 2**20
