"""Ctrl-C and SIGTERM as a flag that the loop reads where it may stop, so that no step is left half done.

The first signal asks: the step under way is finished or dropped, a checkpoint is written, everything is shut down. A
second one raises KeyboardInterrupt at once.
"""

import signal
from types import FrameType


class Stopped(Exception):
    """The run was asked to stop; `exit_code` is the shell's code for the signal."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class StopSignals:
    """Install with `with StopSignals() as stop:`; `stop.check()` raises Stopped once a signal has come."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopSignals":
        self.install()
        return self

    def install(self) -> None:
        """Also to be called after ray.init, which installs handlers of its own."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def check(self) -> None:
        if self.received is not None:
            raise Stopped(self.received)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
