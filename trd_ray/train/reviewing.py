"""A corpus that a person judges (verify.function: review): what waits is queued, and verdicts are read back.

    a step's rows        ->  Reviewing.of_step()    ->  the rows with what was said by now; what waits goes to the queue
    trd refine, again    ->  Reviewing.read_back()  ->  rows/, metrics.jsonl and queue.jsonl with what was said since
                         ->  Reviewing.told()       ->  how many wait, where, and how it goes on

Rows are the truth: the queue is made again from them. Nothing here needs an engine or Ray. A crash at any moment leaves
whole files, of which some have read verdicts that others have not: reading back again changes what is left.
"""

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from trd_ray.config import Recipe
from trd_ray.diagnostics.signal_metrics import step_metrics
from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.record.claim import writing
from trd_ray.record.directory import RunDirectory
from trd_ray.record.ledger import row_metrics
from trd_ray.record.summary import summarise
from trd_ray.report.written import report
from trd_ray.rows import light
from trd_ray.session.endings import resuming
from trd_ray.stream.reviewed import queued, settled_rows, waiting_rows
from trd_ray.verify.review.given_verdicts import GivenVerdicts, read_given
from trd_ray.verify.review.review_queue import (
    Queued,
    append_queue,
    given_place,
    queue_place,
    read_queue,
    still_wanted,
    write_queue,
)


def is_reviewed(recipe: Recipe) -> bool:
    """Whether the recipe's directory holds a corpus that a person judges: the same command reads verdicts back."""
    return recipe.verify.asks_a_person and queue_place(recipe.directory).is_file()


class Reviewing:
    """One for a run of `trd refine`. For a recipe in which no person judges it does nothing."""

    def __init__(self, directory: RunDirectory, recipe: Recipe):
        self.directory = directory
        self.recipe = recipe
        self.asks = recipe.verify.asks_a_person

    def of_step(self, table: pa.Table) -> pa.Table:
        """The rows of a step, before they are written, with the verdicts that were given already."""
        return settled_rows(table, self.recipe, self._given().by_key) if self.asks else table

    def queue(self, table: pa.Table) -> None:
        """Queue what waits of rows that are written. Raises OSError."""
        if self.asks:
            append_queue(self.directory.path, queued(table, self.recipe, self._given().by_key))

    def read_back(self) -> None:
        """Bring what was said into every step that is recorded, and make the queue again; nobody else writes now."""
        if not self.asks:
            return
        said = self._given()
        if complaint := said.complaint(given_place(self.directory.path)):
            print(complaint, flush=True)
        wait: list[Queued] = []
        again: dict[int, dict[str, Any]] = {}  # step -> its metrics
        for step, _ in self.directory.row_files():
            before = self.directory.read_step(step)
            now = settled_rows(before, self.recipe, said.by_key)
            wait += queued(now, self.recipe, said.by_key)
            if now is not before and not now.equals(before):
                again[step] = _measured(before, now)
                with writing(self.directory.path):
                    self.directory.write_rows(step, now)
        with writing(self.directory.path):
            self._record_again(again)
            write_queue(self.directory.path, wait)
        if again:
            report(self.directory.path)
            summarise(self.directory)

    def _record_again(self, again: dict[int, dict[str, Any]]) -> None:
        """Replace what the rows of these steps measured. What own code measured stays, as does TensorBoard's curve."""
        if not again:
            return
        lines = self.directory.read_metrics()
        for line in lines:
            found = again.get(line["step"], {})
            for name in found:
                line.pop(name, None)
            line |= {name: value for name, value in found.items() if value is not None}
        write_atomically(self.directory.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    def told(self) -> str:
        """What a person should know at the end; "" for a recipe in which no person judges."""
        if not self.asks:
            return ""
        run = self.directory.path
        rows = sum(waiting_rows(table) for table in self.directory.read_rows().tables(["review_waits"]))
        if not rows:
            return f"review: every response is judged, and the corpus in {run} is complete"
        said = self._given().by_key
        wait = [one for one in read_queue(run).values() if one.key not in said or said[one.key].withdrawn]
        passed = {key for key, one in said.items() if one.passed}
        needed = sum(still_wanted(one, passed.__contains__) for one in wait)
        if not needed:
            return f"review: all verdicts are in {given_place(run)}: {resuming()} reads them"
        responses = "1 response waits" if needed == 1 else f"{needed} responses wait"
        return (
            f"review: {responses} for a person in {queue_place(run)}, and {rows} rows of the corpus with them. `trd "
            f"review {run}` shows them one by one; or write verdicts to {given_place(run)}, a line each, such as "
            f'{{"key": "...", "passed": true}}. {resuming()} reads them, without engines where all is sampled'
        )

    def _given(self) -> GivenVerdicts:
        place = given_place(self.directory.path)
        try:
            return read_given(place)
        except OSError as e:
            raise UserError(f"{place} cannot be read ({e.strerror or e}): put it right, or move it away") from e


def _measured(before: pa.Table, now: pa.Table) -> dict[str, Any]:
    """The metrics of rows; one that they had before and have no more is None."""
    had: Iterable[str] = row_metrics(light(before)) | step_metrics(before)
    return dict.fromkeys(had) | row_metrics(light(now)) | step_metrics(now)
