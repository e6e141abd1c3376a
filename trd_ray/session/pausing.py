"""Rest between two steps: asked for with `trd pause`, ended with `trd unpause`.

    door --pause--> the step under way is finished --> rest(): engines and learner keep what they hold, and do nothing
         --unpause--> the next step

The stream goes on until its engines have made what may be made ahead. A pause ends with the process of the run: one
that goes on after a crash does not rest.
"""

import time
from collections.abc import Callable
from typing import Any

from trd_ray.session.session import Session

LOOK_S = 0.2


class Pausing:
    def __init__(self, session: Session):
        self.session = session
        self.asked = False
        self.resting = False
        session.door.on("pause", self._pause)
        session.door.on("unpause", self._unpause)
        session.door.shows("paused", lambda: self.resting)

    def _pause(self, arguments: dict[str, Any]) -> str:
        self.asked = True
        return "it rests when the step under way is recorded; trd unpause ends that"

    def _unpause(self, arguments: dict[str, Any]) -> str:
        if not self.asked:
            return "it does not rest"
        self.asked = False
        return "it goes on"

    def over(self) -> None:
        """No step comes any more."""
        self.session.door.off("pause", "unpause", "scale")

    def rest(self, look: Callable[[], object]) -> None:
        """Return when nobody wants a pause; `look` is called meanwhile, and may raise to end the run."""
        if not self.asked:
            return
        display, directory = self.session.display, self.session.directory
        before = display.shown()
        step = before["steps"][0]
        said = f"paused after step {step}"
        directory.event("pause", said=said, step=step)
        self.resting = True
        display.phase(said)
        display.stands_still()
        try:
            while self.asked:
                look()
                time.sleep(LOOK_S)
        finally:
            self.resting = False
        directory.event("pause", said=f"goes on after step {step}", step=step)
        display.phase(before["phase"])
