"""A gloo backend for vLLM's weight transfer, which has none for the CPU.

    trainer rank 0 --broadcast, one tensor at a time--> every engine's worker --load_weights--> model

The backend is vLLM's dense NCCL backend with another process group and two other data-plane calls, so the protocol
(handshake, layerwise reload, version) is vLLM's own. Importing this module registers it on both sides; the worker side
does so because `worker_extension_cls` names `WorkerExtension`. A gloo call that waits longer than `timeout_s` raises.

At shutdown each side drops its process group. When a receiver dies in a broadcast, the sender goes on gathering with
the other ranks and raises at the end, so that none of them waits for it.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, Self

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from vllm.distributed.utils import init_gloo_process_group
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
    world_size: int
    timeout_s: float


def _group(store: Store, rank: int, info: GlooInitInfo | GlooTrainerInitInfo) -> dist.ProcessGroup:
    prefixed = PrefixStore("weights", store)
    return init_gloo_process_group(prefixed, rank, info.world_size, timedelta(seconds=info.timeout_s))


def _broadcast(group: dist.ProcessGroup | None, tensor: torch.Tensor) -> None:
    assert group is not None, "weights were sent before the transfer group was made"
    options = dist.BroadcastOptions()
    options.rootRank = 0
    group.broadcast([tensor], options).wait()


class GlooWeightTransferEngine(NCCLWeightTransferEngine):
    init_info_cls = GlooInitInfo  # type: ignore[assignment]
    group: dist.ProcessGroup | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:  # type: ignore[override]
        i = init_info
        store = TCPStore(
            i.master_address,
            i.master_port,
            i.world_size,
            timeout=timedelta(seconds=i.timeout_s),
            wait_for_workers=False,
        )
        store.add("arrived", 1)
        self.group = _group(store, i.rank_offset + self.parallel_config.rank, i)

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            weight = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
            _broadcast(self.group, weight)
            self.model.load_weights([(name, weight)])  # type: ignore[operator]

    def finish_weight_update(self) -> None:
        super().finish_weight_update()
        # With tied embeddings the layerwise reload does not visit lm_head, which keeps a packed copy of the shared
        # matrix for the CPU product. Without this the engine would go on sampling from the old head.
        lm_head = getattr(self.model, "lm_head", None)
        if self.model_config.hf_text_config.tie_word_embeddings and lm_head is not None:
            # The import is here because the trainer has no use for it, and it takes seconds.
            from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

            dispatch_cpu_unquantized_gemm(lm_head, remove_weight=False)

    def shutdown(self) -> None:
        self.group = None


class GlooTrainerWeightTransferEngine(NCCLTrainerWeightTransferEngine):
    init_info_cls = GlooTrainerInitInfo  # type: ignore[assignment]
    group: dist.ProcessGroup | None = None

    @classmethod
    def trainer_init(  # type: ignore[override]
        cls, init_info: GlooTrainerInitInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        assert source is not None
        engine = cls(client=client, source=source, is_sender=init_info.is_sender, packed=False)
        if not engine.is_sender:
            return engine
        timeout = timedelta(seconds=init_info.timeout_s)
        store = TCPStore(
            init_info.master_address, 0, init_info.world_size, True, timeout=timeout, wait_for_workers=False
        )
        worker_info = {
            "master_address": init_info.master_address,
            "master_port": store.port,
            "rank_offset": 1,
            "world_size": init_info.world_size,
            "timeout_s": init_info.timeout_s,
        }
        with ThreadPoolExecutor(max_workers=1) as pool:
            workers = pool.submit(client.init_weight_transfer_engine, worker_info)
            # gloo would wait `timeout_s` for a worker that died on the way here.
            while store.add("arrived", 0) < init_info.world_size - 1:
                if workers.done():
                    workers.result()
                time.sleep(0.01)
            engine.group = _group(store, 0, init_info)
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
            except RuntimeError as e:  # a receiver died, but the other ranks still gather the rest with this one
                failure = e
        if failure is not None:
            raise failure

    def shutdown(self) -> None:
        self.group = None


WeightTransferEngineFactory.register_engine(BACKEND, GlooWeightTransferEngine)
WeightTransferTrainerFactory.register_engine(BACKEND, GlooTrainerWeightTransferEngine)


class WorkerExtension:
    """Named by `worker_extension_cls`, so that every vLLM worker process imports this module and knows the backend."""
