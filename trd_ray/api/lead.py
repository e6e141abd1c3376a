"""The process that `trd_ray.api` starts for a run: as `trd train` does, but what ends it is written to a file as well.

    python -m trd_ray.api.lead REQUEST  ->  supervised()  ->  the command of the program  ->  REQUEST["outcome"]

REQUEST is JSON: {"job": "train" | "refine" | "evaluate", "words": [...], "outcome": FILE, "caller": PID, ...}, where
`words` is what `trd` would be told to do the same: the sentences that say how to go on quote it.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from trd_ray.errors import RunFailed, UserError
from trd_ray.files import write_atomically
from trd_ray.session import last_words
from trd_ray.session.stop import Stopped
from trd_ray.session.supervise import supervised


def main(arguments: list[str]) -> int:
    request = json.loads(arguments[0])
    outcome = Path(request["outcome"])
    if last_words.PIPE not in os.environ:  # the process above the run
        _end_with(request["caller"])

    told: list[str] = []

    def tell(text: str) -> None:
        print(f"trd: {text}", file=sys.stderr, flush=True)
        if told or not outcome.exists():  # else the run has said itself what ended it
            told.append(text)
            _write(outcome, {"ended": "run_failed", "said": "; ".join(told)})

    return supervised(lambda _: lead(request), arguments, tell)


def lead(request: dict[str, Any]) -> int:
    """In the run: do it, and write what came of it."""
    outcome = Path(request["outcome"])
    sys.argv = ["trd", *request["words"]]
    try:
        code = _run(request)
        found: dict[str, Any] = {"ended": "done"}
    except UserError as e:
        code, found = 2, {"ended": "user_error", "sentences": e.sentences}
    except RunFailed as e:
        code, found = 1, {"ended": "run_failed", "said": str(e)}
    except Stopped as e:
        code, found = e.exit_code, {"ended": "stopped", "number": e.number, "by": e.by, "said": str(e)}
    except KeyboardInterrupt:
        code, found = 130, {"ended": "stopped", "number": int(signal.SIGINT), "said": "interrupted"}
    except Exception as e:
        traceback.print_exc()
        code, found = 1, {"ended": "run_failed", "said": f"{type(e).__name__}: {' '.join(str(e).split())[:400]}"}
    _write(outcome, found)
    return code


def _run(request: dict[str, Any]) -> int:
    # Read by Ray when it is imported: a message about its own inner life that looks like an error and is none.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "PYTHON worker processes have been started")
    if request["job"] == "evaluate":
        from trd_ray.evaluate import command as evaluate

        r = request
        return evaluate.run(r["model"], r["benchmarks"], r["overrides"], r["name"], r["base"])
    from trd_ray import config
    from trd_ray.train import command

    return command.run(config.load(request["recipe"]), request["job"], request["resume"])


def _end_with(caller: int) -> None:
    """Ask this process to stop when the one that called the run dies."""
    last_words.prctl(last_words.PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != caller:  # it died before prctl
        os.kill(os.getpid(), signal.SIGTERM)


def _write(outcome: Path, found: dict[str, Any]) -> None:
    try:
        write_atomically(outcome, json.dumps(found))
    except OSError as e:  # the one who called has gone, and its folder with it
        print(f"trd: what ended the run could not be told ({e.strerror or e})", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
