"""Ctrl-C, SIGTERM and a closed terminal set a flag, which the loop reads where it may stop: no step is half done.

- The first signal asks: the step under way is finished or dropped, a checkpoint is written, everything is shut down.
- A second signal raises KeyboardInterrupt at once, and what is left to shut down is ended without a wait.
- A signal that was ignored when the program started (nohup, a shell's &) stays ignored, except SIGTERM.
- `trd stop` asks as a SIGTERM does, and `trd stop --now` as a second one.
"""

import signal
import time
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# One request can arrive twice: the terminal and Ray's job server signal every process of a run, and the process above
# passes its signal on.
SAME_REQUEST_S = 1.0


class Stopped(Exception):
    """The run was asked to stop; `exit_code` is the shell's code for the signal, `kept` says what is on disk.

    `by` is what asked, if it was not the signal itself.
    """

    def __init__(self, number: int, kept: str = "", by: str = ""):
        name = by or signal.Signals(number).name
        super().__init__(f"{name}; {kept}" if kept else name)
        self.number = number
        self.by = by
        self.exit_code = 128 + number


class StopSignals:
    """Install with `with StopSignals() as stop:`; `stop.check()` raises Stopped once a signal has come.

    `hurried` is true once a second signal has come; nothing is waited for after that.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.hurried = False
        self.by = ""  # what asked, if it was no signal
        self._received_at = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        return self

    def install(self) -> None:
        """Install the handlers; to be called again after ray.init, which installs its own."""
        for number, before in self._before.items():
            if before != signal.SIG_IGN or number == signal.SIGTERM:
                signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = number, now
        elif not self.hurried and now - self._received_at > SAME_REQUEST_S:
            self.hurried = True
            raise KeyboardInterrupt(number)

    def ask(self, by: str) -> None:
        """Do as a first SIGTERM does, in the name of what asked."""
        if self.received is None:
            self.received, self._received_at, self.by = signal.SIGTERM, time.monotonic(), by

    def at_once(self) -> None:
        """Do as a second signal does: raise KeyboardInterrupt, once."""
        if not self.hurried:
            self.received, self.hurried = self.received or signal.SIGTERM, True
            raise KeyboardInterrupt(self.received)

    def check(self) -> None:
        if self.received is not None:
            raise Stopped(self.received, by=self.by)

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before if callable(before) or isinstance(before, int) else signal.SIG_DFL)  # type: ignore[arg-type]
