"""A client of a pool: it asks the pool which engine may answer, and then asks that engine itself.

    generate(request) --admit--> pool: the gate, the engine (routing.py)        a lease, some bytes
                      --request, generations--> the engine's actor              never through the pool
                      --settle--> pool: this engine has one request less        batched, not waited for
                      --lost--> pool: restarts the engine that died             waited for; then admit again

Requests that are wanted while the pool is being asked for the same version share the next call. So each client has one
call a version at the gate, however many rows wait there (`recount` tells the pool how many).

What may happen between the lease and the answer:

- the engine dies, or gives no answer within request_timeout_s: the pool hears so, and another engine is asked;
- the engine leaves: it stays until the lease is over;
- an update begins: with `drain` the pool waits for the lease before it pauses the engine. With `keep` a request that
  comes after the pause waits in vLLM's queue (in both of its modes), and new weights answer it. Its generation then
  names the version that the engine had when the request came, which is the older one. An adapter waits for nothing:
  the request ends on the one that the engine served when it came;
- another run takes the pool: the request is answered by the weights that began it, or fails with RunEnded;
- the coroutine is cancelled: so is the request in the engine, and the lease is over;
- this process dies: see leases.py.

A client belongs to one event loop: the one in which `generate` is awaited, or a thread of its own for `submit`.
At shutdown of the pool every wait ends with PoolFailed. `close` ends the thread and what is under way in it.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Awaitable
from concurrent.futures import Future
from itertools import count
from typing import Any

import ray

from trd_ray.engine.actor import reason
from trd_ray.engine.deaths import DEATHS, PASSING
from trd_ray.engine.generations import Generation, Request, whole
from trd_ray.engine.leases import Admission, Lease, Who

ASK_EVERY_S = 0.01  # at most, for one version: a call costs as much processor time as a request in it takes
TELL_WITHIN_S = 0.1  # the pool hears so soon what is over, in one call with what else ends; of the last lease at once
CLOSE_TIMEOUT_S = 30.0

# The oldest version that may answer (None: the base model does), and the run of the pool, if it is known.
Wish = tuple[int | None, int | None]
_numbers = count()


class Client:
    def __init__(self, pool: Any, together: int = 1):
        """Of requests that are admitted in one moment, up to `together` go to an engine in one call.

        They are answered together then. That is worth it only where answers are short: an engine reads many prompts in
        the time of one, and a call costs about a millisecond.
        """
        self.pool = pool
        self.together = together
        self._calls: dict[str, _Call] = {}  # start_id -> the call that its next request joins
        self.who = Who(*_process(), next(_numbers))
        self._wanted: dict[Wish, deque[asyncio.Future[tuple[Lease, Admission]]]] = {}  # who wait for a lease
        self._prefixes: dict[asyncio.Future, int] = {}  # of those who wait and have one
        self._asking: dict[Wish, asyncio.Task] = {}
        self._engines: dict[str, Any] = {}  # start_id -> handle
        self._held = 0  # leases that are not over
        self._over: list[tuple[int, int | None]] = []  # leases, with the tokens of those that were answered
        self._told: dict[Wish, int] = {}  # how many wait at the gate, by what the pool was told
        self._telling: asyncio.TimerHandle | None = None
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # of the thread

    async def generate(self, request: Request, min_version: int = 0) -> list[Generation]:
        """The `n` generations of a request, sampled by weights of at least `min_version`, however long that takes.

        A request that asks the base model waits for no version.

        Raises PoolFailed, RunEnded, or what the engine raised about the request.
        """
        run = None
        while True:
            lease, admission = await self._admitted((min_version if request.adapter else None, run), request.prefix)
            run = admission.run
            try:
                async with asyncio.timeout(admission.request_timeout_s):
                    generations = await self._answer(lease.engine, request)
            except DEATHS as e:
                why, passing = reason(e), isinstance(e, PASSING)
            except TimeoutError:
                within = f"{admission.request_timeout_s:.0f} s ({admission.pool}.request_timeout_s)"
                why, passing = f"TimeoutError: no answer within {within}", False
            except BaseException:
                self._settle(lease)
                raise
            else:
                self._settle(lease, sum(len(g.ids) for g in generations))
                return generations
            # Out of the handlers: what is raised from here on is not about that engine.
            self._held -= 1
            await self.pool.lost.remote(lease, why, passing, self._take_over())

    async def _answer(self, engine: str, request: Request) -> list[Generation]:
        call = self._calls.get(engine)
        if call is None or len(call.requests) == self.together:
            call = self._calls[engine] = _Call(self._engines[engine])
            asyncio.get_running_loop().call_soon(self._begin, engine, call)
        return await call.join(request)

    def _begin(self, engine: str, call: "_Call") -> None:
        if self._calls.get(engine) is call:
            del self._calls[engine]
        call.begin()

    def submit(self, request: Request, min_version: int = 0) -> Future[list[Generation]]:
        """`generate` for a thread without an event loop."""
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="pool client", daemon=True)
                self._thread.start()
        return asyncio.run_coroutine_threadsafe(self.generate(request, min_version), self._loop)

    def close(self) -> None:
        """End the client: what is under way by `submit` is cancelled, and the pool counts nothing for it any longer."""
        if self._loop is not None and self._thread is not None:
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(CLOSE_TIMEOUT_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_TIMEOUT_S)
            self._loop.close()
            self._loop = self._thread = None
        with contextlib.suppress(Exception):
            self.pool.leave.remote(self.who)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._tell()

    # Leases

    async def _admitted(self, wish: Wish, prefix: int | None) -> tuple[Lease, Admission]:
        place: asyncio.Future[tuple[Lease, Admission]] = asyncio.get_running_loop().create_future()
        if prefix is not None:
            self._prefixes[place] = prefix
        self._wanted.setdefault(wish, deque()).append(place)
        if wish not in self._asking:
            # The task runs once all that are ready to run now have said what they want.
            self._asking[wish] = asyncio.create_task(self._ask(wish))
        else:
            self._tell_soon()
        try:
            return await place
        except asyncio.CancelledError:
            if place.cancelled():
                self._tell_soon()
            elif not place.exception():
                self._settle(place.result()[0])  # it was given in this very moment
            raise
        finally:
            self._prefixes.pop(place, None)

    def _prefixes_of(self, wanted: deque[asyncio.Future]) -> list[int | None]:
        return [self._prefixes.get(place) for place in wanted] if self._prefixes else []

    async def _ask(self, wish: Wish) -> None:
        """Ask the pool for leases until nobody waits for one."""
        wanted = self._wanted[wish]
        try:
            while waiting := _waiting(wanted):
                self._told[wish] = waiting
                # Separate calls may overtake each other, so this one says what is over: the pool looks at loads next.
                admission: Admission = await self.pool.admit.remote(
                    self.who, *wish, waiting, self._take_over(), self._prefixes_of(wanted)
                )
                del self._told[wish]
                self._engines |= admission.engines
                self._held += len(admission.leases)
                # The answer to a call of another wish may be the one that brings a handle, and arrive after this one.
                while not all(lease.engine in self._engines for lease in admission.leases):
                    await asyncio.sleep(ASK_EVERY_S)
                for lease in admission.leases:
                    while wanted and wanted[0].done():  # cancelled meanwhile
                        wanted.popleft()
                    if wanted:
                        wanted.popleft().set_result((lease, admission))
                    else:
                        self._settle(lease)
                if _waiting(wanted):
                    await asyncio.sleep(ASK_EVERY_S)
        except Exception as e:
            for place in wanted:
                if not place.done():
                    place.set_exception(e)
        finally:
            del self._asking[wish], self._wanted[wish]
            self._told.pop(wish, None)

    # What the pool is told and not waited for

    def _settle(self, lease: Lease, tokens: int | None = None) -> None:
        self._over.append((lease.number, tokens))
        self._held -= 1
        if self._held:
            self._tell_soon()
        else:  # an update may wait for it
            asyncio.get_running_loop().call_soon(self._tell)

    def _take_over(self) -> list[tuple[int, int | None]]:
        over, self._over = self._over, []
        return over

    def _tell_soon(self) -> None:
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(TELL_WITHIN_S, self._tell)

    def _tell(self) -> None:
        if self._telling:
            self._telling.cancel()
            self._telling = None
        over = self._take_over()
        with contextlib.suppress(Exception):  # a pool that has died is met by the next call that is waited for
            if over:
                self.pool.settle.remote(over)
            for wish, told in self._told.items():
                if (waiting := _waiting(self._wanted[wish])) != told:
                    self._told[wish] = waiting
                    self.pool.recount.remote(self.who, *wish, waiting, self._prefixes_of(self._wanted[wish]))


class _Call:
    """Requests that go to an engine together. Who gives up leaves the others; the last one cancels the call."""

    def __init__(self, engine: Any):
        self.engine = engine
        self.requests: list[Request] = []
        self.parts: Any = None  # references, once it has begun
        self.answers: asyncio.Future[list[list[Generation]]] = asyncio.get_running_loop().create_future()
        self.waiting = 0

    def begin(self) -> None:
        if self.waiting:
            self.parts = self.engine.generate.remote(self.requests)
            asyncio.ensure_future(asyncio.gather(*self.parts)).add_done_callback(self._answered)

    def _answered(self, parts: asyncio.Future) -> None:
        if self.answers.cancelled() or parts.cancelled():
            self.answers.cancel()
        elif error := parts.exception():
            self.answers.set_exception(error)
            self.answers.exception()  # somebody may have given up, and then nobody else asks
        else:
            self.answers.set_result(whole(*parts.result()))

    async def join(self, request: Request) -> list[Generation]:
        place = len(self.requests)
        self.requests.append(request)
        self.waiting += 1
        try:
            return (await asyncio.shield(self.answers))[place]
        except asyncio.CancelledError:
            if self.waiting == 1 and self.parts:
                _cancel(self.parts[0])
            raise
        finally:
            self.waiting -= 1


def _process() -> tuple[str, str]:
    """The ids of this actor and of its process; of the process alone outside of an actor."""
    context = ray.get_runtime_context()
    process = context.get_worker_id()
    return context.get_actor_id() or process, process


def _waiting(wanted: deque[asyncio.Future]) -> int:
    """How many still wait; those that were cancelled are taken out."""
    if any(place.done() for place in wanted):
        alive = [place for place in wanted if not place.done()]
        wanted.clear()
        wanted.extend(alive)
    return len(wanted)


def _cancel(answer: Awaitable) -> None:
    with contextlib.suppress(Exception):
        ray.cancel(answer)  # pyright: ignore[reportArgumentType]
