"""What the learner needs of the models and of this machine, before anything starts.

recipe, ModelFacts  ->  no_bias, has_targets, has_compiler, has_support  ->  UserError, which says what to set
"""

import shutil

from trd_ray.config import Recipe, did_you_mean
from trd_ray.errors import UserError
from trd_ray.models import ModelFacts


def no_bias(*models: ModelFacts) -> None:
    for model in models:
        if model.head_bias:
            raise UserError(
                f"{model.path} ({model.architecture}) adds a bias to its logits, which the fused head does not: "
                "choose a model without it, such as one of the Llama, Qwen, Gemma or Mistral families"
            )


def has_targets(recipe: Recipe, student: ModelFacts) -> None:
    for target in (recipe.learner.lora and recipe.learner.lora.targets) or ():
        if target.rpartition(".")[2] not in student.linear_layers:
            raise UserError(
                f"learner.lora.targets names {target!r}, but {student.path} has no such linear layer"
                f"{did_you_mean(target, list(student.linear_layers))}"
            )


def has_compiler(recipe: Recipe) -> None:
    if recipe.learner.compile and not any(map(shutil.which, ("g++", "clang++"))):
        raise UserError(
            "learner.compile=true needs a C++ compiler, but neither g++ nor clang++ is in PATH: install one on every "
            "node (apt install g++), or set learner.compile=false"
        )


def has_support(recipe: Recipe, student: ModelFacts, teacher: ModelFacts) -> None:
    vocabulary = min(student.vocab_size, teacher.vocab_size)
    if (k := recipe.loss.top_k) and k > vocabulary:
        raise UserError(
            f"loss.top_k is {k}, but the vocabulary has {vocabulary} tokens: lower it, or leave it out for all of them"
        )
