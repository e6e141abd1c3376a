"""Problems are sampled through a pool and the answers are verified, both at once.

    asks --window--> client of the sampler pool --> Sampled --> verifier tasks --> Verified
    held-out problems x k         ->  evaluation_rows()          ->  rows with y_o (in training)

Requests go out one by one, a bounded number at a time: the engines stay full, and each answer is handed out when it
comes. Whoever leaves the loop early loses only what is under way, which the engines then give up. A sampling seed
depends on three things: the seed of the recipe, the id of the problem and the number of the sample. So neither k nor
other problems change a sample.
"""

import contextlib
import hashlib
import math
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from trd_ray.config import EvaluationConfig, Recipe, SamplerConfig, VerifyConfig
from trd_ray.engine.actor import Generation
from trd_ray.engine.client import Client
from trd_ray.failures import Kind, kind_of
from trd_ray.problems.load import held_out_task, held_out_verify
from trd_ray.stream.judging import JudgeAt, judging_s
from trd_ray.stream.stages import record, record_verdict, request, with_ids, with_prompt
from trd_ray.stream.verifying import (
    LOST_TRIES,
    Asked,
    Ends,
    Judged,
    ended_its_process,
    patience_s,
    verifier_task,
)
from trd_ray.verify import Verdict, unjudged
from trd_ray.views import Ids, Views, setting_of

POLL_S = 0.5


@dataclass(frozen=True, eq=False)
class Question:
    """One problem, how it is asked and how it is judged."""

    benchmark: str
    problem: dict[str, Any]  # a row of rows.PROBLEM
    prompt_ids: list[int]
    sampling: EvaluationConfig
    verify: VerifyConfig

    @property
    def problem_id(self) -> str:
        return self.problem["problem_id"]

    @property
    def prefix(self) -> int:
        """Equal for its samples, which have one prompt."""
        return zlib.crc32(f"{self.benchmark} {self.problem_id}".encode())


@dataclass(frozen=True, eq=False)
class Ask:
    """One sample of a question; if it has its text already, it is only verified."""

    question: Question
    sample: int
    seed: int
    text: str | None = None
    ids: Ids = ()  # of that text


@dataclass(frozen=True)
class Sampled:
    ask: Ask
    generation: Generation


@dataclass(frozen=True)
class Verified:
    ask: Ask
    verdict: Verdict
    start_s: float  # Unix time at which the verification began


def seed_of_sample(seed: int, problem_id: str, sample: int) -> int:
    """The seed of a sample: 63 bits, which fit Arrow's int64 and vLLM's sampling seed."""
    digest = hashlib.blake2b(f"{seed}:{sample}:{problem_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def answers(
    asks: Iterable[Ask],
    *,
    pool: ActorHandle | None,
    sampler: SamplerConfig,
    verify: VerifyConfig,
    judge: JudgeAt | None = None,
    min_version: int = 0,
    while_waiting: Callable[[], object],
) -> Iterator[Sampled | Verified]:
    """What becomes of every ask, as it comes: Sampled (unless it had its text), and later Verified.

    `pool` may be None if every ask has its text, `judge` where no question is judged by one. `while_waiting` is called
    twice a second, and an error that it raises ends the loop. Raises TimeoutError when nothing comes for
    sampler.request_timeout_s.
    """
    client = None if pool is None else Client(pool)
    try:
        yield from _answers(asks, client, sampler, verify, judge, min_version, while_waiting)
    finally:
        if client:
            client.close()


def _answers(
    asks: Iterable[Ask],
    client: Client | None,
    sampler: SamplerConfig,
    verify: VerifyConfig,
    judge: JudgeAt | None,
    min_version: int,
    while_waiting: Callable[[], object],
) -> Iterator[Sampled | Verified]:
    todo = iter(asks)
    window = math.ceil(1.25 * sampler.bounds.max * sampler.max_concurrent)
    sampling: dict[Future, Ask] = {}
    ready: SimpleQueue[Future] = SimpleQueue()  # samples and verifier tasks that are done
    verifying = _Verifying(verify, ready, judge)
    more = True  # asks are left
    looked = 0.0  # when `while_waiting` was called
    heard = time.monotonic()  # when an answer or a verdict came
    while True:
        while more and len(sampling) < window and verifying.backlog < 2 * window:
            ask = next(todo, None)
            if ask is None:
                more = False
                break
            verifying.expected[ask.question] += 1
            if ask.text is not None:
                verifying.add(ask, ask.text, ask.ids)
            else:
                assert client is not None
                asked = request(ask.question.sampling, ask.question.prompt_ids, ask.seed, prefix=ask.question.prefix)
                future = client.submit(asked, min_version)
                sampling[future] = ask
                future.add_done_callback(ready.put)
        verifying.start()
        if not sampling and not verifying.tasks and not verifying.backlog:
            return
        for future in _all_of(ready):
            heard = time.monotonic()
            if future in verifying.tasks:
                yield from verifying.finish(future)
                continue
            if future not in sampling:  # a task that was ended, since it said nothing
                continue
            ask = sampling.pop(future)
            [generation] = future.result()
            yield Sampled(ask, generation)
            if generation.refused:
                yield verifying.refused(ask, generation.refused)
            else:
                verifying.add(ask, generation.text, generation.ids)
        now = time.monotonic()
        if now - looked > POLL_S:
            looked = now
            verifying.end_silent()
            while_waiting()
        if now - heard > sampler.request_timeout_s:
            raise TimeoutError(
                f"the evaluation heard nothing for {sampler.request_timeout_s:.0f} s (sampler.request_timeout_s) of "
                f"{len(sampling)} samples and {len(verifying.tasks)} verifier tasks under way"
            )


def _all_of(ready: SimpleQueue[Future]) -> list[Future]:
    """All that is ready, as soon as one is; [] when none is within POLL_S."""
    found = []
    with contextlib.suppress(Empty):
        found.append(ready.get(timeout=POLL_S))
        while True:
            found.append(ready.get_nowait())
    return found


class _Verifying:
    """Samples that wait for a verdict, and the verifier tasks under way.

    A task takes samples of one problem. Tests may be large, so they go into the object store once, not into each task.
    A task that is lost is asked again; verifying.py says what else may happen to one, and what is done then.
    """

    def __init__(self, verify: VerifyConfig, ready: SimpleQueue[Future], judge: JudgeAt | None = None):
        self.judge = judge
        self.max_tasks = verify.max_tasks
        self.ready = ready  # gets each task when it is done
        self.tasks: dict[Future, list[tuple[Ask, str]]] = {}
        self._answers: dict[Future, tuple[Any, float]] = {}  # task -> its reference, and until when it has time
        self.backlog = 0  # samples in `_waiting` and `_apart`
        self.expected: Counter[Question] = Counter()  # samples asked for and not verified
        self._task = verifier_task(verify, judge)
        self._waiting: dict[Question, list[tuple[Ask, str]]] = {}
        # Whose task ended: each gets one of its own, when the monotonic clock says so.
        self._apart: list[tuple[float, tuple[Ask, str]]] = []
        self._ends: defaultdict[Ask, Ends] = defaultdict(Ends)  # of the tasks with this sample alone
        self._lost: Counter[Ask] = Counter()  # tasks with this sample
        self._tests: dict[Question, Any] = {}  # in the object store
        self._ids: dict[Ask, Ids] = {}  # of samples without a verdict, where a function may ask for them

    def add(self, ask: Ask, text: str, ids: Ids) -> None:
        if len(ids) and ask.question.verify.may_take_ids:
            self._ids[ask] = ids
        self._waiting.setdefault(ask.question, []).append((ask, text))
        self.backlog += 1

    def refused(self, ask: Ask, why: str) -> Verified:
        self.expected[ask.question] -= 1
        return Verified(ask, unjudged(f"the engine refused the request: {why}"), time.time())

    def start(self) -> None:
        """Give each free task its samples, as long as some may be judged now."""
        while (free := self.max_tasks - len(self.tasks)) > 0 and (group := self._next(free)):
            self.backlog -= len(group)
            question = group[0][0].question
            answer = self._judge(question, group)
            task = answer.future()
            self.tasks[task] = group
            asked: Asked = [(question.problem, [text for _, text in group], None)]
            patience = patience_s(question.verify, asked) + 2 * judging_s(self.judge, len(group))
            self._answers[task] = answer, time.monotonic() + patience
            task.add_done_callback(self.ready.put)

    def _next(self, free: int) -> list[tuple[Ask, str]]:
        """Of the problem with the most samples waiting, one task's share of all that wait."""
        now = time.monotonic()
        for one in self._apart:
            if one[0] <= now:
                self._apart.remove(one)
                return [one[1]]
        if not self._waiting:
            return []
        question = max(self._waiting, key=lambda q: len(self._waiting[q]))
        waiting = self._waiting.pop(question)
        share = math.ceil(self.backlog / free)
        if rest := waiting[share:]:
            self._waiting[question] = rest
        return waiting[:share]

    def _judge(self, question: Question, group: list[tuple[Ask, str]]) -> Any:
        config, texts = question.verify.model_dump_json(), [text for _, text in group]
        ids = {text: self._ids[ask] for ask, text in group if ask in self._ids}
        problem = with_ids(question.problem, question.verify, ids)
        tests = problem.get("tests")
        if tests is None:
            return self._task.remote(config, [(problem, texts, None)])
        if question not in self._tests:
            self._tests[question] = ray.put(tests)
        return self._task.remote(config, [(problem | {"tests": None}, texts, 0)], self._tests[question])

    def end_silent(self) -> None:
        """End the tasks that have said nothing for longer than they may take, and ask again."""
        now = time.monotonic()
        late = [task for task, (_, until) in self._answers.items() if now > until and not task.done()]
        for task in late:
            answer, _ = self._answers.pop(task)
            with contextlib.suppress(Exception):
                ray.cancel(answer, force=True)
            self._again(self.tasks.pop(task))

    def _again(self, group: list[tuple[Ask, str]]) -> None:
        self._waiting.setdefault(group[0][0].question, []).extend(group)
        self.backlog += len(group)

    def finish(self, task: Future) -> Iterator[Verified]:
        group = self.tasks.pop(task)
        del self._answers[task]
        try:
            [found] = task.result()
        except Exception as e:
            found = self._after(e, group)
            if found is None:
                return
        question = group[0][0].question
        self.expected[question] -= len(group)
        if not self.expected[question]:
            self._tests.pop(question, None)
        for (ask, _), (start_s, verdict) in zip(group, found, strict=True):
            self._ids.pop(ask, None)
            yield Verified(ask, verdict, start_s)

    def _after(self, e: Exception, group: list[tuple[Ask, str]]) -> list[Judged] | None:
        """What a task that failed comes to: verdicts, or None where it is asked again. Raises what ends the loop."""
        [(first, _), *others] = group
        if ended_its_process(e):
            ends = Ends() if others else self._ends[first]
            pause_s = ends.count(e)
            if verdict := ends.verdict():
                return [(time.time(), verdict)]
            self._apart += [(time.monotonic() + pause_s, one) for one in group]
            self.backlog += len(group)
        else:
            self._lost.update(ask for ask, _ in group)
            if kind_of(e) is not Kind.LOST or max(self._lost[ask] for ask, _ in group) == LOST_TRIES:
                raise e
            self._tests.pop(first.question, None)  # which may be what was lost
            self._again(group)
        return None


def evaluation_rows(
    recipe: Recipe,
    problems: pa.Table,
    views: Views,
    sampler: ActorHandle,
    *,
    step: int,
    min_version: int,
    judge: JudgeAt | None = None,
    while_waiting: Callable[[], object],
    on_progress: Callable[[int, int, int], object] = lambda done, total, passed: None,
) -> list[dict[str, Any]]:
    """Rows with y_o: `evaluation.samples` verified rollouts of each problem.

    `on_progress` is called after each verdict with three numbers: samples that have one, all samples, and samples that
    passed.
    """
    e = recipe.evaluation
    verify = held_out_verify(e, recipe.verify)
    rows: dict[Ask, dict[str, Any]] = {}
    for problem in problems.to_pylist():
        task = held_out_task(e, recipe.verify, problem["problem"], problem["tests"] is not None)
        prompt_ids = views.evaluation(problem["problem"], **setting_of(problem), task=task)
        question = Question("", with_prompt(problem, verify, views, prompt_ids), prompt_ids, e, verify)
        for sample in range(e.samples):
            seed = seed_of_sample(recipe.seed, question.problem_id, sample)
            order = {"row": len(rows), "step": step, "epoch": 0, "sample_index": sample, "seed": seed}
            rows[Ask(question, sample, seed)] = problem | order | {"student_prompt_ids": prompt_ids}
    done = passed = 0
    for event in answers(
        rows, pool=sampler, sampler=recipe.sampler, verify=verify, judge=judge, min_version=min_version,
        while_waiting=while_waiting,
    ):  # fmt: skip
        row = rows[event.ask]
        if isinstance(event, Sampled):
            record(row, "y_o", event.generation)
        else:
            record_verdict(row, "y_o", event.verdict, event.start_s)
            done += 1
            passed += event.verdict.passed
            on_progress(done, len(rows), passed)
    return list(rows.values())
