"""`python jobs/bench_loop.py --directory DIR [--seeds 3]`: one whole run of ours beside TRL's on-policy distillation.

    recipe miniature_opd -> for each seed, one after the other, each in a process of its own:
        ours, forward KL on y_o   the algorithm that TRL's DistillationTrainer has
        the same, a step ahead    stream.max_staleness=1, which TRL has not: the next rows are sampled while it trains
        ours, TRD                 the same student, problems, steps and rows
        TRL, vLLM                 DistillationTrainer with an engine in its own process (vllm_mode=colocate)
        TRL, own generation       the same with transformers' generate
    -> checkpoints of all sides, every few steps, scored in the same way -> table.md, results.json

Both sides have the same weights, teacher, problems in the same order, rows a step, updates a step, lengths, sampling,
AdamW, schedule, precision and number of threads (all cores). TRL samples for each update, so of a step with several
updates it samples a part at a time, from fresher weights; `learner.updates_per_step=1` makes the steps the same ones.
TRL's vLLM mode is written for GPUs; where it does not work, the table says why, and its own generation stands alone.

A part that is finished is not made again; one that was interrupted begins anew, since its seconds would not be of one
go. Nothing else should run beside it. Overrides (`steps=10`, `learner.lora={}`, `cluster.memory_gib=20`) reach all.

Exit codes: 0 measured, 2 a mistake in the options, or neither ours nor TRL's could be run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import seeded_runs
import yaml
from loop_bench.memory import Peak
from loop_bench.parity import batch, require_alike
from loop_bench.told import OURS, OURS_AHEAD, OURS_TRD, SIDES, TRL, TRL_VLLM, Part, course, lines, table, verdict

from trd_ray import models
from trd_ray.config import Recipe, apply_override, from_tree, recipe_tree
from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.record.directory import RunDirectory
from trd_ray.record.generated import generated
from trd_ray.record.ledger import facts_of_run

HERE = Path(__file__).resolve().parent
RECIPE = "miniature_opd"
PART_S = 3600  # the longest that a part may take
VLLM_ON_A_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}


class PartFailed(Exception):
    """Why a part has no figures."""


def run_tree(side: str, seed: int, folder: Path, every: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe of one part: what our run is, and what TRL is given the same of."""
    tree = recipe_tree(RECIPE)
    tree |= {"name": f"{side}-{seed}", "seed": seed, "run_dir": str(folder / f"{side}-{seed}" / "run")}
    if side != OURS_TRD:
        tree["train"] = {"trajectory": "y_o"}
        tree["teacher"]["view"] = "vanilla"
    for override in overrides:
        apply_override(tree, override)
    if side == OURS_AHEAD:
        apply_override(tree, "stream.max_staleness=1")
    # Both sides save and are scored afterwards; the recipe's evaluation says on what.
    tree["checkpoint"] = {"every_steps": every, "keep_last": 1000}
    tree["evaluation"] |= {"before": False, "after": False, "every_steps": None}
    return tree


# The parts


def command(side: str, recipe: Path, folder: Path, every: int) -> list[str]:
    if side in (TRL, TRL_VLLM):
        asked = {"recipe": str(recipe), "folder": str(folder), "every": every, "vllm": side == TRL_VLLM}
        write_atomically(folder / "asked.json", json.dumps(asked))
        return [sys.executable, "-m", "loop_bench.trl_side", str(folder / "asked.json")]
    return [sys.executable, "-m", "trd_ray.cli", "train", str(recipe)]


def environment() -> dict[str, str]:
    """Of every process: the parts' modules are found, nothing is fetched, and vLLM in TRL's process fits a CPU."""
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    return os.environ | VLLM_ON_A_CPU | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}


def make(side: str, tree: Mapping[str, Any], folder: Path, every: int) -> None:
    """Run one part from its launch to its end, and write part.json. Raises PartFailed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    recipe = folder / "recipe.yaml"
    write_atomically(recipe, yaml.safe_dump(dict(tree), sort_keys=False))
    with (folder / "log.txt").open("w") as log:
        launched = time.time()
        process = subprocess.Popen(
            command(side, recipe, folder, every), stdout=log, stderr=subprocess.STDOUT, env=environment()
        )
        with Peak(process.pid) as peak:
            finished(process)
        whole_s = time.time() - launched
    if process.returncode:
        raise PartFailed(f"exit code {process.returncode}: {last_line(folder / 'log.txt')}")
    measured = of_trl if side in (TRL, TRL_VLLM) else of_ours
    part = measured(folder, launched, whole_s, peak.mib)
    write_atomically(folder / "part.json", json.dumps(asdict(part)))


def finished(process: subprocess.Popen) -> None:
    """Wait for a part; one that takes too long, or an interrupted benchmark, ends it."""
    try:
        process.wait(PART_S)
    except BaseException as e:
        process.terminate()  # our run leaves nothing behind after this signal
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if isinstance(e, subprocess.TimeoutExpired):
            raise PartFailed(f"it took more than {PART_S} s") from e
        raise


def last_line(log: Path) -> str:
    """What a failed part said last, short enough for a table."""
    said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return (said or ["no output"])[-1][:200].replace("|", "/")


def of_ours(folder: Path, launched: float, whole_s: float, peak_mib: float) -> Part:
    run = RunDirectory(folder / "run")
    metrics = run.read_metrics()
    steps_s = [line["seconds/step"] for line in metrics]
    tokens = sum(generated(facts_of_run(run.read_rows())).values())
    start_s = metrics[0]["time_s"] - steps_s[0] - launched
    return Part(start_s, steps_s, whole_s, int(sum(line["rollouts"] for line in metrics)), tokens, peak_mib)


def of_trl(folder: Path, launched: float, whole_s: float, peak_mib: float) -> Part:
    found = json.loads((folder / "measured.json").read_text())
    return Part(found["first"] - launched, found["steps_s"], whole_s, found["samples"], found["tokens"], peak_mib)


def checkpoints(side: str, folder: Path, updates: int) -> dict[str, str]:
    """Step -> the folder of the weights after it."""
    if side in (TRL, TRL_VLLM):
        saved = {int(place.name.rpartition("-")[2]): place for place in folder.glob("checkpoint-*")}
        return {str(update // updates): str(place) for update, place in sorted(saved.items())}
    return {str(step): str(place / "model") for step, place in RunDirectory(folder / "run").checkpoints()}


def score(recipe: Recipe, place: Path, samples: int, weights: Mapping[str, str]) -> dict[str, Any]:
    """Passes of each checkpoint, in a process of its own, unless they are there. Raises PartFailed."""
    out = place / f"passes-{samples}.json"
    if not out.is_file():
        asked = {"recipe": str(place / "recipe.yaml"), "samples": samples, "checkpoints": weights, "out": str(out)}
        write_atomically(place / "scored.json", json.dumps(asked))
        words = [sys.executable, "-m", "loop_bench.scoring", str(place / "scored.json")]
        with (place / "scoring.txt").open("w") as log:
            code = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, env=environment()).returncode
        if code:
            raise PartFailed(f"scoring ended with exit code {code}: {last_line(place / 'scoring.txt')}")
    return json.loads(out.read_text())


# The whole


def settings(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[tuple[str, int], dict[str, Any]]]:
    """The options, and the recipe of each part. Raises UserError for what cannot be measured."""
    parser = seeded_runs.parser("bench_loop", __doc__)
    add = parser.add_argument
    add("--sides", default=",".join(SIDES), help=f"some of {', '.join(SIDES)} (default: all)")
    add("--every", type=seeded_runs.whole, default=5, help="steps between two scores (default: %(default)s)")
    add("--samples", type=seeded_runs.whole, default=8, help="of each held-out problem (default: %(default)s)")
    given = parser.parse_args(arguments)
    given.sides = given.sides.split(",")
    if unknown := [side for side in given.sides if side not in SIDES]:
        raise UserError(f"there is no side {unknown[0]!r}: choose from {', '.join(SIDES)}")
    if any(side in (TRL, TRL_VLLM) for side in given.sides) and not find_spec("trl"):
        raise UserError("TRL is not installed, which this compares with: pip install trl==1.16.0")
    trees = {}
    require_alike(from_tree(run_tree(OURS, 0, given.directory, given.every, given.overrides)))
    for seed in range(given.seeds):
        for side in given.sides:
            trees[side, seed] = run_tree(side, seed, given.directory, given.every, given.overrides)
            recipe = from_tree(dict(trees[side, seed]))
            if not recipe.steps or recipe.steps % given.every:
                raise UserError(
                    f"--every {given.every} does not divide the {recipe.steps} steps: the last has no score"
                )
            models.resolve(recipe.student.path)
            require_same(given.directory / f"{side}-{seed}", trees[side, seed])
    return given, trees


def require_same(folder: Path, tree: Mapping[str, Any]) -> None:
    """Raise UserError where a finished part is of another recipe, with which this one could not be compared."""
    if (folder / "part.json").is_file() and yaml.safe_load((folder / "recipe.yaml").read_text()) != tree:
        raise UserError(f"{folder} is a part with other overrides or another --every: give another --directory")


def measured(given: argparse.Namespace, trees: Mapping[tuple[str, int], Mapping[str, Any]]) -> tuple[Any, Any, Any]:
    """Parts and passes by side, a list over the seeds, and why sides failed. A side that failed once is left out."""
    parts: dict[str, list[Part]] = {}
    passes: dict[str, list[Any]] = {}
    failures: dict[str, str] = {}
    for (side, seed), tree in trees.items():
        folder, recipe = given.directory / f"{side}-{seed}", from_tree(dict(tree))
        if side in failures:
            continue
        print(f"{SIDES[side]}, seed {seed}", file=sys.stderr, flush=True)
        try:
            if not (folder / "part.json").is_file():
                make(side, tree, folder, given.every)
            part = Part(**json.loads((folder / "part.json").read_text()))
            weights = {"0": models.resolve(recipe.student.path)}
            weights |= checkpoints(side, folder, recipe.learner.updates_per_step)
            found = score(recipe, folder, given.samples, weights)
        except PartFailed as e:
            failures[side] = str(e)
            print(f"  failed: {e}; the whole output is in {folder}", file=sys.stderr)
            continue
        parts.setdefault(side, []).append(part)
        passes.setdefault(side, []).append(found)
    return parts, passes, failures


def notes(recipe: Recipe) -> str:
    import torch

    learner = recipe.learner
    trl = f"TRL {version('trl')}" if find_spec("trl") else "without TRL"
    trains = f"LoRA, rank {learner.lora.rank}" if learner.lora else "all weights"
    return (
        f"{recipe.steps} steps of {recipe.rollouts_per_step} rows, {learner.updates_per_step} updates of "
        f"{batch(recipe)}; {trains} in {learner.dtype}, AdamW at {learner.lr:g}. {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads; torch {torch.__version__}, {trl}. Seconds of steps are without start and "
        "checkpoints; scores are made afterwards, in the same way for all sides."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        given, trees = settings(arguments)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    given.directory.mkdir(parents=True, exist_ok=True)
    parts, passes, failures = measured(given, trees)
    if not parts:
        print("no side could be run: what each said last stands above", file=sys.stderr)
        return 2
    told = lines(parts, passes)
    recipe = from_tree(dict(next(iter(trees.values()))))
    text = "\n\n".join(
        [table(told, failures, given.samples), course(told, given.samples), verdict(told), notes(recipe)]
    )
    write_atomically(given.directory / "table.md", text + "\n")
    results = {"lines": [asdict(line) for line in told], "failures": failures, "recipe": recipe.model_dump(mode="json")}
    write_atomically(given.directory / "results.json", json.dumps(results, indent=1))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
