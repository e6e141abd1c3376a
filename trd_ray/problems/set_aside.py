"""Problems of the data that a run leaves out, each with the reason, as a file of the run directory names them."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

NAME_CHARACTERS = 60


@dataclass(frozen=True)
class SetAside:
    problem_id: str
    name: str  # what a person knows the problem by: a name or an address in its source, else how it begins
    reason: str


def begins(problem: str) -> str:
    """How a problem without a name begins."""
    return problem[:NAME_CHARACTERS]


def write_set_aside(file: Path, problems: Iterable[SetAside]) -> None:
    """One JSON object a line, with problem_id, name and reason."""
    file.write_text("".join(json.dumps(asdict(one)) + "\n" for one in problems))
