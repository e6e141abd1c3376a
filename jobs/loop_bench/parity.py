"""What both sides must have in common, from our recipe: problems, their order, batch, lengths, optimizer, schedule.

recipe -> require_alike()    a sentence where TRL's trainer has no such thing
       -> prompts()          the problems of the whole run, in our order, as conversations
       -> trl_arguments()    DistillationConfig's keywords
"""

from pathlib import Path
from typing import Any

from trd_ray.config import Recipe
from trd_ray.errors import UserError
from trd_ray.problems.load import load_problems
from trd_ray.problems.order import Order

BETA = {"forward_kl": 0.0, "reverse_kl": 1.0}


def require_alike(recipe: Recipe) -> None:
    """Raise UserError for a recipe that TRL's DistillationTrainer cannot follow."""
    loss, sampler, learner = recipe.loss, recipe.sampler, recipe.learner
    assert recipe.steps
    cannot = {
        "teacher.mode=opd and one teacher": recipe.teachers or recipe.teacher.mode != "opd",
        "stream.max_staleness=0": recipe.stream.max_staleness != 0,
        "sampler.n=1": sampler.n != 1,
        "learner.workers=1": learner.ranks != 1,
        "loss.top_k, token_clip and vocab_clip empty": loss.top_k or loss.token_clip or loss.vocab_clip,
        "loss.mean=tokens": loss.mean != "tokens",
        "loss.temperature equal to sampler.temperature": loss.temperature != sampler.temperature,
        "a multiple of learner.updates_per_step as rollouts_per_step": recipe.rollouts_per_step
        % learner.updates_per_step,
        "prompts.solve alone, without prompts.system": recipe.prompts.system or not recipe.prompts.solve,
    }
    for needed, otherwise in cannot.items():
        if otherwise:
            raise UserError(f"TRL's trainer has no such run: it needs {needed}")


def batch(recipe: Recipe) -> int:
    """Rows of an update. TRL samples so many at a time, since it has one generation an update."""
    return recipe.rollouts_per_step // recipe.learner.updates_per_step


def prompts(recipe: Recipe) -> list[list[dict[str, str]]]:
    """The conversation of each row, in the order in which our run meets them."""
    problems = load_problems(recipe.data, recipe.verify).table["problem"].to_pylist()
    order = Order(
        len(problems),
        recipe.seed,
        recipe.rollouts_per_step,
        shuffle=recipe.data.shuffle,
        steps=recipe.steps,
    )
    wording = recipe.prompts.solve or ""
    rows = order.rows(0, order.length.rows)
    return [
        [{"role": "user", "content": wording.replace("{problem}", problems[row["problem_number"]])}] for row in rows
    ]


def trl_arguments(recipe: Recipe, folder: Path, every: int, use_vllm: bool) -> dict[str, Any]:
    """As a user would set them. What differs from TRL's defaults and not from ours' is said beside it."""
    assert recipe.steps
    learner, sampler, loss = recipe.learner, recipe.sampler, recipe.loss
    updates = recipe.steps * learner.updates_per_step
    return {
        "output_dir": str(folder),
        "max_steps": updates,
        "per_device_train_batch_size": batch(recipe),
        "gradient_accumulation_steps": 1,
        "shuffle_dataset": False,  # the rows are in our run's order
        "max_completion_length": sampler.max_response_tokens,
        "temperature": sampler.temperature,
        "top_p": sampler.top_p,
        "top_k": sampler.top_k,
        "beta": loss.beta if loss.divergence == "jsd" else BETA[loss.divergence],
        "model_init_kwargs": {"dtype": learner.dtype},
        "teacher_model_init_kwargs": {"dtype": learner.dtype},
        "bf16": learner.dtype == "bfloat16",
        "optim": "adamw_torch_fused",
        "learning_rate": learner.lr,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": learner.min_lr_ratio},
        "warmup_steps": round(learner.warmup_ratio * updates),
        "adam_beta1": learner.betas[0],
        "adam_beta2": learner.betas[1],
        "weight_decay": learner.weight_decay,
        "max_grad_norm": learner.grad_clip,
        "gradient_checkpointing": learner.activation_checkpointing,  # TRL's default is True, which costs time here
        "torch_compile": False,
        "use_cpu": True,
        "seed": recipe.seed,
        "save_strategy": "steps",
        "save_steps": every * learner.updates_per_step,
        "save_only_model": True,
        "logging_steps": learner.updates_per_step,
        "report_to": "none",
        "disable_tqdm": True,
        "use_vllm": use_vllm,
        "vllm_mode": "colocate",
        "vllm_max_model_length": sampler.max_model_len,
        "vllm_gpu_memory_utilization": 0.05,  # on a CPU, VLLM_CPU_KVCACHE_SPACE says it instead
    }
