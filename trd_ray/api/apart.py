"""A run in a process of its own, for whoever calls it from Python, and what ended it as an exception here.

    request --JSON--> python -m trd_ray.api.lead, the process above the run --> the run
    the terminal, or sys.stdout line by line  <--what they print--'                |
    the exception, or none                    <--outcome, a file of JSON-----------'

Why a process apart: Ray's core ends a driver on the spot when Ray breaks; a notebook's kernel must outlive that. A run
wants the main thread for its signals, its own standard error and its own Ray; a script without a `__main__` guard must
not start again in the workers; the memory of torch is given back.

- Ctrl-C (in a notebook: interrupt) asks the run to stop with a checkpoint, and this process waits for it. A second one
  ends it at once. Then Stopped is raised.
- If this process dies, the run is asked to stop as by SIGTERM.
- Nothing here needs the main thread, a terminal, standard input or `__file__`.
"""

import codecs
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from trd_ray.errors import RunFailed, UserError
from trd_ray.session.stop import Stopped

INSIDE = "TRD_RAY_API_RUN"  # environment variable: in a run of this module, and in what it starts
LOOK_EVERY_S = 0.2
LAST_OUTPUT_S = 1.0  # for what the run wrote before it ended
BY_CALLBACK = "the callback "


def run_apart(request: dict[str, Any], quiet: bool = False) -> str:
    """Run it, and return once it has ended well; "" or, if a callback stopped it, the sentence that says so.

    `request` is what `trd_ray.api.lead` takes. Raises UserError, RunFailed or Stopped.
    """
    if INSIDE in os.environ:
        raise UserError(
            "a run cannot be started by code that a run has loaded: keep the call out of the file that holds the "
            "verifier, metric function or callback"
        )
    with tempfile.TemporaryDirectory(prefix="trd_api-") as folder:  # no name that trd_ray.litter would take for its own
        outcome = Path(folder) / "outcome.json"
        request = request | {"outcome": str(outcome), "caller": os.getpid()}
        shares = not quiet and _has_terminal()
        output = None if shares else subprocess.DEVNULL if quiet else subprocess.PIPE
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "trd_ray.api.lead", json.dumps(request)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=None if shares else subprocess.STDOUT,
            env=_environment(),
            start_new_session=not shares,  # a notebook that ends its kernel's processes lets the run end by itself
        )  # fmt: skip
        try:
            code = _wait(child)
        except BaseException:  # nobody waits any more
            child.terminate()
            raise
        return _ended(code, outcome)


def _has_terminal() -> bool:
    """Whether what this process prints goes to a terminal, which the run's live panel can have."""
    with contextlib.suppress(Exception):  # a notebook's stream may lack any of these
        return sys.stdout.isatty() and sys.stdout.fileno() == 1 and sys.stderr.fileno() == 2
    return False


def _environment() -> dict[str, str]:
    """The run imports what this process can import: also from the folder of the script, and of the notebook."""
    packages = {sysconfig.get_paths()[name] for name in ("purelib", "platlib", "stdlib", "platstdlib")}
    places = [os.path.abspath(place) for place in sys.path if not place.endswith(".zip")]
    own = [place for place in places if not any(place.startswith(package) for package in packages)]
    before = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    path = os.pathsep.join(dict.fromkeys([*own, *before]))
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", INSIDE: "1"}


def _wait(child: subprocess.Popen) -> int:
    forward = _Forward(child) if child.stdout else None
    while True:
        try:
            if forward:
                forward.until_the_end()
            return child.wait()
        except KeyboardInterrupt:
            print("asked the run to stop; interrupt again to end it at once", file=sys.stderr, flush=True)
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGINT)


class _Forward:
    """What the child prints, for sys.stdout, which may be a notebook's cell or a test's buffer."""

    def __init__(self, child: subprocess.Popen):
        assert child.stdout
        self._child = child
        self._pipe = child.stdout.fileno()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def until_the_end(self) -> None:
        while True:
            ended = self._child.poll() is not None
            ready, _, _ = select.select([self._pipe], [], [], LAST_OUTPUT_S if ended else LOOK_EVERY_S)
            data = os.read(self._pipe, 65536) if ready else b""
            if ready:
                sys.stdout.write(self._decoder.decode(data, final=not data))
                sys.stdout.flush()
            if (ready and not data) or (ended and not ready):  # all is read, or a process that stays holds the pipe
                return


def _ended(code: int, outcome: Path) -> str:
    """Raise what ended the run."""
    try:
        tree = json.loads(outcome.read_text())
    except (OSError, ValueError):
        tree = {}
    said = str(tree.get("said", ""))
    match tree.get("ended"):
        case "done":
            return ""
        case "user_error":
            raise UserError(*tree["sentences"])
        case "stopped":
            if str(tree.get("by", "")).startswith(BY_CALLBACK):
                return said
            stopped = Stopped(int(tree["number"]), by=str(tree.get("by", "")))
            stopped.args = (said,)
            raise stopped
        case "run_failed":
            raise RunFailed(said)
    if code > 128 or code < 0:
        stopped = Stopped(code - 128 if code > 0 else -code)
        raise stopped
    raise RunFailed(
        said or f"the process of the run ended with exit code {code} and said no more than is printed above"
    )
