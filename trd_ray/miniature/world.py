"""What the builder and the scorer ask of a world: its tokens, what its models learn, and when a response is right.

    pretrain.py: WORLD (arithmetic)            --+-->  build  -->  student, teacher, scores
    code_world/code_pretrain.py: WORLD (code)  --+

Both worlds share the builder, the scorer, the special tokens and the prompts.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from trd_ray.miniature.splits import AnyChain
from trd_ray.miniature.tokenizer import PROMPTS

Name = Literal["student", "teacher"]
NAMES: tuple[Name, ...] = ("student", "teacher")


@dataclass(frozen=True)
class Lesson:
    view: str  # a key of tokenizer.PROMPTS
    values: dict[str, str]  # what stands in place of each of its placeholders
    answer: str


Kind = Callable[[random.Random], Lesson]


@dataclass(frozen=True)
class Spec:
    """One model and its training."""

    layers: int
    tied: bool
    rows: tuple[int, ...]  # how many examples of each kind a batch has; `lessons` says which kinds
    steps: int = 700
    width: int = 128
    heads: int = 4
    feed_forward: int = 384
    muon_lr: float = 1e-2
    adamw_lr: float = 4e-3
    warmup_steps: int = 20
    min_lr_ratio: float = 0.05
    grad_clip: float = 1.0


@dataclass(frozen=True)
class Upbringing:
    student: Spec
    teacher: Spec
    seed: int = 0
    score_chains: int = 1000


@dataclass(frozen=True)
class World:
    name: str
    plan: Upbringing
    words: Callable[[], PreTrainedTokenizerFast]
    kinds: Callable[[Name, int], Sequence[Kind]]  # model and seed -> what it learns; Spec.rows says how much of each
    held_out: Callable[[random.Random], AnyChain]  # a chain to score the models on
    reference: Callable[[Any], str]  # chain -> its reference solution
    solved: Callable[[Any, str], bool]  # is this response to a chain right?
    max_response_tokens: int

    @property
    def digest(self) -> str:
        """A name for the models of this world. It changes with each number of the plan, with texts and tokens."""
        words = self.words()
        first = {name: [list(map(astuple, kind)) for kind in next(self.batches(name))] for name in NAMES}
        told = [asdict(self.plan), words.get_vocab(), words.chat_template, PROMPTS, first]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    def batches(self, name: Name) -> Iterator[list[list[Lesson]]]:
        """Batches of one model, without end, the same at every call. Each holds a list of examples for each kind."""
        spec: Spec = getattr(self.plan, name)
        kinds = self.kinds(name, self.plan.seed)
        rng = random.Random(f"{name} {self.plan.seed}")
        while True:
            yield [[kind(rng) for _ in range(rows)] for kind, rows in zip(kinds, spec.rows, strict=True)]
