"""Whether a worker group ended because something was lost, or because its code failed: only the first may be repeated.

    what Ray Train raises -> was_lost() -> True: a process, a node, a connection;  False: an error in the code

When a rank dies, the others fail with broken connections; when a rank's code fails, they do too. So a death anywhere
means a loss, an error of code means a failure, and broken connections alone mean a loss.
"""

from collections.abc import Iterator

from trd_ray.engine.deaths import DEATHS

# What torch's gloo says, as a plain RuntimeError, where the other end has gone or is silent.
BROKEN = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Socket Timeout",
    "Timed out waiting",
    "Broken pipe",
    "the ranks of the learner lost each other",
)


def was_lost(e: BaseException | None) -> bool:
    """Whether the same commands may go well in another group."""
    ends = list(_ends(e))
    return any(_is_death(end) for end in ends) or (bool(ends) and all(_is_broken(end) for end in ends))


def _ends(e: BaseException | None) -> Iterator[BaseException]:
    """The innermost of what an error wraps: what each rank, or the controller, ended with."""
    if e is None:
        return
    inner = [getattr(e, name, None) for name in ("controller_failure", "health_check_failure", "_base_exc", "cause")]
    inner += (getattr(e, "worker_failures", None) or {}).values()
    wrapped = [x for x in inner if isinstance(x, BaseException) and x is not e]
    if not wrapped or _is_death(e):
        yield e
    for x in wrapped:
        yield from _ends(x)


def _is_death(e: BaseException) -> bool:
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerHealthCheckTimeoutError
    from ray.train.v2.api.exceptions import PreemptionError

    return isinstance(e, (*DEATHS, WorkerGroupStartupFailedError, WorkerHealthCheckTimeoutError, PreemptionError))


def _is_broken(e: BaseException) -> bool:
    from torch.distributed import DistError

    return isinstance(e, DistError | ConnectionError) or (
        isinstance(e, RuntimeError) and any(words in str(e) for words in BROKEN)
    )
