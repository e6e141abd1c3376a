"""Data sets of other trainers, known by their columns: what is mapped without being asked, and the note that says so.

    the column names and the first row of a source  ->  recognised()  ->  Schema(columns, note), None for any other

| schema | known by | problem | answer | reference |
|---|---|---|---|---|
| verl | `prompt`, `reward_model` with a `ground_truth` | prompt | reward_model.ground_truth | |
| TRL | `prompt` | prompt | answer, else solution, else ground_truth | completion, else solution |
| a conversation | `messages` or `conversations` | that | answer, else solution, else ground_truth | its last answer |

A column named `problem`, or one that the recipe names, is never overruled.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DIALOGUES = ("messages", "conversations")
_ANSWERS = ("answer", "solution", "ground_truth")


@dataclass(frozen=True)
class Schema:
    columns: dict[str, str]  # our name -> the column, with a dot for a field of it
    note: str


def recognised(names: Sequence[str], first: dict[str, Any], asked: dict[str, str]) -> Schema | None:
    """What the columns say, without those that are `asked` for, which the recipe maps. None where nothing is known."""
    talk = next((name for name in DIALOGUES if name in names), None)
    problem = "prompt" if "prompt" in names else talk
    if problem is None or asked.get("problem", "problem" if "problem" in names else problem) != problem:
        return None
    if problem == "prompt" and "ground_truth" in fields(first.get("reward_model")):
        return _schema("verl's schema", {"problem": "prompt", "answer": "reward_model.ground_truth"}, asked)
    columns = {"problem": problem}
    if answer := next((name for name in _ANSWERS if name in names), None):
        columns["answer"] = answer
    references = ("completion", "solution") if problem == "prompt" and "reference" not in names else ()
    if reference := next((name for name in references if name in names), None):
        columns["reference"] = reference
    return _schema("TRL's schema" if problem == "prompt" else "conversations", columns, asked)


def fields(value: Any) -> dict[str, Any]:
    """The fields of a cell that is an object, also as JSON text; {} for every other value."""
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _schema(what: str, columns: dict[str, str], asked: dict[str, str]) -> Schema:
    found = {ours: theirs for ours, theirs in columns.items() if ours not in asked}
    told = ", ".join(f"{ours} is {theirs}" for ours, theirs in found.items())
    return Schema(found, f"has {what}, so {told} (columns says otherwise)")
