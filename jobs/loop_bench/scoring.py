"""`python -m loop_bench.scoring ASKED.json`: checkpoints of either side on the held-out problems, all in the same way.

    ASKED.json: recipe, samples, checkpoints {name: folder}, out  ->  out: name -> problem -> which samples pass

Prompts, sampling settings and verifier are those of the recipe; transformers samples, with the same seed for each.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from trd_ray import models
from trd_ray.config import Recipe, load
from trd_ray.files import write_atomically
from trd_ray.miniature.measure import sampled
from trd_ray.problems.load import held_out_verify, load_problems
from trd_ray.verify.chosen import Chosen
from trd_ray.views import load_views

SEED = 0


def passes(recipe: Recipe, folder: str, samples: int) -> dict[str, list[bool]]:
    """Problem -> which of its samples pass."""
    evaluation = recipe.evaluation
    problems: list[dict[str, Any]] = load_problems(evaluation, recipe.verify, recipe.data.columns).table.to_pylist()
    student = models.resolve(recipe.student.path)
    tokenizer = models.tokenizer(student)
    [views] = load_views(recipe, student, models.resolve(str(recipe.teacher.path))).values()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    how = GenerationConfig(
        do_sample=True,
        temperature=evaluation.temperature,
        top_p=evaluation.top_p,
        top_k=evaluation.top_k,
        max_new_tokens=evaluation.response_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(SEED)
    prompts = [views.evaluation(problem["problem"]) for problem in problems for _ in range(samples)]
    texts = tokenizer.batch_decode(sampled(model, prompts, how), skip_special_tokens=True)
    verifier = Chosen(held_out_verify(evaluation, recipe.verify))
    try:
        return {
            problem["problem_id"]: [
                verifier(text, problem).passed for text in texts[i * samples : (i + 1) * samples]
            ]
            for i, problem in enumerate(problems)
        }  # fmt: skip
    finally:
        verifier.close()


def main(place: Path) -> None:
    asked = json.loads(place.read_text())
    recipe = load(asked["recipe"])
    found = {name: passes(recipe, folder, asked["samples"]) for name, folder in asked["checkpoints"].items()}
    write_atomically(Path(asked["out"]), json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
