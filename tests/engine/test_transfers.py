"""What a push hands to vLLM's senders: gathers in order of streams, held ports, buffers, groups that are cut."""

import os
import socket
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from serving import pool_spec
from trd_ray.distill.trainer import receivers
from trd_ray.engine import actor as actor_module
from trd_ray.engine import sync as sync_module
from trd_ray.engine import transfers
from trd_ray.engine.gather import LearnerWeights
from trd_ray.engine.sync import PoolsClient, WeightSync
from trd_ray.engine.transfers import (
    CuttableGroup,
    GlooInitInfo,
    GlooWeightTransferEngine,
    NCCLSender,
    in_thread,
    joined,
)

MIB = 2**20


class Shapes:
    """A learner of which only the sizes are asked."""

    def __init__(self, **shapes: tuple[int, ...]):
        self.named = shapes

    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        return list(self.named.items())

    def weights(self, who: str, dtype: torch.dtype) -> Any:
        for name, shape in self.named.items():
            yield name, torch.zeros(shape, dtype=dtype)


# Streams


class Streams:
    """Stands in for CUDA's streams: which one is current, and what is waited for."""

    def __init__(self, monkeypatch):
        self.told: list[str] = []
        self.stack = ["vLLM's"]
        for name, stand in {
            "is_initialized": lambda: True,
            "current_stream": lambda: self._stream(self.stack[-1]),
            "default_stream": lambda: self._stream("default"),
            "stream": self._within,
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand)

    def _stream(self, name: str) -> Any:
        return SimpleNamespace(name=name, synchronize=lambda: self.told.append(f"wait for {name}"))

    @contextmanager
    def _within(self, stream: Any):
        self.stack.append(stream.name)
        yield
        self.stack.pop()


def test_each_gather_runs_on_the_default_stream_and_has_ended_before_the_sender_s_stream_goes_on(monkeypatch):
    """vLLM asks for the tensors within `with stream(side)`, where its broadcasts of earlier ones may be under way."""
    streams = Streams(monkeypatch)

    class OnCuda:
        is_cuda = True

        def record_stream(self, stream: Any) -> None:
            streams.told.append(f"used by {stream.name}")

    class Learner(Shapes):
        def weights(self, who: str, dtype: torch.dtype) -> Any:
            for name in self.named:
                streams.told.append(f"gather {name} on {streams.stack[-1]}")
                yield name, OnCuda()

    source = LearnerWeights(Learner(a=(1,), b=(1,)), "student", torch.float32, lambda failed: failed)
    source.begin()
    for name, _ in source:  # a sender that interleaves
        streams.told.append(f"broadcast {name} on {streams.stack[-1]}")
    assert streams.told == [
        *("gather a on default", "wait for default", "used by vLLM's", "broadcast a on vLLM's"),
        *("gather b on default", "wait for default", "used by vLLM's", "broadcast b on vLLM's"),
        "wait for default",
    ]


def test_a_gather_that_is_given_up_puts_the_student_s_own_weights_back_at_once():
    closed = []

    class Learner(Shapes):
        def weights(self, who: str, dtype: torch.dtype) -> Any:
            try:  # as the moving average takes the student's place
                yield from super().weights(who, dtype)
            finally:
                closed.append(who)

    source = LearnerWeights(Learner(a=(1,), b=(1,)), "teacher", torch.float32, lambda failed: failed)
    source.begin()
    iterator = iter(source)
    next(iterator)
    source.end()
    assert closed == ["teacher"]


# Buffers, and who gets which push


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A group of one rank, as under Ray Train; the tests' shared pools have one of their own."""
    mine = not dist.is_initialized()
    if mine:
        place = tmp_path_factory.mktemp("group")
        dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=0, world_size=1)
    yield
    if mine:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("backend", "rows", "bytes_"),
    [("nccl", 151_936, 256 * MIB), ("ipc", 8, 256 * MIB), ("ipc", 151_936, 1_244_659_712)],
)
def test_a_buffer_is_of_256_mib_or_by_ipc_of_the_largest_tensor(alone, monkeypatch, backend, rows, bytes_):
    monkeypatch.setattr(sync_module.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    learner = Shapes(embedding=(rows, 4096), norm=(4096,))
    sync = WeightSync(learner, [], backend=backend, dtype=torch.bfloat16, timeout_s=1)
    _, info = sync._sender(2)
    assert info.packed and info.packed_buffer_size_bytes == bytes_


def test_by_ipc_each_pool_that_follows_has_an_export_of_its_own():
    pools: Any = {"student": ["sampler", "refiner"], "teacher": []}
    assert receivers(pools, "nccl") == receivers(pools, "gloo") == [("student", ["sampler", "refiner"])]
    assert receivers(pools, "ipc") == [("student", ["sampler"]), ("student", ["refiner"])]
    assert receivers({"student": [], "teacher": []}, "ipc") == []


@pytest.mark.parametrize(("backend", "allowed"), [("ipc", "1"), ("nccl", None), ("gloo", None), (None, None)])
def test_only_an_engine_that_gets_ipc_handles_lets_vllm_pickle(monkeypatch, tmp_path, backend, allowed):
    monkeypatch.setattr(actor_module, "redirect_output", lambda path: None)
    monkeypatch.setattr(actor_module, "take_descendants_along", lambda: None)
    monkeypatch.setattr(actor_module.os, "write", lambda *_: 0)
    monkeypatch.setattr(actor_module.os, "environ", dict(os.environ))
    actor_module.Engine(pool_spec("p", "model", tmp_path, transfer_backend=backend).engine)
    assert actor_module.os.environ.get("VLLM_ALLOW_INSECURE_SERIALIZATION") == allowed


# The way into a group


class Workers:
    """What the sender's client is: engines that join, fail, or never come."""

    timeout_s = 20.0

    def __init__(self, join: Any):
        self.join = join
        self.told: dict = {}

    def init_weight_transfer_engine(self, info: dict) -> None:
        self.told = info
        self.join(info)


def nccl_info() -> NCCLTrainerInitInfo:
    return NCCLTrainerInitInfo(rank=0, master_address="127.0.0.1", master_port=0, world_size=2, packed=True)


def test_the_port_of_an_nccl_group_is_held_before_an_engine_is_told_of_it():
    taken = []

    def join(info: dict) -> None:
        with pytest.raises(OSError), socket.socket() as other:  # another process wants it
            other.bind(("127.0.0.1", info["master_port"]))
        taken.append(info["master_port"])
        StatelessProcessGroup.create("127.0.0.1", info["master_port"], 1, 2, store_timeout=10)

    engines = Workers(join)
    sender = NCCLSender.trainer_init(nccl_info(), client=engines, source=Shapes())  # type: ignore[arg-type]
    assert taken and sender.model_update_group is not None
    assert engines.told["rank_offset"] == 1 and engines.told["packed"]


def test_an_engine_that_fails_in_the_handshake_ends_it_at_once():
    def join(info: dict) -> None:
        raise RuntimeError("engine sampler-0 died")

    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="engine sampler-0 died"):
        NCCLSender.trainer_init(nccl_info(), client=Workers(join), source=Shapes())  # type: ignore[arg-type]
    assert time.monotonic() - begin < 5


def test_a_communicator_that_is_made_in_a_handshake_that_has_failed_is_destroyed(monkeypatch):
    communicator = Communicator()
    given_up = threading.Event()

    def make(group: Any, device: int) -> Communicator:
        assert given_up.wait(5)
        return communicator

    def join(info: dict) -> None:
        StatelessProcessGroup.create("127.0.0.1", info["master_port"], 1, 2, store_timeout=10)
        raise RuntimeError("engine sampler-0 died")

    monkeypatch.setattr("vllm.distributed.device_communicators.pynccl.PyNcclCommunicator", make)
    with pytest.raises(RuntimeError, match="engine sampler-0 died"):
        NCCLSender.trainer_init(nccl_info(), client=Workers(join), source=Shapes())  # type: ignore[arg-type]
    assert not communicator.destroyed
    given_up.set()
    assert communicator.ended.wait(5)


def test_a_handshake_that_nobody_ends_has_a_deadline(monkeypatch):
    monkeypatch.setattr(transfers, "LAST_WORDS_S", 0.05)
    with pytest.raises(TimeoutError, match=r"\(sync.timeout_s\) for the engines to join the weight transfer"):
        joined(Future(), Future(), 0.05)


def test_what_the_engines_say_is_told_before_the_connection_that_broke():
    def died() -> None:
        time.sleep(0.1)
        raise RuntimeError("engine sampler-0 died")

    def broke() -> None:
        raise ConnectionError("closed by peer")

    with pytest.raises(RuntimeError, match="sampler-0 died"):
        joined(in_thread(died), in_thread(broke), 5)


# The way out of it


class Communicator:
    """vLLM's, as far as it counts: a broadcast is enqueued, and ends only if the communicator is destroyed."""

    def __init__(self):
        self.broadcasts = self.destroyed = 0
        self.begun, self.ended = threading.Event(), threading.Event()

    def broadcast(self, tensor: Any, src: int, stream: Any) -> None:
        assert not self.destroyed, "a communicator that has been freed was used"
        self.broadcasts += 1
        self.begun.set()

    def destroy(self) -> None:
        self.destroyed += 1
        self.ended.set()


def test_an_engine_that_fails_in_a_broadcast_ends_it_from_another_thread():
    """The sender waits on the GPU, as vLLM's does, and never looks at the call that has failed."""
    communicator = Communicator()
    group = CuttableGroup(communicator)

    class Sender:
        def __init__(self, client: PoolsClient):
            self.client = client

        def send_weights(self) -> None:
            failing = in_thread(lambda: self.client.update_weights({}))
            group.broadcast(torch.zeros(1), src=0)
            assert communicator.ended.wait(5), "the broadcast was never ended"
            group.broadcast(torch.zeros(1), src=0)  # of the next tensor: does nothing
            failing.result(5)

    class Pool:
        def __init__(self):
            self.aborted = 0
            self.update_weights = SimpleNamespace(remote=lambda info: "update")
            self.abort_weight_update = SimpleNamespace(remote=self._abort)

        def _abort(self) -> None:
            self.aborted += 1

    def died(refs: list, waiting_for: str) -> list:
        assert communicator.begun.wait(5)
        raise RuntimeError("engine sampler-0 died")

    pool: Any = Pool()
    client = PoolsClient([pool], 5)
    client._get = died  # type: ignore[method-assign]
    client.cut = group.destroy
    Sender(client).send_weights()
    assert client.failure == "RuntimeError: engine sampler-0 died" and pool.aborted == 1
    assert (communicator.broadcasts, communicator.destroyed) == (1, 1)
    group.destroy()  # at the end of the push, by the thread that sent
    client.update_weights({})  # of a sender that goes on, as IPC's does: asks nobody
    assert communicator.destroyed == 1 and pool.aborted == 1


# Gloo for either side on whatever device


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_gloo_sends_copies_in_host_memory_and_the_engine_moves_them_to_its_own_device(dtype):
    class Elsewhere:
        """A tensor on another device, of which `cpu()` makes a copy."""

        def __init__(self, inner: torch.Tensor):
            self.inner, self.dtype, self.shape = inner, inner.dtype, inner.shape

        def detach(self) -> "Elsewhere":
            return self

        def cpu(self) -> torch.Tensor:
            return self.inner.clone()

    sent = torch.arange(6.0).reshape(2, 3).to(dtype)
    got: list[tuple[str, torch.Tensor]] = []
    engine: Any = GlooWeightTransferEngine.__new__(GlooWeightTransferEngine)
    engine.parallel_config, engine.device = SimpleNamespace(rank=0), torch.device("meta")
    engine.model = SimpleNamespace(load_weights=got.extend)
    client = Workers(lambda info: engine.init_transfer_engine(GlooInitInfo(**info)))

    class Source(Shapes):
        def metadata(self) -> list:
            return [SimpleNamespace(name="w", dtype=dtype, shape=(2, 3))]

        def __iter__(self) -> Any:
            yield "w", Elsewhere(sent)

    info = transfers.GlooTrainerInitInfo(rank=0, master_address="127.0.0.1", world_size=2, timeout_s=10)
    source: Any = Source()
    sender = transfers.GlooTrainerWeightTransferEngine.trainer_init(info, client=client, source=source)
    told = SimpleNamespace(names=["w"], dtype_names=[str(dtype).split(".")[-1]], shapes=[[2, 3]])
    receiving = in_thread(lambda: engine.receive_weights(told))
    sender._broadcast(source, source.metadata())
    receiving.result(10)
    [(name, weight)] = got
    assert (name, weight.device.type, weight.dtype, tuple(weight.shape)) == ("w", "meta", dtype, (2, 3))


def test_only_an_engine_on_a_cpu_packs_its_head_again(monkeypatch):
    packed = []
    monkeypatch.setattr(transfers.NCCLWeightTransferEngine, "finish_weight_update", lambda self: None)
    monkeypatch.setattr(
        "vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm", lambda head, **_: packed.append(head)
    )
    for device in ("cpu", "meta"):
        engine: Any = GlooWeightTransferEngine.__new__(GlooWeightTransferEngine)
        engine.device = torch.device(device)
        engine.model = SimpleNamespace(lm_head=device)
        engine.model_config = SimpleNamespace(hf_text_config=SimpleNamespace(tie_word_embeddings=True))
        engine.finish_weight_update()
    assert packed == ["cpu"]
