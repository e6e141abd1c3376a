"""LiveCodeBench: contest problems with dates, judged on standard input and output or by calling a method.

    question_content + starter_code                ->  problem
    public_test_cases + private_test_cases (JSON)  ->  tests, in this order, as LiveCodeBench's own runner takes them

A row's columns are question_title, question_content, platform, question_id, contest_id, contest_date, starter_code,
difficulty, public_test_cases, private_test_cases and metadata.

Most private cases are published as base64 of zlib of a pickled string. Pickles are programs, so none is loaded: the one
string is read out of it, and a pickle with anything else in it is refused.
"""

import base64
import json
import pickletools
import zlib
from datetime import date, datetime
from typing import Any

from trd_ray.errors import UserError
from trd_ray.problems.benchmarks import fields
from trd_ray.verify.code.tests import IMPORTS, Tests

TIME_LIMIT_S = 6.0  # each case may take so long; the default of LiveCodeBench's runner

_STRINGS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_HARMLESS = _STRINGS | {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}


def livecodebench(row: dict[str, Any], where: str, what: str) -> dict[str, Any]:
    statement = fields.text(row, ("question_content",), where, what).strip()
    starter = (row.get("starter_code") or "").strip("\n")
    if starter.strip():
        statement = f"{statement}\n\n```python\n{starter}\n```"
    try:
        cases = _cases(row["public_test_cases"]) + _cases(row["private_test_cases"])
        function = json.loads(row["metadata"]).get("func_name") or ""
        tests = _tests(cases, function, starter, str(row.get("question_id", "")))
    except KeyError as e:
        raise UserError(
            f"{where} is no row of {what}: expected the columns public_test_cases, private_test_cases and metadata "
            f"with {{input, output, testtype}} a case, found no {e.args[0]} in {', '.join(row)}"
        ) from e
    except (ValueError, TypeError, AttributeError, zlib.error) as e:
        raise UserError(f"{where}: the test cases cannot be read ({e}): fetch that file of {what} again") from e
    return fields.problem(statement, fields.identifier(row), tests=tests.pack())


def contest_day(row: dict[str, Any], where: str, what: str) -> date:
    value = row.get("contest_date")
    try:
        return value.date() if isinstance(value, datetime) else datetime.fromisoformat(str(value)).date()
    except ValueError as e:
        raise UserError(
            f"{where}: contest_date is {value!r}, expected a date such as 2025-01-04T00:00:00 of {what}: leave the "
            "window of dates out, or fix that row"
        ) from e


def _cases(published: str) -> list[dict[str, str]]:
    try:
        return json.loads(published)
    except json.JSONDecodeError:
        return json.loads(pickled_text(zlib.decompress(base64.b64decode(published, validate=True))))


def pickled_text(pickled: bytes) -> str:
    """The string that was pickled. Nothing is run and nothing else is built. Raises ValueError for any other pickle."""
    texts = []
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name not in _HARMLESS:
                raise ValueError(f"the pickle holds {opcode.name}, but a pickled text alone is read")
            if opcode.name in _STRINGS:
                texts.append(argument)
    except IndexError as e:  # how pickletools meets the end of some broken pickles
        raise ValueError("the pickle is cut off") from e
    if len(texts) != 1:
        raise ValueError(f"the pickle holds {len(texts)} texts, but one is read")
    return texts[0]


def _tests(cases: list[dict[str, str]], function: str, starter: str, task_id: str) -> Tests:
    kinds = {case["testtype"] for case in cases}
    if kinds == {"stdin"}:
        return Tests(
            kind="stdio",
            inputs=[case["input"] for case in cases],
            outputs=[case["output"] for case in cases],
            compare="livecodebench",
            time_limit_s=TIME_LIMIT_S,
            prelude=IMPORTS,
            task_id=task_id,
        )
    if kinds != {"functional"}:
        raise ValueError(f"testtype is {' and '.join(sorted(kinds)) or 'of no case'}, not stdin or functional")
    if not function:
        raise ValueError("cases are functional, but metadata has no func_name")
    return Tests(
        kind="function",
        # An input has one argument a line, each as JSON.
        inputs=[[json.loads(line) for line in case["input"].split("\n")] for case in cases],
        outputs=[json.loads(case["output"]) for case in cases],
        compare="livecodebench",
        entry_point=f"Solution.{function}" if "class Solution" in starter else function,
        time_limit_s=TIME_LIMIT_S,
        prelude=IMPORTS,
        task_id=task_id,
    )
