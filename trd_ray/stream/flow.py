"""The stage of the graph: every row of a call is sampled, verified, refined and verified by itself.

    (step, first, end) -> for each row at once:  gate -> y_o -> verifier task -> y_r -> verifier task -> example
                                                 (a row that trains on y_o is not refined: trajectories.py)
                       -> rows leave in blocks, in the order in which they finish

No row waits for another: refinement of one begins while the next is still sampled. Short answers are the exception:
some rows are asked for in one call (`together`). All rows live in one event loop of the actor; a call only waits in its
thread for what has finished.

When the actor dies, Ray starts it again and makes its calls again, and passes on only those blocks of a call that it
has not passed on yet. But rows finish in another order then. So every call makes as many blocks as any other, and the
last block of a call that may have been made before holds all its rows. The feed takes each row once.

What may go wrong with a row, and what is done then (see `trd_ray.failures`):

- something that worked on it is lost, and asking again did not help: the row is made again, ROW_TRIES times in all;
- it is the row's own fault (an engine refuses it, nothing can judge it): it leaves with its `fault`, and never trains;
- anything else ends the call, and is told apart before it leaves this process.
"""

import asyncio
import math
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import ObjectLostError

from trd_ray.config import ONLY, Recipe, of_each
from trd_ray.engine.actor import Generation, Request
from trd_ray.engine.client import Client
from trd_ray.failures import Kind, kind_of, told_apart
from trd_ray.rows import IN_STREAM, to_table
from trd_ray.stream.blocks import RowBlock, pack
from trd_ray.stream.choosing import RefineCandidate, choose, mean_logprob, scoring, to_score
from trd_ray.stream.edits import edited_share
from trd_ray.stream.examples import BAD_ROW, build
from trd_ray.stream.relay import continued, kept_tokens, unchanged
from trd_ray.stream.stages import (
    StageSpec,
    min_version,
    record,
    record_candidates,
    record_refined,
    record_verdict,
    request,
    require_judged,
    require_taken,
    with_ids,
    with_prompt,
)
from trd_ray.stream.trajectories import needs_refinement
from trd_ray.stream.verifying import LOST_PAUSE_S, Judged, Verifying
from trd_ray.views import Views, load_views, setting_of

ROW_TRIES = 3
AT_ONCE = 64  # rows that begin before the first of them are sent on
SHORT_TOKENS = 512  # answers up to this length are better asked for in one call than one by one
ROWS_OF_SHORT = 32
BLOCKS_OF_LONG = 32


def together(spec: StageSpec) -> int:
    """How many rows may go to an engine in one call, and are answered together."""
    r = spec.recipe
    return r.stream.rows_per_block or (ROWS_OF_SHORT if r.sampler.response_tokens <= SHORT_TOKENS else 1)


def rows_per_block(spec: StageSpec, rows: int) -> int:
    """How many rows of a call with `rows` leave together: the fewer, the less a death of the stage costs."""
    if spec.recipe.stream.rows_per_block:
        return spec.recipe.stream.rows_per_block
    return max(together(spec), math.ceil(rows / BLOCKS_OF_LONG))


@dataclass(frozen=True)
class Taught:
    """What the rows of one teacher are made with."""

    recipe: Recipe  # in which the teacher is the only one
    views: Views
    refiner: Client
    first_refine_version: int


class Flow:
    """The class that Ray Data makes an actor of; calls run in threads of it."""

    def __init__(self, spec: StageSpec):
        self.spec = spec
        self.recipe = spec.recipe
        self.problems: pa.Table = ray.get(spec.problems)
        self.sampler = Client(spec.sampler, together(spec))
        views = load_views(spec.recipe, spec.student_path, spec.teacher_path)
        pools, first = of_each(spec.refiner), of_each(spec.first_refine_version)
        self.taught = {
            name: Taught(one, views[name], self._client(pools[name]), first[name])
            for name, one in spec.recipe.by_teacher.items()
        }
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="rows", daemon=True).start()
        tasks = max(1, spec.recipe.verify.max_tasks // spec.actors)
        self.verifying = Verifying(spec.recipe.verify, tasks, judge=spec.judge)
        self.started_again = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        self.begun: set[int] = set()  # first rows of the calls that this process has begun

    def _client(self, pool: Any) -> Client:
        return self.sampler if pool == self.spec.sampler else Client(pool, together(self.spec))

    def __call__(self, call: pa.Table) -> Iterator[pa.Table]:
        [one] = call.to_pylist()
        first, end = one["first"], one["end"]
        finished: queue.SimpleQueue = queue.SimpleQueue()
        made_again = self.started_again or first in self.begun
        self.begun.add(first)
        made = asyncio.run_coroutine_threadsafe(self._rows(first, end, finished), self.loop)
        try:
            for rows, last in self._blocks(end - first, finished, made_again):
                yield pack(RowBlock(to_table(rows, IN_STREAM), first, end, last))
        finally:  # also when nobody wants more of it
            made.cancel()

    def _blocks(self, count: int, finished: queue.SimpleQueue, made_again: bool) -> Iterator[tuple[list[dict], bool]]:
        size = rows_per_block(self.spec, count)
        rows: list[dict] = []  # that are not sent, or all of a call that may have been made before
        for number in range(1, count + 1):
            item = finished.get()  # every wait of a row has a deadline, and so has the feed's for any row
            if isinstance(item, BaseException):
                raise told_apart(item) if isinstance(item, Exception) else item
            rows.append(item)
            if number % size == 0 and number < count:
                yield rows[-size:], False
                if not made_again:
                    rows = []
        yield rows, True

    async def _rows(self, first: int, end: int, finished: queue.SimpleQueue) -> None:
        """Every row of the call, put into `finished` when it is; an error instead, after which no row comes."""
        tests: dict[int, asyncio.Future] = {}  # of the call's problems, which keeps them in the object store

        async def one(order: dict[str, Any]) -> None:
            finished.put(await self._row(order, tests))

        try:
            async with asyncio.TaskGroup() as group:
                for i, order in enumerate(self.spec.order.rows(first, end)):
                    group.create_task(one(order))
                    if i % AT_ONCE == AT_ONCE - 1:
                        await asyncio.sleep(0)
        except BaseExceptionGroup as e:
            finished.put(e.exceptions[0])

    async def _row(self, order: dict[str, Any], tests: dict[int, asyncio.Future]) -> dict[str, Any]:
        [problem] = self.problems.slice(order["problem_number"], 1).to_pylist()
        by = self.taught[problem.get("teacher") or ONLY]
        for left in reversed(range(ROW_TRIES)):
            row = problem | order
            try:
                await self._fill(row, problem, by, tests)
            except Exception as e:
                kind = kind_of(e)
                if kind is Kind.LOST and left:
                    await asyncio.sleep(LOST_PAUSE_S)
                    continue
                if kind is not Kind.DATA:
                    raise
                row |= {"fault": " ".join(str(e).split()), "train": False, "dropped_because": BAD_ROW}
            if self.spec.trains:
                build(row, by.recipe, by.views, self.spec.vocabulary)
            return row
        raise AssertionError("the last attempt returns or raises")

    async def _fill(
        self, row: dict[str, Any], problem: dict[str, Any], by: Taught, tests: dict[int, asyncio.Future]
    ) -> None:
        """Sample, verify, refine and verify; raises BadRow with what there is by then in the row."""
        r, spec = self.recipe, self.spec
        row["student_prompt_ids"] = by.views.student(problem["problem"], **setting_of(problem))
        oldest = min_version(row["step"], spec.max_staleness, spec.first_version)
        asked = request(r.sampler, row["student_prompt_ids"], row["seed"], prefix=self._prefix(row))
        [y_o] = await self.sampler.generate(asked, oldest)
        require_taken([y_o], "y_o")
        record(row, "y_o", y_o)
        [(start_s, verdict)] = await self._judged(row, problem, by, [y_o], tests)
        record_verdict(row, "y_o", verdict, start_s)
        require_judged(row, "y_o")
        # What waits for a person may have failed: no engine runs any more when that is known.
        if needs_refinement(r, row["row"], bool(row["y_o"]["passed"])):
            await self._refine(row, problem, by, tests)

    async def _refine(
        self, row: dict[str, Any], problem: dict[str, Any], by: Taught, tests: dict[int, asyncio.Future]
    ) -> None:
        refiner, y_o = by.recipe.refiner, row["y_o"]
        attempt = y_o["ids"], y_o["passed"], y_o["feedback"]
        view = by.views.refiner(row["problem"], row["reference"], *attempt, **setting_of(problem))
        row |= {"refine_prompt_ids": view.ids, "refine_cut_tokens": view.cut_tokens}
        # The seed differs from y_o's: the same seed would couple the two samples.
        adapter = not self.recipe.refines_without_adapter
        asked = request(refiner, view.ids, row["seed"] ^ 1, refiner.n, adapter, self._prefix(row))
        if refiner.begins == "relay" and len(y_o["ids"]):
            refinements = await self._relayed(row, by, asked)
        else:
            refinements = await by.refiner.generate(asked, by.first_refine_version)
            require_taken(refinements, "y_r")
        judged = await self._judged(row, problem, by, refinements, tests)
        candidates = await self._candidates(row, by, refinements, judged)
        if any(verdict.awaited for _, verdict in judged):
            record_candidates(row, refinements, judged, candidates)
            return
        chosen = choose(candidates, refiner.select, refiner.max_edited_share)
        record_refined(row, refinements, judged, candidates, chosen)
        require_judged(row, "y_r")

    async def _relayed(self, row: dict[str, Any], by: Taught, asked: Request) -> list[Generation]:
        """The attempt up to where it breaks with the teacher, which reads it first, and tails from there."""
        refiner, y_o = by.recipe.refiner, row["y_o"]
        [read] = await by.refiner.generate(
            scoring(asked.prompt_ids, y_o["ids"], asked.adapter), by.first_refine_version
        )
        require_taken([read], "y_r")
        logprobs = read.prompt_logprobs[-len(y_o["ids"]) :]
        most = refiner.response_tokens - 1
        kept = row["refine_kept_tokens"] = kept_tokens(logprobs, refiner.relay_logprob, bool(y_o["passed"]), most)
        if kept == len(y_o["ids"]):
            return [unchanged(y_o["ids"], logprobs, y_o["finish"], y_o["text"], read)]
        ids = y_o["ids"][:kept]
        prompt = np.concatenate([asked.prompt_ids, np.asarray(ids, np.int32)])
        onward = replace(asked, prompt_ids=prompt, max_tokens=refiner.response_tokens - kept)
        tails = await by.refiner.generate(onward, by.first_refine_version)
        require_taken(tails, "y_r")
        whole = [(tail, by.views.response_text([*ids, *tail.ids])) for tail in tails]
        return [continued(ids, logprobs[:kept], tail, text) for tail, text in whole]

    async def _candidates(
        self, row: dict[str, Any], by: Taught, refinements: list[Generation], judged: list[Judged]
    ) -> list[RefineCandidate]:
        """The refinements with all that one of them is chosen by."""
        refiner = by.recipe.refiner
        limit = refiner.max_edited_share
        found = [
            RefineCandidate(len(made.ids), None if verdict.awaited else verdict.passed, verdict.score, verdict.judged)
            for made, (_, verdict) in zip(refinements, judged, strict=True)
        ]
        if limit is not None:  # in a thread, since long ones take a part of a second
            for candidate, refinement in zip(found, refinements, strict=True):
                candidate.edited_share = await asyncio.to_thread(edited_share, row["y_o"]["ids"], refinement.ids)
        asked = to_score(found, refiner.select, limit)
        # The version that sampled y_o may be gone. Whatever serves now is as new, which is all that the gate asks.
        oldest = min_version(row["step"], self.spec.max_staleness, self.spec.first_version)
        requests = [scoring(row["student_prompt_ids"], refinements[i].ids) for i in asked]
        answers = await asyncio.gather(*(self.sampler.generate(request, oldest) for request in requests))
        for i, [answer] in zip(asked, answers, strict=True):
            found[i].scored = True
            found[i].logprob = mean_logprob(answer, found[i].tokens)
        return found

    def _prefix(self, row: dict[str, Any]) -> int | None:
        """The prompts of one problem begin alike; it has only one of each kind where it is sampled once."""
        return row["problem_number"] if self.recipe.sampler.n > 1 else None

    async def _judged(
        self,
        row: dict[str, Any],
        problem: dict[str, Any],
        by: Taught,
        responses: list[Generation],
        tests: dict[int, asyncio.Future],
    ) -> list[Judged]:
        number = row["problem_number"]
        texts = [one.text for one in responses]
        problem = with_prompt(problem, self.recipe.verify, by.views, row["student_prompt_ids"])
        problem = with_ids(problem, self.recipe.verify, {one.text: one.ids for one in responses})
        try:
            return await self.verifying(problem, texts, await self._tests(number, tests))
        except ObjectLostError:  # the shelf died, and with it what it had put; Ray has started it again
            tests.pop(number, None)
            return await self.verifying(problem, texts, await self._tests(number, tests))

    async def _tests(self, number: int, tests: dict[int, asyncio.Future]) -> Any:
        """A reference to the tests of a problem, or None; asked for once a call."""
        if self.spec.shelf is None:
            return None
        if number not in tests:
            tests[number] = asyncio.ensure_future(self.spec.shelf.tests.remote(number))
        try:
            found = await tests[number]
        except Exception:
            tests.pop(number, None)  # whoever comes next asks again
            raise
        return found[0] if found else None
