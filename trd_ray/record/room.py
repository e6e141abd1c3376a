"""A disk that is full is waited for: the run says so once, tries again from time to time, and goes on.

    room.having("the rows of step 12", write)  ->  what write() returns, as soon as there was room for it

`write` must leave nothing behind when it fails, so that it can be called again. While the run waits it still looks at
its pools and its door, so it can be stopped, and the engines go on with what they have.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trd_ray.files import is_full

FIRST_S, LONGEST_S = 5.0, 60.0  # between two tries, doubling
LOOK_S = 1.0


class Room:
    def __init__(
        self,
        place: Path,
        look: Callable[[], object],
        tell: Callable[[str], object],
        sleep: Callable[[float], object] = time.sleep,
    ):
        """`look` is called about once a second while the disk is full, and may raise to give up. `tell` says it."""
        self.place, self.look, self.tell, self.sleep = place, look, tell, sleep

    def having(self, what: str, write: Callable[[], Any]) -> Any:
        wait_s, waited_s = FIRST_S, 0.0
        while True:
            try:
                value = write()
            except OSError as e:
                if not is_full(e):
                    raise
                if not waited_s:
                    self.tell(
                        f"the disk of {self.place} is full: the run pauses before it writes {what}, and goes on by "
                        "itself once there is room"
                    )
            else:
                if waited_s:
                    self.tell(f"there is room again for {what} after {waited_s:.0f} s")
                return value
            for _ in range(round(wait_s / LOOK_S)):
                self.look()
                self.sleep(LOOK_S)
            waited_s += wait_s
            wait_s = min(2 * wait_s, LONGEST_S)
