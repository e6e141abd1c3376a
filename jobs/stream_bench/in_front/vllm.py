"""vLLM for `jobs/bench_stream.py`: an engine that sleeps instead of decoding. This folder goes in front of PYTHONPATH.

    request (seed) -> its length, a function of the seed -> sleep length x seconds a token -> ids, log-probs, text

- Nothing queues: every request decodes at full speed from the moment it arrives. So the bounds of a step are exact.
- `keep` freezes what decodes: a pause adds its own length to every request that it meets. `wait` lets them finish.
- Weights are neither sent nor loaded, but every call of the transfer's protocol is made and answered.
- The text of half of all seeds ends with the RIGHT answer, that of the others with a wrong one.

What the stand-in itself spends (seconds of CPU that make ids and texts) is counted in `spent`.
"""

import asyncio
import math
import random
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

RIGHT, WRONG = r" \boxed{7}", r" \boxed{8}"
CHARACTERS_A_TOKEN = 3.5
LOGPROB = -1.0
spent = {"seconds": 0.0}


@dataclass(frozen=True)
class Pace:
    """How long answers are, and how long they take; `additional_config` holds it."""

    median_tokens: int
    sigma: float
    max_tokens: int
    seconds_a_token: float
    vocabulary: int
    sync_seconds: float = 0.0  # of receiving weights

    def tokens(self, seed: int) -> int:
        drawn = self.median_tokens * math.exp(self.sigma * random.Random(seed).gauss(0, 1))
        return max(1, min(self.max_tokens, round(drawn)))


# What a caller reads of an answer


@dataclass(frozen=True)
class Logprob:
    logprob: float = LOGPROB
    rank: int = 1
    decoded_token: str | None = None


class _AnyToken(dict):
    """The log-probs of one position: the same for every token. Reading it costs what a dict costs."""

    def __missing__(self, token: int) -> Logprob:
        return self[0]


@dataclass
class FlatLogprobs:
    """What `flat_logprobs` asks for: numbers in lists."""

    token_ids: list[int]
    logprobs: list[float]


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    logprobs: Any
    finish_reason: str | None
    cumulative_logprob: float = 0.0


@dataclass
class RequestOutput:
    request_id: str
    outputs: list[CompletionOutput]
    prompt_logprobs: Any = None
    finished: bool = True


@cache
def _stock(tokens: int, vocabulary: int) -> tuple[list[int], str, list[Any]]:
    """Twice as many ids, characters and log-probs as the longest answer has; each answer is a slice of them."""
    rng = random.Random(0)
    ids = [rng.randrange(min(64, vocabulary - 1), vocabulary) for _ in range(2 * tokens)]
    words = " ".join(rng.choice(("so", "we", "add", "carry", "therefore", "12", "x", "=")) for _ in range(2 * tokens))
    return ids, words, [_AnyToken({0: Logprob()}) for _ in range(2 * tokens)]


def _completion(index: int, seed: int, tokens: int, pace: Pace, flat: bool = False) -> CompletionOutput:
    ids, words, logprobs = _stock(pace.max_tokens, pace.vocabulary)
    first = seed % pace.max_tokens
    characters = round(CHARACTERS_A_TOKEN * tokens)
    # The seeds of a row's two requests differ in the lowest bit alone, and their verdicts should not be tied.
    text = words[first : first + characters] + (RIGHT if random.Random(seed ^ 0x5EED).random() < 0.5 else WRONG)
    finish = "length" if tokens == pace.max_tokens else "stop"
    sampled = ids[first : first + tokens]
    return CompletionOutput(index, text, sampled, _logprobs(sampled) if flat else logprobs[:tokens], finish)


def _logprobs(ids: list[int]) -> FlatLogprobs:
    return FlatLogprobs(list(ids), [LOGPROB] * len(ids))


def _scored(request_id: str, prompt_ids: list[int], flat: bool) -> RequestOutput:
    """A prompt's own log-probs, which its first token has none of, and one sampled token."""
    one = _AnyToken({0: Logprob()})
    rest = prompt_ids[1:]
    sampled = CompletionOutput(0, "", [prompt_ids[0]], _logprobs(prompt_ids[:1]) if flat else [one], "length")
    return RequestOutput(request_id, [sampled], _logprobs(rest) if flat else [None, *([one] * len(rest))])


# The engine


class AsyncEngineArgs(SimpleNamespace):
    """All options are taken, and `additional_config` is read."""


class SamplingParams(SimpleNamespace):
    """Options are read as they were given."""


class VLLMClientError(Exception):
    """What vLLM finds wrong with a request; nothing is wrong with one here."""


class RequestOutputKind(Enum):
    CUMULATIVE, DELTA, FINAL_ONLY = range(3)


class AsyncLLM:
    def __init__(self, pace: Pace):
        self.pace = pace
        self.errored = False
        self.decoding = 0  # requests
        self.idle = asyncio.Event()
        self.idle.set()
        self.running = asyncio.Event()  # not paused
        self.running.set()
        self.paused_at = 0.0
        self.frozen = 0.0  # seconds of all pauses that are over

    @classmethod
    def from_engine_args(cls, args: Any, **_: Any) -> "AsyncLLM":
        pace = Pace(**args.additional_config["pace"])
        _stock(pace.max_tokens, pace.vocabulary)
        return cls(pace)

    async def generate(
        self, prompt: Any, params: Any, request_id: str, lora_request: Any = None
    ) -> AsyncIterator[RequestOutput]:
        await self.running.wait()
        flat = getattr(params, "flat_logprobs", False)
        if params.prompt_logprobs is not None:
            yield _scored(request_id, prompt["prompt_token_ids"], flat)
            return
        seeds = [params.seed + i for i in range(params.n)]
        lengths = [min(params.max_tokens, self.pace.tokens(seed)) for seed in seeds]
        self.decoding += 1
        self.idle.clear()
        try:
            await self._decode(max(lengths) * self.pace.seconds_a_token)
        finally:
            self.decoding -= 1
            if not self.decoding:
                self.idle.set()
        began = time.thread_time()
        drawn = enumerate(zip(seeds, lengths, strict=True))
        answer = RequestOutput(
            request_id, [_completion(i, seed, tokens, self.pace, flat) for i, (seed, tokens) in drawn]
        )
        spent["seconds"] += time.thread_time() - began
        yield answer

    async def _decode(self, seconds: float) -> None:
        """Sleep so long, and on top of it as long as the engine is frozen meanwhile."""
        left, frozen = seconds, self.frozen
        while left > 0:
            await asyncio.sleep(left)
            await self.running.wait()
            left, frozen = self.frozen - frozen, self.frozen

    async def pause_generation(self, *, mode: str = "abort", clear_cache: bool = True, **_: Any) -> None:
        if mode == "wait":
            await self.idle.wait()
        if self.running.is_set():
            self.running.clear()
            self.paused_at = time.monotonic()

    async def resume_generation(self) -> None:
        if not self.running.is_set():
            self.frozen += time.monotonic() - self.paused_at
            self.running.set()

    async def is_paused(self) -> bool:
        return not self.running.is_set()

    async def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        return True

    async def add_lora(self, request: Any) -> bool:
        return True

    async def remove_lora(self, number: int) -> bool:
        return True

    async def init_weight_transfer_engine(self, request: Any) -> None: ...

    async def shutdown_weight_transfer_engine(self) -> None: ...

    async def start_weight_update(self, *_: Any) -> None: ...

    async def update_weights(self, request: Any) -> None:
        await asyncio.sleep(self.pace.sync_seconds)

    async def finish_weight_update(self, version: str | None = None) -> None: ...

    def shutdown(self) -> None: ...


# Weights: the learner's side makes vLLM's calls in vLLM's order, and sends nothing in between


class WeightSource: ...


class VLLMWeightSyncClient: ...


@dataclass
class WeightTransferInitInfo: ...


@dataclass
class TrainerInitInfo:
    backend: ClassVar[str] = ""

    rank: int


@dataclass
class ParamMeta:
    name: str
    dtype: Any
    shape: tuple[int, ...]


@dataclass
class WeightTransferInitRequest:
    init_info: dict[str, Any] = field(default_factory=dict)


@dataclass
class WeightTransferUpdateRequest:
    update_info: Any = None


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class TrainerWeightTransferEngine:
    def __init__(self, client: Any, rank: int):
        self.client, self.rank = client, rank

    def send_weights(self) -> None:
        if self.rank == 0:
            self.client.start_weight_update()
            self.client.update_weights({})
            self.client.finish_weight_update()

    def shutdown(self) -> None: ...


class _Factory:
    @staticmethod
    def register_engine(name: str, engine: type) -> None: ...

    @staticmethod
    def trainer_init(info: Any, *, client: Any, source: Any = None) -> TrainerWeightTransferEngine:
        if info.rank == 0:
            client.init_weight_transfer_engine({"rank_offset": 1})
        return TrainerWeightTransferEngine(client, info.rank)


class _Options(SimpleNamespace):
    """A config of vLLM, of which nothing is read."""


def _no_group(*_: Any) -> None: ...


_SUBMODULES: dict[str, dict[str, type | Callable]] = {
    "exceptions": {"VLLMClientError": VLLMClientError},
    "sampling_params": {"SamplingParams": SamplingParams, "RequestOutputKind": RequestOutputKind},
    "outputs": {"RequestOutput": RequestOutput, "CompletionOutput": CompletionOutput},
    "logprobs": {"Logprob": Logprob, "FlatLogprobs": FlatLogprobs},
    "config": {},
    "config.weight_transfer": {"WeightTransferConfig": _Options},
    "engine": {},
    "engine.arg_utils": {"AsyncEngineArgs": AsyncEngineArgs},
    "v1": {},
    "v1.engine": {},
    "v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
    "lora": {},
    "lora.request": {"LoRARequest": LoRARequest},
    "distributed": {},
    "distributed.utils": {"init_gloo_process_group": _no_group},
    "distributed.weight_transfer": {},
    "distributed.weight_transfer.base": {
        "ParamMeta": ParamMeta,
        "TrainerInitInfo": TrainerInitInfo,
        "TrainerWeightTransferEngine": TrainerWeightTransferEngine,
        "VLLMWeightSyncClient": VLLMWeightSyncClient,
        "WeightSource": WeightSource,
        "WeightTransferInitInfo": WeightTransferInitInfo,
        "WeightTransferInitRequest": WeightTransferInitRequest,
        "WeightTransferUpdateRequest": WeightTransferUpdateRequest,
    },
    "distributed.weight_transfer.factory": {
        "WeightTransferEngineFactory": _Factory,
        "WeightTransferTrainerFactory": _Factory,
    },
    "distributed.weight_transfer.nccl_engine": {
        "NCCLTrainerWeightTransferEngine": TrainerWeightTransferEngine,
        "NCCLWeightTransferEngine": type("NCCLWeightTransferEngine", (), {}),
        "NCCLWeightTransferUpdateInfo": _Options,
    },
}
for _name, _content in _SUBMODULES.items():
    _module = ModuleType(f"{__name__}.{_name}")
    _module.__dict__.update(_content)
    sys.modules[_module.__name__] = _module
