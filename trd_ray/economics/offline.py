"""The schedule of the paper's release: everything sampled, then everything refined, then everything trained.

Case, problems, GPUs  ->  hours()  ->  hours of sampling, refining and training, each on all of the GPUs
"""

from trd_ray.economics.batching import EngineRequest, serve_pool
from trd_ray.economics.case import Case
from trd_ray.economics.run_cost import chosen, engine_speed, learner_speed, trained, work_of
from trd_ray.economics.step_cost import refinements

A_PART = 10  # of the problems is simulated: a pass has one tail, which is small beside it


def hours(case: Case, problems: int, gpus: int) -> tuple[float, float, float]:
    """Every engine takes the GPUs that it takes in the case; every GPU has a rank."""
    r = case.recipe
    rows = chosen(case, case.lengths.rows(max(1, problems // A_PART), 7))
    scale = problems / len(rows) / 3600
    sampling = serve_pool(
        [EngineRequest(0.0, row.prompt, row.raw) for row in rows],
        max(1, gpus // r.sampler.tensor_parallel),
        engine_speed(case, "sampler"),
    ).mean_busy_s
    refining = 0.0
    if r.refines:
        requests = [refinements(row, 0.0) for row in rows if row.refine_prompt]
        engines = max(1, gpus // r.refiner.tensor_parallel)
        refining = serve_pool(requests, engines, engine_speed(case, "refiner")).mean_busy_s
    # FLOPs alone: how many updates a pass has is of no weight.
    work = work_of(case, [trained(case, row) for row in rows])
    training = work.flops / (gpus * learner_speed(case).flops)
    return sampling * scale, refining * scale, training * scale
