"""Whether one pool of engines could sample and refine: named in a dry run, and never chosen unasked."""

from trd_ray.config import Recipe
from trd_ray.preflight.placement import Job, needs_refiner


def sharing(recipe: Recipe, job: Job = "train") -> str | None:
    """What one pool for both would change for a recipe that may have it and does not; None for any other."""
    r = recipe
    adapters = r.learner.lora is not None and r.teacher.follow == "frozen"
    may = r.teacher.mode == "opsd" and (adapters or r.teacher.follow == "live")
    may = may and r.refiner.dtype in (None, r.sampler.dtype or r.learner.dtype)
    if recipe.teachers or not may or job != "train" or not needs_refiner(r, job):
        return None
    keys = [] if r.takes_turns else ["placement=shared"]
    keys += ["sync.lora=adapter"] * (adapters and r.sync.lora != "adapter")
    keys += ["sync.in_flight=drain"] * (adapters and r.sync.in_flight == "keep")  # refused beside adapters
    length = r.refiner.max_model_len
    if length and r.sampler.max_model_len and length > r.sampler.max_model_len:
        keys.append(f"sampler.max_model_len={length}")
    gain = "their caches have its memory" if r.takes_turns else "what the refiner reserves can go to sampler.replicas"
    return (
        f"possible too, and faster where samples are long: {' '.join(keys)}. The sampler's engines then also refine, "
        f"no pool waits for the other, and {gain}"
    )
