"""Problems that a run leaves out, each with the reason. A file of the run directory names them."""

import json
from collections import Counter
from collections.abc import Collection, Iterable
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


def counted(problems: Collection[SetAside]) -> str:
    """How many problems were set aside, and how many of them for which reason."""
    reasons = Counter(one.reason.partition(":")[0] for one in problems).most_common()
    return f"{len(problems)} set aside ({', '.join(f'{count} {reason}' for reason, count in reasons)})"


def write_set_aside(file: Path, problems: Iterable[SetAside]) -> None:
    """Write one JSON object a line, with problem_id, name and reason."""
    file.write_text("".join(json.dumps(asdict(one)) + "\n" for one in problems))
