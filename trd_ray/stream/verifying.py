"""Verdicts by Ray tasks, awaited inside the stage.

    texts of a problem -> wait until a task is free -> task: verifier(text, problem) for all that wait, in equal shares

A task takes `verify.cpus` of Ray's CPUs and at most `verify.max_tasks` are under way. The tests of a problem go to it
as a reference, so they reach a node once and not with every text.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from trd_ray.config import VerifyConfig
from trd_ray.verify import Verdict, verifier_of_json

VERIFY_RETRIES = 2  # for a task whose process ended, which no verified program can cause

Judged = tuple[float, Verdict]  # Unix time at which the verification began


@dataclass
class _Waiting:
    problem: dict[str, Any]
    texts: list[str]
    tests: Any  # a reference to them, or None
    judged: asyncio.Future[list[Judged]]


class Verifying:
    """Belongs to one event loop."""

    def __init__(self, config: VerifyConfig, max_tasks: int):
        self.config = config.model_dump_json()  # a text is quicker to send with every task
        self.max_tasks = max_tasks
        self.task = verifier_task(config)
        self.waiting: deque[_Waiting] = deque()
        self.under_way: set[asyncio.Task] = set()

    async def __call__(self, problem: dict[str, Any], texts: Sequence[str], tests: Any = None) -> list[Judged]:
        """The verdict on each text. `tests` is the reference that the shelf gave for the problem, None without one."""
        loop = asyncio.get_running_loop()
        one = _Waiting(problem, list(texts), tests, loop.create_future())
        self.waiting.append(one)
        loop.call_soon(self._start)  # what finishes in the same moment may share a task
        return await one.judged

    def _start(self) -> None:
        """Give each free task an equal share of what waits."""
        while self.waiting and (free := self.max_tasks - len(self.under_way)) > 0:
            share = math.ceil(len(self.waiting) / free)
            task = asyncio.ensure_future(self._judge([self.waiting.popleft() for _ in range(share)]))
            self.under_way.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task) -> None:
        self.under_way.discard(task)
        self._start()

    async def _judge(self, group: list[_Waiting]) -> None:
        tests = [one.tests for one in group if one.tests is not None]
        places = iter(range(len(tests)))
        asked = [(one.problem, one.texts, None if one.tests is None else next(places)) for one in group]
        try:
            found: list[list[Judged]] = await self.task.remote(self.config, asked, *tests)
        except Exception as e:  # noqa: BLE001 - handed to those who wait
            for one in group:
                if not one.judged.done():
                    one.judged.set_exception(e)
            return
        for one, judged in zip(group, found, strict=True):
            if not one.judged.done():  # whoever waited may have given up
                one.judged.set_result(judged)


def verifier_task(config: VerifyConfig) -> Any:
    """`verdicts` as the Ray task that verifies, wherever texts are verified."""
    return ray.remote(verdicts).options(num_cpus=config.cpus, max_retries=VERIFY_RETRIES)


def verdicts(config: str, asked: list[tuple[dict[str, Any], list[str], int | None]], *tests: Any) -> list[list[Judged]]:
    """By the VerifyConfig whose JSON is `config`. Each problem comes with its texts, and the place of its tests."""
    verify = verifier_of_json(config)
    found = []
    for problem, texts, place in asked:
        whole = problem if place is None else problem | {"tests": tests[place]}
        found.append([(time.time(), verify(text, whole)) for text in texts])
    return found
