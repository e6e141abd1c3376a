"""What each step measured goes to metrics.jsonl, to TensorBoard and into one aligned line for people.

    Metrics(directory, total_steps).log(step, {"loss": ..., "seconds/step": ...})

Every line is on the disk when it is logged, so a crash loses at most the step under way. A number that is not finite is
null in metrics.jsonl, left out of TensorBoard, and nan or inf in the line. `close` (or the end of the `with` block)
flushes TensorBoard.
"""

import contextlib
import difflib
import json
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from trd_ray.config import ALARMS, EVALUATED, EvaluationConfig, evaluated, lost, pool_of
from trd_ray.errors import UserError
from trd_ray.record import by_source, by_verifier
from trd_ray.trackers.board import Board
from trd_ray.trackers.measured import finite, plain

# What the loop itself measures in a step; the rows (ledger.METRICS,
# signal_metrics.METRICS) and the learner (learned_metrics.METRICS) give the rest.
OF_THE_LOOP = (
    *("version", "epoch", "time_s", "sync/gap_mean", "sync/gap_max"),
    *(f"seconds/{part}" for part in ("step", "wait", "sample", "verify", "refine", "train", "sync", "overhead")),
    *("seconds/rest", "seconds/wake", "seconds/diagnostics"),
    *("checkpoint/seconds", "checkpoint/waited_s", "checkpoint/gib", "learner/restarts"),
    *("learner/slowest_rank", "learner/slowest_rank_ratio", "disk/free_gib", "store/spilled_gib"),
    *(f"{what}/{pool}" for what in ("tokens_per_s", "queue") for pool in ("sampler", "refiner")),
    "queue/judge",
)


def metric_names(
    sources: Iterable[str] = (),
    evaluation: EvaluationConfig | None = None,
    teachers: Iterable[str] = (),
    verifiers: Iterable[str] = (),
    alarms: Iterable[str] = ALARMS,
) -> list[str]:
    """Every metric that a step may have of a run with these sources, sets, teachers and verifiers, but dropped/*."""
    from trd_ray import token_values
    from trd_ray.diagnostics import signal_metrics
    from trd_ray.distill import learned_metrics
    from trd_ray.record import ledger

    found = {*ledger.METRICS, *learned_metrics.METRICS, *token_values.METRICS, *OF_THE_LOOP, *EVALUATED}
    found |= set(by_source.names_of(sources)) | set(by_verifier.score_names(verifiers)) | set(signal_metrics.METRICS)
    found |= {f"alarm/{name}" for name in alarms}
    for name in evaluation.sets if evaluation else ():
        found |= {*evaluated(name), lost(name)}
    for name in teachers:
        found |= {f"teachers/{name}/{what}" for what in (*ledger.OF_TEACHERS, "kl")} | {f"queue/{pool_of(name)}"}
    return sorted(found)


def require_metric(name: str, measured: Collection[str]) -> None:
    """Refuse a `checkpoint.best` that no step measures; raises UserError."""
    if name not in measured:
        close = difflib.get_close_matches(name, measured, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(measured))}"
        raise UserError(f"checkpoint.best={name} names nothing that a step measures ({hint})")


class Metrics:
    """Appends to the files in a run directory; `done` steps were logged before this start of the run.

    With `board`, it draws TensorBoard's curves too.
    """

    def __init__(self, directory: Path | str, total_steps: int, done: int = 0, board: bool = True):
        self.directory = Path(directory)
        self.total_steps = total_steps
        self._json = open(self.directory / "metrics.jsonl", "ab", buffering=0)  # noqa: SIM115
        _take_back_half_a_line(self.directory / "metrics.jsonl")
        self._log = open(self.directory / "train.log", "a", buffering=1)  # noqa: SIM115
        self._begun = 0  # the step that was logged last, or failed to be
        self._board = Board(self.directory / "tensorboard", done) if board else None

    def log(self, step: int, metrics: dict[str, Any]) -> str:
        """Record a step, which is counted from 1, and return its line.

        Raises OSError if metrics.jsonl or train.log cannot hold it. Then `log` can be called again for the same step.
        """
        measured = {"step": step} | {name: plain(value) for name, value in metrics.items()}
        record = {name: finite(value) for name, value in measured.items()}
        text = line(measured, self.total_steps)
        with _or_nothing(self._json):
            _append(self._json, json.dumps(record, allow_nan=False) + "\n")
            os.fsync(self._json.fileno())
            if step == self._begun:  # in a call that failed; what it could not write of the line is in the buffer
                self._log.flush()
            else:
                self._begun = step
                if self._board:
                    self._board.draw(step, record)
                self._log.write(text + "\n")
        return text

    def close(self) -> None:
        """What cannot be closed, as on a full disk, is said: `log` has raised where a step is not whole."""
        for file in filter(None, (self._json, self._log, self._board)):
            try:
                file.close()
            except OSError as e:
                print(f"the metrics could not be closed ({e.strerror or e})")

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _or_nothing(file: Any) -> Iterator[None]:
    """If the block fails, the file is as long again as it was before it."""
    before = os.fstat(file.fileno()).st_size
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), before)
        raise


def _append(file: Any, text: str) -> None:
    left = memoryview(text.encode())
    while left:  # what is unbuffered may be written in parts
        left = left[file.write(left) :]


def _take_back_half_a_line(place: Path) -> None:
    """What a machine that lost power left of its last line; whoever reads the file leaves it out too."""
    with open(place, "rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def line(metrics: dict[str, Any], total_steps: int) -> str:
    """One step in one line, with columns of fixed width; what was not measured is a dash.

    A step of `trd refine` trains nothing and has no learning rate: its line ends after the columns of the rows.
    """
    width = len(str(total_steps))
    of_rows = [
        f"step {metrics['step']:>{width}}/{total_steps}",
        f"pass {_text(metrics, 'y_o/passed', '.3f', 5)} > {_text(metrics, 'y_r/passed', '.3f', 5)}",
        f"tokens {_text(metrics, 'y_o/tokens_mean', '.0f', 5)} > {_text(metrics, 'y_r/tokens_mean', '.0f', 5)}",
    ]
    if "rollouts" in metrics and "lr" not in metrics:
        return "  ".join(of_rows)
    skipped = metrics.get("skipped_updates")
    return "  ".join(
        [
            *of_rows,
            f"KL {_text(metrics, 'kl/mean', '.4f', 7)}",
            f"lr {_text(metrics, 'lr', '.1e', 7)}",
            f"gap {_text(metrics, 'sync/gap_mean', '.1e', 7)}",
            f"tok/s {_text(metrics, 'tokens_per_s/sampler', '.0f', 6)} + "
            f"{_text(metrics, 'tokens_per_s/refiner', '.0f', 6)}",
            f"{_text(metrics, 'seconds/step', '.1f', 6)} s",
            *([f"{skipped:.0f} updates skipped"] if skipped else []),
        ]
    )


def _text(metrics: dict[str, Any], name: str, form: str, width: int) -> str:
    value = metrics.get(name)
    return ("-" if value is None else format(value, form)).rjust(width)
