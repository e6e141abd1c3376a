"""What we add to vLLM's weight transfer: a gloo backend, which it has not, and the NCCL sender's way into its group.

    gloo  trainer rank 0 --broadcast, one tensor at a time, in host memory--> every engine's worker --> load_weights
    nccl  trainer rank 0 --broadcast, packed--> every engine's worker --> load_weights        all of it vLLM's own

The gloo backend is vLLM's dense NCCL backend with another process group and two other data-plane calls, so the protocol
(handshake, layerwise reload, version) is vLLM's own. It sends copies in host memory, so either side may be on a GPU or
on a CPU: it is slow, and works everywhere. Importing this module registers it on both sides; the worker side does so
because `worker_extension_cls` names `WorkerExtension`.

Who waits for whom in the handshake: the sender for the workers and they for it. The first engine that fails ends the
sender's wait (`joined`), and nothing waits longer than the client's `timeout_s`. A gloo broadcast that waits longer
raises too. An NCCL broadcast waits for ever: sync.py aborts its group when an engine has failed.

At shutdown each side drops its process group. What a handshake that failed leaves behind is a thread of the sender,
which ends with the store that it waits at. An NCCL communicator that it still makes is destroyed.
"""

import math
import socket
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self

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
BUFFER_BYTES = 256 * 2**20  # of one of the two packed buffers on either side; vLLM takes 1 GiB
LAST_WORDS_S = 5.0  # that the engines get to say what went wrong, where the sender has only seen a connection break


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
    # As bytes, since gloo does not know every type. The tensor is contiguous, so this is the same memory.
    group.broadcast([tensor.view(-1).view(torch.uint8)], options).wait()


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
            weight = torch.empty(shape, dtype=getattr(torch, dtype), device="cpu")
            _broadcast(self.group, weight)
            self.model.load_weights([(name, weight.to(self.device))])  # type: ignore[operator]

    def finish_weight_update(self) -> None:
        super().finish_weight_update()
        # With tied embeddings the layerwise reload does not visit lm_head, which on a CPU keeps a packed copy of the
        # shared matrix. Without this the engine would go on sampling from the old head. On a GPU there is no copy.
        lm_head = getattr(self.model, "lm_head", None)
        tied = self.model_config.hf_text_config.tie_word_embeddings
        if self.device.type == "cpu" and tied and lm_head is not None:
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
        i = init_info
        timeout = timedelta(seconds=i.timeout_s)
        store = TCPStore(i.master_address, 0, i.world_size, True, timeout=timeout, wait_for_workers=False)
        worker_info = {
            "master_address": i.master_address,
            "master_port": store.port,
            "rank_offset": 1,
            "world_size": i.world_size,
            "timeout_s": i.timeout_s,
        }
        workers = in_thread(lambda: client.init_weight_transfer_engine(worker_info))
        # gloo would wait `timeout_s` for a worker that died on the way here. The others end their wait with the store.
        deadline = time.monotonic() + i.timeout_s
        while store.add("arrived", 0) < i.world_size - 1:
            if workers.done():
                workers.result()
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {i.timeout_s:.0f} s (sync.timeout_s) for the engines to join the transfer")
            time.sleep(0.01)
        engine.group = joined(workers, in_thread(lambda: _group(store, 0, i)), i.timeout_s)
        return engine

    def _broadcast(self, source: WeightSource, meta: list) -> None:
        if not self.is_sender:
            for _ in source:
                pass
            return
        for _, tensor in self._checked_iter(source, meta):
            _broadcast(self.group, tensor.detach().cpu().contiguous())

    def shutdown(self) -> None:
        self.group = None


class NCCLSender(NCCLTrainerWeightTransferEngine):
    """vLLM's NCCL sender, which waits for no engine that has failed, on a port that nobody can take from it.

    vLLM's own takes the number of a free port, and binds it once the engines have been told: another process may have
    it by then.
    """

    @classmethod
    def trainer_init(cls, init_info: Any, *, client: Any, source: WeightSource | None = None) -> Self:
        """`init_info` is an NCCLTrainerInitInfo, whose port is not read; `client` has `timeout_s`."""
        i = init_info
        assert source is not None
        engine = cls(
            client=client,
            source=source,
            is_sender=i.is_sender,
            packed=i.packed,
            packed_buffer_size_bytes=i.packed_buffer_size_bytes,
            packed_num_buffers=i.packed_num_buffers,
        )
        if engine.is_sender:
            # A tensor that is larger than the buffer gets one of its own size, which is all that vLLM warns of.
            warnings.filterwarnings("ignore", message="Tensor .* exceeds buffer_size_bytes")
            engine.model_update_group = CuttableGroup(_nccl_group(i, client))  # type: ignore[assignment]
        return engine


class CuttableGroup:
    """vLLM's NCCL communicator, which a thread may destroy while another broadcasts; what comes later does nothing."""

    def __init__(self, communicator: Any):
        self.communicator = communicator
        self.cut = False
        self.enqueuing = threading.Lock()

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        with self.enqueuing:
            if not self.cut:
                self.communicator.broadcast(tensor, src=src, stream=stream)

    def destroy(self) -> None:
        """Abort it, which ends a broadcast under way on the GPU. Safe to call again, and from any thread."""
        # A broadcast only enqueues, so the lock is free in a moment; one that hangs there must be aborted all the same.
        free = self.enqueuing.acquire(timeout=LAST_WORDS_S)
        first, self.cut = not self.cut, True
        if free:
            self.enqueuing.release()
        if first:
            self.communicator.destroy()


def _nccl_group(i: Any, client: Any) -> Any:
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.utils import StatelessProcessGroup
    from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_payload
    from vllm.utils.nccl import unpinned_nccl_env

    listening = socket.create_server((i.master_address, 0))
    port = listening.getsockname()[1]
    worker_info = NCCLWeightTransferInitInfo(
        master_address=i.master_address,
        master_port=port,
        rank_offset=1,
        world_size=i.world_size,
        packed=i.packed,
        packed_buffer_size_bytes=i.packed_buffer_size_bytes,
        packed_num_buffers=i.packed_num_buffers,
    )
    device = torch.cuda.current_device() if torch.cuda.is_available() else 0

    def endpoint() -> Any:
        if torch.cuda.is_available():
            torch.cuda.set_device(device)  # each thread begins with the first GPU
        group = StatelessProcessGroup.create(
            i.master_address, port, 0, i.world_size, store_timeout=math.ceil(client.timeout_s), listen_socket=listening
        )
        with unpinned_nccl_env():
            return PyNcclCommunicator(group, device=device)

    workers = in_thread(lambda: client.init_weight_transfer_engine(worker_init_payload(worker_info)))
    made = in_thread(endpoint)
    try:
        return joined(workers, made, client.timeout_s)
    except Exception:
        made.add_done_callback(_destroy)  # it may be made in a moment still, and would keep its GPU memory for ever
        raise


def _destroy(made: Future) -> None:
    if made.exception() is None:
        made.result().destroy()


def in_thread(call: Callable[[], Any]) -> Future:
    """What `call` returns, from a thread that the process does not wait for at its end."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as e:  # noqa: BLE001 - handed to who waits
            future.set_exception(e)

    threading.Thread(target=run, daemon=True).start()
    return future


def joined(workers: Future, endpoint: Future, timeout_s: float) -> Any:
    """The sender's endpoint, once the workers have joined it; the first of both that fails is raised at once."""
    wait([workers, endpoint], timeout=timeout_s, return_when=FIRST_EXCEPTION)
    if not workers.done():
        wait([workers], timeout=LAST_WORDS_S)  # they know better than a broken connection what went wrong
    for future in (workers, endpoint):
        if future.done():
            future.result()
    if not (workers.done() and endpoint.done()):
        raise TimeoutError(f"waited {timeout_s:.0f} s (sync.timeout_s) for the engines to join the weight transfer")
    return endpoint.result()


WeightTransferEngineFactory.register_engine(BACKEND, GlooWeightTransferEngine)
WeightTransferTrainerFactory.register_engine(BACKEND, GlooTrainerWeightTransferEngine)


class WorkerExtension:
    """Named by `worker_extension_cls`, so that every vLLM worker process imports this module and knows the backend."""

    def release_transfer_buffers(self) -> None:
        """Give the GPU the memory back that a transfer's buffers took; torch would keep it for the next one."""
        torch.cuda.empty_cache()
