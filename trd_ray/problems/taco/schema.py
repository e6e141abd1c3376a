"""A row of TACO as it is published becomes a problem with tests, and the solutions that may be its reference.

    question + starter_code            ->  problem
    input_output, time_limit, ...      ->  tests
    solutions                          ->  solutions

The columns are question, solutions, starter_code, input_output, difficulty, raw_tags, name, source, tags, skill_types,
url, Expected Auxiliary Space, time_limit, date, picture_num, memory_limit and Expected Time Complexity. solutions and
input_output are JSON as text.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trd_ray.errors import UserError
from trd_ray.problems import sources
from trd_ray.verify.code.tests import IMPORTS, Tests

# A contest's limits are for compiled programs. TACO's own grader gives every case 4 s and sets no memory limit.
MIN_TIME_LIMIT_S = 4.0
MIN_MEMORY_MIB = 256

_COLUMNS = ("question", "solutions", "starter_code", "input_output", "difficulty")


@dataclass(frozen=True)
class Candidate:
    """A problem before its reference is chosen. A `reason` says why it is set aside already."""

    problem_id: str
    problem: str
    name: str
    tests: bytes | None
    solutions: tuple[str, ...]
    reason: str


def candidates(
    files: list[Path], difficulty: list[str] | None, limit: int | None, max_tests: int | None, max_solutions: int
) -> Iterator[Candidate]:
    """The problems of these difficulties in these files, one by one: the whole of TACO does not fit into memory."""
    copies: Counter[str] = Counter()
    met = 0
    for file in files:
        for where, row in sources.rows_of(file):
            missing = [name for name in _COLUMNS if name not in row]
            if missing:
                raise UserError(
                    f"{where} is no row of TACO: expected the columns {', '.join(_COLUMNS)}, found "
                    f"{', '.join(row)}: set data.format=auto for data of another schema"
                )
            if difficulty and str(row["difficulty"]).upper() not in difficulty:
                continue
            if limit is not None and met == limit:
                return
            met += 1
            yield _candidate(row, copies, max_tests, max_solutions)


def _candidate(row: dict[str, Any], copies: Counter[str], max_tests: int | None, max_solutions: int) -> Candidate:
    question, starter = (str(row[name] or "").strip("\n") for name in ("question", "starter_code"))
    problem = question.strip()
    if starter.strip():
        problem = f"{problem}\n\n```python\n{starter}\n```"
    digest = hashlib.sha256(problem.encode(errors="replace")).hexdigest()[:16]
    copies[digest] += 1
    problem_id = digest if copies[digest] == 1 else f"{digest}-{copies[digest]}"
    name = str(row.get("name") or row.get("url") or "")

    def aside(reason: str) -> Candidate:
        return Candidate(problem_id, problem, name, None, (), reason)

    if not question.strip():
        return aside("no question")
    if _whole(row.get("picture_num")):
        return aside("pictures in the question")
    try:
        published = _parsed(row["input_output"]) or {}
    except (ValueError, RecursionError) as e:
        return aside(f"input_output is not readable JSON: {e}")
    try:
        listed = _parsed(row["solutions"]) or []
        if not isinstance(listed, list):
            raise ValueError(f"a {type(listed).__name__}, not a list")
        solutions = tuple(text for text in listed if isinstance(text, str))
    except (ValueError, RecursionError) as e:
        return aside(f"solutions are not readable JSON: {e}")
    if not solutions:
        return aside("no solution")
    try:
        tests = tests_of(
            published,
            program=starter or solutions[0],
            time_limit_s=_at_least(MIN_TIME_LIMIT_S, seconds(row.get("time_limit"))),
            memory_mib=_at_least(MIN_MEMORY_MIB, mebibytes(row.get("memory_limit"))),
            max_tests=max_tests,
        ).pack()
    except (ValueError, RecursionError) as e:
        return aside(f"no usable tests: {e}")
    return Candidate(problem_id, problem, name, tests, solutions[:max_solutions], "")


def _parsed(cell: Any) -> Any:
    """What a cell says as JSON text, or the cell itself where a copy holds no text. None for an empty one."""
    return json.loads(cell) if isinstance(cell, str) and cell else cell or None


def tests_of(
    input_output: Any,
    *,
    program: str = "",
    time_limit_s: float | None = None,
    memory_mib: int | None = None,
    max_tests: int | None = None,
) -> Tests:
    """TACO's input_output as tests: "inputs" and "outputs" are standard input and output, or with "fn_name" of calls.

    `program` is the starter code or a solution. It shows whether the function is a method of `Solution`.
    Raises ValueError where there is no case, or where a case is neither text nor arguments.
    """
    if not isinstance(input_output, dict) or not all(
        isinstance(input_output.get(name), list) for name in ("inputs", "outputs")
    ):
        raise ValueError("input_output is no object with the lists inputs and outputs")
    inputs, outputs = input_output["inputs"][:max_tests], input_output["outputs"][:max_tests]
    if not inputs:
        raise ValueError("input_output has no case")
    function = input_output.get("fn_name")
    if function:
        return Tests(
            kind="function",
            inputs=[_arguments(args) for args in inputs],
            outputs=outputs,
            compare="equal",
            entry_point=f"Solution.{function}" if "class Solution" in program else str(function),
            time_limit_s=time_limit_s,
            memory_mib=memory_mib,
            prelude=IMPORTS,
        )
    return Tests(
        kind="stdio",
        inputs=[_lines(text) for text in inputs],
        outputs=[_lines(text) for text in outputs],
        compare="tokens",
        time_limit_s=time_limit_s,
        memory_mib=memory_mib,
        prelude=IMPORTS,
    )


def _lines(text: Any) -> Any:
    """Standard input or output as one text: it is published as a text or as its lines."""
    return "\n".join(map(str, text)) if isinstance(text, list) else text


def _arguments(args: Any) -> Any:
    """The arguments of a call. A first dict's keys that are whole numbers become numbers again.

    JSON had made text of them. TACO's grader does the same.
    """
    match args:
        case [dict() as first, *rest] if first and all(re.fullmatch(r"[+-]?[0-9]{1,18}", key) for key in first):
            return [{int(key): value for key, value in first.items()}, *rest]
    return args


def seconds(published: str | None) -> float | None:
    """ "2.0 seconds" -> 2.0, "500 ms" -> 0.5. None where there is no limit to read."""
    found = re.match(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|milli)?", str(published or ""), re.IGNORECASE)
    return (float(found[1]) / (1000 if found[2] else 1) or None) if found else None


def mebibytes(published: str | None) -> int | None:
    """ "256.0 megabytes" -> 256, "1 gigabyte" -> 1024. None where there is no limit to read."""
    found = re.match(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]?)", str(published or ""), re.IGNORECASE)
    if not found:
        return None
    scale = {"k": 1 / 1024, "m": 1.0, "g": 1024.0, "": 1 / 2**20}[found[2].lower()]
    return round(float(found[1]) * scale) or None


def _at_least(least: Any, published: Any) -> Any:
    return None if published is None else max(least, published)


def _whole(published: Any) -> int:
    try:
        return int(published or 0)
    except (ValueError, TypeError):
        return 0
