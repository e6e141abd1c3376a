"""`python jobs/predicted.py --directory DIR`: what the model of costs says of miniature runs, beside what they took.

    trd train miniature_opsd steps=12                              -> DIR/base, from which rates and lengths are taken
    for each other run: its --dry-run --like DIR/base, and the run -> seconds of a step, predicted and measured

The others differ from the base in their batch, staleness, engines and lengths. The machine's load stands beside each,
since a run beside other work is slower than its prediction. Started again, the same command goes on: a run that is
whole is not made again. Overrides reach every run. On 2 cores all take some minutes.

Exit codes: 0 every prediction is within 30%, 1 one is not, 2 a mistake in the options or a run that failed.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from trd_ray.config import load, stored
from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.record.directory import RunDirectory
from trd_ray.record.markdown import table as markdown_table
from trd_ray.record.predicted import steady

RECIPE = "miniature_opsd"
STEPS = 12
COMMON = (f"steps={STEPS}", "evaluation.path=null")
BASE = "base"
OTHERS: Mapping[str, Sequence[str]] = {
    "rollouts-128": ["rollouts_per_step=128"],
    "staleness-1": ["stream.max_staleness=1"],
    "staleness-1-keep": ["stream.max_staleness=1", "sync.in_flight=keep"],
    "two-samplers": ["sampler.replicas=2", "sampler.cpus=0.25"],  # so that they fit 2 cores beside the others
    "short": ["sampler.max_response_tokens=24"],
    "staleness-4-128": ["stream.max_staleness=4", "rollouts_per_step=128"],
    "staleness-1-128": ["stream.max_staleness=1", "rollouts_per_step=128"],
}
WITHIN = 0.3
LOADS = "loads.json"  # run -> the highest load average (of a minute) at its start and its end


@dataclass(frozen=True)
class Line:
    name: str
    overrides: Sequence[str]
    predicted_s: float
    measured_s: float
    load: float

    @property
    def ratio(self) -> float:
        return self.predicted_s / self.measured_s

    @property
    def within(self) -> bool:
        return abs(self.ratio - 1) <= WITHIN


def overrides_of(name: str, directory: Path, more: Sequence[str] = ()) -> list[str]:
    return [*COMMON, *OTHERS.get(name, []), *more, f"name={name}", f"run_dir={directory / name}"]


def asked(name: str, directory: Path, more: Sequence[str] = ()) -> list[str]:
    """The arguments of the dry run that predicts a run."""
    return [
        "train", RECIPE, *overrides_of(name, directory, more), "--dry-run", f"--like={directory / BASE}", "--json",
    ]  # fmt: skip


def is_done(folder: Path) -> bool:
    return (folder / "metrics.jsonl").is_file() and len(RunDirectory.open(folder).read_metrics()) >= STEPS


def measured_s(folder: Path) -> float:
    """Seconds of the run's median steady step."""
    lines = steady(stored(folder / "recipe.yaml"), RunDirectory.open(folder).read_metrics())
    return median(line["seconds/step"] for line in lines)


def predicted_s(told: str) -> float:
    """Seconds of a step in what a dry run told."""
    cost = json.loads(told)["cost"]
    if cost is None:
        raise UserError("the dry run has no cost, so the recipe does not fit this machine: run it without --json")
    if cost["warnings"]:
        raise UserError(f"the dry run has not taken the rates of {BASE}: {cost['warnings'][0]}")
    return cost["step"]["step_s"]


def table(lines: Sequence[Line]) -> str:
    found = [["run", "overrides", "predicted, s", "measured, s", "ratio", f"within {WITHIN:.0%}", "load"]]
    for one in lines:
        found.append(
            [one.name, " ".join(one.overrides) or "-", f"{one.predicted_s:.2f}", f"{one.measured_s:.2f}",
             f"{one.ratio:.2f}", "yes" if one.within else "no", f"{one.load:.1f}"]
        )  # fmt: skip
    return markdown_table(found)


def train(name: str, directory: Path, more: Sequence[str], load_now: Callable[[], float]) -> None:
    """One run, in a process of its own; it goes on where an earlier start ended."""
    if is_done(directory / name):
        return
    before = load_now()
    command = ["train", RECIPE, *overrides_of(name, directory, more), "--resume=auto"]
    if subprocess.run([sys.executable, "-m", "trd_ray.cli", *command], stdout=sys.stderr).returncode:
        raise UserError(f"the run {name} failed, see {directory / name}: start the same command again to go on")
    loads = read_loads(directory) | {name: max(before, load_now())}
    write_atomically(directory / LOADS, json.dumps(loads, indent=1))


def read_loads(directory: Path) -> dict[str, float]:
    place = directory / LOADS
    return json.loads(place.read_text()) if place.is_file() else {}


def predict(name: str, directory: Path, more: Sequence[str]) -> float:
    command = [sys.executable, "-m", "trd_ray.cli", *asked(name, directory, more)]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise UserError(f"the dry run of {name} failed: {' '.join(answer.stderr.split())[-300:]}")
    return predicted_s(answer.stdout)


def lines_of(directory: Path, more: Sequence[str]) -> list[Line]:
    def load_now() -> float:
        return os.getloadavg()[0]

    train(BASE, directory, more, load_now)
    found = []
    for name, overrides in {BASE: [], **OTHERS}.items():
        said = predict(name, directory, more)
        train(name, directory, more, load_now)
        loads = read_loads(directory)
        found.append(Line(name, overrides, said, measured_s(directory / name), loads.get(name, float("nan"))))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="of the runs; one that is there is gone on with")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="of every run")
    options = parser.parse_args(arguments)
    directory = options.directory.expanduser().absolute()
    try:
        for name in (BASE, *OTHERS):  # a mistake in an override is told before anything runs
            load(RECIPE, overrides_of(name, directory, options.overrides))
        directory.mkdir(parents=True, exist_ok=True)
        lines = lines_of(directory, options.overrides)
    except UserError as e:
        print(f"predicted.py: {e}", file=sys.stderr)
        return 2
    print(table(lines))
    return 0 if all(one.within for one in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
