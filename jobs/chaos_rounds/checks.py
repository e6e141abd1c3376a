"""What must hold of a run's directory after it was struck: pure functions, each of which names what does not.

the directory, that of the undisturbed run -> flaws(): sentences, none if all is well
"""

import json
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq

from trd_ray import lineage
from trd_ray.distill import checksums
from trd_ray.record.directory import RunDirectory
from trd_ray.rows import RowFiles

# What a row is before anything has answered it: the same in every run of a recipe.
GIVEN = ["row", "step", "problem_id", "seed", "student_prompt_ids"]
KEPT_IN_TEMPORARY = ("ray", "torchinductor_")  # Ray's logs of its session, torch's compiled kernels
MOST_NAMED = 3
LITTER_S = 10.0


def flaws(directory: Path, calm: Path | None, steps: int, rows_per_step: int, same_weights: bool) -> list[str]:
    """What does not hold. `calm` is the run that nothing struck, None where there is none.

    `same_weights` is whether they must be bit-identical: they are where every row is answered alike.
    """
    rows = given(directory)
    found = rows_flaws(rows, steps, rows_per_step) + metric_flaws(_lines(directory / "metrics.jsonl"), steps)
    found += half_written(directory) + lineage_flaws(directory)
    if calm is not None:
        found += order_flaws(rows, given(calm))
        if same_weights:
            found += weight_flaws(directory, calm)
    return found


def given(directory: Path) -> list[dict]:
    files = sorted((directory / "rows").glob("step-*.parquet"))
    return RowFiles(files).to_table(GIVEN).to_pylist() if files else []


def rows_flaws(rows: Iterable[dict], steps: int, rows_per_step: int) -> list[str]:
    """Rows that were lost or recorded twice, and those of a step that is not their own."""
    rows = list(rows)
    times = Counter(row["row"] for row in rows)
    twice = [row for row, count in times.items() if count > 1]
    lost = [row for row in range(steps * rows_per_step) if row not in times]
    more = [row for row in times if row >= steps * rows_per_step]
    moved = [row["row"] for row in rows if row["step"] != row["row"] // rows_per_step + 1]
    kinds = (("recorded twice", twice), ("lost", lost), ("beyond the last step", more), ("in another step", moved))
    return [f"{len(which)} rows {what}: {_some(which)}" for what, which in kinds if which]


def metric_flaws(lines: Iterable[dict], steps: int) -> list[str]:
    numbers = [line["step"] for line in lines]
    return [] if numbers == list(range(1, steps + 1)) else [f"metrics.jsonl has the steps {_some(numbers, 12)}"]


def order_flaws(rows: list[dict], calm: list[dict]) -> list[str]:
    """Rows whose problem, order or seed is another than in the undisturbed run, as far as both have gone."""
    other = [one["row"] for one, same in zip(rows, calm, strict=False) if one != same]
    return [f"{len(other)} rows have another problem, place or seed than undisturbed: {_some(other)}"] if other else []


def weight_flaws(directory: Path, calm: Path) -> list[str]:
    """Whether the newest checkpoints hold the same weights, bit by bit."""
    ours, theirs = (_newest(RunDirectory(place)) for place in (directory, calm))
    if ours is None or theirs is None:
        return [f"{directory if ours is None else calm} has no checkpoint"]
    if ours.name != theirs.name:
        return [f"the newest checkpoint is {ours.name}, undisturbed it is {theirs.name}"]
    exports = [{file.name: file.read_bytes() for file in (place / "model").iterdir()} for place in (ours, theirs)]
    names = sorted(exports[0].keys() | exports[1].keys())
    other = [name for name in names if exports[0].get(name) != exports[1].get(name)]
    return [f"of {ours.name}, {_some(other)} differs from the undisturbed run's"] if other else []


def lineage_flaws(directory: Path) -> list[str]:
    """Checkpoints that other rows have made than those of the ledger, by their SHA-256."""
    files = list((directory / "rows").glob("step-*.parquet"))
    found = []
    for steps, folder in RunDirectory(directory).checkpoints():
        said = json.loads((folder / "state.json").read_text()).get("rows_sha256")
        if said != lineage.of_ledger(files, until=steps):
            found.append(f"other rows made {folder.name} than the ledger holds: its SHA-256 is {str(said)[:12]}")
    return found


def half_written(directory: Path) -> list[str]:
    """Files and folders that are not whole, or that only an unfinished write leaves."""
    found = []
    for place in sorted(directory.rglob("*")):
        name = str(place.relative_to(directory))
        if name.startswith(("rewound/", "logs/")):
            continue
        if place.name.startswith(".") and place.name.endswith((".tmp", ".deleted")):
            found.append(f"{name} is left of an unfinished write")
        elif place.suffix == ".parquet" and (why := _unreadable(place)):
            found.append(f"{name} is damaged: {why}")
        elif place.suffix in (".json", ".jsonl") and not _is_json(place):
            found.append(f"{name} is damaged")
    # Imported here since it imports all of torch.
    from trd_ray.distill.checkpoint import flaw

    for _, folder in RunDirectory(directory).checkpoints():
        if why := flaw(folder) or checksums.flaw(folder, checksums.read(folder) or {}):
            found.append(f"{folder.name} is damaged: {why}")
    return found


def litter(temporary: Path, but: Iterable[str] = ()) -> list[str]:
    """What a run has left in the temporary folder that was its own, after LITTER_S for what removes it."""
    kept = (*KEPT_IN_TEMPORARY, *but)
    deadline = time.monotonic() + LITTER_S
    while left := [place.name for place in sorted(temporary.glob("*")) if not place.name.startswith(kept)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return [f"left in the temporary folder: {_some(left)}"] if left else []


def said_badly(output: str) -> list[str]:
    """A trace on the screen, where a sentence belongs."""
    return ["the screen shows a Python traceback"] if "Traceback (most recent call last)" in output else []


def _newest(directory: RunDirectory) -> Path | None:
    found = directory.checkpoints()
    return found[-1][1] if found else None


def _lines(place: Path) -> list[dict]:
    return [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []


def _unreadable(place: Path) -> str:
    try:
        pq.read_table(place)
    except Exception as e:  # noqa: BLE001 - whatever is wrong with it
        return " ".join(str(e).split())[:100]
    return ""


def _is_json(place: Path) -> bool:
    try:
        text = place.read_text()
        for part in text.splitlines() if place.suffix == ".jsonl" else [text]:
            json.loads(part)
    except ValueError:
        return False
    return True


def _some(what: list, most: int = MOST_NAMED) -> str:
    return ", ".join(map(str, what[:most])) + (f" and {len(what) - most} more" if len(what) > most else "")
