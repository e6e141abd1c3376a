"""A run directory: everything a run leaves behind, claimed by one process at a time.

    recipe.yaml                 the resolved recipe, every key
    environment.json            versions, machine and command, one entry a start
    metrics.jsonl               one line a step; train.log holds the same for people
    rows/step-000001.parquet    the rows of step 1, see trd_ray.rows
    checkpoints/step-000012/    the state after step 12
    evaluation/base.json        a score; base.parquet holds its rows
    timeline.json               who worked and who waited when; opens in ui.perfetto.dev
    events.jsonl                what happened (trd_ray.record.events); alarms.json, what is wrong (trd_ray.alarms)
    scale.json                  how many engines each pool had, for the run that goes on (trd_ray.session.scaling)
    status.json door/           what the run does, and what it is asked (trd_ray.session.door)
    tensorboard/ logs/ summary.md, and review/ where a person judges (trd_ray.verify.review)
    rewound/1/                  what was recorded after the checkpoint that a resumed run went on from

The rules:

- Steps count from 1 in all files: checkpoint 12 holds what steps 1 to 12 made. A strictly on-policy row of step 12 was
  sampled by policy version 11.
- Each file appears whole (see trd_ray.files), so a crash at any moment leaves a directory to resume from.
- Nothing that was recorded is deleted, except old checkpoints. What a resumed run does again is moved aside.
- The claim is a file lock. The kernel drops it when the process dies, whatever ends the process.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trd_ray import rows as schema
from trd_ray.config import Recipe, as_of_the_only, dump, keys, stored
from trd_ray.config.effects import NUMBERS, ROWS, VERDICTS
from trd_ray.errors import UserError
from trd_ray.files import sync_names, taking_place, write_atomically
from trd_ray.record.best import kept_checkpoints, value_of
from trd_ray.record.claim import claim, is_read, require_lasting, writing
from trd_ray.record.environment import environment
from trd_ray.record.events import append_event
from trd_ray.score.stats import Score, from_json, to_json

FOLDERS = ("rows", "tensorboard", "checkpoints", "evaluation", "logs")
# A run may be continued by a recipe that differs from its own in these keys: how long, where and in which portions it
# works, and how it is evaluated.
MAY_CHANGE = keys.not_affecting(ROWS, NUMBERS, VERDICTS)

_FIELDS = {field.name: field.type for field in schema.ROW if field.type != schema.TRAJECTORY} | {
    f"{y}.{field.name}": field.type for y in ("y_o", "y_r") for field in schema.TRAJECTORY
}
# Parquet's names of the columns of floats, and of those whose values repeat.
_FLOATS = [f"{name}.list.element" for name, kind in _FIELDS.items() if kind == pa.list_(pa.float32())]
_REPEATED = [name for name, kind in _FIELDS.items() if not pa.types.is_list(kind) and not name.endswith(".text")]


class RunDirectory:
    """Open one with `create` (the run that writes) or `open` (read only)."""

    def __init__(self, path: Path, lock: int | None = None):
        self.path = path
        self._lock = lock
        self._begun = 0  # checkpoints, by this process
        self.on_commit: Callable[[int], object] = lambda steps: None  # of a mirror, which is told what is complete

    @classmethod
    def create(
        cls,
        path: Path | str,
        recipe: Recipe,
        resume: bool = False,
        may_change: set[str] = MAY_CHANGE,
        folders: tuple[str, ...] = FOLDERS,
    ) -> "RunDirectory":
        """Claim a directory for a new run, or with `resume` for the run that it holds.

        A new directory gets `folders`, the ones that will be written into. The recipe of a run that continues may
        differ in the keys `may_change` and no others. Raises UserError, and has then changed nothing, when

        - another process holds the directory;
        - it holds a run and `resume` is not set, or `resume` is set and it holds none;
        - the recipe asks for another run than the one that was begun.
        """
        path = Path(path).expanduser().absolute()
        require_lasting(path)
        if resume:
            return cls._continue(path, recipe, may_change)
        if path.exists() and not path.is_dir():
            raise UserError(f"run directory {path} is a file: set run_dir to another place")
        if path.is_dir() and any(path.iterdir()):
            if not (path / "recipe.yaml").exists():
                raise UserError(f"run directory {path} holds other files: set run_dir to a new or empty place")
            os.close(claim(path))  # first, since a run under way is the better reason to refuse
            raise UserError(
                f"run directory {path} already holds a run: continue it with --resume, or set run_dir to a new place"
            )
        # Filled next to its place and renamed into it: if two runs start at once, one of them finds the place taken.
        fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            fresh.mkdir(parents=True)
            for folder in folders:
                (fresh / folder).mkdir()
            (fresh / "recipe.yaml").write_text(dump(recipe))
            (fresh / "environment.json").write_text(json.dumps([environment()], indent=2))
            lock = claim(fresh)
            os.rename(fresh, path)
        except UserError:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        except OSError as e:
            shutil.rmtree(fresh, ignore_errors=True)
            raise UserError(f"run directory {path} cannot be made ({e.strerror}): set run_dir to another place") from e
        return cls(path, lock)

    @classmethod
    def open(cls, path: Path | str) -> "RunDirectory":
        """Open a directory to read what a run has left in it, also while the run goes on."""
        path = Path(path).expanduser().absolute()
        if not (path / "recipe.yaml").is_file():
            raise UserError(f"{path} is no run directory: it has no recipe.yaml")
        return cls(path)

    @classmethod
    def _continue(cls, path: Path, recipe: Recipe, may_change: set[str]) -> "RunDirectory":
        if not (path / "recipe.yaml").is_file():
            raise UserError(
                f"there is no run to resume in {path}: leave --resume out, or set run_dir to the run's place"
            )
        lock = claim(path)
        try:
            require_same(stored(path / "recipe.yaml"), recipe, path, may_change)
            if (path / "rows" / f"{_step(0)}.parquet").exists():
                raise UserError(
                    f"the run in {path} was begun by an earlier version, which counted steps from 0: go on with that "
                    "version, or set run_dir to a new place"
                )
            starts = _read_json(path / "environment.json", list, "delete it, and the run goes on without its record")
            with writing(path):
                write_atomically(path / "recipe.yaml", dump(recipe))
                write_atomically(path / "environment.json", json.dumps([*starts, environment()], indent=2))
        except BaseException:
            os.close(lock)
            raise
        return cls(path, lock)

    def release(self) -> None:
        """Give up the claim, so that another process may resume the run."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def event(self, kind: str, **facts: Any) -> None:
        """Note what happened in events.jsonl; `said` is the sentence for people."""
        append_event(self.path, kind, **facts)

    # Rows

    def write_rows(self, step: int, rows: pa.Table) -> Path:
        """Write the rows of a step that is counted from 1; within the stream their `step` counts from 0."""
        at = rows.schema.get_field_index("step")
        counted = rows.set_column(at, rows.schema.field(at), pa.array([step] * rows.num_rows, pa.int32()))
        return write_parquet(self.path / "rows" / f"{_step(step)}.parquet", counted)

    def read_rows(self) -> schema.RowFiles:
        """Every row of every step, in order, whichever version wrote it."""
        return schema.RowFiles([file for _, file in self.row_files()])

    def row_files(self) -> list[tuple[int, Path]]:
        """The files of rows as (step, file), in order."""
        return [(_number(p), p) for p in sorted((self.path / "rows").glob("step-*.parquet"), key=_number)]

    def read_step(self, step: int) -> pa.Table:
        """The rows of one step."""
        return schema.RowFiles([self.path / "rows" / f"{_step(step)}.parquet"]).to_table()

    def read_metrics(self) -> list[dict]:
        return _read_lines(self.path / "metrics.jsonl")

    # Checkpoints

    def begin_checkpoint(self, steps: int, state: dict) -> Path:
        """Make a folder for the state after `steps` steps; it is a checkpoint once `commit_checkpoint` has named it.

        `state` goes into its state.json. It holds "metrics", the metrics of the last step, and whatever else is worth
        knowing about the checkpoint.
        """
        # No name comes twice: a rank of a killed run, or of a group that was replaced, may still write into its folder.
        self._begun += 1
        folder = self.path / "checkpoints" / f".{_step(steps)}.{os.getpid()}.{self._begun}.tmp"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            write_atomically(folder / "state.json", json.dumps({"steps": steps} | state, indent=2))
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    def delete_unfinished(self) -> None:
        """Delete what was left half written or half deleted; nobody writes a checkpoint now."""
        for folder in (self.path / "checkpoints").glob(".step-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def commit_checkpoint(self, folder: Path) -> Path:
        """Give a folder of `begin_checkpoint` its name, now that all of it is written."""
        place = folder.with_name(folder.name.removeprefix(".").split(".")[0])
        os.rename(folder, place)
        sync_names(place.parent)  # before older ones are deleted
        self.on_commit(_number(place))
        return place

    def state_of(self, checkpoint: Path) -> dict[str, Any]:
        """What `begin_checkpoint` was given, and the number of steps."""
        return _read_json(checkpoint / "state.json", dict, "delete that checkpoint")

    def checkpoints(self) -> list[tuple[int, Path]]:
        """The complete checkpoints as (steps, folder), in order."""
        return [(_number(p), p) for p in sorted((self.path / "checkpoints").glob("step-*"), key=_number)]

    def keep_checkpoints(self, last: int, best: str | None = None, best_is: str = "max") -> None:
        """Delete all checkpoints but the `last` newest ones, and the best one if `best` names a metric of them.

        One that somebody reads, such as `trd evaluate` or a mirror, is deleted another time.
        """
        found = self.checkpoints()
        kept = kept_checkpoints([(f, self._metric(f, best) if best else None) for _, f in found], last, best_is)
        for _, folder in found:
            if folder not in kept and not is_read(folder):
                self._delete_checkpoint(folder)

    def _metric(self, checkpoint: Path, name: str) -> float | None:
        return value_of(json.loads((checkpoint / "state.json").read_text())["metrics"], name)

    def _delete_checkpoint(self, folder: Path) -> None:
        """Rename the folder and then delete it, so that nobody who looks for checkpoints finds half of one."""
        if folder.exists():
            away = folder.with_name(f".{folder.name}.{os.getpid()}.deleted")
            shutil.rmtree(away, ignore_errors=True)
            os.rename(folder, away)
            shutil.rmtree(away, ignore_errors=True)

    def resume_point(self) -> tuple[int, Path] | None:
        """The newest checkpoint as (steps, folder), or None if there is none; raises UserError if it is damaged."""
        # Imported here since it imports all of torch, which reading rows and metrics should not cost.
        from trd_ray.distill.checkpoint import flaw, without

        found = self.checkpoints()
        if not found:
            return None
        steps, folder = found[-1]
        if problem := flaw(folder):
            raise UserError(f"checkpoint {folder} cannot be resumed from ({problem}): delete it to {without(folder)}")
        return steps, folder

    def rewind(self, steps: int) -> int:
        """Move aside what was recorded after `steps` steps, before it is done again; returns how many steps that was.

        Nothing is deleted: if newer checkpoints were only out of sight, the run can later go on from them.
        """
        lines = self.read_metrics()
        again = [line for line in lines if line["step"] > steps]
        rows = [file for file in (self.path / "rows").glob("step-*.parquet") if _number(file) > steps]
        recorded = max([line["step"] for line in again] + [_number(file) for file in rows], default=steps)
        self.delete_unfinished()
        moved = [*rows, *(folder for number, folder in self.checkpoints() if number > steps)]
        moved += [file for of in ["", *self.evaluated_sets()] for file in self._scored_after(of, steps)]
        if not moved and not again:
            return 0
        aside = self._new_place("rewound")
        for place in moved:
            (aside / place.relative_to(self.path)).parent.mkdir(parents=True, exist_ok=True)
            os.rename(place, aside / place.relative_to(self.path))
        write_atomically(aside / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in again))
        kept = [line for line in lines if line["step"] <= steps]
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        return recorded - steps

    def _new_place(self, name: str) -> Path:
        """A new numbered folder in the folder of this name."""
        taken = [int(p.name) for p in (self.path / name).glob("*") if p.name.isdecimal()]
        place = self.path / name / str(max(taken, default=0) + 1)
        place.mkdir(parents=True)
        return place

    # Evaluations

    def write_evaluation(self, score: Score, rows: list[dict], of: str = "") -> Path:
        """Write evaluation/<name>.json, and its rows beside it; in evaluation/<of> for one of evaluation.sets."""
        place = self.path / "evaluation" / of / f"{score.name}.json"
        place.parent.mkdir(exist_ok=True)
        write_parquet(place.with_suffix(".parquet"), schema.to_table(rows))
        write_atomically(place, json.dumps(to_json(score), indent=2))
        return place

    def read_evaluations(self, of: str = "") -> list[Score]:
        """All scores of evaluation.path, or of one set, ordered by step; the base comes first."""
        found = [_read_score(file) for file in (self.path / "evaluation" / of).glob("*.json")]
        return sorted(found, key=lambda score: (score.step, score.name))

    def evaluated_sets(self) -> list[str]:
        """The names of evaluation.sets that have a score."""
        return sorted({file.parent.name for file in (self.path / "evaluation").glob("*/*.json")})

    def _scored_after(self, of: str, steps: int) -> Iterator[Path]:
        for score in self.read_evaluations(of):
            if score.step > steps:
                yield from (self.path / "evaluation" / of).glob(f"{score.name}.*")


def write_parquet(place: Path, rows: pa.Table) -> Path:
    """Write a table of `rows.ROW` to one Parquet file that appears whole.

    Most of it is token ids, log-probabilities and texts, where dictionaries cost more time than Zstandard itself and
    save nothing. Log-probabilities pack best when their first bytes lie together, then their second ones, and so on.
    So would ids, but not every reader of Parquet knows that of integers.
    """
    with taking_place(place) as temporary:
        pq.write_table(
            rows,
            temporary,
            compression="zstd",
            use_dictionary=_REPEATED,  # pyright: ignore - the stub does not know of lists
            column_encoding=dict.fromkeys(_FLOATS, "BYTE_STREAM_SPLIT"),
        )
    return place


def _read_json(place: Path, kind: type, remedy: str) -> Any:
    try:
        tree = json.loads(place.read_text())
        if not isinstance(tree, kind):
            raise ValueError(f"it holds a {type(tree).__name__}")
        return tree
    except FileNotFoundError:
        return kind()
    except (ValueError, OSError) as e:
        raise UserError(f"{place} is damaged ({e}): {remedy}") from e


def _read_score(place: Path) -> Score:
    remedy = f"delete it and {place.with_suffix('.parquet').name}, and --resume evaluates again what is due"
    tree = _read_json(place, dict, remedy)
    try:
        return from_json(tree)
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{place} is no score of this version of the program ({e!r}): {remedy}") from e


def require_same(began: Recipe, now: Recipe, place: Path | str, may_change: set[str] = MAY_CHANGE) -> None:
    """Raise UserError if the recipe asks for another run than the one that was begun in the place."""
    if changed := differences(began.model_dump(mode="json"), now.model_dump(mode="json"), may_change):
        raise UserError(
            f"the run in {place} began with another recipe: put back {'; '.join(changed)}, "
            "or start a new run in another run_dir"
        )


def differences(began: dict, now: dict, may_change: set[str], prefix: str = "") -> list[str]:
    """Each key that changed and may not, as `key=value` of the recipe that the run began with."""
    found = []
    for key in sorted(began.keys() | now.keys()):
        old, new = began.get(key), now.get(key)
        if old == new or as_of_the_only(prefix + key) in may_change:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, may_change, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={_shown(old)} (now {_shown(new)})")
    return found


def _shown(value: Any) -> str:
    """A key's value, or what tells a long one, such as the text of a function's file, from another."""
    text = json.dumps(value)
    return text if len(text) <= 400 else f"{text[:40]}... (sha256 {hashlib.sha256(text.encode()).hexdigest()[:8]})"


def _read_lines(path: Path) -> list[dict]:
    """The JSON lines of a file, without a last line that a crash cut short; raises UserError for other damage."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        if line.endswith("\n"):
            try:
                found.append(json.loads(line))
                found[-1]["step"]
            except (ValueError, KeyError, TypeError) as e:
                raise UserError(f"line {number} of {path} is damaged: put it back, or delete that line") from e
    return found


def _step(number: int) -> str:
    return f"step-{number:06d}"


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
