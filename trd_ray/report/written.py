"""report.html, written: of a run, of several, of an evaluation or of a comparison.

    directory   ->  write_report()  ->  report.html in it
    at the end  ->  report()        ->  the same, but a page that cannot be made costs no run its end: what takes
                                        longer than MOST_S is left out of it, and after a second Ctrl-C there is none

The directory tells what it is: comparison.yaml or comparison.json, else recipe.yaml; evaluation/*.json with their
benchmark, and no metrics, is one of `trd evaluate`.
"""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.record.directory import RunDirectory
from trd_ray.record.markdown import visible
from trd_ray.report.html_page import html_page
from trd_ray.report.panels_of_results import panels_of_comparison, panels_of_evaluation
from trd_ray.report.panels_of_run import panels_of_run
from trd_ray.report.panels_of_runs import labels_of, panels_of_runs
from trd_ray.report.recorded import ENDED, Recorded

FILE = "report.html"
# At the end of a run, whose GPUs wait: 300 steps of 64 rows take half a minute of one core.
MOST_S = 120.0


def report(path: Path, hurried: bool = False) -> None:
    """`write_report` within MOST_S, or print why not, and delete an older page, which would pass for this one.

    `hurried`: nothing is waited for, so no page is written.
    """
    until = time.monotonic() + MOST_S

    def look() -> None:
        if time.monotonic() > until:
            raise UserError(f"the end of a run has {MOST_S:.0f} s for its page: trd report {path} takes its time")

    try:
        if hurried:
            raise UserError(f"the run was stopped at once: trd report {path} writes it")
        write_report([path], look=look)
    except BaseException as e:
        with contextlib.suppress(OSError):
            (path / FILE).unlink(missing_ok=True)
        if not isinstance(e, Exception):  # a second Ctrl-C
            raise
        print(f"{FILE} could not be written ({' '.join(visible(str(e)).split())[:300]})")


def write_report(
    paths: list[Path], to: Path | None = None, price: float | None = None, look: Callable[[], object] = lambda: None
) -> Path:
    """Write the page and return its place. Raises UserError for what holds no run, and OSError.

    `look` is called while rows are read. If it raises, the part of the page that reads them says so.
    """
    place = to or paths[0] / FILE
    text = page_of(paths, price, look)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, text)
    return place


def page_of(paths: list[Path], price: float | None = None, look: Callable[[], object] = lambda: None) -> str:
    if len(paths) == 1:
        return _page_of_one(paths[0], price, look)
    if odd := [path for path in paths if is_comparison(path) or is_evaluation(path)]:
        raise UserError(
            f"{odd[0]} holds no run but {'a comparison' if is_comparison(odd[0]) else 'an evaluation'}: ask for its "
            "report alone, or name runs"
        )
    labels = labels_of([path.name for path in paths])
    runs = [Recorded(RunDirectory.open(path), label, look) for path, label in zip(paths, labels, strict=True)]
    return html_page(" against ".join(labels), panels_of_runs(runs, price), f"{len(runs)} runs of trd_ray")


def _page_of_one(path: Path, price: float | None, look: Callable[[], object]) -> str:
    if is_comparison(path):
        name = path.name
        return html_page(name, panels_of_comparison(path), f"Comparison in {path}")
    run = Recorded(RunDirectory.open(path), path.name, look)
    run.recipe  # noqa: B018 - a recipe that cannot be read is said at once, not in every panel
    if is_evaluation(path):
        return html_page(run.recipe.name, panels_of_evaluation(run, price), f"Evaluation of {run.recipe.student.path}")
    return html_page(run.recipe.name, panels_of_run(run, price), subtitle(run))


def subtitle(run: Recorded) -> str:
    """Which run it is, in a line: where, what, how far, when."""
    modes = "/".join(dict.fromkeys(one.teacher.mode.upper() for one in run.recipe.by_teacher.values()))
    of = f" of {run.total_steps}" if run.total_steps else ""
    began = run.starts[0].get("started", "") if run.starts else ""
    parts = [modes, f"student {run.recipe.student.path}", f"{run.steps}{of} steps", ENDED.get(run.state, run.state)]
    return " · ".join([*parts, *([f"began {began[:16].replace('T', ' ')}"] if began else []), str(run.path)])


def is_comparison(path: Path) -> bool:
    return (path / "comparison.yaml").is_file() or (path / "comparison.json").is_file()


def is_evaluation(path: Path) -> bool:
    """Whether `trd evaluate` made it, which has benchmarks and neither steps nor rows."""
    if (path / "metrics.jsonl").exists() or any((path / "rows").glob("*")):
        return False
    status = path / "status.json"
    if status.is_file():
        try:
            if json.loads(status.read_text()).get("program") == "evaluate":
                return True
        except (ValueError, AttributeError):
            pass
    for place in sorted((path / "evaluation").glob("*.json"))[:1]:
        try:
            return "benchmark" in json.loads(place.read_text())
        except ValueError:
            return False
    return False
