"""The alarms of a run in its summary: those that last stand above the numbers, with what to set, the others in a table.

    alarms.json (of a run of an earlier version: what a replay says)  ->  lasting(), over()  ->  Markdown

Their sentences are Markdown and plain text at once: what they quote from the data is inline code.
"""

from pathlib import Path
from typing import Any

from trd_ray import alarms
from trd_ray.alarms.conditions import TOLD_ELSEWHERE
from trd_ray.alarms.replay import of_run
from trd_ray.config import Recipe
from trd_ray.record.markdown import code


def alarms_of(directory: Path, recipe: Recipe) -> list[dict[str, Any]]:
    if (directory / alarms.FILE).exists():
        return alarms.read(directory)
    return of_run(directory, recipe=recipe).told()


def lasting(found: list[dict[str, Any]]) -> str:
    """A line for each that lasts, but for those that a warning tells of; "" where there are none."""
    told = [one for one in found if one["until_step"] is None and one["name"] not in TOLD_ELSEWHERE]
    return "".join(
        f"Alarm {code(one['name'])}, since step {one['since_step']}: {_whole(one['sentence'])} {one['means']} "
        f"{one['do']}\n\n"
        for one in told
    )


def over(found: list[dict[str, Any]]) -> str:
    """A list of those that ended; "" where there are none."""
    return "\n".join(
        f"- {code(one['name'])}, steps {one['since_step']} to {one['until_step']}: {_whole(one['sentence'])} "
        f"{one['do']}"
        for one in found
        if one["until_step"] is not None
    )


def _whole(sentence: str) -> str:
    return sentence if sentence.endswith(".") else f"{sentence}."
