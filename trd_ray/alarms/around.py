"""What alarms need to know of a run besides its metrics, from its recipe: bounds, precision, and the keys to name.

    recipe  ->  Around.of()  ->  numbers for the conditions, and words for what is said

The words are put into `means` and `do` of a condition: of several teachers each has keys of its own.
"""

from dataclasses import dataclass

from trd_ray.config import Recipe, keys_of, pool_of

PRECISIONS = ("float32", "float16", "bfloat16", "fp8")  # from fine to coarse


@dataclass(frozen=True)
class Around:
    precision: str  # the coarser of engine and learner
    samples: bool  # whether engines make the rows; those of a corpus are there, as old as they are
    max_staleness: int | None  # None where rows never meet newer weights
    max_bad_rows: int
    checkpoint_every_steps: int
    grad_clip: float
    teacher_follows: bool  # whether the student's weights reach the teacher
    subset: bool  # whether rows are left out on purpose
    y_o_limit: str  # the longest attempt in tokens, as it is said
    y_r_limit: str
    words: dict[str, str]

    @classmethod
    def of(cls, recipe: Recipe) -> "Around":
        y_r_limit, y_r_keys = _refiner_limits(recipe)
        staleness = recipe.stream.max_staleness
        near = any(r.refiner.max_edited_share is not None for r in recipe.by_teacher.values())
        return cls(
            precision=_precision(recipe),
            samples=recipe.data.source != "corpus",
            max_staleness=staleness if isinstance(staleness, int) else None,
            max_bad_rows=recipe.data.max_bad_rows,
            checkpoint_every_steps=recipe.checkpoint.every_steps,
            grad_clip=recipe.learner.grad_clip,
            teacher_follows=any(one.teacher.follow != "frozen" for one in recipe.by_teacher.values()),
            subset=recipe.train.subset != "all" or recipe.train.when_refinement_fails == "drop",
            y_o_limit=str(recipe.sampler.max_response_tokens),
            y_r_limit=y_r_limit,
            words={
                "y_r_limits": y_r_keys,
                "solve_asks": ask_for_answers("prompts.solve", recipe),
                "refine_asks": ask_for_answers("prompts.refine", recipe),
                "near": "refiner.max_edited_share=1, " if near else "",
            },
        )


def ask_for_answers(prompt: str, recipe: Recipe) -> str:
    """What to set where responses hold no answer."""
    if recipe.task == "code":
        return f"let {prompt} ask for a fenced Python program"
    if recipe.verify.has_own:
        return f"let {prompt} ask for what verify.function accepts"
    if recipe.task == "plain":
        return f"let {prompt} ask for the answer in the form that its verifier reads"
    prose = "" if recipe.verify.answer_in_prose else ", or set verify.answer_in_prose=true"
    return f"let {prompt} ask for \\boxed{{}}{prose}"


def _refiner_limits(recipe: Recipe) -> tuple[str, str]:
    """The longest refinements, and the keys that say so: of several teachers each has its own."""
    if not recipe.teachers:
        return str(recipe.refiner.max_response_tokens), "refiner.max_response_tokens"
    each = {keys_of(pool_of(name)): one.refiner.max_response_tokens for name, one in recipe.by_teacher.items()}
    return " or ".join(map(str, dict.fromkeys(each.values()))), " or ".join(f"{k}.max_response_tokens" for k in each)


def _precision(recipe: Recipe) -> str:
    sampler = recipe.sampler
    found = [recipe.learner.dtype, sampler.dtype or recipe.learner.dtype]
    if sampler.extra.get("quantization") or str(sampler.extra.get("kv_cache_dtype", "")).startswith("fp8"):
        found.append("fp8")
    return max(found, key=PRECISIONS.index)
