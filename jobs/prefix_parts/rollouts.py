"""Rollouts of the miniature student, their refinements, and what student and teachers say at each of their tokens.

    problems -> y_o, passed or not -> for each mode: the vanilla prompt, the refine prompt, y_r, passed or not
    model, prompts, responses -> logits()  ->  [T, V] of each response, one after the other

Legend: B rows, T time, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from trd_ray.miniature import problems
from trd_ray.miniature.halves import parsed
from trd_ray.miniature.measure import prompt_text, sampled, sampling
from trd_ray.miniature.pretrain import WORLD
from trd_ray.miniature.task import Chain

MODES = {  # a mode's vanilla view and its refine view, keys of tokenizer.PROMPTS
    "opd": ("solve", "refine"),
    "opsd": ("solve_with_reference", "refine_with_reference"),
}
AT_ONCE = 256  # rows of a forward pass


@dataclass
class Taught:
    """What a mode's teacher is shown of a row, and what it makes of it."""

    vanilla_ids: list[int]
    refine_ids: list[int]
    y_r: list[int]
    y_r_passed: bool


@dataclass
class Rollout:
    problem: int  # its place among the problems
    chain: Chain
    prompt_ids: list[int]
    y_o: list[int]
    passed: bool
    taught: dict[str, Taught] = field(default_factory=dict)  # by mode


@dataclass(frozen=True)
class Models:
    student: Qwen3ForCausalLM
    teachers: dict[str, Qwen3ForCausalLM]  # by mode; OPSD's is the base, whose weights are frozen
    tokenizer: PreTrainedTokenizerFast

    def encoded(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]  # type: ignore[return-value]

    def written(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def rollouts(models: Models, count: int, each: int, seed: int) -> list[Rollout]:
    """`each` rollouts of the first `count` held-out problems, and a refinement of each by both teachers."""
    torch.manual_seed(seed)
    rows = problems("test")[:count]
    how = sampling(WORLD)
    prompts = models.encoded([prompt_text(models.tokenizer, "solve", row) for row in rows])
    made = []
    for number, ids in enumerate(sampled(models.student, [p for p in prompts for _ in range(each)], how)):
        problem = number // each
        chain = parsed(rows[problem]["problem"])
        passed = WORLD.solved(chain, models.written(ids))
        made.append(Rollout(problem, chain, prompts[problem], ids, passed))
    for mode, (vanilla, refine) in MODES.items():
        values = [rows[one.problem] | {"attempt": models.written(one.y_o)} for one in made]
        shown = {
            view: models.encoded([prompt_text(models.tokenizer, view, row) for row in values])
            for view in (vanilla, refine)
        }
        refined = sampled(models.teachers[mode], shown[refine], how)
        for one, plain, asked, y_r in zip(made, shown[vanilla], shown[refine], refined, strict=True):
            one.taught[mode] = Taught(plain, asked, y_r, WORLD.solved(one.chain, models.written(y_r)))
    return made


@torch.no_grad()
def logits(model: Any, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> Iterator[torch.Tensor]:
    """What the model says before each token of each response, [T, V], after its prompt."""
    for i in range(0, len(prompts), AT_ONCE):
        rows = list(zip(prompts[i : i + AT_ONCE], responses[i : i + AT_ONCE], strict=True))
        longest = max(len(prompt) + len(response) for prompt, response in rows)
        ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)  # what follows a row is never looked at: causal
        for row, (prompt, response) in enumerate(rows):
            ids_BT[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        logits_BTV = model(input_ids=ids_BT).logits
        for row, (prompt, response) in enumerate(rows):
            yield logits_BTV[row, len(prompt) - 1 : len(prompt) - 1 + len(response)]
