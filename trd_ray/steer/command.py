"""A run seen and steered from outside: each command reaches it, looks or asks, prints, and ends.

    trd status [RUN] | logs RUN [LOG] | stop RUN | pause RUN | unpause RUN | checkpoint RUN | scale RUN POOL=N ...
        ->  reach.py: the run's directory, or its porter on a cluster  ->  a screen, or the run's answer

Exit codes: 0 it is so, 2 there is no such run, or it refuses, which the sentence explains.
"""

import contextlib
import getpass
import json
import os
import re
import socket
import sys
import time
from typing import Any

from trd_ray.errors import UserError
from trd_ray.record.markdown import visible
from trd_ray.session.seen import LIVE
from trd_ray.steer.reach import Reached, RunHasEnded, every_run, reached
from trd_ray.steer.screen import event_line, listing, screen

CHECKPOINT_POLL_S = 1.0
FOLLOW_POLL_S = 1.0
POOL = re.compile(r"(sampler|judge|refiner(\.[\w-]+)?)=(\d{1,5}|auto)")


def status(run: str | None, address: str | None, as_json: bool) -> int:
    if run is not None:
        with reached(run, address) as found:
            view = found.look()
        print(json.dumps(view, indent=1) if as_json else _drawn(view))
        return 0
    views: list[dict[str, Any]] = []
    unreached = None
    try:
        for found in every_run(address):
            with contextlib.suppress(RunHasEnded):  # since it was found
                views.append(found.look())
    except UserError as e:  # those that were found before are shown all the same
        unreached = e
    if as_json:
        print(json.dumps(views, indent=1))
    elif views:
        print(listing(views))
    elif not unreached:
        print("there are no runs below runs/, nor on a cluster that RAY_ADDRESS or --address names")
    if unreached:
        raise unreached
    return 0


def _drawn(view: dict[str, Any]) -> str:
    try:
        return screen(view)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise UserError(
            f"status.json in {view['directory']} is of another version of this program ({e!r}): --json prints it as it "
            "is"
        ) from e


def logs(run: str, log: str | None, address: str | None, lines: int, follow: bool) -> int:
    """Print the end of a log; without a name what happened, and the names that there are."""
    with reached(run, address) as found:
        if log is None:
            for event in found.events(lines):
                print(event_line(event))
            sizes = ", ".join(f"{name} ({size / 1024:.0f} KiB)" for name, size in found.logs().items())
            print(f"logs: {sizes or 'none yet'}")
            return 0
        text, end = found.log(log, lines)
        _show(text)
        while follow and found.look()["state"] in LIVE:
            time.sleep(FOLLOW_POLL_S)
            text, end = found.log(log, None, end)
            _show(text)
    return 0


def ask(run: str, verb: str, arguments: dict[str, Any], address: str | None, timeout_s: float) -> int:
    """Ask for one of what a run can be asked, and print the answer."""
    with reached(run, address) as found:
        _say(found.ask(verb, arguments, by(), timeout_s))
    return 0


def checkpoint(run: str, address: str | None, timeout_s: float, wait: bool) -> int:
    """Ask for a checkpoint and, unless told not to, wait until it is complete."""
    with reached(run, address) as found:
        before = found.look()["checkpoints"]
        _say(found.ask("checkpoint", {}, by(), timeout_s))
        if wait:
            _wait_for_checkpoint(found, before)
    return 0


def _wait_for_checkpoint(found: Reached, before: list[int]) -> None:
    """Return when no checkpoint is asked for or being written any more; raises UserError if the run ends before."""
    told = False
    while True:
        view = found.look()
        newest = view["status"].get("checkpoint") or {}
        done = not newest.get("asked") and newest.get("writing") is None
        if done and view["checkpoints"]:
            new = view["checkpoints"] != before
            _say(f"checkpoint {view['checkpoints'][-1]} is {'written' if new else 'there'}")
            return
        if view["state"] not in LIVE:
            raise UserError(f"the run is {view['state']} before it could write the checkpoint")
        if view["state"] == "silent" and not told:
            told = True
            _say("the run is silent, so this may take long: Ctrl-C ends the wait, and the run keeps the wish")
        time.sleep(CHECKPOINT_POLL_S)


def sizes(asked: list[str]) -> dict[str, int | str]:
    """`refiner=3 sampler=auto` as pool -> engines; auto leaves a pool to the run. Raises UserError."""
    found: dict[str, int | str] = {}
    for one in asked:
        match = POOL.fullmatch(one)
        if not match or (match[3] != "auto" and int(match[3]) < 1):
            raise UserError(
                f"{one} is no size of a pool: say refiner=3, sampler=2, judge=2 or refiner.NAME=3, each at least 1, or "
                "refiner=auto where the recipe's refiner.replicas are bounds"
            )
        if match[1] in found:
            raise UserError(f"{match[1]} is named twice: name each pool once")
        found[match[1]] = match[3] if match[3] == "auto" else int(match[3])
    if not found:
        raise UserError("name the pools and how many engines each shall have, such as refiner=3 sampler=2")
    return found


def by() -> str:
    """Who asks, for the record."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _say(text: str) -> None:
    print(visible(text), flush=True)


def _show(text: str) -> None:
    """A log as it is, but nothing in it can control the terminal."""
    for line in text.splitlines():
        print(visible(line))
    sys.stdout.flush()
