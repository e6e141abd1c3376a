"""The trainer's side of the weight sync: vLLM's transfer engines over our pools.

    learner (FSDP shards) -> WeightSource (full tensors in the engines' dtype) -> vLLM's trainer engine -> every pool
                          -> adapters (sync.lora=adapter) -> every pool, beside requests under way (adapters.py)

Every rank calls `WeightSync.push`, since gathering a shard is a collective. Rank 0 alone talks to the pools and sends.
The transfer group is made once, and again when a pool's set of engines has changed.

Each wait on a pool ends after `timeout_s` with a sentence that says for what. A push that fails is given up on both
sides: no rank waits in a gather that another does not join, and no pool keeps its gate closed. A peer that dies in an
NCCL broadcast is noticed at NCCL's own deadline.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerWeightTransferEngine, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from trd_ray.engine.actor import reason
from trd_ray.engine.adapters import AdapterSender

Receivers = list[tuple[int, int]]  # for each pool: the generation of its engines, and the number of their workers


class SyncFailed(RuntimeError):
    """Rank 0 could not do its part of a push; the message says why."""


class LearnerWeights(WeightSource):
    """The student's parameters or their moving average, under their checkpoint names; gathered as they are sent."""

    def __init__(self, learner: Any, who: str, dtype: torch.dtype):
        self.learner, self.who, self.dtype = learner, who, dtype

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, self.dtype, shape) for name, shape in self.learner.shapes()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.learner.weights(self.who, self.dtype)


class PoolsClient:
    """vLLM's control-plane calls, made on every pool that gets these weights."""

    def __init__(self, pools: list[ActorHandle], timeout_s: float):
        self.pools, self.timeout_s = pools, timeout_s
        self.connected: Receivers = []
        self.version = 0

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
        """Nothing. vLLM's trainer calls this on rank 0 alone; `begin` has done it, and told all ranks how it went."""

    def update_weights(self, update_info: Any) -> None:
        self._get([p.update_weights.remote(update_info) for p in self.pools], "the engines to receive the new weights")

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._get(
            [p.finish_weight_update.remote(self.version) for p in self.pools], "the engines to load the new weights"
        )

    def load_adapter(self, files: ray.ObjectRef) -> None:
        self._get([p.load_adapter.remote([files]) for p in self.pools], "the engines to load the new adapter")

    def serve_adapter(self, version: int) -> None:
        self._get([p.serve_adapter.remote(version) for p in self.pools], "the engines to serve the new adapter")

    def abort(self) -> None:
        self._get([p.abort_weight_update.remote() for p in self.pools], "the engines to give up a weight update")

    def _get(self, refs: list, waiting_for: str) -> list:
        try:
            return ray.get(refs, timeout=self.timeout_s)
        except GetTimeoutError:
            raise TimeoutError(f"waited {self.timeout_s:.0f} s (sync.timeout_s) for {waiting_for}") from None


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
        self.backend, self.timeout_s, self.rank = backend, timeout_s, dist.get_rank()
        self.source = LearnerWeights(learner, who, dtype)
        self.client = PoolsClient(pools, timeout_s)
        self.engine: TrainerWeightTransferEngine | None = None
        self.adapters = AdapterSender(learner, dtype, self.rank) if backend == "adapter" else None

    def push(self, version: int) -> str | None:
        """Give every engine the weights as policy version `version`; collective over the trainer's ranks.

        Returns what went wrong, or None. A pool restarts an engine that died, and the push may then be tried again.
        """
        try:
            self._push(version)
        except Exception as e:
            self.close()
            if self.rank == 0:
                with contextlib.suppress(Exception):  # the first problem is the one to tell
                    self.client.abort()
            return reason(e)
        return None

    def _push(self, version: int) -> None:
        self.client.version = version
        receivers, connected = self._agreed(lambda: (self.client.receivers(), self.client.connected))
        if self.adapters:
            return self.adapters.send(self.client, version, self._agreed)
        if receivers != connected:
            self._connect(receivers)
        # There are two steps, so that a death that the first one meets costs no other engine its weights.
        self._agreed(self.client.pause)
        self._agreed(self.client.begin)
        assert self.engine is not None
        self.engine.send_weights()

    def _agreed(self, call: Callable[[], Any]) -> Any:
        """What `call` returns on rank 0, or the failure it had there, on every rank."""
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = call()
            except Exception as e:
                outcome[1] = reason(e)
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1]:
            raise SyncFailed(outcome[1])
        return outcome[0]

    def _connect(self, receivers: Receivers) -> None:
        self.close()
        self.client.connected = receivers
        world_size = 1 + sum(workers for _, workers in receivers)
        self.engine = WeightTransferTrainerFactory.trainer_init(
            self._init_info(world_size), client=self.client, source=self.source
        )

    def _init_info(self, world_size: int) -> Any:
        address = ray.util.get_node_ip_address()
        if self.backend == "gloo":
            from trd_ray.engine.transfers import GlooTrainerInitInfo

            return GlooTrainerInitInfo(
                rank=self.rank, master_address=address, world_size=world_size, timeout_s=self.timeout_s
            )
        if self.backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(rank=self.rank, packed=True)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        return NCCLTrainerInitInfo(
            rank=self.rank, master_address=address, master_port=_free_port(), world_size=world_size, packed=True
        )

    def close(self) -> None:
        if self.engine is not None:
            self.engine.shutdown()
            self.engine = None
        self.client.connected = []


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]
