"""The trainer's side of the weight sync: vLLM's transfer engines over our pools.

    learner (FSDP shards) -> LearnerWeights (full tensors in the engines' dtype) -> vLLM's sender -> every pool
                          -> adapters (sync.lora=adapter) -> every pool, beside requests under way (adapters.py)

Every rank calls `WeightSync.push`, since gathering a shard is a collective. Rank 0 alone talks to the pools and sends.
The transfer group is made once, and again when a pool's set of engines has changed.

A push goes through phases. After each one the ranks tell each other how it went (`_meet`), so they all go on, or all
give the push up with the same reason:

    receivers   which engines are up                                  rank 0
    connect     the transfer group, if the engines are others now     every rank, the handshake on rank 0
    pause       the engines stop                                      rank 0
    begin       from here on an engine that fails has mixed weights   rank 0
    send        gather a tensor, hand it on, and so for all           every rank; they meet at each tensor (gather.py)
    finish      the engines load the version and go on                rank 0

Who waits for what, and what ends the wait:

- Rank 0 waits for the pools, in each phase for `timeout_s` at most.
- The other ranks wait for rank 0 in `_meet`, for MARGIN_S longer. The group in which they meet is the sync's own, so no
  other collective of the learner needs so long a deadline.
- A rank that fails between two gathers tells the others before the next one. None of them is left in a gather.
- A rank that dies, or that fails within a collective, ends the wait of the others with an error, which ends the run.
- An NCCL broadcast has no deadline. When an engine fails in one, or is late, `update_weights` notices it in another
  thread and destroys the transfer group there, which ends the broadcast. A gloo broadcast ends because the pools kill
  the engines that were in it.

After a push that failed every rank has dropped the transfer group, and the pools have given the update up. The next
push connects anew. At shutdown `close` drops the group.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from vllm.distributed.weight_transfer.base import TrainerWeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from trd_ray.engine.actor import reason
from trd_ray.engine.adapters import AdapterSender
from trd_ray.engine.gather import LearnerWeights, OtherRankFailed

Receivers = list[tuple[int, int]]  # for each pool: the generation of its engines, and the number of their workers
MARGIN_S = 60.0  # that the other ranks wait for rank 0 longer than rank 0 waits for a pool
LAST_WORDS_S = 5.0  # that the pools get to say which engine failed, where the sender has only seen a connection break


class SyncFailed(RuntimeError):
    """A rank could not do its part of a push; the message says why. It is raised on every rank."""


class PoolsClient:
    """vLLM's control-plane calls, made on every pool that gets these weights. A new connection has a new client."""

    def __init__(self, pools: list[ActorHandle], timeout_s: float):
        self.pools, self.timeout_s = pools, timeout_s
        self.connected: Receivers = []
        self.failure: str | None = None  # of `update_weights`
        self.told = threading.Event()  # `update_weights` has ended
        self.cut: Callable[[], None] = lambda: None  # ends a broadcast that is under way, from another thread
        self.closing, self.closed = threading.Lock(), False

    def receivers(self) -> Receivers:
        return self._get([p.receivers.remote() for p in self.pools], "an engine to be up in every pool")

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        refs = []
        offset = init_info.get("rank_offset")
        for pool, (generation, workers) in zip(self.pools, self.connected, strict=True):
            info = init_info if offset is None else init_info | {"rank_offset": offset}
            refs.append(pool.init_weight_transfer_engine.remote(generation, info))
            offset = None if offset is None else offset + workers
        self._get(refs, "the engines to join the weight transfer group")

    def pause(self) -> None:
        pools = zip(self.pools, self.connected, strict=True)
        self._get(
            [p.pause.remote(generation) for p, (generation, _) in pools],
            "the engines to finish their requests and pause",
        )

    def begin(self) -> None:
        self._get([p.start_weight_update.remote() for p in self.pools], "the engines to make ready for new weights")

    def start_weight_update(self) -> None:
        """Nothing. vLLM's sender calls this on rank 0 alone; `begin` has done it, and told all ranks how it went."""

    def update_weights(self, update_info: Any) -> None:
        """Engines receive; this keeps what went wrong and does not raise it.

        vLLM calls it within a transfer. If it raised, rank 0 would leave the transfer while the other ranks are in it.
        The ranks hear of the failure where they meet.
        """
        if self.failure:
            return
        try:
            self._get(
                [p.update_weights.remote(update_info) for p in self.pools], "the engines to receive the new weights"
            )
        except Exception as e:
            self.failure = reason(e)
            with self.closing:
                if self.closed:  # the pools may be in the next update by now
                    return
                for pool in self.pools:  # kills the engines that hold a part: who sends to them over gloo is freed
                    pool.abort_weight_update.remote()
            self.cut()
        self.told.set()

    def close(self) -> None:
        """What this client still hears of a transfer in another thread concerns nobody any longer."""
        with self.closing:
            self.closed = True

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Nothing. vLLM's sender calls this on rank 0 alone; `finish` comes after the ranks have met."""

    def finish(self, version: int) -> None:
        self._get([p.finish_weight_update.remote(version) for p in self.pools], "the engines to load the new weights")

    def load_adapter(self, files: ray.ObjectRef) -> None:
        self._get([p.load_adapter.remote([files]) for p in self.pools], "the engines to load the new adapter")

    def serve_adapter(self, version: int) -> None:
        self._get([p.serve_adapter.remote(version) for p in self.pools], "the engines to serve the new adapter")

    def abort(self) -> None:
        self._get([p.abort_weight_update.remote() for p in self.pools], "the engines to give up a weight update")

    def _get(self, refs: list, waiting_for: str) -> list:
        """The answers; the first pool that fails is heard at once, and not after the others."""
        deadline, pending = time.monotonic() + self.timeout_s, refs
        while pending:
            done, pending = ray.wait(pending, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                raise TimeoutError(f"waited {self.timeout_s:.0f} s (sync.timeout_s) for {waiting_for}")
            ray.get(done)
        return ray.get(refs)


class WeightSync:
    def __init__(
        self,
        learner: Any,
        pools: list[ActorHandle],
        *,
        who: str = "student",
        backend: str,
        dtype: torch.dtype,
        timeout_s: float,
    ):
        """`learner` gives `shapes()` and `weights(who, dtype)`, or for backend "adapter" what AdapterSender asks of it.

        See distill.learner; `who` is "student" or "teacher".
        """
        self.backend, self.timeout_s = backend, timeout_s
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.pools = pools
        self.source = LearnerWeights(learner, who, dtype, self._any_failed, in_step=backend == "ipc")
        self.client = PoolsClient(pools, timeout_s)
        self.engine: TrainerWeightTransferEngine | None = None
        self.adapters = AdapterSender(learner, dtype, self.rank) if backend == "adapter" else None
        self.group: Any = None  # of the ranks, for words between them; made at the first push, where they all are

    def push(self, version: int) -> str | None:
        """Give every engine the weights as policy version `version`; collective over the trainer's ranks.

        Returns what went wrong, the same on every rank, or None. A pool restarts an engine that died, and the push may
        then be tried again. Raises where a rank has lost the others.
        """
        try:
            self._push(version)
        except SyncFailed as e:
            self._give_up()
            self._meet(None, None)  # else the other ranks wait in the next push for what rank 0 still gives up in this
            return str(e)
        except Exception:
            self._give_up()
            raise
        finally:
            self._release()
        return None

    def _push(self, version: int) -> None:
        receivers, connected = self._on_rank_0(lambda: (self.client.receivers(), self.client.connected))
        if self.adapters:
            return self.adapters.send(self.client, version, self._on_rank_0)
        if receivers != connected:
            self._everywhere(lambda: self._connect(receivers))
        # There are two steps, so that a death that the first one meets costs no other engine its weights.
        self._on_rank_0(lambda: self.client.pause())
        self._on_rank_0(lambda: self.client.begin())
        self.source.begin()
        self._everywhere(self._send)
        self._on_rank_0(lambda: self.client.finish(version))

    def _send(self) -> None:
        assert self.engine is not None
        try:
            self.engine.send_weights()
        except OtherRankFailed:
            pass
        except Exception as e:
            if self.rank == 0 and e is not self.source.failure:
                self.client.told.wait(LAST_WORDS_S)
            if not self.client.failure:
                raise
        finally:
            self.source.end()
        if self.client.failure:
            raise SyncFailed(self.client.failure)

    # What the ranks tell each other

    def _on_rank_0(self, call: Callable[[], Any]) -> Any:
        """What `call` returns on rank 0, on every rank."""
        return self._everywhere(call if self.rank == 0 else lambda: None)

    def _everywhere(self, call: Callable[[], Any]) -> Any:
        """Every rank does its part; what rank 0's returned, on every rank. Raises SyncFailed on all if one failed."""
        value = problem = None
        try:
            value = call()
        except Exception as e:
            problem = str(e) if isinstance(e, SyncFailed) else reason(e)
        return self._meet(problem, value)

    def _meet(self, problem: str | None, value: Any) -> Any:
        told: list[Any] = [(problem, value)] * self.ranks
        if self.ranks > 1:
            with self._naming_a_lost_rank(problem):
                dist.all_gather_object(told, (problem, value), group=self._group())
        problems = [p for p, _ in told if p]
        if problems:
            raise SyncFailed(problems[0])
        return told[0][1]

    def _any_failed(self, here: bool) -> bool:
        here = here or self.client.failure is not None
        if self.ranks == 1:
            return here
        failed = torch.tensor([int(here)])
        with self._naming_a_lost_rank(self.client.failure):
            dist.all_reduce(failed, op=dist.ReduceOp.MAX, group=self._group())
        return bool(failed.item())

    def _group(self) -> Any:
        if self.group is None:
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout_s + MARGIN_S))
        return self.group

    @contextlib.contextmanager
    def _naming_a_lost_rank(self, problem: str | None) -> Iterator[None]:
        try:
            yield
        except RuntimeError as e:
            before = f", after {problem}" if problem else ""
            raise RuntimeError(f"the ranks of the learner lost each other in a weight sync{before}: {reason(e)}") from e

    # The transfer group

    def _connect(self, receivers: Receivers) -> None:
        self.close()
        self.client.connected = receivers
        world_size = 1 + sum(workers for _, workers in receivers)
        make, info = self._sender(world_size)
        engine = self.engine = make(info, client=self.client, source=self.source)
        if (group := getattr(engine, "model_update_group", None)) is not None:
            self.client.cut = group.destroy

    def _sender(self, world_size: int) -> tuple[Any, Any]:
        """What makes the sending engine, and what it is told."""
        address = ray.util.get_node_ip_address()
        make: Any = WeightTransferTrainerFactory.trainer_init
        if self.backend == "gloo":
            from trd_ray.engine.transfers import GlooTrainerInitInfo

            return make, GlooTrainerInitInfo(
                rank=self.rank, master_address=address, world_size=world_size, timeout_s=self.timeout_s
            )
        from trd_ray.engine.transfers import BUFFER_BYTES, NCCLSender

        if self.backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return make, IPCTrainerInitInfo(
                rank=self.rank, packed=True, packed_buffer_size_bytes=max(BUFFER_BYTES, self.source.largest_bytes())
            )
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        return NCCLSender.trainer_init, NCCLTrainerInitInfo(
            rank=self.rank, master_address=address, master_port=0, world_size=world_size, packed=True,
            packed_buffer_size_bytes=BUFFER_BYTES,
        )  # fmt: skip

    def _give_up(self) -> None:
        client = self.client
        self.close()
        if self.rank == 0:
            with contextlib.suppress(Exception):  # the first problem is the one to tell
                client.abort()

    def _release(self) -> None:
        """Give the GPU back what the transfer's buffers took; torch would keep it on streams that nobody else uses."""
        if torch.cuda.is_initialized():
            torch.cuda.ipc_collect()
            torch.cuda.empty_cache()

    def close(self) -> None:
        """The next connection has a new client: a thread that still waits for an engine has the old one."""
        self.client.close()
        if self.engine is not None:
            self.engine.shutdown()
            self.engine = None
        self.client = PoolsClient(self.pools, self.timeout_s)
