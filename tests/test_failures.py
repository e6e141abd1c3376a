"""Whatever fails is one of five kinds, and stays it on its way through processes and through what Ray wraps it in."""

import pickle
import traceback

import pytest
from ray.exceptions import (
    ActorDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
    UserCodeException,
    WorkerCrashedError,
)

from trd_ray.engine.actor import EngineDied
from trd_ray.engine.pool import PoolFailed
from trd_ray.errors import BadRow, Lost, RunFailed, UserError
from trd_ray.failures import Failure, Kind, kind_of, links, sentence, told_apart
from trd_ray.session.endings import cause
from trd_ray.stream.feed import StreamEnded


class OnlyHere(ValueError):
    """As a library's exception may be: it pickles, and cannot be unpickled."""

    def __init__(self, message: str, *, where: int):
        super().__init__(message)
        self.where = where


def raised_in_actor(e: Exception) -> Exception:
    """As `ray.get` raises it: of both types, and with the trace as its text."""
    return RayTaskError("submit", f"Traceback (most recent call last):\n{e!r}", e).as_instanceof_cause()


def wrapped(e: Exception, outer: Exception) -> Exception:
    try:
        raise outer from e
    except Exception as both:
        return both


KINDS = [
    (Lost("the sandbox did not start"), Kind.LOST),
    (EngineDied("vLLM ended"), Kind.LOST),
    (ActorDiedError(), Kind.LOST),
    (WorkerCrashedError(), Kind.LOST),
    (OutOfMemoryError("much"), Kind.LOST),
    (ObjectLostError("ff" * 28, None, ""), Kind.LOST),
    (BadRow("its tests cannot be read"), Kind.DATA),
    (UserError("install bubblewrap"), Kind.USER),
    (UserError("install bubblewrap:\n    apt install bubblewrap", "or unshare"), Kind.USER),
    (RunFailed("the learner ended"), Kind.ENDED),
    (PoolFailed("engine p-0 died twice\nlog"), Kind.ENDED),
    (TimeoutError("waited 3 s"), Kind.ENDED),
    (OnlyHere("no such rule", where=3), Kind.BUG),
    (KeyError("y_o"), Kind.BUG),
]


@pytest.mark.parametrize(("error", "kind"), KINDS, ids=lambda x: type(x).__name__ if isinstance(x, Exception) else x)
def test_the_kind_is_the_same_behind_what_ray_and_the_stream_wrap_it_in(error, kind):
    assert kind_of(error) == kind
    if not isinstance(error, OnlyHere):
        assert kind_of(wrapped(raised_in_actor(error), StreamEnded("ray::MapWorker"))) == kind


@pytest.mark.parametrize(("error", "kind"), KINDS, ids=lambda x: type(x).__name__ if isinstance(x, Exception) else x)
def test_what_leaves_a_process_can_be_read_in_any_other_with_its_kind_its_words_and_its_trace(error, kind):
    try:
        raise error
    except Exception as e:
        left = pickle.loads(pickle.dumps(told_apart(e)))
    assert kind_of(left) == kind_of(raised_in_actor(left)) == kind
    assert sentence(error) in str(left) and isinstance(left, Failure)
    if kind is Kind.BUG:
        assert "test_failures.py" in left.trace
    again = told_apart(left)
    assert again is left


@pytest.mark.parametrize(("error", "kind"), KINDS, ids=lambda x: type(x).__name__ if isinstance(x, Exception) else x)
def test_what_ray_data_keeps_of_a_stage_s_failure_is_its_text_and_that_has_the_kind(error, kind):
    """UserCodeException loses what it was raised from on its way to another process."""
    try:
        try:
            raise told_apart(error)
        except Failure as e:
            raise UserCodeException("UDF failed to process a data block.") from e
    except UserCodeException as e:
        text = "".join(traceback.format_exception(e))
        kept = RayTaskError("map", text, pickle.loads(pickle.dumps(e))).as_instanceof_cause()
    assert kept.cause.__cause__ is None and kind_of(wrapped(kept, StreamEnded("a page"))) == kind
    assert cause(wrapped(kept, StreamEnded("a page"))).startswith(sentence(told_apart(error))[:300])


def test_links_end_where_failures_go_round_in_a_circle():
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert list(links(one)) == [one, other]
