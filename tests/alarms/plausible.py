"""A plausible run in metrics, of which a test changes what it is about."""

from functools import cache
from typing import Any

from trd_ray.alarms.around import Around
from trd_ray.alarms.watcher import Watcher
from trd_ray.config import load

ROWS = 128


def line(step: int, **changes: Any) -> dict[str, Any]:
    """A step of a run on a cluster that is as it should be; `a__b=1` changes the metric a/b, None leaves it out."""
    passed = min(0.9, 0.4 + 0.01 * step)
    made: dict[str, Any] = {"rollouts": ROWS, "trained_rows": ROWS, "refine/cut_rows": 0, "teacher/cut_rows": 0}
    for y, tokens, share in (("y_o", 900.0, passed), ("y_r", 600.0, 0.93)):
        made |= {f"{y}/tokens_mean": tokens, f"{y}/truncated": 0.03, f"{y}/no_answer": 0.04, f"{y}/passed": share}
        made |= {f"{y}/unanswered": 0.01}
    broken, both = 2, round(ROWS * passed) - 2
    repaired = round(0.93 * ROWS) - both
    made |= {"ledger/pass_pass": both, "ledger/pass_fail": broken, "ledger/fail_pass": repaired}
    made |= {"ledger/fail_fail": ROWS - both - broken - repaired, "support/leaks": 0.01}
    kl = 0.3 * 0.95**step + 0.02
    made |= {"loss": kl, "kl/mean": kl, "grad_norm": 0.5 + 0.1 * (step % 3), "student/nll": 0.3, "updates": 1.0}
    made |= {"skipped_updates": 0.0, "student/entropy": 0.1 + 0.1 * 0.98**step, "teacher/entropy": 0.1}
    made |= {"sync/gap_mean": 0.011, "staleness/mean": 1.0, "lr": 1e-6}
    made |= {"seconds/step": 120.0, "seconds/wait": 30.0, "seconds/sample": 100.0, "seconds/refine": 80.0}
    made |= {"seconds/verify": 20.0, "seconds/train": 60.0, "seconds/sync": 4.0, "seconds/overhead": 3.0}
    made |= {"tokens_per_s/sampler": 4000.0, "disk/free_gib": 500.0, "store/spilled_gib": 0.0}
    made |= {"learner/slowest_rank": step % 8, "learner/slowest_rank_ratio": 1.02}
    made |= {name.replace("__", "/"): value for name, value in changes.items()}
    return {name: value for name, value in made.items() if value is not None}


@cache
def around(*overrides: str) -> tuple[Around, list[str]]:
    recipe = load("paper_opsd_8b", ["stream.max_staleness=1", *overrides])
    return Around.of(recipe), recipe.alarms.silent


def watcher(*overrides: str) -> Watcher:
    return Watcher(*around(*overrides))


def run(seen: Watcher, steps: int, events: Any = (), **changes: Any) -> Watcher:
    """So many more steps of it, all changed alike; the events come with each of them."""
    first = seen.history.last.step + 1 if seen.history.lines else 1
    for step in range(first, first + steps):
        seen.step(step, line(step, **changes), events)
    return seen


def names(seen: Watcher) -> list[str]:
    """Of every alarm that there was, each once."""
    return list(dict.fromkeys(alarm.name for alarm in seen.alarms))
