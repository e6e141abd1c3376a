r"""AIME, HMMT, BeyondAIME, AMO-Bench, MATH-500 and GSM8K: each row has a statement and an answer.

math-ai/aime24          id, problem, solution (\boxed{answer}), url
HuggingFaceH4/aime_2024 id, problem, solution, answer, url, year
Maxwell-Jia/AIME_2024   ID, Problem, Solution, Answer (a number)
math-ai/aime25          problem, answer, id
opencompass/AIME2025    question, answer
MathArena/*             problem_idx, problem, answer, problem_type
BeyondAIME              problem, answer
AMO-Bench               question_id, prompt, solution, answer, answer_type
MATH-500                problem, solution, answer, subject, level, unique_id
GSM8K                   question, answer (the solution, then #### and the answer)
"""

from typing import Any

from trd_ray.errors import UserError
from trd_ray.problems.benchmarks import fields
from trd_ray.verify.math.answer import last_boxed


def with_answer(row: dict[str, Any], where: str, what: str) -> dict[str, Any]:
    """The problem of a row whose answer has a column, or stands in the box that ends its solution."""
    statement = fields.text(row, fields.PROBLEM, where, what)
    if not any(name in row for name in fields.ANSWER) and "solution" in row:
        answer = last_boxed(fields.text(row, ("solution",), where, what))
        if answer is None:
            raise UserError(f"{where}: the solution holds no \\boxed{{answer}}: fix that row of {what}")
    else:
        written = fields.text(row, fields.ANSWER, where, what)
        answer = last_boxed(written) or written
    return fields.problem(statement, fields.identifier(row), answer=answer.strip())


def amobench(row: dict[str, Any], where: str, what: str) -> dict[str, Any] | None:
    """The problem, or None if its answer is a description, which the publisher grades with a language model."""
    kind = fields.text(row, ("answer_type",), where, what)
    if kind not in ("number", "set", "variable", "description"):
        raise UserError(f"{where}: answer_type is {kind!r}, expected number, set, variable or description")
    return None if kind == "description" else with_answer(row, where, what)


def gsm8k(row: dict[str, Any], where: str, what: str) -> dict[str, Any]:
    statement = fields.text(row, ("question",), where, what)
    _, mark, answer = fields.text(row, ("answer",), where, what).rpartition("####")
    if not mark or not answer.strip():
        raise UserError(f"{where}: the answer has no #### before its number: fix that row of {what}")
    return fields.problem(statement, fields.identifier(row), answer=answer.strip().replace(",", ""))
