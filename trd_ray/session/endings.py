"""What ended a run early, as one sentence: the cause in Ray's own words, what is kept, and the command that goes on.

    exception  ->  cause()  ->  "a learner rank ended on node 10.0.0.7: ..."
    with told(directory, "train"): ...   ->  RunFailed or Stopped with that sentence; the trace is in logs/failure-*.txt

Ray wraps a failure in several others. The outermost one, which a user would see, rarely says why.
"""

import re
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RaySystemError, RayTaskError

from trd_ray.errors import RunFailed, UserError
from trd_ray.failures import OURS, Failure, links, sentence
from trd_ray.record.directory import RunDirectory
from trd_ray.session.last_words import RAYLET_DIED, say
from trd_ray.session.quiet import memory_kill, raylet_died
from trd_ray.session.stop import Stopped
from trd_ray.session.submitted import is_submitted
from trd_ray.stream.feed import StreamEnded

# What a user calls the actors of a run.
ACTORS = {
    "Pool": "an engine pool",
    "Engine": "an engine",
    "EngineKeeper": "the keeper of a pool's engines",
    "Mailbox": "the learner's mailbox",
    "RayTrainWorker": "a learner rank",
    "TrainController": "Ray Train's controller",
    "MapWorker": "a stage of the stream",
    "Shelf": "the shelf with the problems' tests",
}
MEMORY_SIGN = "running low on memory"
DEATH_SIGN = "The actor died unexpectedly"  # also in the error of a task that asked the actor for something
_FIELD = re.compile(r"^\s*(class_name|ip): (\S+)", re.MULTILINE)
_EXIT = re.compile(
    r"The actor is dead because (.*?)(?:Worker exit type:.*?Worker exit detail: (.*?))?(?:$|Some common)", re.DOTALL
)
# What Ray says about a process that was killed from outside, or that crashed.
_VANISHED = "connection error code"
LONGEST = 400  # characters of a cause in words that are not ours
# The line of a trace that says what was raised. Ray's wrapper of another one has brackets in its name.
_RAISED = re.compile(r"^(?:\w+\.)*(\w+)(?:: (.*))?$")
_IN_HANDLING = "During handling of the above exception, another exception occurred:"


class RayletDied(RunFailed):
    """This machine's raylet has died, and what was missed first is the exception behind."""


@contextmanager
def missing_the_raylet(log: Path) -> Iterator[None]:
    """Raise RayletDied for what ends the block where that is why; Ray must still be connected at its end."""
    try:
        yield
    except (UserError, Stopped):
        raise
    except Exception as e:
        if raylet_died():  # every process of Ray on this machine ends with it
            raise RayletDied(f"{RAYLET_DIED}, and its last words are in {log}") from e
        raise


@contextmanager
def told(directory: Path, job: str, kept: Callable[[Path], str] | None = None) -> Iterator[None]:
    """Turn what ends the block into one sentence, in which `kept`, by default the job's, says what is on disk."""
    kept = kept or KEPT[job]
    log = directory / "logs" / "ray.log"
    since = log.stat().st_size if log.exists() else 0
    say(directory=str(directory), job=job, log=str(log), log_from=since)
    try:
        yield
    except UserError:
        raise
    except Stopped as e:
        raise Stopped(e.number, kept(directory), e.by) from e
    except KeyboardInterrupt as e:
        raise Stopped(e.args[0] if e.args else signal.SIGINT, f"at once; {kept(directory)}") from e
    except Exception as e:
        why = str(e) if isinstance(e, RayletDied) else cause(e)
        raise RunFailed(f"{why}; {kept(directory)}; {_trace(directory, e)}") from e


def _kept_by_training(directory: Path) -> str:
    found = RunDirectory(directory).checkpoints()
    if not found:
        return f"no checkpoint was written yet: {resuming()} begins again"
    steps, folder = found[-1]
    return f"checkpoint {steps} is kept in {folder.parent}: {resuming()} goes on from there"


def _kept_by_refining(directory: Path) -> str:
    steps = len(list((directory / "rows").glob("step-*.parquet")))
    return f"{steps} finished steps are kept in {directory}: {resuming()} goes on from there"


def _kept_by_evaluating(directory: Path) -> str:
    return f"the samples that were finished are kept in {directory}: the same command goes on"


def _kept_by_comparing(directory: Path) -> str:
    return f"finished cells and the checkpoints of the others are kept in {directory}: the same command goes on"


KEPT = {
    "train": _kept_by_training,
    "refine": _kept_by_refining,
    "evaluate": _kept_by_evaluating,
    "compare": _kept_by_comparing,
}


def resuming(flag: str = "--resume") -> str:
    """The command that goes on with the run: that of this process, with `flag`, unless it goes on unasked."""
    name, *arguments = sys.argv
    ours = Path(name).name in ("trd", "cli.py")
    goes_on = is_submitted() or "reproduce" in (arguments[:1] if ours else [Path(name).stem])
    command = shlex.join([*(["trd"] if ours else ["python", name]), *arguments])
    command = command.replace(" --resume=no", "").replace(" --resume no", "")  # the run had to be a new one
    given = goes_on or any(a == flag or a.startswith(f"{flag}=") for a in shlex.split(command))
    return f"`{command}`" if given else f"`{command} {flag}`"


def cause(e: BaseException) -> str:
    """Why it failed, in a sentence without a full stop: our own words if there are any, then Ray's reason."""
    if isinstance(e, UserError):
        return "; ".join(e.sentences)
    chain = [x for x in links(e) if not _is_silent(x)] or [e]
    # Ray's copy of one of ours says where it was raised, and has the original behind it.
    originals = [x for x in chain if not isinstance(x, RayTaskError)]
    headline = next((_short(sentence(x)) for x in originals if isinstance(x, OURS)), "")
    why = _rays_reason(chain) or ("" if headline else _raised_in_text(chain) or _own_words(chain[-1]))
    if headline and why and why not in headline:
        return f"{headline} ({why})"
    return headline or why


def _rays_reason(chain: list[BaseException]) -> str:
    texts = [str(x) for x in chain if isinstance(x, RayError)]
    for e, text in ((e, str(e)) for e in chain):
        if isinstance(e, OutOfMemoryError) or (isinstance(e, RayError) and MEMORY_SIGN in text):
            return _memory(text)
    for e in chain:
        if isinstance(e, NodeDiedError):
            return f"a node died: {_short(str(e))}"
    for e, text in ((e, str(e)) for e in chain):
        if isinstance(e, RayError) and DEATH_SIGN in text and not getattr(e, "actor_init_failed", False):
            return _death(text[text.rindex(DEATH_SIGN) :])
    for e in chain:
        if isinstance(e, RaySystemError):
            return f"Ray itself failed: {_short(str(e))}"
    inner = [e for e in chain if not isinstance(e, RayError) and _is_telling(e)]
    return _own_words(inner[-1]) if inner and (texts or len(chain) > 1) else ""


def _is_silent(e: BaseException) -> bool:
    """Whether Ray raised it without a word, as Ray Data puts a SystemException behind what it does not know."""
    return type(e).__module__.startswith("ray.") and not str(e).strip()


def _raised_in_text(chain: list[BaseException]) -> str:
    """What was raised first by a trace that Ray kept as text only; "" where there is none."""
    for text in (str(e) for e in reversed(chain) if isinstance(e, RayError)):
        lines = text.rpartition(_IN_HANDLING)[2].splitlines()
        for above, line in zip(lines, lines[1:], strict=False):
            in_trace = above.startswith((" ", "Traceback ")) or "(pid=" in above
            if in_trace and (found := _RAISED.match(line)):
                return f"{found[1]}: {_short(found[2])}" if found[2] else found[1]
    return ""


def _is_telling(e: BaseException) -> bool:
    wraps = getattr(e, "worker_failures", None) or getattr(e, "controller_failure", None) or isinstance(e, StreamEnded)
    return not wraps and not isinstance(e, OURS)


def _memory(text: str) -> str:
    what = memory_kill(text) or f"Ray's memory monitor ended it: {_short(text)}"
    return f"{what}; lower what the run takes (--dry-run lists it), or end other processes there"


def _death(text: str) -> str:
    fields = dict(_FIELD.findall(text))
    who = ACTORS.get(fields.get("class_name", ""), "an actor")
    where = f" on node {fields['ip']}" if "ip" in fields else ""
    found = _EXIT.search(text)
    detail = (found[2] or found[1]) if found else text
    if _VANISHED in detail:
        return (
            f"{who}{where} ended without a word: it was killed or it crashed, and dmesg there tells whether the system "
            "killed it for memory"
        )
    return f"{who}{where} ended: {_short(detail)}"


def _own_words(e: BaseException) -> str:
    if isinstance(e, OSError) and e.strerror:
        return f"{e.strerror}: {e.filename}" if e.filename else e.strerror
    if isinstance(e, RayTaskError):
        return _short(str(e).strip().splitlines()[-1])
    said = _short(str(e))
    return f"{type(e).__name__}: {said}" if said else type(e).__name__


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[:LONGEST] + " ..."


def _trace(directory: Path, e: BaseException) -> str:
    """Write the whole trace, and return where it is; the disk may be what failed."""
    place = directory / "logs" / f"failure-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    try:
        place.parent.mkdir(exist_ok=True)
        # A Failure brings its trace as text, from a process that nobody can ask any more.
        there = [f"\nIn the process that failed:\n{x.trace}" for x in links(e) if isinstance(x, Failure) and x.trace]
        place.write_text("".join([*traceback.format_exception(e), *dict.fromkeys(there)]))
    except OSError as again:
        place.unlink(missing_ok=True)
        return f"the trace could not be written ({again.strerror})"
    return f"the whole trace is in {place}"
