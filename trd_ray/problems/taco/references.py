"""Which of a problem's solutions passes its tests: found for many problems at once, and remembered on disk.

    candidates  ->  choose() in Ray tasks or threads  ->  (candidate, which solution or why none), in the order given

An append-only file in the cache holds every choice under a hash of tests, solutions and limits. A choice that was
running when its process ended is made again.
"""

import hashlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from trd_ray import cache, config
from trd_ray.errors import UserError
from trd_ray.problems.taco.schema import Candidate
from trd_ray.verify.code.tests import Tests

Progress = Callable[[int, int, int], object]  # problems done, set aside among them, met so far

_VERSION = 1  # raised when the file is to hold other choices

Choice = tuple[int | None, str]  # which solution passed, or None and why none did


def choose(solutions: tuple[str, ...], tests: bytes, verify: str) -> Choice:
    """`choose_reference` for packed tests, under the limits of a config.VerifyConfig as JSON."""
    from trd_ray.verify.code.code_verifier import choose_reference

    return choose_reference(solutions, Tests.unpack(tests), config.VerifyConfig.model_validate_json(verify))


@dataclass
class _Pending:
    candidate: Candidate
    choice: Choice | None


def _decided(pending: "deque[_Pending]") -> Iterator[tuple[Candidate, Choice]]:
    """Take off the front what has its choice."""
    while pending and (choice := pending[0].choice):
        yield pending.popleft().candidate, choice


class Chooser:
    """Runs `choose` for many problems at once, and remembers the choices in a file that other runs share."""

    def __init__(self, verify: config.VerifyConfig, timeout_s: float):
        self._verify = verify.model_dump_json()
        self._limits = repr((verify.time_limit_s, verify.memory_mib, verify.program_timeout_s))
        self._timeout_s = timeout_s
        self._file = cache.folder() / f"taco-references-{_VERSION}.jsonl"
        self._known = self._remembered()

    def chosen(self, candidates: Iterable[Candidate], progress: Progress | None) -> Iterator[tuple[Candidate, Choice]]:
        """Every candidate with its choice, in the order given. A candidate is read when a task is free for it."""
        pending: deque[_Pending] = deque()  # met and not handed out
        waiting: dict[Any, _Pending] = {}
        deadline = time.monotonic() + self._timeout_s
        workers = _tasks(config.VerifyConfig.model_validate_json(self._verify).cpus)
        met = aside = 0

        def collect() -> None:
            nonlocal aside
            while not (done := workers.done(list(waiting), timeout_s=1.0)):
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{self._timeout_s:.0f} s were enough for the references of "
                        f"{met - len(waiting)} problems, not of all: start again to go on from there, or set "
                        "verify.max_tests or data.limit"
                    )
            for task in done:
                one = waiting.pop(task)
                one.choice = workers.result(task)
                self._remember(self._key(one.candidate), one.choice)
                aside += one.choice[0] is None
                if progress:
                    progress(met - len(waiting), aside, met)

        try:
            for candidate in candidates:
                known = (None, candidate.reason) if candidate.reason else self._known.get(self._key(candidate))
                pending.append(one := _Pending(candidate, known))
                met += 1
                if known:
                    aside += known[0] is None
                else:
                    assert candidate.tests is not None
                    waiting[workers.start(candidate.solutions, candidate.tests, self._verify)] = one
                    if len(waiting) >= workers.at_once:
                        collect()
                yield from _decided(pending)
            while waiting:
                collect()
                yield from _decided(pending)
        finally:
            workers.close()

    def _key(self, candidate: Candidate) -> str:
        assert candidate.tests is not None
        key = hashlib.blake2b(self._limits.encode(), digest_size=16)
        for part in [candidate.tests, *(text.encode(errors="replace") for text in candidate.solutions)]:
            key.update(hashlib.blake2b(part, digest_size=16).digest())
        return key.hexdigest()

    def _remembered(self) -> dict[str, Choice]:
        if not self._file.is_file():
            return {}
        known: dict[str, Choice] = {}
        for line in self._file.read_text(errors="replace").splitlines():
            try:
                one = json.loads(line)
                known[one["key"]] = one["index"], one["reason"]
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a run that was killed
        return known

    def _remember(self, key: str, choice: Choice) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a") as opened:  # one short write is appended whole, even while other processes write
            opened.write(json.dumps({"key": key, "index": choice[0], "reason": choice[1]}) + "\n")


class _Threads:
    """`choose` in threads: the sandbox's processes do the work itself.

    The threads are daemons, which an executor's are not. So Ctrl-C does not wait for the programs that are running, and
    their sandboxes end with this process.
    """

    def __init__(self) -> None:
        workers = os.cpu_count() or 1
        self.at_once = 2 * workers
        self._todo: SimpleQueue[tuple[Future[Choice], tuple[Any, ...]] | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, name="taco", daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while item := self._todo.get():
            future, args = item
            try:
                future.set_result(choose(*args))
            except BaseException as e:  # handed to whoever asks for the result
                future.set_exception(e)

    def start(self, *args: Any) -> Any:
        future: Future[Choice] = Future()
        self._todo.put((future, args))
        return future

    def done(self, tasks: list[Any], timeout_s: float) -> list[Any]:
        return list(wait(tasks, timeout_s, FIRST_COMPLETED).done)

    def result(self, task: Any) -> Choice:
        return task.result()

    def close(self) -> None:
        with suppress(Empty):
            while True:
                self._todo.get_nowait()
        for _ in self._threads:
            self._todo.put(None)


class _RayTasks:
    def __init__(self, ray: Any, cpus: float) -> None:
        self._ray = ray
        self._choose = ray.remote(choose).options(num_cpus=cpus)
        self.at_once = max(2, round(2 * ray.cluster_resources().get("CPU", 1) / cpus))
        self._started: set[Any] = set()

    def start(self, *args: Any) -> Any:
        task = self._choose.remote(*args)
        self._started.add(task)
        return task

    def done(self, tasks: list[Any], timeout_s: float) -> list[Any]:
        return self._ray.wait(tasks, num_returns=1, timeout=timeout_s)[0]

    def result(self, task: Any) -> Choice:
        self._started.discard(task)
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as e:
            if isinstance(e.cause, UserError):  # a node has no sandbox, and the traceback there tells no more
                raise UserError(str(e.cause)) from e
            raise

    def close(self) -> None:
        for task in self._started:
            self._ray.cancel(task)


def _tasks(cpus: float) -> _Threads | _RayTasks:
    ray = sys.modules.get("ray")  # who runs no Ray has not imported it
    return _RayTasks(ray, cpus) if ray is not None and ray.is_initialized() else _Threads()
