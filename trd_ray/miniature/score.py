"""How good the two miniature models are, by sampling with transformers at temperature 1.

chains -> y_o by the student -> y_r by the student (with the reference) and by the teacher (without)
       -> accuracies, lengths
"""

import random

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3ForCausalLM

from trd_ray.miniature.task import SECRET, TEST_STEPS, Chain, boxed, is_held_out, random_chain, solve, text
from trd_ray.miniature.tokenizer import END, PAD, PROMPTS

MAX_RESPONSE_TOKENS = 128
BATCH = 800


def held_out_chains(n: int, seed: int) -> list[Chain]:
    rng, chains = random.Random(seed), []
    while len(chains) < n:
        if is_held_out(chain := random_chain(rng, TEST_STEPS)):
            chains.append(chain)
    return chains


def prompt_text(tokenizer: PreTrainedTokenizerFast, view: str, values: dict[str, str]) -> str:
    """The rendered chat prompt of one view (a key of PROMPTS), ready to be continued."""
    message = {"role": "user", "content": PROMPTS[view].format(**values)}
    return str(tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False))


@torch.no_grad()
def respond(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    view: str,
    chains: list[Chain],
    attempts: list[str] | None = None,
) -> list[str]:
    """One sampled response a chain, from torch's global seed; attempts (one a chain) fill the views that show one."""
    vocabulary = tokenizer.get_vocab()
    prompts = [
        prompt_text(tokenizer, view, {"problem": c.problem, "reference": text(solve(c, SECRET)), "attempt": attempt})
        for c, attempt in zip(chains, attempts or [""] * len(chains), strict=True)
    ]
    sampled = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_new_tokens=MAX_RESPONSE_TOKENS,
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[PAD],
    )
    responses = []
    for i in range(0, len(prompts), BATCH):
        inputs = tokenizer(prompts[i : i + BATCH], padding=True, return_tensors="pt", add_special_tokens=False)
        out = model.generate(**inputs, generation_config=sampled)  # pyright: ignore[reportAttributeAccessIssue]
        out = out[:, inputs["input_ids"].shape[1] :]
        responses += tokenizer.batch_decode(out, skip_special_tokens=True)
    return responses


def accuracy(chains: list[Chain], responses: list[str]) -> float:
    right = [boxed(r) == str(solve(c, SECRET)[-1].result) for c, r in zip(chains, responses, strict=True)]
    return round(sum(right) / len(right), 4)


def mean_tokens(tokenizer: PreTrainedTokenizerFast, responses: list[str]) -> float:
    return round(sum(len(ids) for ids in tokenizer(responses)["input_ids"]) / len(responses), 1)


def scores(
    student: Qwen3ForCausalLM, teacher: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int, seed: int
) -> dict[str, dict[str, float]]:
    """Both models on the same n held-out chains and the same n attempts, the student's own."""
    torch.manual_seed(seed)
    chains = held_out_chains(n, seed)
    y_o = respond(student, tokenizer, "solve", chains)
    by_model = {}
    for name, model, view in (("student", student, "refine_with_reference"), ("teacher", teacher, "refine")):
        solved = y_o if model is student else respond(model, tokenizer, "solve", chains)
        y_r = respond(model, tokenizer, view, chains, attempts=y_o)
        by_model[name] = {
            "solves": accuracy(chains, solved),
            "solution_tokens": mean_tokens(tokenizer, solved),
            "rewrites": accuracy(chains, y_r),
            "rewrite_tokens": mean_tokens(tokenizer, y_r),
        }
    return by_model
