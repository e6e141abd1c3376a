"""`python jobs/bench_scale.py`: engines that move by themselves, beside every fixed split of the same engines.

    workload -> a run for each split of the engines, which stays -> the fastest
             -> a run that begins with an even split             -> its time to the fastest's, its changes
             -> a run that begins with one engine each           -> the same; the engines are there, and are asked for

The runs are simulated: pools, clients, gate, weight updates, loads, policy and resizing are the real ones; engines,
verifier and learner sleep, on a clock that jumps. An engine takes 60 simulated seconds to start. Every run of a
workload must have the same ledger: rows, seeds, versions and lengths. Options: `--help`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from scale_bench.story import Scene, Told, Workload, tell

from trd_ray.scale.scale_policy import EngineBounds, ScalePolicy

WORKLOADS = (
    Workload("sampler-bound", raw=(4000,), refined=(800,)),
    Workload("refiner-bound", raw=(1000,), refined=(4000,)),
    Workload("changes half-way", raw=(4000, 1000), refined=(800, 4000)),
)


@dataclass(frozen=True)
class Line:
    workload: str
    begins: str  # sampler:refiner
    seconds: float
    to_best: float
    changes: list[str]  # after which step, to which split
    same_ledger: bool


def lines(scene: Scene, workload: Workload, begins: Sequence[str] = ("even", "one")) -> list[Line]:
    """Every fixed split, then a run that the policy scales for each way to begin."""
    fixed = {(s, scene.engines - s): _tell(scene, workload, s, scene.engines - s) for s in range(1, scene.engines)}
    best_s = min(told.seconds for told in fixed.values())
    rows = next(iter(fixed.values())).ledger
    even = scene.engines // 2
    splits = {"even": (even, scene.engines - even), "one": (1, 1)}
    found = [_line(workload, f"{s}:{r}", told, best_s, rows) for (s, r), told in fixed.items()]
    for s, r in (splits[name] for name in begins):
        bounds = EngineBounds(1, scene.engines - 1)
        told = _tell(scene, workload, s, r, ScalePolicy({"sampler": bounds, "refiner": bounds}))
        found.append(_line(workload, f"{s}:{r}, scaled", told, best_s, rows))
    return found


def _tell(scene: Scene, workload: Workload, sampler: int, refiner: int, policy: ScalePolicy | None = None) -> Told:
    return tell(scene, workload, {"sampler": sampler, "refiner": refiner}, policy)


def _line(workload: Workload, begins: str, told: Told, best_s: float, rows: list[tuple[int, ...]]) -> Line:
    changes = [f"{step}: {counts['sampler']}:{counts['refiner']}" for step, counts, _ in told.changes]
    return Line(workload.name, begins, told.seconds, told.seconds / best_s, changes, told.ledger == rows)


def table(found: Sequence[Line]) -> str:
    out = ["| workload | sampler:refiner | s | to the best split | changes, after a step | ledger |"]
    out.append("|---|---|---:|---:|---|---|")
    for one in found:
        ledger = "same" if one.same_ledger else "**differs**"
        changes = ", ".join(one.changes)
        out.append(f"| {one.workload} | {one.begins} | {one.seconds:.0f} | {one.to_best:.3f} | {changes} | {ledger} |")
    return "\n".join(out)


def settings(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(
        prog="bench_scale", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    scene = Scene()
    parser.add_argument("--engines", type=int, default=scene.engines, help="in all (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=scene.steps, help="of a run (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=scene.rows, help="of a step (default: %(default)s)")
    parser.add_argument("--staleness", type=int, default=scene.staleness, help="default: %(default)s")
    parser.add_argument("--start-seconds", type=float, default=scene.pace.start_s, help="of an engine")
    parser.add_argument("--all", action="store_true", help="a line for every fixed split, not for the best alone")
    parser.add_argument("--json", action="store_true", help="a line for programs, too")
    given = parser.parse_args(arguments)
    if given.engines < 2 or given.steps < 1 or given.rows < 1 or given.staleness < 0 or given.start_seconds < 0:
        parser.error("there must be 2 engines or more, and a step and a row; no number may be below 0")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    given = settings(arguments)
    scene = Scene(engines=given.engines, steps=given.steps, rows=given.rows, staleness=given.staleness)
    scene = replace(scene, pace=replace(scene.pace, start_s=given.start_seconds))
    found = [line for workload in WORKLOADS for line in lines(scene, workload)]
    print(table([one for one in found if given.all or one.to_best == 1 or "scaled" in one.begins]))
    if given.json:
        print(json.dumps([asdict(one) for one in found]))
    return 0 if all(one.same_ledger for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
