"""A run, by what a user calls it: its directory, its name below runs/, or its name on a cluster.

    runs/mine | mine  ->  Here: the files of the directory
    mine | 01000000 | raysubmit_..., with RAY_ADDRESS or --address
                      ->  There: the run's porter, which does the same beside the run

Both can look, ask and read logs.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from trd_ray.errors import UserError
from trd_ray.record.events import last_events
from trd_ray.session import asking, logs, seen

RUNS = Path("runs")
ANSWER_S = 30.0  # for a porter to look at its directory


class RunHasEnded(UserError):
    def __init__(self, name: str):
        super().__init__(f"the run {name} has ended: look into its directory")


class Reached(Protocol):
    def look(self) -> dict[str, Any]: ...

    def ask(self, verb: str, arguments: dict[str, Any], by: str, timeout_s: float) -> str: ...

    def events(self, count: int) -> list[dict[str, Any]]: ...

    def logs(self) -> dict[str, int]: ...

    def log(self, name: str, lines: int | None, start: int = 0) -> tuple[str, int]:
        """The last `lines` of a log, or with None what is new since `start`; and where that ends."""
        ...


class Here:
    def __init__(self, directory: Path):
        self.directory = directory

    def look(self) -> dict[str, Any]:
        return seen.look_at(self.directory)

    def ask(self, verb: str, arguments: dict[str, Any], by: str, timeout_s: float) -> str:
        return asking.ask(self.directory, verb, arguments, by, timeout_s)

    def events(self, count: int) -> list[dict[str, Any]]:
        return last_events(self.directory, count)

    def logs(self) -> dict[str, int]:
        return {name: file.stat().st_size for name, file in logs.logs_of(self.directory).items()}

    def log(self, name: str, lines: int | None, start: int = 0) -> tuple[str, int]:
        file = logs.log_named(self.directory, name)
        return logs.more(file, start) if lines is None else logs.tail(file, lines)


class There:
    def __init__(self, porter: Any, name: str):
        self.porter = porter
        self.name = name

    def look(self) -> dict[str, Any]:
        return self._of(self.porter.look.remote(), ANSWER_S)

    def ask(self, verb: str, arguments: dict[str, Any], by: str, timeout_s: float) -> str:
        ok, said = self._of(self.porter.ask.remote(verb, arguments, by, timeout_s), timeout_s + ANSWER_S)
        if not ok:
            raise UserError(said)
        return said

    def events(self, count: int) -> list[dict[str, Any]]:
        return self._of(self.porter.events.remote(count), ANSWER_S)

    def logs(self) -> dict[str, int]:
        return self._of(self.porter.logs.remote(), ANSWER_S)

    def log(self, name: str, lines: int | None, start: int = 0) -> tuple[str, int]:
        ok, text, end = self._of(self.porter.log.remote(name, lines, start), ANSWER_S)
        if not ok:
            raise UserError(text)
        return text, end

    def _of(self, answer: Any, timeout_s: float) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        try:
            return ray.get(answer, timeout=timeout_s)
        except RayActorError as e:
            raise RunHasEnded(self.name) from e
        except GetTimeoutError as e:
            raise UserError(
                f"the porter of run {self.name} has not answered within {timeout_s:.0f} s: ask again"
            ) from e


def address_of(given: str | None) -> str | None:
    """The cluster that is meant: --address, else RAY_ADDRESS; None for this machine alone."""
    address = given or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


@contextmanager
def reached(name: str, address: str | None) -> Iterator[Reached]:
    """The run of that name, while the block lasts. Raises UserError where there is none."""
    for directory in (Path(name).expanduser(), RUNS / name):
        if seen.is_run(directory):
            yield Here(directory.absolute())
            return
    cluster = address_of(address)
    if cluster is None:
        raise UserError(_nowhere(name))
    from trd_ray.session.porter import plain

    last = name.strip("/").rpartition("/")[2]
    with on_cluster(cluster) as found:
        of_it = {actor: one for actor, one in found.items() if last in one or plain(last) == one[0]}
        if len(of_it) != 1:
            names = ", ".join(
                sorted("/".join(part for part in one if part != "-") for one in (of_it or found).values())
            )
            what = f"{len(of_it)} runs" if of_it else "no run"
            raise UserError(
                f"{what} on the cluster at {cluster} can be called {name}: name one by its folder, its job or its "
                f"submission: {names or 'there is none now'}"
            )
        yield There(_actor(next(iter(of_it)), name), name)


@contextmanager
def on_cluster(address: str) -> Iterator[dict[str, tuple[str, str, str]]]:
    """The porters of a cluster, while the block lasts: actor name -> (folder, job, submission)."""
    from trd_ray import config
    from trd_ray.session.cluster import cluster
    from trd_ray.session.porter import porters

    with contextlib.ExitStack() as stack:
        with contextlib.redirect_stdout(sys.stderr):  # what the command prints is for whoever reads its output
            stack.enter_context(cluster(config.from_tree({"cluster": {"address": address}})))
        yield porters()


def every_run(address: str | None) -> Iterator[Reached]:
    """Every run below runs/, and those of the cluster whose directory is not among them."""
    local = [Here(directory.absolute()) for directory in seen.runs_below(RUNS)]
    yield from local
    if cluster := address_of(address):
        known = {str(one.directory) for one in local}
        with on_cluster(cluster) as found:
            for actor, (folder, _, _) in sorted(found.items()):
                with contextlib.suppress(RunHasEnded):
                    one = There(_actor(actor, folder), folder)
                    if one.look()["directory"] not in known:
                        yield one


def _actor(name: str, run: str) -> Any:
    """The porter of this name; raises RunHasEnded if it has gone since it was listed."""
    import ray

    from trd_ray.session.porter import NAMESPACE

    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError as e:
        raise RunHasEnded(run) from e


def _nowhere(name: str) -> str:
    from trd_ray.config import did_you_mean

    known = [str(directory.relative_to(RUNS)) for directory in seen.runs_below(RUNS)]
    close = did_you_mean(name, known) if known else ""
    return (
        f"there is no run {name}{close}: name a run directory, or a run below {RUNS}/; for one on a cluster whose "
        "directory is not seen here, set RAY_ADDRESS or --address"
    )
