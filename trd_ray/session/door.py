"""The door of a run: whoever sees its directory sees what it does, and asks it for something, while it goes on.

    trd stop RUN  --RUN/door/ID.json-->         the run, which looks about once a second wherever it waits
                  <--RUN/door/ID.answer.json--  "the step under way is finished first"
    the run       --RUN/status.json, as often-->  trd status RUN, also after a crash

Everything goes through files, so it works on one machine, on a cluster and after the end. Who does not see the
directory asks the run's porter, an actor that does (see `trd_ray.session.porter`).

- A part of the run registers what it can do: `door.on("scale", handler)`. The handler gets the arguments and returns
  the sentence that is answered; it raises UserError for a request that cannot be met. It is called in the middle of any
  wait of the run, also while the learner works. So it notes what is to be done, or starts something that goes on by
  itself; it never commands the learner.
- A part adds figures to status.json: `door.shows("pools", figures)`. `figures()` returns at once what JSON can hold.
- A request that nobody understands is answered too, and nothing that fails here ends the run.
- Who asks deletes request and answer. What a crash has left in door/ is deleted when the run starts again.

status.json is written at every look. Its `written` is the run's heartbeat: a run whose lock is held, but which has not
written for a minute, hangs or computes something long in its driver.
"""

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil

from trd_ray.errors import RunFailed, UserError
from trd_ray.record.events import append_event
from trd_ray.record.markdown import visible
from trd_ray.session.last_words import beat
from trd_ray.session.stop import Stopped

Handler = Callable[[dict[str, Any]], str]

LOOK_EVERY_S = 1.0
SCHEMA = 1  # of status.json
STATUS = "status.json"
FOLDER = "door"
ANSWER = ".answer.json"
LONGEST_REQUEST = 64 * 1024  # bytes
NAME = re.compile(r"[\w-]{1,80}\.json")


class Door:
    """The run's side. With `with door:` it is open; at the end of the block status.json says how the run ended."""

    def __init__(self, path: Path, program: str, above: "Door | None" = None):
        """`path` is the run directory. `above` is the door of the program that this run is a part of, if it is one.

        That one is looked at as well.
        """
        self.path = path
        self.program = program
        self.above = above
        self.tell: Callable[[str], object] = lambda text: None  # says on screen who asked for what
        self._facts = {"schema": SCHEMA, "program": program, "directory": str(path)} | this_process()
        if above and "ray" in above._facts:
            self._facts["ray"] = above._facts["ray"]
        self._handlers: dict[str, Handler] = {}
        self._figures: dict[str, Callable[[], Any]] = {}
        self._afterwards: list[Callable[[], object]] = []
        self._at_look: list[Callable[[], object]] = []
        self._unwritten: dict[Path, dict[str, Any]] = {}  # answers that the disk did not take yet
        self._looked = -LOOK_EVERY_S
        self._ended: dict[str, Any] | None = None

    def on(self, verb: str, handler: Handler) -> None:
        """Answer requests of this verb with what the handler returns."""
        self._handlers[verb] = handler

    def off(self, *verbs: str) -> None:
        """Refuse these from here on, since what they ask for can no longer come."""
        for verb in verbs:
            self._handlers[verb] = _over

    def shows(self, name: str, figures: Callable[[], Any]) -> None:
        """Write what `figures` returns into status.json, under this name."""
        self._figures[name] = figures

    def at_look(self, act: Callable[[], object]) -> None:
        """Call `act` at every look, about once a second wherever the run waits; it returns soon, and raises nothing."""
        self._at_look.append(act)

    def afterwards(self, act: Callable[[], object]) -> None:
        """For a handler: call `act`, which may raise, once the answer is written."""
        self._afterwards.append(act)

    def is_in_ray(self, address: str, local: bool) -> None:
        """Say where the run's Ray is; a `local` one is of this machine and ends with the run."""
        self._facts["ray"] = {"address": address, "local": local}

    # The run's life

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):
            for left in [*self.path.glob(f".{STATUS}.*.tmp"), *(self.path / FOLDER).glob("*")]:
                left.unlink()
        self._facts["started"] = time.time()
        append_event(self.path, "start", said=f"process {os.getpid()} on {socket.gethostname()} starts")
        self.look(now=True)
        return self

    def __exit__(self, kind: object, e: BaseException | None, trace: object) -> None:
        how = "done" if e is None else "stopped" if isinstance(e, Stopped | KeyboardInterrupt) else "failed"
        said = str(e) if isinstance(e, Stopped | UserError | RunFailed) else type(e).__name__ if e else ""
        self._ended = {"how": how, "said": said, "when": time.time()}
        append_event(self.path, "end", how=how, said=said or how)
        self.look(now=True)

    def look(self, now: bool = False) -> None:
        """Answer what was asked and write status.json, at most once in LOOK_EVERY_S unless `now`.

        Raises only what a handler wanted to happen after its answer.
        """
        if not now and time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        beat()
        if self.path.is_dir():  # else the run has not claimed one
            asked = self._requests()
            answers = {f: answer for f in asked if (answer := self._unwritten.get(f) or self._answer(f))}
            self._write()  # first, so that who has an answer sees what it changed
            self._unwritten = {file: answer for file, answer in answers.items() if not _wrote(_answer_to(file), answer)}
        for act in self._at_look:
            act()
        while self._afterwards:
            self._afterwards.pop(0)()
        if self.above:
            self.above.look()

    # Requests

    def _requests(self) -> list[Path]:
        try:
            names = [e.name for e in os.scandir(self.path / FOLDER) if NAME.fullmatch(e.name)]
        except OSError:
            return []
        found = [self.path / FOLDER / name for name in names if not name.endswith(ANSWER)]
        return sorted(file for file in found if not _answer_to(file).exists())

    def _answer(self, file: Path) -> dict[str, Any] | None:
        verb, by, arguments = "", "", {}
        try:
            verb, by, arguments = _read(file)
            if self._ended:
                raise UserError("the run has just ended")
            if verb not in self._handlers:
                known = ", ".join(sorted(self._handlers)) or "nothing"
                raise UserError(f"this run does not know {verb}: it can be asked to {known}")
            said, ok = self._handlers[verb](arguments), True
        except FileNotFoundError:  # who asked no longer waits
            return None
        except UserError as e:
            said, ok = str(e), False
        except Exception as e:  # a fault in what answers is no reason to end the run
            said, ok = f"the run could not do that: {type(e).__name__}: {e}", False
        append_event(self.path, "asked", verb=verb, by=by, arguments=arguments, ok=ok, said=f"{verb} ({by}): {said}")
        self.tell(visible(f"asked by {by} to {verb}: {said}"))
        return {"ok": ok, "said": said}

    # Status

    def _write(self) -> None:
        tree = self._facts | {"written": time.time(), "ended": self._ended}
        for name, figures in self._figures.items():
            try:
                tree[name] = _plain(figures())
            except Exception as e:  # such as those of a pool that has just died
                tree[name] = {"error": f"{type(e).__name__}: {e}"}
        _wrote(self.path / STATUS, tree)


def _over(arguments: dict[str, Any]) -> str:
    raise UserError("the run is about to end")


def this_process() -> dict[str, Any]:
    """Where the run is, so that its process is found again and is not taken for a later one of the same number."""
    process = psutil.Process()
    return {"pid": process.pid, "host": socket.gethostname(), "process_began": process.create_time()}


def replace_text(place: Path, text: str) -> None:
    """A file that appears whole. It is not forced to the disk, which every second would be too much for some disks."""
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, place)


def _plain(figures: Any) -> Any:
    """As any reader of JSON takes it: nothing but its types, and null for a number that is not finite."""
    return json.loads(json.dumps(figures, default=str), parse_constant=lambda _: None)


def _wrote(place: Path, tree: dict[str, Any]) -> bool:
    """Whether the disk has taken it."""
    try:
        replace_text(place, json.dumps(tree))
    except OSError:
        return False
    return True


def _answer_to(request: Path) -> Path:
    return request.with_name(request.name.removesuffix(".json") + ANSWER)


def _read(file: Path) -> tuple[str, str, dict[str, Any]]:
    with open(file, "rb") as opened:
        text = opened.read(LONGEST_REQUEST + 1)
    if len(text) > LONGEST_REQUEST:
        raise UserError(f"a request has at most {LONGEST_REQUEST} bytes")
    try:
        tree = json.loads(text)
        verb, by, arguments = tree["verb"], tree.get("by", "somebody"), tree.get("arguments", {})
        if not (isinstance(verb, str) and isinstance(by, str) and isinstance(arguments, dict)):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError('a request is JSON such as {"verb": "stop", "arguments": {}, "by": "me"}') from e
    return verb, by, arguments
