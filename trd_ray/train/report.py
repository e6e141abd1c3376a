"""What a run says at its end to the person who started it."""

from rich.table import Table

from trd_ray.record.directory import RunDirectory
from trd_ray.record.display import console_for_results
from trd_ray.record.guards import difference
from trd_ray.record.summary import first_and_last
from trd_ray.score import stats


def show(directory: RunDirectory) -> None:
    """Print what the run did, its scores and where everything is."""
    console = console_for_results(width_of_a_log=110)
    summary = directory.path / "summary.md"
    if summary.exists():
        headline = summary.read_text().split("\n## ")[0].partition("\n")[2]
        console.print(f"{headline.strip()}\n", markup=False)
    scores = directory.read_evaluations()
    if scores:
        header, *lines = stats.table(first_and_last(scores))
        table = Table(*header, box=None, pad_edge=False)
        for line in lines:
            table.add_row(*line)
        console.print(table, "\npercent, with 95% intervals", sep="")
    for name in directory.evaluated_sets():
        last = directory.read_evaluations(name)[-1]
        avg = last.scores[f"avg@{last.samples}"]
        moved = f", {stats.percent(difference(last), signed=True)} from the base" if last.paired_with else ""
        console.print(f"{name}: Avg@{last.samples} {stats.percent(avg)}{moved}", markup=False)
    if (page := directory.path / "report.html").is_file():
        console.print(f"the page to open is {page}", soft_wrap=True, markup=False)
    console.print(f"everything is in {directory.path}", soft_wrap=True, markup=False)
