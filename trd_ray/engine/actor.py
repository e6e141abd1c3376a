"""One vLLM engine in a Ray actor.

    requests (token ids + sampling) -> AsyncLLM -> generations (token ids, log-probs, version, times)

The actor offers vLLM's weight-transfer methods under their own names, so that vLLM's trainer side can drive them, and records the
policy version its weights have. vLLM's output goes to a log file, so that a death can be explained. `shutdown` stops the engine
process; should this actor be killed instead, the engine process dies with it (`WorkerExtension.die_with_parent`).
"""

import asyncio
import contextlib
import os
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray


class EngineDied(RuntimeError):
    """The engine process behind a living actor has ended."""


@dataclass
class Request:
    """One prompt to continue. `prompt_logprobs` scores the prompt itself and samples a single token."""

    prompt_ids: list[int]
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 16
    n: int = 1
    prompt_logprobs: bool = False


@dataclass
class Generation:
    """What an engine made of a request; `logprobs` are of the sampled tokens under the unmodified distribution (T = 1)."""

    ids: list[int]
    text: str
    finish: str
    logprobs: list[float]
    version: int
    engine: str
    start_s: float
    seconds: float
    prompt_logprobs: list[float] = field(default_factory=list)


@dataclass
class EngineSpec:
    """Everything an engine needs to start; plain data, so that a restart is the same call."""

    name: str
    model: str
    revision: str | None
    trust_remote_code: bool
    dtype: str
    max_model_len: int | None
    tensor_parallel: int
    on_gpu: bool
    memory_utilization: float
    cpu_kv_cache_gib: float
    max_concurrent: int
    seed: int
    transfer_backend: str | None  # None: this pool never receives weights
    log_path: str
    extra: dict[str, Any]


class Engine:
    """The actor class; `actor_options` in pool.py give its resources."""

    def __init__(self, spec: EngineSpec):
        self.spec = spec
        self.version = 0
        _redirect_output(spec.log_path)
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        if not spec.on_gpu:
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(spec.cpu_kv_cache_gib)))
            # Several engines share a small machine: let the scheduler place their threads.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            if spec.extra.get("enforce_eager"):
                # vLLM still compiles a helper of the log-probs: 20 s in the first request, for nothing at this size.
                os.environ["TORCHDYNAMO_DISABLE"] = "1"

    async def start(self) -> float:
        """Load the model and compile; seconds it took."""
        from vllm.config.weight_transfer import WeightTransferConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        s, begin = self.spec, time.time()
        options: dict[str, Any] = dict(
            model=s.model,
            revision=s.revision,
            trust_remote_code=s.trust_remote_code,
            dtype=s.dtype,
            seed=s.seed,
            tensor_parallel_size=s.tensor_parallel,
            max_num_seqs=s.max_concurrent,
            worker_extension_cls="trd_ray.engine.gloo_transfer.WorkerExtension",
            disable_log_stats=True,
        )
        if s.max_model_len:
            options["max_model_len"] = s.max_model_len
        if s.on_gpu:
            options["gpu_memory_utilization"] = s.memory_utilization
        else:
            # vLLM would check this share of the whole machine's memory, though the KV cache has a fixed size.
            options["gpu_memory_utilization"] = 0.05
            if s.tensor_parallel == 1:
                options["distributed_executor_backend"] = "uni"  # no separate worker process
        if s.transfer_backend:
            options["weight_transfer_config"] = WeightTransferConfig(backend=s.transfer_backend)
        self.llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**(options | s.extra)))
        await self.llm.collective_rpc("die_with_parent")
        return time.time() - begin

    def node_ip(self) -> str:
        return ray.util.get_node_ip_address()

    async def generate(self, requests: list[Request]) -> list[list[Generation]]:
        """Answer each request with its `n` generations; the requests run concurrently in vLLM's scheduler."""
        with self._naming_death():
            return await asyncio.gather(*(self._generate(r) for r in requests))

    @contextlib.contextmanager
    def _naming_death(self) -> Iterator[None]:
        """Any error of a dead engine process becomes EngineDied, which the pool answers with a restart."""
        try:
            yield
        except Exception as e:
            if self.llm.errored:
                raise EngineDied(f"{type(e).__name__}: {e}") from None
            raise

    async def _generate(self, r: Request) -> list[Generation]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            n=r.n,
            seed=r.seed,
            temperature=r.temperature,
            top_p=r.top_p,
            top_k=r.top_k,
            max_tokens=1 if r.prompt_logprobs else r.max_tokens,
            logprobs=0,
            prompt_logprobs=0 if r.prompt_logprobs else None,
            # Token ids are the truth; text is read by verifiers, which must see what the user would see.
            skip_special_tokens=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        start, version, final = time.time(), self.version, None
        async for final in self.llm.generate({"prompt_token_ids": r.prompt_ids}, params, uuid.uuid4().hex):
            pass
        assert final is not None, "vLLM ended a request without an output"
        seconds = time.time() - start
        scored = [
            next(iter(position.values())).logprob for position in (final.prompt_logprobs or []) if position is not None
        ]
        return [
            Generation(
                ids=list(out.token_ids),
                text=out.text,
                finish=out.finish_reason or "abort",
                logprobs=[position[token].logprob for position, token in zip(out.logprobs, out.token_ids, strict=True)],
                version=version,
                engine=self.spec.name,
                start_s=start,
                seconds=seconds,
                prompt_logprobs=scored,
            )
            for out in final.outputs
        ]

    # vLLM's weight-transfer control plane, under the names its trainer side calls.

    async def init_weight_transfer_engine(self, init_info: dict) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def shutdown_weight_transfer_engine(self) -> None:
        await self.llm.shutdown_weight_transfer_engine()

    async def start_weight_update(self) -> None:
        with self._naming_death():
            await self.llm.start_weight_update()

    async def update_weights(self, update_info: Any) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        with self._naming_death():
            await self.llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))

    async def finish_weight_update(self, version: int) -> None:
        with self._naming_death():
            await self.llm.finish_weight_update(str(version))
        self.version = version

    async def pause(self, in_flight: str) -> None:
        """Stop scheduling: `drain` lets running requests finish first, `keep` freezes them. Old keys leave the cache."""
        with self._naming_death():
            await self.llm.pause_generation(mode="wait" if in_flight == "drain" else "keep", clear_cache=True)

    async def resume(self) -> None:
        # Kept requests are preempted too: their keys are recomputed with the weights that go on to use them.
        await self.llm.reset_prefix_cache(reset_running_requests=True)
        await self.llm.resume_generation()

    def set_version(self, version: int) -> None:
        self.version = version

    async def check_health(self) -> None:
        await self.llm.check_health()

    def shutdown(self) -> None:
        if hasattr(self, "llm"):
            self.llm.shutdown()


def _redirect_output(path: str) -> None:
    """Send this process's output, and thereby the engine process's, to a file: it is long, and explains a death."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
