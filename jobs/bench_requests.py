"""`python -m jobs.bench_requests RUN`: a step of a run beside its requests given to the engines at once.

    rows of the run's last steps -> all rollouts of a step at once -> all refinements at once -> seconds a step
    metrics.jsonl                -> seconds of the same steps in the run

The engines start from the newest checkpoint, and the seeds are the rows', so the tokens are nearly the same; both
counts are printed. What the run's seconds have beyond the engines' and the learner's is what the stream costs.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import wait
from pathlib import Path
from statistics import fmean
from typing import Any

from trd_ray.config import ONLY, Recipe, load
from trd_ray.engine.actor import Generation, Request
from trd_ray.engine.client import Client
from trd_ray.errors import RunFailed, UserError
from trd_ray.record.directory import RunDirectory
from trd_ray.record.display import Display
from trd_ray.rows import dicts
from trd_ray.session.beginning import begin
from trd_ray.session.inputs import prepare
from trd_ray.session.session import Session
from trd_ray.stream.stages import request


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bench_requests", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the directory of a finished run")
    parser.add_argument("--steps", type=int, default=8, help="of the run, the last ones")
    given = parser.parse_args(arguments)
    try:
        measured = measure(given.run, given.steps)
    except (UserError, RunFailed) as e:
        print(f"bench_requests: {e}", file=sys.stderr)
        return 2
    for name, (value, what) in measured.items():
        print(f"{name:<10} {value:7.3f}  {what}")
    return 0


def measure(run: Path, steps: int) -> dict[str, tuple[float, str]]:
    """Name -> (seconds a step, what that is)."""
    checkpoints = sorted(run.glob("checkpoints/step-*/model"))
    if not checkpoints or not (run / "recipe.yaml").is_file():
        raise UserError(f"{run} is no run directory with a checkpoint: give one that `trd train` has finished")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-steps - 1 :]
    if len(lines) < 2:
        raise UserError(
            f"{run} has {len(lines)} steps, and the first measured one only warms up: give one of 2 or more"
        )
    with tempfile.TemporaryDirectory() as place:
        recipe = load(str(run / "recipe.yaml"), [f"run_dir={place}/run", "evaluation.path=null"])
        taken = _take(recipe, RunDirectory(run), [line["step"] for line in lines], str(checkpoints[-1]))
    del lines[0], taken[0]  # the first requests warm up the engines, and no later ones find theirs in a cache
    recorded = fmean(line["y_o/tokens_mean"] for line in lines)
    sampling, refining, tokens = (fmean(values) for values in zip(*taken, strict=True))
    alone = sampling + refining
    whole = fmean(line["seconds/step"] for line in lines)
    train = fmean(line["seconds/train"] for line in lines)
    return {
        "run": (whole, f"seconds/step of the run's last {len(lines)} steps ({recorded:.0f} tokens a rollout)"),
        "engines": (
            alone,
            f"the same requests at once: {sampling:.3f} + {refining:.3f} ({tokens:.0f} tokens a rollout)",
        ),
        "learner": (train, "seconds/train of the run"),
        "beyond": (whole - alone - train, "of the run's seconds: verifying, sync and what the stream costs"),
    }


def _take(recipe: Recipe, run: RunDirectory, steps: list[int], weights: str) -> list[tuple[float, float, float]]:
    """(seconds of sampling, of refining, tokens a rollout) of each step."""
    table = run.read_rows().to_table()
    rows = dicts(table, ["step", "seed", "teacher", "student_prompt_ids", "refine_prompt_ids"])
    with begin("refine", recipe.directory, recipe) as beginning:
        inputs = prepare(recipe, "refine", connection=beginning.connection)
        beginning.require(inputs)
        directory = RunDirectory.create(recipe.directory, recipe, False)
        beginning.claimed(directory, inputs)
        with beginning.session(inputs, directory, Display(0, done=0)) as session:
            session.start(student_path=weights, version=0)
            session.wait_until_started()
            return [_ask(session, [row for row in rows if row["step"] == step], recipe) for step in steps]


def _ask(session: Session, rows: list[dict[str, Any]], recipe: Recipe) -> tuple[float, float, float]:
    begin_s = time.perf_counter()
    sampled = _at_once(
        session.pools["sampler"], [request(recipe.sampler, row["student_prompt_ids"], row["seed"]) for row in rows]
    )
    then_s = time.perf_counter()
    pools = session.refiners()
    for name, one in recipe.by_teacher.items():
        refined = [r for r in rows if r["refine_prompt_ids"] is not None and (r["teacher"] or ONLY) == name]
        asked = [request(one.refiner, r["refine_prompt_ids"], r["seed"] ^ 1, one.refiner.n) for r in refined]
        _at_once(pools[name], asked)
    tokens = fmean(len(generation.ids) for [generation] in sampled)
    return then_s - begin_s, time.perf_counter() - then_s, tokens


def _at_once(pool: Any, requests: list[Request]) -> list[list[Generation]]:
    client = Client(pool)
    try:
        asked = [client.submit(one) for one in requests]
        wait(asked)
        return [one.result() for one in asked]
    finally:
        client.close()


if __name__ == "__main__":
    sys.exit(main())
