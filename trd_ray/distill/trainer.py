"""The Ray Train shell around the learner: the driver gives commands, every rank carries them out.

    driver --command--> Mailbox (actor) --> rank 0..n: Learner and WeightSync --answer--> Mailbox --> driver
    step(examples) -> updates -> teachers -> ranks -> micro-batches -> each rank its share

A step, a sync and a checkpoint are commands to the worker group, so the loop stays in one place. A group lives for the
whole run, unless one of its processes dies or hangs: then `restart` puts another one in its place.

- Shutdown: `stop` ends the group, and with it what a checkpoint has not written yet.
- Crash: an error on any rank ends the group. It reaches the driver with the next answer that the driver waits for: as
  UserError if it is one, as LearnerLost where a process, a node or a connection was lost, else as RunFailed.
- A process of the group that has not been heard of for heartbeat_s is as lost as one that died.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import ray
from numpy.typing import ArrayLike
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trd_ray.config import Recipe
from trd_ray.distill.batches import Example, token_count
from trd_ray.distill.lost import was_lost
from trd_ray.distill.mailbox import CONTROLLER, Command, Mailbox, Member, Result
from trd_ray.distill.rank import LearnerSpec, receivers, work
from trd_ray.distill.shared_out import SharedOut, shared_out
from trd_ray.ending import end
from trd_ray.engine.reservation import NODE_LABEL
from trd_ray.errors import RunFailed, UserError
from trd_ray.token_values import NONE, TokenValues, together

POLL_S = 1.0
BEATS = 6  # in heartbeat_s, of each process of the group
LAST_CHANCE_S = 5.0  # for an answer that came while this process was stopped itself
IMPORTS = 4  # times heartbeat_s, in which a rank that has a process is ready: its imports may come over a slow network
END_S = 30.0  # for Ray to tell that a group which was killed has ended
SYNC_WAITS = 8  # one push waits at most so many times for sync.timeout_s
# How long a rank waits for another in a collective of a step. Where one may wait for longer, in a sync or for a
# checkpoint that is being written, the ranks meet in a group of that part's own. Only vLLM's sender for CUDA IPC meets
# in the default group while rank 0 waits for the engines.
COLLECTIVE_TIMEOUT_S = 600
IPC_MARGIN_S = 60
# What a rank does for a command, in the driver's words; the others are no work, or wait for what goes on meanwhile.
WORK = {"step": "train", "sync": "sync", "logprobs": "probe", "score": "diagnostics", "begin_checkpoint": "checkpoint"}


def collective_timeout_s(sync_backend: str, sync_timeout_s: float) -> int:
    """The deadline of the learner's default group."""
    ipc_s = math.ceil(sync_timeout_s) + IPC_MARGIN_S if sync_backend == "ipc" else 0
    return max(COLLECTIVE_TIMEOUT_S, ipc_s)


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


def comes(
    ready: Callable[[float], bool],
    patience_s: float,
    silence_s: float,
    look: Callable[[], object],
    monotonic: Callable[[], float] = time.monotonic,
) -> bool:
    """Whether something is `ready` that may take `patience_s`, and is then waited for up to `silence_s`.

    `ready` waits for so many seconds. `look` is called about once a second while it comes late, and may raise.
    """
    deadline = monotonic() + patience_s + silence_s
    while not ready(patience_s + POLL_S):
        if monotonic() >= deadline:
            return False
        look()
    return True


class Learned(NamedTuple):
    """What came of a step's updates."""

    metrics: dict[str, float]
    tokens: TokenValues  # of the examples, by row, where diagnostics.tokens is set


class LearnerLost(RunFailed):
    """A process of the worker group died, or hangs: another group can go on from a checkpoint."""


class WorkerGroup:
    """One start of the worker group: its mailbox, Ray Train's thread, and what ended it."""

    def __init__(self, ranks: int, silence_s: float):
        """A process that is silent for `silence_s` is lost."""
        self.ranks, self.silence_s = ranks, silence_s
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # Where the driver lives, so that a node of ranks takes nothing along. Every method may be called twice.
        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 1000, "max_task_retries": -1}
        self.mailbox: Any = ray.remote(Mailbox).options(scheduling_strategy=here, **options).remote(ranks)
        self.members: dict[Member, Any] = {}
        self.begun: float | None = None  # when all ranks had a process
        self.expected = False  # whether the mailbox knows that all ranks are up
        self.number = 0  # of the next command
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=lambda: None)

    def fit(self, make: Callable[[], Any]) -> None:
        """Let Ray Train run the ranks, in a thread."""

        def run() -> None:
            try:
                make().fit()
            except BaseException as e:  # noqa: BLE001 - handed to the loop, which waits for an answer
                self.error = e

        self.thread = threading.Thread(target=run, name="ray-train", daemon=True)
        self.thread.start()

    def ask(self, method: str, *arguments: Any, look: Callable[[], object], patience_s: float = 0.0) -> Any:
        """The mailbox's answer, for which `patience_s` is waited in any case; raises LearnerLost if none comes.

        `look` is called about once a second while it comes late, and may raise to give up.
        """
        answer = getattr(self.mailbox, method).remote(*arguments)
        came = comes(lambda s: bool(ray.wait([answer], timeout=s)[0]), patience_s, self.silence_s, look)
        try:
            return ray.get(answer, timeout=self.silence_s if came else LAST_CHANCE_S)
        except RayActorError as e:
            raise LearnerLost("the learner ended") from e
        except GetTimeoutError as e:
            raise LearnerLost(f"the learner's mailbox has not answered for {self.silence_s:.0f} s (heartbeat_s)") from e

    def result(self, number: int, wait_s: float, look: Callable[[], object]) -> Result:
        """What came of a command; raises LearnerLost if the mailbox or a process of the group died or is silent."""
        answer = Result(*self.ask("result", number, wait_s, look=look, patience_s=wait_s))
        if answer.silent_s.keys() - self.members.keys():
            self.members = self.ask("members", look=look)
        if not answer.done:
            self._expect(look)
            for who, seconds in answer.silent_s.items():
                if seconds > self.silence_s:
                    name = f"rank {who} of the learner" if isinstance(who, int) else f"the learner's {who}"
                    raise LearnerLost(f"{name} has not been heard of for {self.silence_s:.0f} s (heartbeat_s)")
        return answer

    def _expect(self, look: Callable[[], object]) -> None:
        """Have the mailbox miss the ranks that have not been heard of, as soon as all of them are up or should be."""
        from trd_ray.distill.controller import ranks_up

        if self.expected or CONTROLLER not in self.members:
            return
        begun, ready = ranks_up(self.members[CONTROLLER])
        if begun == self.ranks and self.begun is None:
            self.begun = time.monotonic()
        if ready == self.ranks or (self.begun is not None and time.monotonic() - self.begun > IMPORTS * self.silence_s):
            self.ask("expect", look=look)
            self.expected = True

    def kill(self, wait_s: float = END_S, how: Callable[[Any], object] = ray.kill) -> None:
        """End whatever of the group still runs, and free what it has reserved; Ray Train has `wait_s` to notice."""
        from trd_ray.distill.controller import kill

        with contextlib.suppress(Exception):
            how(self.mailbox)
        # Also a group that ended well: its controller can wait in its exit for a lock that it holds itself.
        kill(self.members, how)
        if self.thread.is_alive():
            self.thread.join(wait_s)


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
        ranks: int | None = None,
    ):
        """A step's examples are shared out over the ranks so that their `cost` is equal.

        `nodes` is Ray's id of the node of each rank; by default Ray finds one node for all of them. `ranks` is their
        number, by default the fewest that the recipe allows.
        """
        recipe: Recipe = spec_without_mailbox["recipe"]
        self.nodes = nodes
        self.ranks = ranks or recipe.learner.ranks
        self.recipe, self.cpus, self.gpus, self.storage, self.cost = recipe, cpus, gpus, storage, cost
        self.worked: list[tuple[int, str, float, float]] = []
        self.group = WorkerGroup(self.ranks, recipe.heartbeat_s)
        self.spec = LearnerSpec(mailbox=self.group.mailbox, **spec_without_mailbox)
        self.look: Callable[[], object] = lambda: None  # what the driver does about once a second while it waits
        self.lost = False  # a command failed or was not answered in time: no other will be

    def start(self) -> None:
        self.group.fit(self._torch_trainer)

    def has_ended(self) -> bool:
        """Whether the group that was started has ended; why is said where it is next asked for something."""
        return not self.group.thread.is_alive()

    def restart(self, *, seats: Callable[[], tuple[int, Sequence[str]]], **changes: Any) -> None:
        """Put another group in this one's place; `changes` are those of its LearnerSpec.

        `seats` says how many ranks there will be, and on which nodes, once the group before has ended.
        """
        self.lost = True
        self.group.kill(how=end)
        self.ranks, self.nodes = seats()
        self.group = WorkerGroup(self.ranks, self.recipe.heartbeat_s)
        self.spec = replace(self.spec, mailbox=self.group.mailbox, **changes)
        self.lost = False
        self.start()

    def _torch_trainer(self) -> Any:
        from ray.train import FailureConfig, RunConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from trd_ray.distill.controller import Beats

        beats: Any = Beats(self.spec.mailbox, self.recipe.heartbeat_s / BEATS)  # Ray Train declares only its own kinds
        return TorchTrainer(
            work,
            train_loop_config={"spec": self.spec},
            scaling_config=scaling(self.ranks, self.cpus, self.gpus, self.nodes),
            # Gloo takes what NCCL does not, because it lies in host memory: offloaded gradients, objects.
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if self.gpus else "gloo",
                timeout_s=collective_timeout_s(self.spec.sync_backend, self.recipe.sync.timeout_s),
            ),
            run_config=RunConfig(
                name="learner",
                storage_path=str(self.storage),
                # What Ray Train starts again by itself would wait for commands that have been carried out.
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
                callbacks=[beats],
            ),
        )

    def wait_until_started(self, while_waiting: Callable[[], object]) -> None:
        """Wait until every rank has its models and has loaded the checkpoint. `while_waiting` may raise."""
        key = "learner.start_timeout_s"
        self.call("start", self.recipe.learner.start_timeout_s, key=key, while_waiting=while_waiting)

    def step(self, examples: list[Example], number: int) -> Learned:
        """The updates of the step `number`, counted from 1, on all ranks; returns what the learner measured.

        Without examples, since every row was dropped, the step counts, but there is nothing to say of a loss.
        """
        out = self._shared_out(examples, self.recipe.learner.updates_per_step)
        shares = [[ray.put((of_rank, out.teachers))] for of_rank in out.of_ranks]
        rows = [example.row for example in examples]
        answered = self._answered("step", per_rank=shares, step=number, rows=rows)
        measured = answered.value
        if not examples:
            measured = {name: measured[name] for name in ("lr", "updates", "skipped_updates")}
        return Learned(measured, together(answered.parts))

    def score(self, examples: list[Example]) -> TokenValues:
        """What student and teacher find at each token of these examples, with the weights as they are. By `row`."""
        if not examples:
            return NONE
        out = self._shared_out(examples, updates=1)
        [whose] = out.teachers
        shares = [[ray.put((batches, whose))] for [batches] in out.of_ranks]
        return together(self._answered("score", per_rank=shares).parts)

    def _shared_out(self, examples: list[Example], updates: int) -> SharedOut:
        r = self.recipe.learner
        return shared_out(
            examples, ranks=self.ranks, updates=updates, budget_tokens=r.tokens_per_micro_batch,
            packed=r.packing, cost=self.cost, teachers=list(self.recipe.by_teacher),
        )  # fmt: skip

    def _answered(self, name: str, **arguments: Any) -> Result:
        return self.answered(name, self.recipe.learner.step_timeout_s, **arguments)

    def sync(self, version: int) -> str | None:
        """Send the weights as policy version `version` to every pool that follows them; returns what went wrong."""
        pushes = len(receivers(self.spec.pools, self.spec.sync_backend))
        patience = SYNC_WAITS * self.recipe.sync.timeout_s * pushes
        return self.call("sync", patience, key="sync.timeout_s", version=version)

    def logprobs(self, sequences: Sequence[tuple[ArrayLike, ArrayLike]]) -> list[list[float]]:
        """The student's log-probabilities of each response, given as (prompt ids, response ids)."""
        return self.call("logprobs", self.recipe.learner.step_timeout_s, sequences=sequences)

    def give_gpu(self) -> None:
        """Leave the GPUs to engines that share them; each rank takes its own back when it has work again."""
        self.call("give_gpu", self.recipe.learner.step_timeout_s)

    def take_worked(self) -> list[tuple[int, str, float, float]]:
        """(rank, what, begin, end) of the ranks' work since the last call, by the ranks' own wall clocks."""
        worked, self.worked = self.worked, []
        return worked

    def call(self, name: str, timeout_s: float, **arguments: Any) -> Any:
        """Give a command, wait for every rank, and return rank 0's answer; otherwise as `answered`."""
        return self.answered(name, timeout_s, **arguments).value

    def answered(
        self,
        name: str,
        timeout_s: float,
        *,
        key: str = "learner.step_timeout_s",
        while_waiting: Callable[[], object] | None = None,
        per_rank: list[Any] | None = None,
        **arguments: Any,
    ) -> Result:
        """Give a command, and wait for every rank.

        Raises UserError, LearnerLost or RunFailed when a rank has ended, and TimeoutError, which names `key`.
        `while_waiting` is called about once a second and may raise to give up; by default it is `look`.
        """
        try:
            return self._call(Command(name, arguments, per_rank), timeout_s, key, while_waiting or self.look)
        except LearnerLost as e:
            self.lost = True
            raise LearnerLost(f"{e} while it was asked to {name.replace('_', ' ')}") from e.__cause__
        except (UserError, RunFailed, TimeoutError):
            self.lost = True
            raise

    def _call(self, command: Command, timeout_s: float, key: str, while_waiting: Callable[[], object]) -> Result:
        group = self.group
        number = group.number
        group.number += 1
        group.ask("post", number, command, look=while_waiting)
        what = command.name.replace("_", " ")
        deadline = time.monotonic() + timeout_s
        while True:
            result = group.result(number, POLL_S, while_waiting)
            if result.done:
                if work := WORK.get(command.name):
                    self.worked += [(rank, work, begin, end) for rank, (begin, end) in result.times.items()]
                return result
            if not group.thread.is_alive():
                if refusal := group.ask("refused", look=while_waiting):
                    raise UserError(refusal) from group.error
                if was_lost(group.error):
                    raise LearnerLost("the learner ended") from group.error
                raise RunFailed(f"the learner ended while it was asked to {what}") from group.error
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout_s:.0f} s ({key}) for the learner to {what}")
            while_waiting()

    def stop(self, timeout_s: float = 60) -> None:
        """End the worker group. Safe to call in any state: a group that no longer answers is not asked."""
        if self.group.thread.is_alive() and not self.lost and timeout_s:
            with contextlib.suppress(Exception):
                self.call("stop", timeout_s)
            deadline = time.monotonic() + timeout_s
            while self.group.thread.is_alive() and time.monotonic() < deadline:
                with contextlib.suppress(Exception):
                    self.look()
                self.group.thread.join(POLL_S)
        self.group.kill(END_S if timeout_s else 0)
