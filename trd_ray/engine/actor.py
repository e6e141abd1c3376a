"""One vLLM engine in a Ray actor.

    requests (token ids + sampling) -> AsyncLLM -> generations (token ids, log-probs, version, times)

The actor offers vLLM's weight-transfer methods under their own names, and records the policy version of its weights.
LoRA adapters come beside the requests under way, and each request says whether it wants the newest one (loaded.py).
vLLM's output goes to a log file, so that a death can be explained.

At shutdown the engine process is stopped. When this actor ends in any other way, even by SIGKILL while vLLM starts,
every process that it started ends with it. Ctrl-C in the driver's terminal does not reach them.
"""

import asyncio
import contextlib
import os
import re
import time
import traceback
import uuid
from collections.abc import Awaitable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import RayTaskError

from trd_ray import collector
from trd_ray.config import Rest
from trd_ray.engine.generations import Generation, Parts, Request, in_parts
from trd_ray.engine.loaded import LoadedAdapters, slots
from trd_ray.engine.own_process import Signs, redirect_output, take_descendants_along
from trd_ray.engine.resting import Restful
from trd_ray.engine.scheduler_view import Viewed
from trd_ray.errors import Lost

DEATH_POLL_S = 0.5
BEAT_S = 5.0  # between two calls that only ask whether vLLM answers


class EngineDied(Lost):
    """The engine process behind a living actor has ended."""


class StartFailed(RuntimeError):
    """vLLM could not start; its own exceptions do not all survive the way to another process."""


class Condition(NamedTuple):
    """Of an engine that is up."""

    version: int  # what it serves
    paused: bool
    mixed: bool  # it may hold a part of other weights, or is in a handshake for them
    rests: bool = False  # parts of its memory are not there


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
    version: int  # the policy version of the weights that it starts with
    transfer_backend: str | None  # vLLM's name of it; "adapter": it receives LoRA adapters; None: it receives nothing
    log_path: str
    extra: dict[str, Any]
    max_lora_rank: int = 0
    lora_targets: list[str] = field(default_factory=list)  # last parts of the names of what adapters change
    adapters: int = 2  # that may be in use at a time: the newest, and those of requests under way
    start_id: str = ""  # marks in the log where this start begins
    place: int | None = None  # which of the pool's places it has; None: it is started wherever there is room


@dataclass
class PoolSpec:
    """So many engines of one kind, what each is given, and how long it is waited for."""

    name: str
    engine: EngineSpec  # `name`, `log_path` and `start_id` are completed for each replica
    replicas: int
    actor_options: dict[str, Any]
    start_timeout_s: float
    request_timeout_s: float
    in_flight: str
    heartbeat_s: float = 60.0  # an engine of which nothing is seen for so long is taken for dead
    places: list[Any] = field(default_factory=list)  # engine.reservation.Place, one for each engine; None: given back
    load_every_s: float = 0.0  # how often engines are asked for their load; 0: never
    rests: Rest | None = None  # how its engines rest while the learner has their GPUs; None: they never do


class Engine(Viewed, Restful):
    """The actor class; a pool's `actor_options` give its resources."""

    def __init__(self, spec: EngineSpec):
        take_descendants_along()  # before anything gets a temporary file
        self.spec = spec
        self.version = spec.version  # of the weights, without an adapter
        self.connected = False  # has been in a transfer group
        self.updating = False  # from the handshake or the first weight until it is over
        self.llm: Any = None  # until `start`
        self.signs = Signs()
        self.adapters = LoadedAdapters(
            spec.adapters,
            add=lambda adapter: self._control(self.llm.add_lora(adapter)),
            remove=lambda number: self._control(self.llm.remove_lora(number)),
        )
        redirect_output(spec.log_path)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        mark = f"==== engine {spec.name} starts at {now}, process {os.getpid()}, start {spec.start_id}\n"
        os.write(1, mark.encode())  # the descriptor is the log, whatever Ray has made of sys.stdout
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        if spec.transfer_backend == "ipc":
            # CUDA IPC handles are Python objects, which vLLM passes on to its engine process only with this. Pickles
            # are read from that process's own socket alone, which is a file of this user.
            os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        if spec.on_gpu:
            # FlashInfer would compile its sampler as the engine starts, which ends an engine that finds no nvcc of the
            # right version (vllm #49497). Its sampler takes no request with a seed, and every request here has one.
            os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
        else:
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(spec.cpu_kv_cache_gib)))
            # Several engines share a small machine: let the scheduler place their threads.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            if spec.tensor_parallel == 1:
                # Despite its name this only makes vLLM accept `uni` below. The model then runs in the engine process
                # and not in a third one, which would take as long to import vLLM as each of the other two.
                os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            if spec.extra.get("enforce_eager"):
                os.environ["TORCHDYNAMO_DISABLE"] = "1"  # else a helper of the log-probs compiles for 20 s, for nothing

    def __repr__(self) -> str:  # how Ray's dashboard names it
        return f"Engine({self.spec.name})"

    async def start(self) -> float:
        """Load the model and compile; returns the seconds it took."""
        with collector.off():
            from vllm.config.weight_transfer import WeightTransferConfig
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

        s, begin = self.spec, time.time()
        extra = dict(s.extra)
        options: dict[str, Any] = dict(
            model=s.model, revision=s.revision, trust_remote_code=s.trust_remote_code, dtype=s.dtype, seed=s.seed,
            tensor_parallel_size=s.tensor_parallel, max_num_seqs=s.max_concurrent, disable_log_stats=True,
            worker_extension_cls="trd_ray.engine.transfers.WorkerExtension",
        )  # fmt: skip
        options |= {"max_model_len": s.max_model_len} if s.max_model_len else {}
        if s.on_gpu:
            options["gpu_memory_utilization"] = s.memory_utilization
            if s.tensor_parallel > 1:
                # In a placement group vLLM would start its workers as Ray actors, and wait for GPUs that this one has.
                options["distributed_executor_backend"] = "mp"
        else:
            # vLLM would check this share of the whole machine's memory, though the KV cache has a fixed size.
            options["gpu_memory_utilization"] = 0.05
            if s.tensor_parallel == 1:
                options["distributed_executor_backend"] = "uni"
            # A seeded request whose prompt comes in two chunks ends vLLM's CPU engine: "Generator does not use offset".
            options["enable_chunked_prefill"] = False
        if s.transfer_backend == "adapter":
            options |= {"enable_lora": True, "max_lora_rank": s.max_lora_rank}
            # Else vLLM looks for an adapter of lm_head too, and ends at log-probabilities of prompts: it takes the
            # adapters of the requests for those of the tokens.
            options["lora_target_modules"] = s.lora_targets
            extra["max_loras"] = max(slots(s.adapters, s.on_gpu), s.extra.get("max_loras", 0))
        elif s.transfer_backend:
            options["weight_transfer_config"] = WeightTransferConfig(backend=s.transfer_backend)
        context: dict[str, Any] = {"stat_loggers": [self.view]}
        if s.on_gpu:
            from vllm.usage.usage_lib import UsageContext

            # By this name vLLM chooses a chunk of prefill: 16,384 or 8,192 tokens on a GPU. AsyncLLM's own gets 2,048.
            context["usage_context"] = UsageContext.LLM_CLASS
        try:
            self.llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**(options | extra)), **context)
        except Exception as e:
            traceback.print_exc()  # into the log
            raise StartFailed(reason(e)) from None
        self.beating = asyncio.create_task(self._beat())
        return time.time() - begin

    async def _beat(self) -> None:
        with contextlib.suppress(Exception):  # the engine process has ended, which `pulse` tells
            while True:
                await self.llm.is_paused()
                self.signs.heard()
                self.signs.started = True
                await asyncio.sleep(BEAT_S)

    @ray.method(concurrency_group="pulse")
    async def pulse(self) -> float:
        """How long vLLM has neither answered nor worked, in seconds; raises EngineDied when its process has ended.

        It has a thread of its own, so it answers while the actor loads a model.
        """
        if self.llm is not None and self.llm.errored:
            raise EngineDied("the engine process ended")
        return self.signs.quiet_s()

    async def condition(self) -> "Condition":
        """What a pool asks that does not know this engine, but finds it alive."""
        if self.llm is None:
            raise StartFailed("it was told to start, and could not")
        served = self.adapters.served
        return Condition(served.version if served else self.version, self.paused, self.updating, bool(self.asleep))

    @ray.method(num_returns=3)
    async def generate(self, requests: list[Request]) -> "Parts":
        """Answer each request with its `n` generations; the requests run concurrently in vLLM's scheduler.

        The answer comes in parts, which `whole` puts together: each of 16k tokens is short enough that Ray sends it
        with the reply, and not through the object store, which takes twice as much processor time.
        """
        with self._naming_death():
            return in_parts(await asyncio.gather(*(self._answer(r) for r in requests)))

    async def _answer(self, r: Request) -> list[Generation]:
        """The generations, or a refusal: what vLLM finds wrong with one request must not fail the others of a call."""
        from vllm.exceptions import VLLMClientError

        start = time.time()
        try:
            return await self._generate(r)
        except (VLLMClientError, ValueError) as e:
            if self.llm.errored:
                raise
            return [Generation.refusal(reason(e), self.version, self.spec.name, start)] * r.n

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
            flat_logprobs=True,  # one list of numbers, and not a dict with an object for every token
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        start = time.time()
        prompt: Any = {"prompt_token_ids": np.asarray(r.prompt_ids).tolist()}  # vLLM takes lists
        with self.adapters.using() if r.adapter else contextlib.nullcontext() as adapter:
            version = adapter.version if adapter else self.version
            lora_request = adapter.request if adapter else None
            outputs = self.llm.generate(prompt, params, uuid.uuid4().hex, lora_request=lora_request)
            [final] = [output async for output in outputs]
        seconds = time.time() - start
        prompt_logprobs: Any = final.prompt_logprobs  # FlatLogprobs, or None; the first token has none
        scored = np.asarray(prompt_logprobs.logprobs if prompt_logprobs else [], np.float32)
        return [
            Generation(
                ids=np.asarray(out.token_ids, np.int32),
                text=out.text,
                finish=out.finish_reason or "abort",
                logprobs=_of_tokens(out.token_ids, out.logprobs),
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

        if self.connected:
            # vLLM would forget the old group without ending it, and its communicator keeps GPU memory.
            await self._control(self.llm.shutdown_weight_transfer_engine())
        self.connected = self.updating = True
        await self._control(self.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info)))
        self.updating = False

    async def start_weight_update(self) -> None:
        self.updating = True
        await self._control(self.llm.start_weight_update())

    async def update_weights(self, update_info: Any) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._control(self.llm.update_weights(WeightTransferUpdateRequest(update_info=update_info)))

    async def finish_weight_update(self, version: int) -> None:
        await self._control(self.llm.finish_weight_update(str(version)))
        if self.spec.on_gpu:
            await self._control(self.llm.collective_rpc("release_transfer_buffers"))
        self.version, self.updating = version, False

    # Adapters, for which nothing pauses

    async def load_adapter(self, files: list) -> None:
        """Hold another adapter beside the one that is served; `files` holds a reference to the files of a PEFT folder.

        The references of all engines are of one object.
        """
        await self.adapters.load(await result(files[0]))

    async def serve_adapter(self, version: int) -> None:
        """Requests that come from now on are answered with the adapter that was loaded last."""
        await self.adapters.serve(version)

    async def give_up_adapter(self) -> None:
        await self.adapters.give_up()

    async def held_adapters(self) -> set[int]:
        """The numbers of the adapters that vLLM holds now."""
        return await self._control(self.llm.list_loras())

    async def check_health(self) -> None:
        """Returns when the engine process has answered; vLLM's own check only looks whether its end was noticed."""
        await self._control(self.llm.is_paused())

    async def _control(self, call: Coroutine) -> Any:
        """What a call to the engine process returns, or its death: vLLM itself would wait for the answer for ever.

        The caller has the deadline.
        """
        task = asyncio.ensure_future(call)
        with self._naming_death():
            while not task.done():
                await asyncio.wait([task], timeout=DEATH_POLL_S)
                if self.llm.errored and not task.done():
                    task.cancel()
                    raise RuntimeError("the engine process ended")
            value = await task
        self.signs.heard()
        return value

    def shutdown(self) -> None:
        self.llm.shutdown()
        self.adapters.cleanup()


def _of_tokens(ids: Any, logprobs: Any) -> np.ndarray:
    """The sampled tokens' log-probabilities out of vLLM's FlatLogprobs, which may hold other tokens' too."""
    if len(logprobs.logprobs) != len(ids) or logprobs.token_ids != list(ids):
        raise RuntimeError(f"vLLM gave {len(logprobs.logprobs)} log-probabilities for {len(ids)} tokens")
    return np.asarray(logprobs.logprobs, np.float32)


async def result(ref: Awaitable) -> Any:
    """A Ray reference as a coroutine, which `wait_for` and `gather` can cancel."""
    return await ref


def reason(error: BaseException) -> str:
    """What an error says, on one line. When it was raised in an actor: what was raised there, without the traceback."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    # Ray says first what it killed, where and why, and last the cause of a failed start. Its long ids tell little.
    text = re.sub(r"\b[0-9a-f]{32,}\b", lambda match: match[0][:8], " ".join(str(cause).split()))
    return f"{type(cause).__name__}: {text if len(text) <= 900 else f'{text[:600]} ... {text[-300:]}'}"
