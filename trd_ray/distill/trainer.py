"""The Ray Train shell around the learner: the driver gives commands, every rank carries them out.

    driver --command--> Mailbox (actor) --> rank 0..n: Learner and WeightSync --answer--> Mailbox --> driver
    step(examples) -> updates -> ranks -> micro-batches -> each rank its share

The worker group lives for the whole run. A step, a sync and a checkpoint are commands to it, so the loop stays in one
place.

- Shutdown: `stop` ends the group, and with it what a checkpoint has not written yet.
- Crash: an error on any rank ends the group. It reaches the driver with the next answer that the driver waits for, as
  UserError if it is one, else as RunFailed.
"""

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from numpy.typing import ArrayLike
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from trd_ray.config import Recipe
from trd_ray.distill.batches import Example, micro_batches, split, token_count
from trd_ray.engine.reservation import NODE_LABEL
from trd_ray.errors import RunFailed, UserError

POLL_S = 1.0
SYNC_WAITS = 8  # one push waits at most so many times for sync.timeout_s
# How long a rank waits for another in a collective of a step. Where one may wait for longer, in a sync or for a
# checkpoint that is being written, the ranks meet in a group of that part's own. Only vLLM's sender for CUDA IPC meets
# in the default group while rank 0 waits for the engines.
COLLECTIVE_TIMEOUT_S = 600
IPC_MARGIN_S = 60
# What a rank does for a command, in the driver's words; the others are no work, or wait for what goes on meanwhile.
WORK = {"step": "train", "sync": "sync", "logprobs": "probe", "begin_checkpoint": "checkpoint"}


def collective_timeout_s(sync_backend: str, sync_timeout_s: float) -> int:
    """The deadline of the learner's default group."""
    ipc_s = math.ceil(sync_timeout_s) + IPC_MARGIN_S if sync_backend == "ipc" else 0
    return max(COLLECTIVE_TIMEOUT_S, ipc_s)


@dataclass
class Command:
    name: str  # "start" | "step" | "sync" | "logprobs" | "begin_checkpoint" | "finish_checkpoint" | "stop"
    arguments: dict[str, Any] = field(default_factory=dict)
    per_rank: list[Any] | None = None  # one argument a rank, e.g. its shard


class Mailbox:
    """Commands in order, and the answers of all ranks. Async, so that many callers can wait in it."""

    def __init__(self, ranks: int):
        self.ranks = ranks
        self.commands: list[Command | None] = []
        self.answers: dict[int, dict[int, Any]] = {}
        self.times: dict[int, dict[int, tuple[float, float]]] = {}  # as `answers`: when each rank carried it out
        self.refusal: str | None = None
        self.changed = asyncio.Condition()

    async def post(self, command: Command) -> int:
        async with self.changed:
            self.commands.append(command)
            self.changed.notify_all()
        return len(self.commands) - 1

    async def take(self, number: int, rank: int) -> Command:
        async with self.changed:
            await self.changed.wait_for(lambda: number < len(self.commands))
        command = self.commands[number]
        assert command is not None
        share = None if command.per_rank is None else [command.per_rank[rank]]
        return Command(command.name, command.arguments, share)

    async def answer(self, number: int, rank: int, value: Any, begin: float, end: float) -> None:
        async with self.changed:
            self.times.setdefault(number, {})[rank] = begin, end
            self.answers.setdefault(number, {})[rank] = value
            self.changed.notify_all()

    async def result(self, number: int, wait_s: float) -> tuple[bool, Any, dict[int, tuple[float, float]]]:
        """(done, rank 0's answer, when each rank was at it); not done if some rank has not answered in `wait_s`."""
        with contextlib.suppress(TimeoutError):
            async with self.changed:
                await asyncio.wait_for(
                    self.changed.wait_for(lambda: len(self.answers.get(number, {})) == self.ranks), wait_s
                )
            self.commands[number] = None  # the command's shards may be freed
            return True, self.answers.pop(number)[0], self.times.pop(number)
        return False, None, {}

    async def refuse(self, message: str) -> None:
        """A rank tells why it ends, where that is something the user can fix."""
        self.refusal = self.refusal or message

    async def refused(self) -> str | None:
        return self.refusal


@dataclass
class LearnerSpec:
    """What every rank needs, as plain data."""

    recipe: Recipe
    student_path: str
    teacher_path: str
    tokenizer_path: str
    total_steps: int
    resume_from: str | None
    mailbox: ActorHandle
    pools: dict[str, list[ActorHandle]]  # "student", "teacher" -> those that follow it
    sync_backend: str
    engine_dtype: str


def work(config: dict[str, Any]) -> None:
    """One rank, inside Ray Train: build the learner, then carry out commands until told to stop."""
    spec: LearnerSpec = config["spec"]
    try:
        _work(spec)
    except UserError as e:
        ray.get(spec.mailbox.refuse.remote(str(e)))
        raise


def _work(spec: LearnerSpec) -> None:
    import ray.train
    import ray.train.torch
    from transformers.utils import logging

    from trd_ray.distill.checkpoint import Checkpointer
    from trd_ray.distill.learner import Learner

    logging.disable_progress_bar()
    rank = ray.train.get_context().get_world_rank()
    learner = Learner(
        spec.recipe,
        student_path=spec.student_path,
        teacher_path=spec.teacher_path,
        tokenizer_path=spec.tokenizer_path,
        total_steps=spec.total_steps,
        device=ray.train.torch.get_device(),
    )
    checkpointer = Checkpointer(learner, spec.recipe.learner.step_timeout_s)
    if spec.resume_from:
        checkpointer.load(Path(spec.resume_from))
    syncs = _syncs(spec, learner)
    number = 0
    while True:
        command: Any = ray.get(spec.mailbox.take.remote(number, rank))
        value, begin = None, time.time()
        if command.name == "step":
            assert command.per_rank is not None
            value = learner.step(ray.get(command.per_rank[0][0]))
        elif command.name == "sync":
            assert syncs, "a sync was asked for, but no pool follows the learner"
            # Every sync pushes, also after a problem: all ranks must come to the same pushes.
            problems = [sync.push(**command.arguments) for sync in syncs]
            value = next((problem for problem in problems if problem), None)
        elif command.name == "logprobs":
            value = learner.logprobs(**command.arguments)
        elif command.name == "begin_checkpoint":
            value = checkpointer.begin(Path(command.arguments["folder"]))
        elif command.name == "finish_checkpoint":
            value = checkpointer.done(**command.arguments)
        ray.get(spec.mailbox.answer.remote(number, rank, value, begin, time.time()))
        if command.name == "stop":
            break
        number += 1
    for sync in syncs:
        sync.close()


def receivers(pools: dict[str, list[ActorHandle]], backend: str) -> list[tuple[str, list[ActorHandle]]]:
    """Whose weights go to which pools in one push.

    By IPC each pool gets a push of its own: torch counts one import for each export of a buffer, so two engines on one
    GPU that import the same export would leave it unfreed.
    """
    if backend == "ipc":
        return [(who, [pool]) for who, follow in pools.items() for pool in follow]
    return [(who, follow) for who, follow in pools.items() if follow]


def _syncs(spec: LearnerSpec, learner: Any) -> list[Any]:
    found = receivers(spec.pools, spec.sync_backend)
    if not found:
        return []
    import torch

    from trd_ray.engine.sync import WeightSync

    return [
        WeightSync(
            learner,
            pools,
            who=who,
            backend=spec.sync_backend,
            dtype=getattr(torch, spec.engine_dtype),
            timeout_s=spec.recipe.sync.timeout_s,
        )
        for who, pools in found
    ]


def scaling(workers: int, cpus: float, gpus: float, nodes: Sequence[str]) -> Any:
    """Ray Train's ScalingConfig for ranks on these nodes, by Ray's ids; without any, for ranks on one node."""
    from ray.train import ScalingConfig

    return ScalingConfig(
        num_workers=workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": cpus} | ({"GPU": gpus} if gpus else {}),
        placement_strategy="STRICT_PACK" if len(set(nodes)) <= 1 else "PACK",
        label_selector=[{NODE_LABEL: node} for node in nodes] or None,
    )


class Trainer:
    """The driver's handle on the worker group."""

    def __init__(
        self,
        spec_without_mailbox: dict[str, Any],
        *,
        cpus: float,
        gpus: float,
        storage: Path,
        cost: Callable[[Example], float] = token_count,
        nodes: Sequence[str] = (),
    ):
        """A step's examples are shared out over the ranks so that their `cost` is equal.

        `nodes` is Ray's id of the node of each rank; by default Ray finds one node for all of them.
        """
        recipe: Recipe = spec_without_mailbox["recipe"]
        self.nodes = nodes
        self.recipe, self.cpus, self.gpus, self.storage, self.cost = recipe, cpus, gpus, storage, cost
        self.worked: list[tuple[int, str, float, float]] = []
        self.mailbox: Any = ray.remote(Mailbox).options(num_cpus=0, max_concurrency=1000).remote(recipe.learner.workers)
        self.spec = LearnerSpec(mailbox=self.mailbox, **spec_without_mailbox)
        self.error: BaseException | None = None
        self.lost = False  # a command failed or was not answered in time: no other will be
        self.thread = threading.Thread(target=self._fit, name="ray-train", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def _fit(self) -> None:
        from ray.train import FailureConfig, RunConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        trainer = TorchTrainer(
            work,
            train_loop_config={"spec": self.spec},
            scaling_config=scaling(self.recipe.learner.workers, self.cpus, self.gpus, self.nodes),
            # Gloo takes what NCCL does not, because it lies in host memory: offloaded gradients, objects.
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if self.gpus else "gloo",
                timeout_s=collective_timeout_s(self.spec.sync_backend, self.recipe.sync.timeout_s),
            ),
            run_config=RunConfig(
                name="learner", storage_path=str(self.storage), failure_config=FailureConfig(max_failures=0)
            ),
        )
        try:
            trainer.fit()
        except BaseException as e:  # noqa: BLE001 - handed to the loop, which waits for an answer
            self.error = e

    def wait_until_started(self, while_waiting: Callable[[], object]) -> None:
        """Wait until every rank has its models and has loaded the checkpoint. `while_waiting` may raise."""
        key = "learner.start_timeout_s"
        self.call("start", self.recipe.learner.start_timeout_s, key=key, while_waiting=while_waiting)

    def step(self, examples: list[Example]) -> dict[str, float]:
        """The updates of one step on all ranks; returns what the learner measured.

        Without examples, since every row was dropped, the step counts, but there is nothing to say of a loss.
        """
        r = self.recipe.learner
        updates = [
            micro_batches(shares, r.tokens_per_micro_batch, r.packing, self.cost)
            for shares in split(examples, r.updates_per_step, r.workers, self.cost)
        ]
        shares = [ray.put([update[rank] for update in updates]) for rank in range(r.workers)]
        learned = self.call("step", r.step_timeout_s, per_rank=[[ref] for ref in shares])
        return learned if examples else {name: learned[name] for name in ("lr", "updates", "skipped_updates")}

    def sync(self, version: int) -> str | None:
        """Send the weights as policy version `version` to every pool that follows them; returns what went wrong."""
        pushes = len(receivers(self.spec.pools, self.spec.sync_backend))
        patience = SYNC_WAITS * self.recipe.sync.timeout_s * pushes
        return self.call("sync", patience, key="sync.timeout_s", version=version)

    def logprobs(self, sequences: Sequence[tuple[ArrayLike, ArrayLike]]) -> list[list[float]]:
        """The student's log-probabilities of each response, given as (prompt ids, response ids)."""
        return self.call("logprobs", self.recipe.learner.step_timeout_s, sequences=sequences)

    def take_worked(self) -> list[tuple[int, str, float, float]]:
        """(rank, what, begin, end) of the ranks' work since the last call, by the ranks' own wall clocks."""
        worked, self.worked = self.worked, []
        return worked

    def call(
        self,
        name: str,
        timeout_s: float,
        *,
        key: str = "learner.step_timeout_s",
        while_waiting: Callable[[], object] = lambda: None,
        per_rank: list[Any] | None = None,
        **arguments: Any,
    ) -> Any:
        """Give a command, wait for every rank, and return rank 0's answer.

        Raises UserError or RunFailed when a rank has ended, and TimeoutError, which names `key`. `while_waiting` is
        called about once a second and may raise to give up.
        """
        try:
            return self._call(Command(name, arguments, per_rank), timeout_s, key, while_waiting)
        except (UserError, RunFailed, TimeoutError, RayActorError):
            self.lost = True
            raise

    def _call(self, command: Command, timeout_s: float, key: str, while_waiting: Callable[[], object]) -> Any:
        number = ray.get(self.mailbox.post.remote(command))
        what = command.name.replace("_", " ")
        deadline = time.monotonic() + timeout_s
        while True:
            done, value, times = ray.get(self.mailbox.result.remote(number, POLL_S))
            if done:
                if work := WORK.get(command.name):
                    self.worked += [(rank, work, begin, end) for rank, (begin, end) in times.items()]
                return value
            if not self.thread.is_alive():
                if refusal := ray.get(self.mailbox.refused.remote()):
                    raise UserError(refusal) from self.error
                raise RunFailed(f"the learner ended while it was asked to {what}") from self.error
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout_s:.0f} s ({key}) for the learner to {what}")
            while_waiting()

    def stop(self, timeout_s: float = 60) -> None:
        """End the worker group. Safe to call in any state: a group that no longer answers is not asked."""
        if self.thread.is_alive() and not self.lost and timeout_s:
            with contextlib.suppress(Exception):
                self.call("stop", timeout_s)
            self.thread.join(timeout_s)
        with contextlib.suppress(Exception):
            ray.kill(self.mailbox)
