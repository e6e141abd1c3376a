"""Ask a run for something through its directory, and wait for the answer; the other side of `trd_ray.session.door`.

ask(RUN, "pause", {}, by="me@host")  --RUN/door/ID.json-->         the run
                       the sentence  <--RUN/door/ID.answer.json--
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from trd_ray.errors import UserError
from trd_ray.session.door import ANSWER, FOLDER, replace_text
from trd_ray.session.seen import LIVE, is_held, look_at
from trd_ray.session.stop import SAME_REQUEST_S

ANSWER_S = 60.0
POLL_S = 0.1
GONE_S = 5.0  # how often it is looked whether the run still lives


class Unanswered(UserError):
    """The run lives, but has not looked at its door."""


def ask(directory: Path, verb: str, arguments: dict[str, Any], by: str, timeout_s: float = ANSWER_S) -> str:
    """What the run answers. Raises UserError if it refuses, does not live, or does not answer in time.

    A request that was not answered is taken back. To stop at once, a run on this machine that does not answer is sent
    the signals that mean the same.
    """
    _require_life(directory)
    folder = directory / FOLDER
    request = folder / f"{time.time_ns()}-{secrets.token_hex(4)}.json"
    try:
        folder.mkdir(exist_ok=True)
        replace_text(request, json.dumps({"verb": verb, "arguments": arguments, "by": by, "when": time.time()}))
    except OSError as e:
        raise UserError(
            f"the run in {directory} cannot be asked ({e.strerror}): whoever may write there can ask it"
        ) from e
    answer = request.with_name(request.stem + ANSWER)
    try:
        return _wait(directory, answer, timeout_s)
    except Unanswered:
        if verb == "stop" and arguments.get("now") and _interrupt(directory):
            return f"it has not answered within {timeout_s:.0f} s, so its process was sent SIGTERM twice"
        raise
    finally:
        for file in (request, answer):
            with contextlib.suppress(OSError):
                os.unlink(file)


def _wait(directory: Path, answer: Path, timeout_s: float) -> str:
    deadline = time.monotonic() + timeout_s
    look = time.monotonic() + GONE_S
    while time.monotonic() < deadline:
        if (said := _answered(directory, answer)) is not None:
            return said
        if time.monotonic() > look:
            look = time.monotonic() + GONE_S
            try:
                _require_life(directory)
            except UserError:
                if (said := _answered(directory, answer)) is not None:  # just before it ended
                    return said
                raise
        time.sleep(POLL_S)
    view = look_at(directory)
    written = view["status"].get("written")
    looked = f"last looked at its door {view['seen'] - written:.0f} s ago" if written else "still starts"
    raise Unanswered(
        f"the run in {directory} has not answered within {timeout_s:.0f} s, and {looked}: ask again, or find out with "
        f"`trd status {directory}` what it does"
    )


def _answered(directory: Path, answer: Path) -> str | None:
    """What the run has said, None as long as it has said nothing. Raises UserError if it refuses."""
    try:
        tree = json.loads(answer.read_text())
    except (FileNotFoundError, ValueError):
        return None
    except OSError as e:
        raise UserError(
            f"the run in {directory} has answered, but its answer cannot be read ({e.strerror}): ask as the user who "
            "started the run"
        ) from e
    if not tree["ok"]:
        raise UserError(f"the run in {directory} answers: {tree['said']}")
    return tree["said"]


def _interrupt(directory: Path) -> bool:
    """Send the process that leads the run two signals, which are two requests to it; False if it is not here."""
    status = look_at(directory)["status"]
    if status.get("host") != socket.gethostname() or not is_held(directory):
        return False
    try:
        process = psutil.Process(status["pid"])
        if process.create_time() != status["process_began"]:  # another one that has its number by now
            return False
        process.send_signal(signal.SIGTERM)
        time.sleep(SAME_REQUEST_S * 1.2)
        process.send_signal(signal.SIGTERM)
    except (psutil.Error, KeyError, TypeError):
        return False
    return True


def _require_life(directory: Path) -> None:
    view = look_at(directory)
    if view["state"] not in LIVE:
        ended = view["status"].get("ended") or {}
        said = f" ({ended['said']})" if ended.get("said") else ""
        raise UserError(f"the run in {directory} does not run, it is {view['state']}{said}: there is nobody to ask")
