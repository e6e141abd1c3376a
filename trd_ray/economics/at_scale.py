"""A recipe on 8 to 1,024 GPUs: how efficient they are, and what of the control plane is full first.

    RunCost of the recipe as it is, on its own GPUs  ->  scaled()  ->  Scaled, for each number of GPUs

Engines and ranks are multiplied, so each engine has as many rows as before (weak scaling), or the rows are as many as
before, and each engine has fewer (strong). The GPUs' part of a step is the model's, for at most SLICE GPUs; beyond, all
engines are like those. The control plane's part is what jobs/bench_stream.py measured for a row, an engine and a step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from trd_ray.economics import constants as c
from trd_ray.economics.run_cost import RunCost

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
LOW = 0.5  # efficiency below which GPUs mostly wait for the longest rollouts
SLICE = 64  # GPUs whose engines are simulated


@dataclass(frozen=True)
class Scaled:
    gpus: int
    rollouts: int  # of a step
    gpu_s: float  # a step as the GPUs would have it
    step_s: float  # as the control plane lets it
    efficiency: float  # rollouts a second and GPU, to those of the smallest number of GPUs
    full: dict[str, float]  # part of the control plane -> share of a core, or of its memory, that it takes
    binds: str  # what makes the step longer than the GPUs' part; "" for nothing

    @property
    def fullest(self) -> str:
        return max(self.full, key=lambda name: self.full[name])


def scaled(
    cost_of: Callable[[int, int], RunCost | None], rollouts: int, gpus: int, strong: bool = False
) -> list[Scaled]:
    """`cost_of(times, rollouts)` is the cost of so many times the engines and ranks; None where it does not fit.

    `gpus` and `rollouts` are those of the recipe as it is.
    """
    cost_of = cache(cost_of)  # beyond SLICE it is asked for the same again
    found: list[Scaled] = []
    for n in GPUS:
        times, rest = divmod(n, gpus)
        if rest:
            continue
        part = times if strong else min(times, max(1, SLICE // gpus))
        cost = cost_of(part, rollouts if strong else rollouts * part)
        if cost:
            engines = sum(pool.engines for name, pool in cost.pools.items() if name != "learner") * times // part
            rows = rollouts if strong else rollouts * times
            found.append(_one(cost, n, rows, engines, found[0] if found else None))
    return found


def _one(cost: RunCost, gpus: int, rows: int, engines: int, first: "Scaled | None") -> Scaled:
    # Each sync calls every engine some times, one call after another in the pool that asks.
    gpu_s = cost.step.step_s
    calls = engines * c.CALLS_OF_A_SYNC * c.CPU_MS_A_ROW["pools"] / 2 / 1000
    wait = max(0.0, calls - c.SYNC_S)
    stage_s = rows * c.CPU_MS_A_ROW["stages"] / 1000
    step_s = max(gpu_s + wait, stage_s)
    rate = rows / step_s
    full = {
        "stage": rate * c.CPU_MS_A_ROW["stages"] / 1000,
        "pool": rate * c.CPU_MS_A_ROW["pools"] / 2 / 1000 + engines * c.PULSE_SHARE,
        "driver": rate * c.CPU_MS_A_ROW["driver"] / 1000,
        "head's Ray": rate * c.CPU_MS_A_ROW["Ray"] / 1000,
        "object store": 3 * rows * _row_bytes(cost) / (c.HEAD_STORE_GIB * 2**30),
    }
    each = rate / gpus
    base = first.rollouts / first.step_s / first.gpus if first else each
    binds = "stage" if stage_s > gpu_s + wait else "sync" if wait > 0.05 * gpu_s else ""
    return Scaled(gpus, rows, gpu_s, step_s, each / base, full, binds)


def _row_bytes(cost: RunCost) -> float:
    """Of a row in the object store: 12 bytes a sampled token, 16 a refined one, as preflight counts them."""
    return (12 * cost.step.sampled_tokens + 16 * cost.step.refined_tokens) / cost.rollouts


def breaks_first(lines: Sequence[Scaled]) -> str:
    """The sentence below the table."""
    broken = next((one for one in lines if max(one.full.values()) >= 1 - 1e-9 or one.binds), None)
    if broken is None:
        last = lines[-1]
        if last.efficiency < LOW:
            return (
                f"No part of the control plane is full. At {last.gpus} GPUs a step takes the {last.step_s:.0f} s of "
                "its longest rollouts, which no further engine shortens: raise rollouts_per_step."
            )
        share = last.full[last.fullest]
        return f"Nothing is full up to {last.gpus} GPUs; the fullest is the {last.fullest}, at {share:.0%}."
    name = broken.binds or broken.fullest
    return f"What breaks first is the {name}, at {broken.gpus} GPUs."
