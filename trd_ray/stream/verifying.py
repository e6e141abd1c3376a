"""Verdicts by Ray tasks, awaited inside the stage.

    texts of a problem -> wait until a task is free -> task: verifier(text, problem) for all that wait, in equal shares
                          the task's process ended? -> each text again, in a task of its own
                          it ended again over it?   -> a verdict that says so

A task takes `verify.cpus` of Ray's CPUs and at most `verify.max_tasks` are under way. The tests of a problem go to it
as a reference, so they reach a node once and not with every text. Where a judge is asked, a task makes all its calls at
once, and waits for the judge's engines (judging.py).

What may happen to a task, and what is done then:

- its process ends: by the text that it judges, or by no fault of it. Texts that shared it are asked about one by one,
  so that none gets the verdict of its neighbour. A text that ends a task of its own twice is UNJUDGED;
- Ray's memory monitor ends its process: the machine is short of memory, mostly by no fault of the text. So the text is
  asked about again after a pause, which doubles, LOST_TRIES times in all. After that it is UNJUDGED;
- its node dies, or starts no verifier: the same task again, elsewhere if Ray finds a place, LOST_TRIES times;
- it says nothing for much longer than its verdicts may take (`patience_s`), as when its process is stopped: it is
  ended and asked again. Whoever waits for the rows has the deadline (stream.stall_timeout_s);
- the shelf died, and the tests with it: whoever asked hears of it, and brings them again;
- the verifier has a bug: whoever asked hears of it, with the trace.
"""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, WorkerCrashedError

from trd_ray.config import VerifyConfig
from trd_ray.failures import Kind, kind_of, links, told_apart
from trd_ray.stream.judging import JudgeAt, JudgingTask, judging_s, judging_verifier
from trd_ray.verify import Verdict, limit_s, unjudged, verifier_of_json
from trd_ray.verify.judged_together import Judged, judge_all

ENDS = 2  # of a task that judges one text, after which the text has no verdict
LOST_TRIES = 5
LOST_PAUSE_S = 2.0  # for want of memory it doubles with each try
START_S = 120.0  # for a task to get its CPUs, a process and a verifier

Asked = list[tuple[dict[str, Any], list[str], int | None]]  # problems with their texts, and the place of their tests


@dataclass
class _Waiting:
    problem: dict[str, Any]
    texts: list[str]
    tests: Any  # a reference to them, or None
    judged: asyncio.Future[list[Judged]]


class Verifying:
    """Belongs to one event loop."""

    def __init__(self, config: VerifyConfig, max_tasks: int, task: Any = None, judge: JudgeAt | None = None):
        """`task` is what judges, by default `verdicts` in a task of Ray's. `judge` is the run's, if it has one."""
        self.config = config
        self.judge = judge
        self.json = config.model_dump_json()  # a text is quicker to send with every task
        self.max_tasks = max_tasks
        self.task = task or verifier_task(config, judge)
        self.waiting: deque[_Waiting] = deque()
        self.under_way: set[asyncio.Task] = set()

    async def __call__(self, problem: dict[str, Any], texts: Sequence[str], tests: Any = None) -> list[Judged]:
        """The verdict on each text. `tests` is the reference that the shelf gave for the problem, None without one.

        Raises ObjectLostError where the tests have been lost, and what else ends the run.
        """
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
        """Give everyone in the group the verdicts, or what stands in their way."""
        try:
            found = await self._together(group)
        except Exception as e:  # noqa: BLE001 - handed to those who wait
            if not ended_its_process(e):
                return self._tell(group, [e] * len(group))
            alone = sum(len(one.texts) for one in group) == 1
            if not alone:
                await asyncio.sleep(Ends().count(e))
            found = [await self._each(one, e if alone else None) for one in group]
        self._tell(group, found)

    def _tell(self, group: list[_Waiting], found: Sequence[list[Judged] | Exception]) -> None:
        for one, judged in zip(group, found, strict=True):
            if one.judged.done():  # whoever waited may have given up
                continue
            if isinstance(judged, Exception):
                one.judged.set_exception(judged)
            else:
                one.judged.set_result(judged)

    async def _each(self, one: _Waiting, ended: Exception | None) -> list[Judged] | Exception:
        """Verdicts by tasks that judge one text each; `ended` is how such a task has ended already."""
        try:
            return [await self._alone(one, text, ended) for text in one.texts]
        except Exception as e:  # noqa: BLE001 - handed to the one who waits
            return e

    async def _alone(self, one: _Waiting, text: str, ended: Exception | None) -> Judged:
        ends = Ends()
        while True:
            if ended:
                pause_s = ends.count(ended)
                if verdict := ends.verdict():
                    return time.time(), verdict
                await asyncio.sleep(pause_s)
            try:
                [[judged]] = await self._together([_Waiting(one.problem, [text], one.tests, one.judged)])
                return judged
            except Exception as e:
                if not ended_its_process(e):
                    raise
                ended = e

    async def _together(self, group: list[_Waiting]) -> list[list[Judged]]:
        """The verdicts of one task; it is asked again where it was lost, or where it says nothing."""
        tests = [one.tests for one in group if one.tests is not None]
        places = iter(range(len(tests)))
        asked = [(one.problem, one.texts, None if one.tests is None else next(places)) for one in group]
        lost = 0
        while True:
            answer = self.task.remote(self.json, asked, *tests)
            deadline = asyncio.timeout(patience_s(self.config, asked) + 2 * judging_s(self.judge, _texts(asked)))
            try:
                async with deadline:
                    return await answer
            except Exception as e:
                if deadline.expired():
                    with contextlib.suppress(Exception):
                        ray.cancel(answer, force=True)
                    continue
                lost += 1
                tests_lost = any(isinstance(link, ObjectLostError) for link in links(e))
                if ended_its_process(e) or tests_lost or kind_of(e) is not Kind.LOST or lost == LOST_TRIES:
                    raise
                await asyncio.sleep(LOST_PAUSE_S)


def ended_its_process(e: BaseException) -> bool:
    """Whether the process of a task ended over it, also by Ray's memory monitor; a node that died is another matter."""
    return any(isinstance(link, WorkerCrashedError | OutOfMemoryError) for link in links(e))


@dataclass
class Ends:
    """How the tasks that judge one text alone have ended."""

    over_it: int = 0
    short: int = 0  # by Ray's memory monitor

    def count(self, e: BaseException) -> float:
        """Count one more; returns how many seconds to wait before the next try."""
        if not any(isinstance(link, OutOfMemoryError) for link in links(e)):
            self.over_it += 1
            return 0.0
        self.short += 1
        return LOST_PAUSE_S * 2 ** (self.short - 1)

    def verdict(self) -> Verdict | None:
        """None as long as the text is to be asked about again."""
        if self.over_it == ENDS:
            return unjudged(f"the process that verifies ended {ENDS} times over it")
        if self.short == LOST_TRIES:
            return unjudged(f"the process that verifies was ended {LOST_TRIES} times, since memory ran out")
        return None


def patience_s(config: VerifyConfig, asked: Asked) -> float:
    """Twice as long as the task may take, a judge's time aside: each verdict has its deadline."""
    limits = (
        len(texts) * limit_s(config, place is not None or bool(problem.get("tests"))) for problem, texts, place in asked
    )
    return 2 * (START_S + sum(limits))


def _texts(asked: Asked) -> int:
    return sum(len(texts) for _, texts, _ in asked)


def verifier_task(config: VerifyConfig, judge: JudgeAt | None = None) -> Any:
    """`verdicts` as the Ray task that verifies, wherever texts are verified; whoever asks it may ask again."""
    task = ray.remote(verdicts).options(num_cpus=config.cpus, max_retries=0)
    return JudgingTask(task, judge) if judge else task


def verdicts(config: str, asked: Asked, *tests: Any, judge: JudgeAt | None = None) -> list[list[Judged]]:
    """By the VerifyConfig whose JSON is `config`. Each problem comes with its texts, and the place of its tests."""
    try:
        verify = judging_verifier(config, judge) if judge else verifier_of_json(config)
        whole = [problem if place is None else problem | {"tests": tests[place]} for problem, _, place in asked]
        pairs = [(text, problem) for problem, (_, texts, _) in zip(whole, asked, strict=True) for text in texts]
        found = iter(judge_all(verify, pairs))
        return [list(islice(found, len(texts))) for _, texts, _ in asked]
    except Exception as e:
        raise told_apart(e) from None
