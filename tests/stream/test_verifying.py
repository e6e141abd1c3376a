"""A verdict is about its own text, whatever else ends a task: the tasks are stand-ins here, which end as Ray's do."""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayTaskError, WorkerCrashedError

from trd_ray.config import EvaluationConfig, SamplerConfig, VerifyConfig
from trd_ray.errors import BadRow, Lost, UserError
from trd_ray.failures import Failure, Kind, kind_of
from trd_ray.stream import answers, verifying
from trd_ray.stream.answers import Ask, Question, Verified
from trd_ray.stream.flow import Flow
from trd_ray.stream.verifying import Asked, Judged, Verifying, verdicts
from trd_ray.verify import Verdict, verifier_of_json

MATH = VerifyConfig()
LOST_OBJECT = ObjectLostError("ff" * 28, None, "")


class Task:
    """Each text passes, unless `ends` raises over the texts of a task."""

    def __init__(self, ends: Callable[[list[str]], object]):
        self.ends = ends
        self.asked: list[list[str]] = []

    def remote(self, config: str, asked: Asked, *tests: Any) -> Any:
        self.asked.append([text for _, texts, _ in asked for text in texts])
        return self._answer(asked)

    async def _answer(self, asked: Asked) -> list[list[Judged]]:
        texts = self.asked[-1]
        await asyncio.sleep(0)
        self.ends(texts)
        return [[(0.0, Verdict(True, 1.0, text, "", 0.0)) for text in texts] for _, texts, _ in asked]


def judged(task: Task, *texts: list[str], max_tasks: int = 1) -> list[Any]:
    async def ask() -> list[Any]:
        ask = Verifying(MATH, max_tasks, task)
        return await asyncio.gather(*(ask({}, one) for one in texts), return_exceptions=True)

    return asyncio.run(asyncio.wait_for(ask(), 60))


def details(found: list[list[Judged]]) -> list[list[str]]:
    return [[verdict.detail for _, verdict in one] for one in found]


def over(bad: str, error: Exception) -> Callable[[list[str]], None]:
    def ends(texts: list[str]) -> None:
        if bad in texts:
            raise error

    return ends


UNJUDGED = "not judged (the process that verifies ended 2 times over it)"


SHORT = "not judged (the process that verifies was ended 5 times, since memory ran out)"


def test_a_text_that_ends_its_task_twice_has_no_verdict_and_its_neighbours_have_theirs():
    task = Task(over("bad", WorkerCrashedError()))
    assert details(judged(task, ["a", "bad"], ["b"])) == [["", UNJUDGED], [""]]
    assert task.asked == [["a", "bad", "b"], ["a"], ["bad"], ["bad"], ["b"]]
    assert not judged(task, ["bad"])[0][0][1].judged and task.asked[5:] == [["bad"], ["bad"]]


def test_a_text_whose_tasks_ended_for_want_of_memory_is_asked_about_after_pauses_that_double(monkeypatch):
    paused: list[float] = []
    sleep = asyncio.sleep
    monkeypatch.setattr(verifying.asyncio, "sleep", lambda s: sleep(0, paused.append(s) if s else None))
    left: list[Exception] = [OutOfMemoryError("much")] * 3
    task = Task(lambda texts: over("a", left.pop())(texts) if left else None)
    assert details(judged(task, ["a", "b"])) == [["", ""]] and paused == [2, 2, 4]
    assert task.asked == [["a", "b"], ["a"], ["a"], ["a"], ["b"]]
    paused.clear()
    never = Task(over("bad", OutOfMemoryError("much")))
    assert details(judged(never, ["bad"], max_tasks=1)) == [[SHORT]]
    assert never.asked == [["bad"]] * verifying.LOST_TRIES and paused == [2, 4, 8, 16]


def test_a_task_that_ends_once_for_no_fault_of_its_texts_costs_no_verdict():
    left = [WorkerCrashedError()]
    task = Task(lambda texts: over(texts[0], left.pop())(texts) if left else None)
    assert details(judged(task, ["a", "b"], ["c"])) == [["", ""], [""]]


def test_a_task_that_was_lost_is_asked_again_and_in_the_end_it_is_said(monkeypatch):
    monkeypatch.setattr(verifying, "LOST_PAUSE_S", 0)
    left: list[Exception] = [NodeDiedError("it died"), Lost("no sandbox starts"), NodeDiedError("it died")]
    task = Task(lambda texts: over(texts[0], left.pop())(texts) if left else None)
    assert details(judged(task, ["a", "b"])) == [["", ""]] and task.asked == [["a", "b"]] * 4
    never = Task(over("a", Lost("no sandbox starts")))
    [error] = judged(never, ["a"])
    assert isinstance(error, Lost) and len(never.asked) == verifying.LOST_TRIES


@pytest.mark.parametrize("error", [LOST_OBJECT, UserError("install it"), KeyError("y_o")], ids=["lost", "user", "bug"])
def test_what_asking_again_does_not_mend_is_told_at_once_to_all_who_shared_the_task(error):
    task = Task(over("a", error))
    assert judged(task, ["a"], ["b"]) == [error, error] and len(task.asked) == 1


def test_a_task_that_says_nothing_is_ended_and_asked_again(monkeypatch):
    """As where its process is stopped. An error of the task itself that is called a timeout is none."""
    monkeypatch.setattr(verifying, "patience_s", lambda config, asked: 0.05)
    ended: list[Any] = []
    monkeypatch.setattr(ray, "cancel", lambda answer, force: ended.append(answer))

    class Stopped(Task):
        async def _answer(self, asked: Asked) -> list[list[Judged]]:
            if len(self.asked) < 3:
                await asyncio.sleep(1000)
            return await super()._answer(asked)

    task = Stopped(lambda texts: None)
    assert details(judged(task, ["a"])) == [[""]] and len(task.asked) == 3 and len(ended) == 2
    [error] = judged(Task(over("a", TimeoutError("of its own"))), ["a"])
    assert isinstance(error, TimeoutError) and "of its own" in str(error)


def test_a_task_has_time_for_each_of_its_verdicts():
    config = VerifyConfig(timeout_s=5, program_timeout_s=100)
    maths: Asked = [({}, ["a", "b"], None)]
    assert verifying.patience_s(config, maths) == 2 * (verifying.START_S + 10)
    assert verifying.patience_s(config, [*maths, ({}, ["c"], 0)]) == 2 * (verifying.START_S + 110)


def test_in_the_task_a_row_s_own_fault_is_a_verdict_and_a_bug_is_named_before_it_leaves(monkeypatch):
    def verify(text: str, problem: dict) -> Verdict:
        if text == "torn":
            raise BadRow("the tests of its problem cannot be read")
        return {"fine": Verdict(True, 1.0, "", "", 0.0)}[text]

    monkeypatch.setattr(verifying, "verifier_of_json", lambda config: verify)
    [[(_, torn), (_, fine)]] = verdicts("", [({}, ["torn", "fine"], None)])
    assert torn.detail == "not judged (the tests of its problem cannot be read)" and fine.passed
    with pytest.raises(Failure, match="KeyError: 'other'") as bug:
        verdicts("", [({}, ["other"], None)])
    assert kind_of(bug.value) is Kind.BUG and "test_verifying.py" in bug.value.trace
    assert verifier_of_json is not verifying.verifier_of_json


def test_tests_that_could_not_be_had_are_asked_for_again():
    left: list[Any] = [["a reference"], Lost("the shelf has died")]

    async def tests(number: int) -> Any:
        if isinstance(one := left.pop(), Exception):
            raise one
        return one

    shelf = SimpleNamespace(tests=SimpleNamespace(remote=tests))
    stage: Any = SimpleNamespace(spec=SimpleNamespace(shelf=shelf))

    async def ask() -> Any:
        kept: dict[int, asyncio.Future] = {}
        with pytest.raises(Lost):
            await Flow._tests(stage, 3, kept)
        return [await Flow._tests(stage, 3, kept) for _ in range(2)]

    assert asyncio.run(ask()) == ["a reference"] * 2 and left == []


# The same in an evaluation


class Tasks(Task):
    """Tasks whose answers are futures."""

    def remote(self, config: str, asked: Asked, *tests: Any) -> Any:
        self.asked.append([text for _, texts, _ in asked for text in texts])
        future: Future = Future()
        try:
            future.set_result(asyncio.run(self._answer(asked)))
        except Exception as e:
            future.set_exception(e)
        return type("Answer", (), {"future": lambda self: future})()


def evaluated(
    monkeypatch: pytest.MonkeyPatch, task: Tasks, texts: list[str], max_tasks: int = 1
) -> dict[str, list[str]]:
    monkeypatch.setattr(answers, "verifier_task", lambda config, judge: task)
    question = Question("b", {"problem_id": "p"}, [], EvaluationConfig(), MATH)
    verifies = answers._Verifying(MATH.model_copy(update={"max_tasks": max_tasks}), ready := SimpleQueue())
    for number, text in enumerate(texts):
        verifies.expected[question] += 1
        verifies.add(Ask(question, number, 0, text), text, [])
    found: dict[str, list[str]] = {}
    verifies.start()
    while verifies.tasks:
        for verified in verifies.finish(ready.get(timeout=10)):
            found.setdefault(verified.ask.text or "", []).append(verified.verdict.detail)
        verifies.start()
    assert verifies.backlog == 0 and Counter(verifies.expected).total() == 0
    return found


def test_a_sample_that_ends_its_task_twice_has_no_verdict_and_the_others_have_theirs(monkeypatch):
    task = Tasks(over("bad", WorkerCrashedError()))
    assert evaluated(monkeypatch, task, ["a", "bad", "b"]) == {"a": [""], "b": [""], "bad": [UNJUDGED]}
    assert task.asked[0] == ["a", "bad", "b"] and sorted(task.asked[1:]) == [["a"], ["b"], ["bad"], ["bad"]]


def test_a_sample_whose_tasks_ended_for_want_of_memory_is_asked_about_after_pauses_that_double(monkeypatch):
    now = 0.0

    def wait(ready: SimpleQueue[Future]) -> list[Future]:
        nonlocal now
        now += 1
        return [ready.get() for _ in range(ready.qsize())]

    monkeypatch.setattr(answers, "_all_of", wait)
    monkeypatch.setattr(answers.time, "monotonic", lambda: now)
    asked_at: list[float] = []
    task = Tasks(lambda texts: asked_at.append(now) or over("bad", OutOfMemoryError("much"))(texts))
    monkeypatch.setattr(answers, "verifier_task", lambda config, judge: task)
    question = Question("b", {"problem_id": "p"}, [], EvaluationConfig(), MATH)
    asks = [Ask(question, 0, 0, "bad")]
    [found] = answers.answers(asks, pool=None, sampler=SamplerConfig(), verify=MATH, while_waiting=lambda: None)
    assert isinstance(found, Verified) and found.verdict.detail == SHORT
    assert [later - before for before, later in zip(asked_at, asked_at[1:], strict=False)] == [3, 5, 9, 17]


def test_a_task_of_an_evaluation_that_was_lost_is_asked_again(monkeypatch):
    left: list[Exception] = [LOST_OBJECT, RayTaskError("verdicts", "trace", Lost("no sandbox")).as_instanceof_cause()]
    task = Tasks(lambda texts: over("a", left.pop())(texts) if left else None)
    assert evaluated(monkeypatch, task, ["a", "b"]) == {"a": [""], "b": [""]} and task.asked == [["a", "b"]] * 3
    with pytest.raises(KeyError):
        evaluated(monkeypatch, Tasks(over("a", KeyError("y_o"))), ["a"])
    with pytest.raises(Lost):
        evaluated(monkeypatch, never := Tasks(over("a", Lost("no sandbox starts"))), ["a"])
    assert len(never.asked) == verifying.LOST_TRIES


def test_a_node_that_takes_many_tasks_of_an_evaluation_along_does_not_end_it(monkeypatch):
    texts = [str(number) for number in range(2 * verifying.LOST_TRIES)]
    left: list[Exception] = [NodeDiedError("it died") for _ in texts]
    task = Tasks(lambda asked: over(asked[0], left.pop())(asked) if left else None)
    assert evaluated(monkeypatch, task, texts, max_tasks=len(texts)) == {text: [""] for text in texts}


def test_a_task_of_an_evaluation_that_says_nothing_is_ended_and_asked_again(monkeypatch):
    """As where its process is stopped."""
    ended: list[Any] = []
    monkeypatch.setattr(ray, "cancel", lambda answer, force: ended.append(answer))
    monkeypatch.setattr(answers, "POLL_S", 0.01)
    monkeypatch.setattr(answers, "patience_s", lambda config, asked: 1000 if len(task.asked) > 1 else 0.02)

    class FirstIsStopped(Tasks):
        def remote(self, config: str, asked: Asked, *tests: Any) -> Any:
            answer = super().remote(config, asked, *tests)
            silent = type("Answer", (), {"future": lambda self: Future()})()
            return silent if len(self.asked) == 1 else answer

    task = FirstIsStopped(lambda texts: None)
    monkeypatch.setattr(answers, "verifier_task", lambda config, judge: task)
    question = Question("b", {"problem_id": "p"}, [], EvaluationConfig(), MATH)
    asks = [Ask(question, number, 0, text) for number, text in enumerate("ab")]
    found = list(answers.answers(asks, pool=None, sampler=SamplerConfig(), verify=MATH, while_waiting=lambda: None))
    assert sorted(verified.ask.text or "" for verified in found) == ["a", "b"] and len(ended) == 1
