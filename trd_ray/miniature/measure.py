"""How good the two models of a miniature world are, by sampling with transformers at temperature 1.

chains -> y_o by the student -> y_r by the student (with the reference) and by the teacher (without)
       -> accuracies, lengths
"""

import random
from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast, Qwen3ForCausalLM

from trd_ray.miniature.splits import AnyChain
from trd_ray.miniature.tokenizer import END, PAD, PROMPTS
from trd_ray.miniature.world import World

BATCH = 800


def held_out_chains(world: World, n: int, seed: int) -> list[AnyChain]:
    rng = random.Random(seed)
    return [world.held_out(rng) for _ in range(n)]


def prompt_text(tokenizer: PreTrainedTokenizerFast, view: str, values: dict[str, str]) -> str:
    """The chat prompt of one view (a key of PROMPTS), rendered so that a response can follow."""
    message = {"role": "user", "content": PROMPTS[view].format(**values)}
    return str(tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False))


@torch.no_grad()
def sampled(model: PreTrainedModel, prompts: Sequence[list[int]], how: GenerationConfig) -> list[list[int]]:
    """The token ids of a response to each prompt, its end among them, sampled from torch's global seed."""
    ends = {how.eos_token_id} if isinstance(how.eos_token_id, int) else set(how.eos_token_id or ())
    responses: list[list[int]] = []
    for i in range(0, len(prompts), BATCH):
        batch = prompts[i : i + BATCH]
        longest = max(map(len, batch))
        ids_BT = torch.tensor([[how.pad_token_id] * (longest - len(ids)) + ids for ids in batch])
        mask_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in batch])
        out_BT = model.generate(  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            input_ids=ids_BT, attention_mask=mask_BT, generation_config=how
        )
        for ids in out_BT[:, longest:].tolist():
            length = next((place for place, token in enumerate(ids, 1) if token in ends), len(ids))
            responses.append(ids[:length])
    return responses


def sampling(world: World) -> GenerationConfig:
    """At temperature 1, as long as a response of this world may be."""
    vocabulary = world.words().get_vocab()
    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_new_tokens=world.max_response_tokens,
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[PAD],
    )


def respond(
    world: World, model: Qwen3ForCausalLM, view: str, chains: Sequence[AnyChain], attempts: Sequence[str] | None = None
) -> list[str]:
    """A response for each chain, sampled from torch's global seed. `attempts`, one each, fill views that show one."""
    tokenizer = world.words()
    prompts = [
        prompt_text(tokenizer, view, {"problem": c.problem, "reference": world.reference(c), "attempt": attempt})
        for c, attempt in zip(chains, attempts or [""] * len(chains), strict=True)
    ]
    ids = sampled(model, tokenizer(prompts, add_special_tokens=False)["input_ids"], sampling(world))
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def accuracy(world: World, chains: Sequence[AnyChain], responses: Sequence[str]) -> float:
    right = [world.solved(chain, response) for chain, response in zip(chains, responses, strict=True)]
    return round(sum(right) / len(right), 4)


def mean_tokens(world: World, responses: list[str]) -> float:
    return round(sum(len(ids) for ids in world.words()(responses)["input_ids"]) / len(responses), 1)


def scores(
    world: World, student: Qwen3ForCausalLM, teacher: Qwen3ForCausalLM, n: int, seed: int
) -> dict[str, dict[str, float]]:
    """The scores of both models on the same n held-out chains and the same n attempts, the student's own."""
    torch.manual_seed(seed)
    chains = held_out_chains(world, n, seed)
    y_o = respond(world, student, "solve", chains)
    by_model = {}
    for name, model, view in (("student", student, "refine_with_reference"), ("teacher", teacher, "refine")):
        solved = y_o if model is student else respond(world, model, "solve", chains)
        y_r = respond(world, model, view, chains, attempts=y_o)
        by_model[name] = {
            "solves": accuracy(world, chains, solved),
            "solution_tokens": mean_tokens(world, solved),
            "rewrites": accuracy(world, chains, y_r),
            "rewrite_tokens": mean_tokens(world, y_r),
        }
    return by_model
