"""`python -m jobs.bench_turns`: a recipe with engines and learner apart, with one pool for both roles, and in turns.

    the same recipe and seed, one placement after the other -> `trd train` -> seconds a step, memory, rows -> a table

Each run is a process of its own. Memory is the largest sum of PSS that was seen of all its processes, so what they
share counts once. On a CPU nothing is freed in a turn: what is saved is then the engines that one pool for both roles
saves. The last column compares the first step with that of the first run: all engines hold the initial weights in it.

All have adapters, which placement=shared needs, and the longer context of sampler and refiner. Other keys:

    python -m jobs.bench_turns miniature_opsd --steps 8 --out turns
    python -m jobs.bench_turns miniature_opsd --placements separate,timeshare \\
        --override learner.lora=null --override sync.lora=merged
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from operator import eq
from pathlib import Path

import psutil

from trd_ray.config import load
from trd_ray.errors import UserError
from trd_ray.rows import RowFiles

PLACEMENTS = ("separate", "shared", "timeshare")
ADAPTERS = ["learner.lora={rank: 8, alpha: 16}", "sync.lora=adapter"]
ON_POLICY = ["stream.max_staleness=0", "evaluation.path=null"]
LOOK_S = 0.5
MIB = 2**20
COLUMNS = ("placement", "s a step", "train", "sync", "rest", "wake", "overhead", "peak PSS, MiB", "tokens as the first")


@dataclass(frozen=True)
class Measured:
    placement: str
    steps: list[dict]  # metrics of all steps
    pss_bytes: int
    first_tokens: list[list[int]]  # of y_o and y_r in the first step

    def median_s(self, part: str) -> float | None:
        """Of all steps but the first, in which engines and learner compile."""
        known = [line[f"seconds/{part}"] for line in self.steps[1:] if f"seconds/{part}" in line]
        return statistics.median(known) if known else None


class PeakMemory:
    """The largest sum of PSS of a process and all that it has started, looked at until it is stopped."""

    def __init__(self, pid: int):
        self.pid, self.peak_bytes = pid, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            self.peak_bytes = max(self.peak_bytes, pss_bytes(self.pid))

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return self.peak_bytes


def pss_bytes(pid: int) -> int:
    """Of a process and its descendants; those that end meanwhile count nothing."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        given = asked(arguments)
        with tempfile.TemporaryDirectory() as place:
            found = [measure(one, given, Path(given.out or place)) for one in given.placements]
    except UserError as e:
        print(f"bench_turns: {e}", file=sys.stderr)
        return 2
    print(table(found))
    return 0


def asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Raises UserError for a placement that there is not, and for one that the recipe cannot have."""
    parser = argparse.ArgumentParser(
        prog="bench_turns", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", default="miniature_opsd", help="a recipe that ships, or a file")
    parser.add_argument("--placements", default=",".join(PLACEMENTS), help="which, in their order, with commas")
    parser.add_argument("--steps", type=int, default=8, help="of each run; the first is not measured")
    parser.add_argument("--override", action="append", default=[], help="a key of the recipe, for all; may be repeated")
    parser.add_argument("--out", help="a folder for the run directories, which are removed otherwise")
    given = parser.parse_args(arguments)
    given.placements = [one.strip() for one in given.placements.split(",")]
    unknown = [one for one in given.placements if one not in PLACEMENTS]
    if unknown:
        raise UserError(f"there is no placement {unknown[0]!r}: choose among {', '.join(PLACEMENTS)}")
    if given.steps < 2:
        raise UserError(
            f"--steps {given.steps} leaves nothing to measure, since the first step warms up: give 2 or more"
        )
    for placement in given.placements:
        load(given.recipe, overrides(placement, given))
    return given


def overrides(placement: str, given: argparse.Namespace) -> list[str]:
    plain = load(given.recipe)
    lengths = plain.sampler.max_model_len, plain.refiner.max_model_len
    longer = [f"sampler.max_model_len={max(filter(None, lengths))}"] if all(lengths) else []
    steps = f"steps={given.steps}"
    return [*ADAPTERS, *ON_POLICY, *longer, steps, *given.override, f"placement={placement}"]


def measure(placement: str, given: argparse.Namespace, place: Path) -> Measured:
    """Raises UserError where the run fails, with the end of what it said."""
    directory = place / placement
    command = [sys.executable, "-m", "trd_ray.cli", "train", given.recipe, f"run_dir={directory}"]
    print(f"{placement}: {' '.join(command[2:])}", file=sys.stderr)
    place.mkdir(parents=True, exist_ok=True)
    log = place / f"{placement}.out"
    begin = time.monotonic()
    with log.open("w") as out:
        run = subprocess.Popen([*command, *overrides(placement, given)], stdout=out, stderr=subprocess.STDOUT)
        memory = PeakMemory(run.pid)
        try:
            code = run.wait()
        except BaseException:
            run.terminate()
            run.wait()
            raise
        finally:
            peak = memory.stop()
    if code:
        said = "\n".join(log.read_text().splitlines()[-15:])
        raise UserError(f"the run with placement={placement} ended with exit code {code}:\n{said}")
    print(f"{placement}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    rows = RowFiles([min((directory / "rows").glob("step-*.parquet"))]).to_table().to_pylist()
    tokens = [list((row[y] or {}).get("ids") or []) for row in rows for y in ("y_o", "y_r")]
    return Measured(placement, [json.loads(line) for line in lines], peak, tokens)


def same_share(one: Measured, other: Measured) -> float:
    """The share of tokens of the first step that are the same."""
    pairs = [same for a, b in zip(one.first_tokens, other.first_tokens, strict=True) for same in map(eq, a, b)]
    return statistics.fmean(pairs) if pairs else 0.0


def table(found: Sequence[Measured]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    for one in found:
        seconds = [one.median_s(part) for part in ("step", "train", "sync", "rest", "wake", "overhead")]
        cells = ["-" if value is None else f"{value:.2f}" for value in seconds]
        same = f"{same_share(one, found[0]):.1%}"
        lines.append("| " + " | ".join([one.placement, *cells, f"{one.pss_bytes / MIB:,.0f}", same]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
