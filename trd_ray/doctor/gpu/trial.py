"""`trd doctor --gpu`: the parts one after another, each in a process of its own, and one table of what came of them.

    PARTS -> skipped, for want of GPUs or packages
          -> kept, passed by an earlier start with the same cards, driver, packages and commit
          -> one_part.py in a process -> OUT/PART/said.json, OUT/PART/log
    all   -> OUT/results.json, OUT/results.md and the table on the screen, after every part

- A part that crashes, hangs or is killed costs only itself: at its deadline all processes below this one are ended,
  the engines and Ray's among them, and the next part begins on a free GPU.
- A signal ends the part under way and this program. What is done is kept, and the same command goes on.
"""

import difflib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from trd_ray.doctor.findings import columns
from trd_ray.doctor.gpu.one_part import SAID
from trd_ray.doctor.gpu.outcome import FAIL, PASS, SKIPPED, PartOutcome
from trd_ray.doctor.gpu.parts import BY_NAME, PARTS, Part
from trd_ray.doctor.this_machine import gpus_seen
from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.record.environment import commit, versions
from trd_ray.record.markdown import inline, table
from trd_ray.session.last_words import PR_SET_CHILD_SUBREAPER, prctl
from trd_ray.session.stop import SIGNALS, Stopped
from trd_ray.session.supervise import end_descendants

RESULTS = "results.json"
LEAVE_S = 2.0  # for a part's processes to end by themselves after it


def run(only: list[str], out: Path, *, as_json: bool = False) -> int:
    """Run the parts that are named, or all. Returns 0, or 1 if a part failed. Raises UserError for an unknown part."""
    require_parts(only)
    wanted = [BY_NAME[name] for name in only] if only else list(PARTS)
    cards = gpus_seen()
    machine = "; ".join([*(f"{cards.count(card)} x {card}" for card in dict.fromkeys(cards)), *_software()])
    earlier = read(out)
    written = dict(earlier)
    found: dict[str, PartOutcome] = {}

    def tell(outcome: PartOutcome) -> None:
        """Show an outcome, and write it down; a part that could not be tried keeps what it measured earlier."""
        found[outcome.part] = outcome
        measured = earlier.get(outcome.part)
        keeps = outcome.state == SKIPPED and measured is not None and measured.state != SKIPPED
        if not keeps:
            written[outcome.part] = outcome
        write(out, written)
        if not as_json:
            kept = f"; the table keeps {measured.state}, of an earlier start" if measured and keeps else ""
            print(_line(outcome) + kept, flush=True)

    out.mkdir(parents=True, exist_ok=True)
    with _stopping(out):
        for part in wanted:
            if reason := part.lacking(len(cards)):
                tell(PartOutcome(part.name, SKIPPED, reason, machine=machine))
            elif not only and (kept := earlier.get(part.name)) and kept.state == PASS and kept.machine == machine:
                tell(kept)
            else:
                if not as_json:
                    print(f"{part.name}: {part.says} ...", flush=True)
                tell(tried(part, out / part.name, machine))
    if as_json:
        print((out / RESULTS).read_text())
    else:
        print(f"\n{_sum(list(found.values()))}; the table and the logs are in {out}")
    return int(any(outcome.state == FAIL for outcome in found.values()))


def require_parts(names: list[str]) -> None:
    """Raise UserError for a name that is no part's."""
    for name in names:
        if name not in BY_NAME:
            close = difflib.get_close_matches(name, BY_NAME, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(f"--only {name} names no part{hint}: they are {', '.join(BY_NAME)}")


def _software() -> list[str]:
    return [*(f"{package} {found}" for package, found in versions().items()), f"commit {commit() or 'unknown'}"]


def tried(part: Part, folder: Path, machine: str) -> PartOutcome:
    """Run a part in a process of its own; whatever becomes of the process, there is an outcome and nothing is left."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SAID).unlink(missing_ok=True)
    command = [sys.executable, "-m", "trd_ray.doctor.gpu.one_part", part.work, str(folder)]
    begin = time.monotonic()
    with (folder / "log").open("w") as log:
        # A group of its own: Ctrl-C reaches this program, which then ends the part.
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, process_group=0)
        late = False
        try:
            process.wait(part.deadline_s)
        except subprocess.TimeoutExpired:
            late = True
            process.kill()
        finally:
            end_descendants(0.0 if late else LEAVE_S)
    seconds = time.monotonic() - begin
    if late:
        why = f"not done after {part.deadline_s:.0f} s: see {folder / 'log'}"
        return PartOutcome(part.name, FAIL, why, {}, seconds, machine)
    try:
        said = json.loads((folder / SAID).read_text())
    except (OSError, ValueError):
        last = ((folder / "log").read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        why = f"its process ended with {process.returncode}: {last[:300]}"
        return PartOutcome(part.name, FAIL, why, {}, seconds, machine)
    return PartOutcome(part.name, said["state"], said["why"], said["figures"], seconds, machine)


@contextmanager
def _stopping(out: Path) -> Iterator[None]:
    """Within the block this process adopts what parts leave behind, and a signal ends them all before it is raised."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def stop(number: int, _frame: FrameType | None) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(number, f"what is done is kept in {out}: the same command goes on")

    for number, handler in before.items():
        if handler != signal.SIG_IGN or number == signal.SIGTERM:
            signal.signal(number, stop)
    try:
        yield
    finally:
        end_descendants(0.0)
        for number, handler in before.items():
            signal.signal(number, handler if callable(handler) or isinstance(handler, int) else signal.SIG_DFL)


# What is kept and shown


def read(out: Path) -> dict[str, PartOutcome]:
    """The outcomes of earlier starts; {} where there are none, or none that this version wrote."""
    try:
        return {one["part"]: PartOutcome(**one) for one in json.loads((out / RESULTS).read_text())["parts"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write(out: Path, found: dict[str, PartOutcome]) -> None:
    ordered = [found[name] for name in BY_NAME if name in found]
    write_atomically(out / RESULTS, json.dumps({"parts": [asdict(o) for o in ordered]}, indent=2) + "\n")
    rows = [[o.part, o.state, f"{o.seconds:.0f}", inline(o.said)] for o in ordered]
    machines = "\n".join(dict.fromkeys(f"- {inline(o.machine)}" for o in ordered))
    write_atomically(out / "results.md", f"{table([['part', 'state', 's', 'found'], *rows])}\n\n{machines}\n")


def _line(outcome: PartOutcome) -> str:
    width = max(map(len, BY_NAME))
    return f"{outcome.part:{width}}  {outcome.state:7}  {outcome.seconds:4.0f} s  {outcome.said or _says(outcome)}"


def _says(outcome: PartOutcome) -> str:
    return BY_NAME[outcome.part].says


def _sum(outcomes: list[PartOutcome]) -> str:
    counts = {state: sum(o.state == state for o in outcomes) for state in (PASS, FAIL, SKIPPED)}
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def listing() -> str:
    """The parts, for --help."""
    return columns([[part.name, str(part.gpus), part.says] for part in PARTS], [""] * len(PARTS))
