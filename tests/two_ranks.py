"""Two learner ranks that push weights, without Ray and vLLM's engines: what a push does when one of its parts fails.

The ranks are processes with gloo between them, as under Ray Train. In rank 0's process there is a pool as it is, whose
engines are stand-ins that really receive, over the transfer group of the gloo backend.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import ActorDiedError

from stands import Stand, Stands
from trd_ray.engine import client as client_module
from trd_ray.engine import sync as sync_module
from trd_ray.engine import update as update_module
from trd_ray.engine.sync import WeightSync
from trd_ray.engine.transfers import GlooInitInfo, GlooWeightTransferEngine

RANKS = 2
NUMBERS = [10, 2, 3_000_000, 4, 3_000_000, 6]  # in each tensor; a large one does not fit into what a socket buffers
MIDDLE = 2
TIMEOUT_S = 30.0  # of every wait in a push and of every collective


@dataclass
class Story:
    """What goes wrong in a first push; a second one follows, in which nothing does."""

    rank: int | None = None  # on which `point` fails
    point: str = ""  # "connect", "shapes", or a tensor's name
    engine: dict[str, Exception] = field(default_factory=dict)  # method -> what it raises, in the first engine
    in_tensor: str = ""  # "dies" or "hangs": the first engine does, when it has got the first large tensor
    by_handles: bool = False  # by a sender that goes in step with the other ranks, as vLLM's for CUDA IPC does
    timeout_s: float = TIMEOUT_S


@dataclass
class Told:
    """What a rank saw of a push, and on rank 0 what the engines serve after it: (version, tensors as expected)."""

    problem: str | None
    seconds: float
    served: list[tuple[int, bool]] = field(default_factory=list)
    restarts: int = 0


class HalfLearner:
    """Each rank has one half of every tensor, and all ranks gather it, as FSDP does."""

    def __init__(self, story: Story, rank: int):
        self.story, self.rank, self.version, self.failing = story, rank, 0, True
        self.closed = 0

    def here(self, point: str) -> None:
        if self.failing and (self.story.rank, self.story.point) == (self.rank, point):
            raise ValueError(f"{point} failed on rank {self.rank}")

    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        self.here("shapes")
        return [(str(i), (2 * n,)) for i, n in enumerate(NUMBERS)]

    def weights(self, who: str, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        try:
            for i, n in enumerate(NUMBERS):
                halves = [torch.empty(n) for _ in range(RANKS)]
                dist.all_gather(halves, torch.full((n,), value(self.version, i, self.rank)))
                self.here(str(i))
                yield str(i), torch.cat(halves)
        finally:
            self.closed += 1


def value(version: int, tensor: int, rank: int) -> float:
    return 100.0 * version + 10 * tensor + rank


class Receiving(Stand):
    """A stand-in engine with a real end of the transfer group."""

    def __init__(self, name: str, restarted: bool):
        super().__init__(name)
        self.restarted = restarted
        self.weights: dict[str, tuple[float, float, int]] = {}
        self.served = (0, True)
        self.in_tensor, self.let_go = "", threading.Event()
        self.end: Any = GlooWeightTransferEngine.__new__(GlooWeightTransferEngine)
        self.end.parallel_config, self.end.device = SimpleNamespace(rank=0), torch.device("cpu")
        self.end.model = SimpleNamespace(load_weights=self._load)

    def _load(self, pairs: list[tuple[str, torch.Tensor]]) -> None:
        [(name, weight)] = pairs
        self.weights[name] = weight[0].item(), weight[-1].item(), len(weight)
        if name != str(MIDDLE):
            return
        if self.in_tensor == "hangs":
            self.let_go.wait()
        if self.in_tensor == "dies" or self.killed.is_set():
            raise ActorDiedError

    async def call(self, method: str, arguments: tuple) -> Any:
        answer = await super().call(method, arguments)
        if method == "start" and self.restarted:
            await asyncio.sleep(0.2)
        elif method == "update_weights" and "weights" in arguments[0]:
            await asyncio.to_thread(self._load, arguments[0]["weights"])
        elif method == "init_weight_transfer_engine" and "master_address" in arguments[0]:
            await asyncio.to_thread(self.end.init_transfer_engine, GlooInitInfo(**arguments[0]))
        elif method == "update_weights":
            try:
                await asyncio.to_thread(self.end.receive_weights, SimpleNamespace(**arguments[0]))
            except BaseException:
                self.end.group = None  # a process that ends closes its connections
                raise
        elif method == "finish_weight_update":
            [version] = arguments
            expected = {
                str(i): (value(version, i, 0), value(version, i, RANKS - 1), 2 * n) for i, n in enumerate(NUMBERS)
            }
            self.served = version, self.weights == expected
        return answer

    def kill(self) -> None:
        self.killed.set()
        self.let_go.set()
        self.end.group = None


class HandlesSender:
    """The shape of vLLM's sender for CUDA IPC: a call to the engines for each part, between barriers of all ranks."""

    def __init__(self, _: Any, client: Any, source: Any):
        self.client, self.source, self.first = client, source, dist.get_rank() == 0
        if self.first:
            client.init_weight_transfer_engine({"packed": True})

    def send_weights(self) -> None:
        if self.first:
            self.client.start_weight_update()
        for pair in self.source:
            dist.barrier()
            if self.first:
                self.client.update_weights({"weights": [pair]})
            dist.barrier()
        if self.first:
            self.client.finish_weight_update()

    def shutdown(self) -> None:
        pass


class Pooled:
    """A pool of two receiving engines, on a loop of its own, called as one in a Ray actor is."""

    def __init__(self, story: Story, folder: Path):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.stands: Any = Stands(folder, replicas=2)
        self.stands.pool._actor = self._actor
        self._do(self.stands.pool.start())
        first = self.stands.started[0]
        first.failing, first.in_tensor = dict(story.engine), story.in_tensor

    def _actor(self, spec: Any) -> Receiving:
        self.stands.started.append(stand := Receiving(spec.name, restarted=len(self.stands.started) >= 2))
        return stand

    def _do(self, call: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self.loop).result(TIMEOUT_S)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.stands.pool, name)
        return SimpleNamespace(remote=lambda *a: asyncio.run_coroutine_threadsafe(method(*a), self.loop))

    def served(self) -> list[tuple[int, bool]]:
        lives = self.stands.fleet.lives
        _until(lambda: all(life.handle for life in lives))  # an engine that starts again has one in a moment
        return [life.handle.served for life in lives]

    def heal(self) -> None:
        for stand in self.stands.started:
            stand.failing, stand.in_tensor = {}, ""


class Calls:
    """What sync.py asks of Ray."""

    util = SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1")

    @staticmethod
    def get(refs: list[Future]) -> list[Any]:
        return [ref.result() for ref in refs]

    @staticmethod
    def wait(refs: list[Future], timeout: float) -> tuple[list[Future], list[Future]]:
        done = list(wait(refs, timeout, FIRST_COMPLETED).done)[:1]
        return done, [ref for ref in refs if ref not in done]


def rank_process(rank: int, stories: list[Story], folder: Path, dies: bool) -> None:
    """Play the stories, and leave what was seen in `folder`. If the rank `dies`, it does so in the last gather."""
    torch.set_num_threads(1)
    sync_module.ray = Calls  # type: ignore[assignment]
    sync_module.LAST_WORDS_S, update_module.LAST_WORDS_S = 1.0, 0.3
    sync_module.MARGIN_S = 5.0
    ray.kill = lambda stand: stand.kill()  # type: ignore[assignment]
    client_module._process = lambda: ("actor", "process")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS, timeout=timedelta(seconds=TIMEOUT_S)
    )
    seen = [_play(story, rank, folder) for story in stories]
    torch.save(seen, folder / f"rank-{rank}")
    if dies:
        _lose_rank_1(rank, folder)
    os._exit(0)  # threads that wait for a dead engine are not waited for


def _play(story: Story, rank: int, folder: Path) -> list[Told]:
    learner, pool = HalfLearner(story, rank), Pooled(story, folder) if rank == 0 else None
    sync = WeightSync(learner, [pool], backend="gloo", dtype=torch.float32, timeout_s=story.timeout_s)  # type: ignore[list-item]
    connect = sync._connect
    sync._connect = lambda receivers: (learner.here("connect"), connect(receivers))[1]  # type: ignore[method-assign]
    if story.by_handles:
        sync.source.in_step = True
        sync._sender = lambda world_size: (HandlesSender, None)  # type: ignore[method-assign]
    told = []
    for version in (1, 2):
        learner.version = version
        told.append(_push(sync, version, pool))
        learner.failing = False
        sync.timeout_s = sync.client.timeout_s = TIMEOUT_S  # a story's own is for the push that fails
        if pool:
            pool.heal()
            _until(lambda: len(pool.stands.fleet.those("starting")) == 0)
    assert learner.closed in (1, 2)  # as often as it was asked for weights
    sync.close()
    return told


def _push(sync: WeightSync, version: int, pool: Pooled | None) -> Told:
    begin = time.monotonic()
    problem = sync.push(version)
    seconds = time.monotonic() - begin
    if pool is None:
        return Told(problem, seconds)
    return Told(problem, seconds, pool.served(), pool.stands.pool.restarts)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _lose_rank_1(rank: int, folder: Path) -> None:
    learner, pool = HalfLearner(Story(), rank), Pooled(Story(), folder) if rank == 0 else None
    if rank == 1:
        learner.here = lambda point: os._exit(0) if point == str(MIDDLE) else None  # type: ignore[method-assign]
    sync = WeightSync(learner, [pool], backend="gloo", dtype=torch.float32, timeout_s=TIMEOUT_S)  # type: ignore[list-item]
    begin = time.monotonic()
    with contextlib.suppress(RuntimeError):
        sync.push(1)
        raise AssertionError("a push without the other rank went well")
    assert pool is not None
    torch.save((time.monotonic() - begin, pool.served(), pool.stands.pool.update is None), folder / "alone")
