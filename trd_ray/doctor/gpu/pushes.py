"""Weights pushed to an engine without a run around it: one is killed in the middle of a transfer, one tensor is large.

    kill   push 1, right -> push 2, its engine killed between two tensors -> the pool restarts it -> push 3, right
    large  two pushes by CUDA IPC of an embedding that is larger than vLLM's buffer, right

Right means that the engine's log-probs of what it sampled are the sender's own. On one GPU the sender shares it with
the engine, and the kill is in a gloo transfer; on two it is in one over NCCL, whose broadcast has no deadline of its
own. Needs Ray and vLLM.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trd_ray.doctor.gpu.outcome import Figures, PartFailed

SYNC_TIMEOUT_S = 120.0
HEARD_WITHIN_S = 60.0  # half of it: a push that ends by its deadline was not told
UP_WITHIN_S = 240.0
GAP = {"bfloat16": 2e-2, "float32": 1e-3}
PROMPTS = 8
NEW_TOKENS = 32


def run_gloo(folder: Path) -> Figures:
    return kill_one(folder, backend="gloo", device="cuda:0", gpus=0.4, dtype="bfloat16")


def run_nccl(folder: Path) -> Figures:
    return kill_one(folder, backend="nccl", device="cuda:1", gpus=1.0, dtype="bfloat16")


def run_large_ipc(folder: Path) -> Figures:
    """A push by CUDA IPC of an embedding larger than 1 GiB, which is Qwen3-8B's: one tensor, one buffer."""
    from dataclasses import replace

    from trd_ray.doctor.gpu.flops import QWEN3_8B
    from trd_ray.doctor.gpu.speed import make_model

    figures: Figures = {}
    with tempfile.TemporaryDirectory() as place:
        path = make_model(replace(QWEN3_8B, layers=1), place, "cuda")
        with _connected(path, folder, "ipc", "cuda:0", 0.5, "bfloat16") as (sync, client, sender, _):
            sender.learn()
            figures["s of a push"] = _timed(lambda: _must_be_none(sync.push(1), "the push", figures))
            figures["s of the next"] = _timed(lambda: _must_be_none(sync.push(2), "the next push", figures))
            figures["gap"] = _gap(client, sender.model, 2, GAP["bfloat16"], figures)
    return figures


def kill_one(folder: Path, *, backend: str, device: str, gpus: float, dtype: str) -> Figures:
    """`device` is the sender's; `gpus` is what the engine reserves, 0 for one on CPUs."""
    from trd_ray import models

    figures: Figures = {"backend": backend}
    path = models.resolve("miniature:student")
    with _connected(path, folder, backend, device, gpus, dtype) as (sync, client, sender, pool):
        figures["s of a push"] = _timed(lambda: _must_be_none(sync.push(1), "the first push", figures))
        figures["gap before"] = _gap(client, sender.model, 1, GAP[dtype], figures)
        sender.learn()
        killed: list[int] = []
        sender.in_the_middle = lambda: killed.extend(_kill_engine())
        begin = time.monotonic()
        problem = sync.push(2)
        figures["s until told"] = heard = time.monotonic() - begin
        sender.in_the_middle = lambda: None
        print(f"the push in which {killed} was killed: {problem}", flush=True)
        if not killed:
            raise PartFailed(f"no process of an engine was found to kill; the push said: {problem}", figures)
        if problem is None:
            raise PartFailed("an engine was killed inside a transfer, and the push said that all was well", figures)
        if heard > HEARD_WITHIN_S:
            raise PartFailed(f"the sender heard of the dead engine only after {heard:.0f} s", figures)
        figures["s until it was up"] = _timed(lambda: _wait_until_up(pool, figures))
        _must_be_none(sync.push(2), "the push after the death", figures)
        figures["gap after"] = _gap(client, sender.model, 2, GAP[dtype], figures)
    return figures


@contextlib.contextmanager
def _connected(
    path: str, folder: Path, backend: str, device: str, gpus: float, dtype: str
) -> Iterator[tuple[Any, Any, "Sender", Any]]:
    """(sync, client, sender, pool): a pool of one engine and a model of the same weights that sends to it."""
    import torch
    from transformers import AutoModelForCausalLM

    from trd_ray.engine.client import Client
    from trd_ray.engine.sync import WeightSync

    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    with _cluster(), _group(folder), _pool(path, folder, backend, gpus, dtype) as pool:
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
        sender = Sender(model.to(device))
        sync = WeightSync(sender, [pool], backend=backend, dtype=getattr(torch, dtype), timeout_s=SYNC_TIMEOUT_S)
        client = Client(pool)
        try:
            yield sync, client, sender, pool
        finally:
            client.close()
            sync.close()


class Sender:
    """A model as a learner of one rank gives it to the sync; calls a hook in the middle of every transfer."""

    def __init__(self, model: Any):
        self.model = model
        self.in_the_middle: Callable[[], None] = lambda: None

    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        return [(name, tuple(p.shape)) for name, p in self.model.named_parameters()]

    def weights(self, who: str, dtype: Any) -> Iterator[tuple[str, Any]]:
        parameters = list(self.model.named_parameters())
        for i, (name, p) in enumerate(parameters):
            if i == len(parameters) // 2:
                self.in_the_middle()
            yield name, p.detach().to(dtype)

    def learn(self) -> None:
        """The next optimizer step, as far as an engine can tell."""
        import torch

        with torch.no_grad():
            for p in self.model.parameters():
                p += 0.05 * p.std() * torch.randn_like(p)


def _must_be_none(problem: str | None, what: str, figures: Figures) -> None:
    if problem is not None:
        raise PartFailed(f"{what} failed: {problem[:300]}", figures)


def _timed(work: Callable[[], object]) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def _gap(client: Any, model: Any, version: int, most: float, figures: Figures) -> float:
    """Mean difference between the log-probs of engine and sender, of tokens that the engine has sampled."""
    import torch

    from trd_ray.engine.actor import Request

    prompts = [[5 + i, 6, 7 + i] for i in range(PROMPTS)]  # ids of the miniature world's vocabulary of 28
    asked = [client.submit(Request(p, seed=i, max_tokens=NEW_TOKENS), version) for i, p in enumerate(prompts)]
    gaps = []
    for prompt, future in zip(prompts, asked, strict=True):
        [answer] = future.result(timeout=SYNC_TIMEOUT_S)
        response = [int(token) for token in answer.ids]
        ids = torch.tensor([[*prompt, *response]], device=model.device)
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt) - 1 : -1].double().cpu()
        own = logits.log_softmax(-1)[range(len(response)), response]
        gaps.append((own - torch.tensor(answer.logprobs, dtype=torch.float64)).abs())
    gap = float(torch.cat(gaps).mean())
    if not gap <= most:
        raise PartFailed(f"version {version} is served with a log-prob gap of {gap:.1e}, above {most:g}", figures)
    return gap


def _kill_engine() -> list[int]:
    """SIGKILL for the process in which vLLM runs the model, a child of the engine's actor; returns whom it hit."""
    import psutil

    actors = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::Engine")]
    cores = [core for actor in actors for core in actor.children() if _runs_a_model(core)]
    for core in cores:
        core.kill()
    return [core.pid for core in cores]


def _runs_a_model(process: Any) -> bool:
    line = " ".join(process.cmdline())
    return "EngineCore" in line or "spawn_main" in line


def _wait_until_up(pool: Any, figures: Figures) -> None:
    import ray

    deadline = time.monotonic() + UP_WITHIN_S
    while True:
        status: Any = ray.get(pool.status.remote(), timeout=SYNC_TIMEOUT_S)
        if status["failure"]:
            raise PartFailed(f"the pool failed: {status['failure'][:300]}", figures)
        if status["up"] == status["engines"] and not status["restarting"]:
            return
        if time.monotonic() > deadline:
            raise PartFailed(f"the engine was not up again within {UP_WITHIN_S:.0f} s: {status}", figures)
        time.sleep(0.2)


# What it runs on


@contextlib.contextmanager
def _cluster() -> Iterator[None]:
    from trd_ray import config
    from trd_ray.session.cluster import cluster

    # The sender, which reserves nothing, is beside Ray's own processes here, so Ray gets a core of its own.
    with cluster(config.from_tree({"cluster": {"address": "local", "local_cpus": 4}})):
        yield


@contextlib.contextmanager
def _group(folder: Path) -> Iterator[None]:
    """The learner's process group, of one rank."""
    import torch.distributed as dist

    with tempfile.TemporaryDirectory(dir=folder) as place:
        dist.init_process_group("gloo", init_method=f"file://{place}/rendezvous", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


@contextlib.contextmanager
def _pool(path: str, folder: Path, backend: str, gpus: float, dtype: str) -> Iterator[Any]:
    import ray

    from trd_ray.engine.actor import EngineSpec, PoolSpec
    from trd_ray.engine.launch import stop_pools
    from trd_ray.engine.pool import Pool

    engine = EngineSpec(
        name="killed", model=path, revision=None, trust_remote_code=False, dtype=dtype, max_model_len=256,
        tensor_parallel=1, on_gpu=gpus > 0, memory_utilization=0.3, cpu_kv_cache_gib=1, max_concurrent=64, seed=0,
        version=0, transfer_backend=backend, log_path=str(folder), extra={"enforce_eager": True},
    )  # fmt: skip
    options = {"num_cpus": 0.5, "num_gpus": gpus}
    spec = PoolSpec("killed", engine, 1, options, start_timeout_s=300, request_timeout_s=120, in_flight="drain")
    actor: Any = ray.remote(Pool).options(num_cpus=0, max_concurrency=1000)
    pool = actor.remote(spec)
    try:
        ray.get(pool.start.remote(), timeout=320)
        yield pool
    finally:
        stop_pools([pool])
