"""A gloo backend for vLLM's weight transfer, which has none for the CPU.

    trainer rank 0 --broadcast, one tensor at a time--> every engine's worker --load_weights--> model

It is vLLM's dense NCCL backend with the process group and the two data-plane calls replaced, so the protocol (handshake,
layerwise reload, version) is vLLM's own. Importing this module registers it on both sides; the worker side imports it because
`WorkerExtension` is what `worker_extension_cls` names. A gloo call that waits longer than `timeout_s` raises.
"""

import ctypes
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, Self

import torch
import torch.distributed as dist
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferInitInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

BACKEND = "gloo"


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    backend: ClassVar[str] = BACKEND

    master_address: str
    master_port: int
    world_size: int
    timeout_s: float


def _group(info: GlooInitInfo | GlooTrainerInitInfo, rank: int) -> dist.ProcessGroup:
    group = stateless_init_torch_distributed_process_group(
        info.master_address,
        info.master_port,
        rank,
        info.world_size,
        backend="gloo",
        timeout=timedelta(seconds=info.timeout_s),
    )
    assert isinstance(group, dist.ProcessGroup)
    return group


def _broadcast(group: dist.ProcessGroup, tensor: torch.Tensor) -> None:
    options = dist.BroadcastOptions()
    options.rootRank = 0
    group.broadcast([tensor], options).wait()


class GlooWeightTransferEngine(NCCLWeightTransferEngine):
    init_info_cls = GlooInitInfo  # type: ignore[assignment]

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:  # type: ignore[override]
        self.group = _group(init_info, init_info.rank_offset + self.parallel_config.rank)

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            weight = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
            _broadcast(self.group, weight)
            self.model.load_weights([(name, weight)])

    def finish_weight_update(self) -> None:
        super().finish_weight_update()
        # With tied embeddings the layerwise reload does not visit lm_head, which keeps a pre-packed copy of the shared
        # matrix for the CPU product: without this the engine goes on sampling from the old head.
        lm_head = getattr(self.model, "lm_head", None)
        if self.model_config.hf_text_config.tie_word_embeddings and lm_head is not None:
            dispatch_cpu_unquantized_gemm(lm_head, remove_weight=False)

    def shutdown(self) -> None:
        self.group = None


class GlooTrainerWeightTransferEngine(NCCLTrainerWeightTransferEngine):
    init_info_cls = GlooTrainerInitInfo  # type: ignore[assignment]

    @classmethod
    def trainer_init(  # type: ignore[override]
        cls, init_info: GlooTrainerInitInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        assert source is not None
        engine = cls(client=client, source=source, is_sender=init_info.is_sender, packed=False)
        if not engine.is_sender:
            return engine
        worker_info = {
            "master_address": init_info.master_address,
            "master_port": init_info.master_port,
            "rank_offset": 1,
            "world_size": init_info.world_size,
            "timeout_s": init_info.timeout_s,
        }
        # The workers block in the rendezvous until this side joins it.
        with ThreadPoolExecutor(max_workers=1) as pool:
            workers = pool.submit(client.init_weight_transfer_engine, worker_info)
            engine.group = _group(init_info, rank=0)
            workers.result()
        return engine

    def _broadcast(self, source: WeightSource, meta: list) -> None:
        if not self.is_sender:
            for _ in source:
                pass
            return
        failure = None
        for _, tensor in self._checked_iter(source, meta):
            try:
                if failure is None:
                    _broadcast(self.group, tensor.detach().contiguous())
            except RuntimeError as e:  # a receiver died; the other ranks still gather the rest with this one
                failure = e
        if failure is not None:
            raise failure

    def shutdown(self) -> None:
        self.group = None


WeightTransferEngineFactory.register_engine(BACKEND, GlooWeightTransferEngine)
WeightTransferTrainerFactory.register_engine(BACKEND, GlooTrainerWeightTransferEngine)


class WorkerExtension:
    """Mixed into vLLM's worker (`worker_extension_cls`), whose process thereby imports this module."""

    def die_with_parent(self) -> None:
        """Ask Linux to end this process when the one that started it ends, however that ends: no orphaned engine."""
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
