"""For the tests of the engines: tiny models, pools that serve them, and transformers as the oracle of the answers."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import psutil
import ray
import torch
from ray.actor import ActorHandle
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from trd_ray.engine.actor import EngineSpec, Generation, Request
from trd_ray.engine.client import Client
from trd_ray.engine.launch import pool_actor
from trd_ray.engine.pool import PoolSpec
from trd_ray.engine.sync import WeightSync

SPECIAL = ["<pad>", "<eos>", "<user>", "<assistant>"]
EOS = 1
CONTEXT = 2048


def make_tiny_model(folder: Path, *, tied: bool) -> str:
    """A random two-layer Qwen3 over single characters; its logits are large, so rounding turns no greedy choice."""
    torch.manual_seed(int(tied))
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *"0123456789+-=abcdefghijklmnop"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", additional_special_tokens=SPECIAL[2:]
    )
    config = Qwen3Config(
        vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=CONTEXT, tie_word_embeddings=tied,
        initializer_range=0.3, eos_token_id=EOS, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def pool_spec(name: str, model: str, logs: Path, *, replicas: int = 1, in_flight: str = "drain", **engine) -> PoolSpec:
    options = {
        "name": name, "model": model, "revision": None, "trust_remote_code": False, "dtype": "float32",
        "max_model_len": CONTEXT, "tensor_parallel": 1, "on_gpu": False, "memory_utilization": 0.5,
        "cpu_kv_cache_gib": 1, "max_concurrent": 128, "seed": 0, "version": 0, "transfer_backend": "gloo",
        "log_path": str(logs), "extra": {"enforce_eager": True},
    }  # fmt: skip
    return PoolSpec(
        name, EngineSpec(**options | engine), replicas, {"num_cpus": 0.5}, start_timeout_s=300, request_timeout_s=300,
        in_flight=in_flight,
    )  # fmt: skip


class Served:
    """A running pool beside the transformers model whose weights it should have."""

    def __init__(self, spec: PoolSpec):
        self.spec = spec
        self.pool, self.started = self.starting(spec)
        self.client = Client(self.pool)
        self.model = AutoModelForCausalLM.from_pretrained(spec.engine.model, dtype=torch.float32)
        self.initial = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        self.version = spec.engine.version
        self.during_send: Callable[[], None] = lambda: None  # called in the middle of every weight transfer
        self.sync: WeightSync | None = None
        self.noise = torch.Generator().manual_seed(0)

    @staticmethod
    def starting(
        spec: PoolSpec, num_cpus: float = 0.5, start_timeout_s: float = 300
    ) -> tuple[ActorHandle, ray.ObjectRef]:
        """A pool and its start, under way."""
        spec = replace(spec, actor_options={"num_cpus": num_cpus}, start_timeout_s=start_timeout_s)
        pool = pool_actor(spec)
        return pool, pool.start.remote()

    # Weights

    def perturb(self) -> None:
        """The next optimizer step, as far as the engines can tell."""
        with torch.no_grad():
            for p in self.model.parameters():
                p += 0.3 * p.std() * torch.randn(p.shape, generator=self.noise)

    def begin_anew(self) -> None:
        """As a next run that begins with the weights which an engine starts with."""
        ray.get(self.pool.forget_weights.remote())
        self.model.load_state_dict(self.initial)
        self.version = -1
        assert self.push() is None

    def push(self) -> str | None:
        """Send the model's weights as the next version; what went wrong, if anything did."""
        if self.sync is None:
            learner = _Whole(self.model, lambda: self.during_send())
            self.sync = WeightSync(learner, [self.pool], backend="gloo", dtype=torch.float32, timeout_s=120)
        problem = self.sync.push(self.version + 1)
        self.version += problem is None
        return problem

    # Requests

    def ask(self, requests: list[Request], min_version: int = 0) -> list[Generation]:
        return self.answers(self.begin(requests, min_version))

    def begin(self, requests: list[Request], min_version: int = 0) -> list[Future]:
        return [self.client.submit(request, min_version) for request in requests]

    @staticmethod
    def answers(asked: list[Future]) -> list[Generation]:
        """Their answers, one to each; tokens and log-probabilities as lists, which tests compare."""
        answered = [generation for future in asked for [generation] in [future.result(timeout=240)]]
        return [
            replace(g, **{name: getattr(g, name).tolist() for name in ("ids", "logprobs", "prompt_logprobs")})
            for g in answered
        ]

    def status(self) -> dict:
        return ray.get(self.pool.status.remote(), timeout=60)

    def wait(self, condition: Callable[[dict], bool], timeout_s: float = 180) -> dict:
        deadline = time.monotonic() + timeout_s
        while not condition(status := self.status()):
            assert time.monotonic() < deadline, f"waited {timeout_s} s; the status is {status}"
            time.sleep(0.1)
        return status

    # The oracle

    def greedy(self, prompt: list[int], max_tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            out = self.model.generate(
                ids, do_sample=False, max_new_tokens=max_tokens, attention_mask=torch.ones_like(ids)
            )
        return out[0, len(prompt) :].tolist()

    def logprobs(self, prompt: list[int], response: list[int]) -> list[float]:
        return logprobs(self.model, prompt, response)

    def endless_prompts(self, count: int, tokens: int, model: torch.nn.Module | None = None) -> list[list[int]]:
        """Prompts to which the greedy answer (of `model`) has not ended after so many tokens."""
        asked = torch.tensor(prompts(60, 8, seed=1))
        with torch.no_grad():
            out = (model or self.model).generate(
                asked, do_sample=False, max_new_tokens=tokens, attention_mask=torch.ones_like(asked)
            )
        found = [row[:8].tolist() for row in out if EOS not in row]
        assert len(found) >= count, "the greedy answers end early: choose another seed of the model"
        return found[:count]

    # Processes

    def logs(self) -> list[Path]:
        return sorted(Path(self.spec.engine.log_path).glob(f"{self.spec.name}-*.log"))

    def engine_process(self, index: int) -> psutil.Process:
        """The process in which vLLM runs the model, a child of the actor's."""
        actor = self.actor_process(index)
        [core] = [p for p in actor.children() if "spawn_main" in " ".join(p.cmdline()) or "Engine" in p.cmdline()[0]]
        return core

    def actor_process(self, index: int) -> psutil.Process:
        log = Path(self.spec.engine.log_path) / f"{self.spec.name}-{index}.log"
        [actor] = [p for p in processes_writing_to(log) if os.getpgid(p.pid) == p.pid]
        return actor


class _Whole:
    """A model as a learner of one rank gives it to the sync; calls a hook in the middle of every transfer."""

    def __init__(self, model: torch.nn.Module, hook: Callable[[], None]):
        self.model, self.hook = model, hook

    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        return [(name, tuple(p.shape)) for name, p in self.model.named_parameters()]

    def weights(self, who: str, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        parameters = list(self.model.named_parameters())
        for i, (name, p) in enumerate(parameters):
            if i == len(parameters) // 2:
                self.hook()
            yield name, p.detach().to(dtype)


def logprobs(model: torch.nn.Module, prompt: list[int], response: list[int]) -> list[float]:
    """log p(response token) at temperature 1."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1)[range(len(response)), response].tolist()


def prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    ids = torch.randint(len(SPECIAL), 30, (count, length), generator=torch.Generator().manual_seed(seed))
    return ids.tolist()


def greedy_requests(some_prompts: list[list[int]], max_tokens: int) -> list[Request]:
    return [Request(prompt_ids=p, seed=0, temperature=0, max_tokens=max_tokens) for p in some_prompts]


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def processes_writing_to(log: Path) -> list[psutil.Process]:
    """An engine's actor and all that it started: their output goes to the engine's log."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.readlink(f"/proc/{process.pid}/fd/1") == str(log):
                found.append(process)
    return found
