"""What a reviewer asks for: single keys in a terminal, or lines of a pipe or a file.

    key, or "f the sign is wrong"  ->  Keystroke("f", "the sign is wrong")

In a terminal a score and a comment are typed after their keys. The terminal is as it was after each stroke, whatever
ends it. Ctrl-C, Ctrl-D and the end of the lines are the stroke to quit. Keys that come together, as from an arrow or a
paste, are no stroke: a verdict needs a key of its own.
"""

import contextlib
import os
import sys
import termios
import tty
from dataclasses import dataclass
from typing import Protocol, TextIO

QUIT = "q"
MORE = "m"
ASKED = {"s": "score: ", "c": "comment: "}  # the keys after which something is typed
KEYS = "p pass, f fail, s score, c comment, n next, b take back, m more, q quit"
_ALSO = {" ": MORE, "\r": MORE, "\n": MORE, "\x03": QUIT, "\x04": QUIT, "": QUIT}


@dataclass(frozen=True)
class Keystroke:
    key: str
    text: str = ""  # what was said with it


class Reviewer(Protocol):
    def keystroke(self) -> Keystroke: ...


class AtTerminal:
    """Somebody at the terminal that standard input is."""

    def keystroke(self) -> Keystroke:
        try:
            key = self._key()
            return Keystroke(key, input(ASKED[key])) if key in ASKED else Keystroke(key)
        except (EOFError, KeyboardInterrupt):
            print()
            return Keystroke(QUIT)

    def _key(self) -> str:
        file = sys.stdin.fileno()
        before = termios.tcgetattr(file)
        try:
            tty.setcbreak(file, termios.TCSADRAIN)
            typed = os.read(file, 64)  # an arrow or a function key comes as several bytes, of which none is a stroke
        finally:
            termios.tcsetattr(file, termios.TCSADRAIN, before)
        key = typed.decode(errors="replace")
        return _ALSO.get(key, key.lower())


class InLines:
    """A pipe or a file: a line is a key, a space and what is said with it."""

    def __init__(self, lines: TextIO):
        self._lines = lines

    def keystroke(self) -> Keystroke:
        with contextlib.suppress(KeyboardInterrupt):
            line = self._lines.readline()
            key, _, text = line.strip().partition(" ")
            return Keystroke(QUIT if not line else _ALSO.get(key, key.lower()) if key else MORE, text.strip())
        return Keystroke(QUIT)
