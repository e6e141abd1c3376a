"""What failed, told apart by what must happen next, and in words that survive the way to another process.

    exception  ->  kind_of()     LOST   a process, a connection, an object or a node is gone: again, elsewhere
                                 DATA   one row's own fault: a verdict that says so, or a dropped row, within a budget
                                 USER   what the user can fix: ends the run with that sentence
                                 ENDED  what says already why the run cannot go on: ends it with that sentence
                                 BUG    anything else: ends the run, with its trace in a file

    in an actor: raise told_apart(e)  ->  Failure(kind, said, trace)   plain text, so any process can read it

An exception that crosses an actor's border is pickled. Its class may not exist on the other side, may import half a
library there, or may not survive at all, and then nobody can tell what it was. So whoever stands at a border says what
kind it is, in a Failure, and the other side reads the kind.

Ray wraps a failure in several others, so `links` walks through all of them. Ray Data keeps only the text of what a
stage raised, so a Failure says its kind in the text too, as a note, and is made again out of it.

In Ray the errors that tell of a death are siblings, not children of one, so they are listed here.
"""

import re
import traceback
from collections.abc import Iterator
from enum import StrEnum

from ray.exceptions import (
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from trd_ray.errors import BadRow, Lost, RunFailed, UserError

# An answer was lost (ObjectLostError, its OwnerDiedError) or a connection broke: whoever was asked may be alive.
PASSING = (ActorUnavailableError, ObjectLostError)
LOSSES = (
    Lost,
    RayActorError,
    OutOfMemoryError,
    NodeDiedError,
    WorkerCrashedError,
    LocalRayletDiedError,
    *PASSING,
)


class Kind(StrEnum):
    LOST = "infrastructure"
    DATA = "data"
    USER = "user"
    ENDED = "ended"
    BUG = "bug"


class Failure(Exception):
    """What an actor raises in place of an exception that only it knows: its kind, a line for people and the trace."""

    def __init__(self, kind: str, said: str, trace: str = ""):
        super().__init__(kind, said, trace)  # which is what is pickled
        self.kind = Kind(kind)
        self.said = said
        self.trace = trace
        self.add_note(f"[kind of failure: {self.kind}]")

    def __str__(self) -> str:
        return self.said


OURS = (UserError, RunFailed, BadRow, Lost, TimeoutError, Failure)  # whose text is a sentence for people
_IN_TEXT = re.compile(rf"{__name__}\.Failure: (.*)\n\[kind of failure: (\w+)\]")


def kind_of(e: BaseException) -> Kind:
    """What must happen next. An actor's own word counts first, then what is behind the wrappers."""
    found = [link for link in links(e) if not isinstance(link, RayTaskError)]  # Ray's copy has the original behind it
    for link in found:
        if isinstance(link, Failure):
            return link.kind
    kinds = (
        (Kind.USER, UserError),
        (Kind.ENDED, RunFailed),
        (Kind.DATA, BadRow),
        (Kind.LOST, LOSSES),
        (Kind.ENDED, TimeoutError),
    )
    for kind, classes in kinds:
        if any(isinstance(link, classes) for link in found):
            return kind
    return Kind.BUG


def told_apart(e: Exception) -> Failure:
    """The same failure, fit to leave this process."""
    if isinstance(e, Failure) and not isinstance(e, RayTaskError):
        return e
    kind = kind_of(e)
    own = [link for link in links(e) if isinstance(link, OURS) and not isinstance(link, RayTaskError)]
    said = sentence(own[0]) if own else f"{type(e).__name__}: {' '.join(str(e).split())}"
    return Failure(kind, said, "".join(traceback.format_exception(e)))


def sentence(e: BaseException) -> str:
    """The line for people in an exception whose text is for people."""
    if isinstance(e, UserError):
        return " ".join("; ".join(e.sentences).split())
    text = e.said if isinstance(e, Failure) else str(e)
    return text.partition("\n")[0].removesuffix("; the end of its log:").rstrip("; ")


def links(e: BaseException | None) -> Iterator[BaseException]:
    """An exception and all that it wraps, outermost first."""
    seen: set[int] = set()
    waiting = [e]
    while waiting:
        e = waiting.pop(0)
        if e is None or id(e) in seen:
            continue
        seen.add(id(e))
        yield e
        inner = [
            getattr(e, name, None) for name in ("cause", "controller_failure", "health_check_failure", "__cause__")
        ]
        inner += (getattr(e, "worker_failures", None) or {}).values()
        if isinstance(e, RayTaskError) and (found := _IN_TEXT.search(str(e))):
            inner.append(Failure(found[2], found[1]))
        waiting += [x for x in inner if isinstance(x, BaseException)]
