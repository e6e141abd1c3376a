import pytest
import torch.distributed as dist
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError

from trd_ray.distill.lost import was_lost
from trd_ray.distill.trainer import comes

CLOSED = RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
LOST_IN_SYNC = RuntimeError("the ranks of the learner lost each other in a weight sync: RuntimeError: x")
BUG = ValueError("no such key")


def of_ranks(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("a page", dict(enumerate(failures)))


def by_user(e: Exception) -> UserExceptionWithTraceback:
    return UserExceptionWithTraceback(e, "a page")


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        of_ranks(ActorDiedError()),
        of_ranks(WorkerHealthCheckFailedError("a page", ActorDiedError())),
        of_ranks(WorkerHealthCheckTimeoutError("a page")),
        of_ranks(OutOfMemoryError("too much")),
        of_ranks(by_user(CLOSED), ActorDiedError()),
        of_ranks(by_user(CLOSED), by_user(LOST_IN_SYNC)),
        of_ranks(by_user(dist.DistNetworkError("broken"))),
        of_ranks(by_user(BUG), NodeDiedError("gone")),  # the bug would come again
        ControllerError(WorkerGroupStartupFailedError("a page")),
        ControllerError(ActorDiedError()),
    ],
)
def test_a_death_anywhere_or_broken_connections_alone_are_a_loss(error):
    assert was_lost(error)


@pytest.mark.parametrize(
    "error", [None, of_ranks(by_user(BUG)), of_ranks(by_user(CLOSED), by_user(BUG)), ControllerError(BUG), BUG]
)
def test_an_error_of_the_code_is_none(error):
    assert not was_lost(error)


class Late:
    """An answer that comes after so many seconds, and how often somebody looked meanwhile."""

    def __init__(self, after_s: float, look_s: float = 0.0):
        self.now, self.after_s, self.look_s, self.looks = 0.0, after_s, look_s, 0

    def ready(self, wait_s: float) -> bool:
        self.now = max(self.now, min(self.now + wait_s, self.after_s))
        return self.now >= self.after_s

    def look(self) -> None:
        self.now += self.look_s
        self.looks += 1

    def comes(self, patience_s: float, silence_s: float) -> bool:
        return comes(self.ready, patience_s, silence_s, self.look, monotonic=lambda: self.now)


def test_who_waits_for_the_mailbox_looks_about_once_a_second_while_it_is_late_and_no_longer_than_its_heartbeat():
    in_time, late, silent = Late(1.5), Late(21.0), Late(1e9)
    assert in_time.comes(1.0, 60.0) and in_time.looks == 0
    assert late.comes(1.0, 60.0) and late.looks == 10
    assert not silent.comes(0.0, 60.0) and (silent.now, silent.looks) == (60.0, 59)


def test_an_answer_that_came_while_a_look_took_long_counts():
    late = Late(3.0, look_s=100.0)
    assert late.comes(1.0, 60.0) and late.looks == 1
