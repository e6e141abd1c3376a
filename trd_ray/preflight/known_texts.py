r"""Texts whose verdict is known before a verifier is asked, and what it says of them.

    table                               ->  spread_rows()  some of its rows
    rows, form(row) = "\boxed{ANSWER}"  ->  right_texts()  the reference of each row, and its answer
    rows, which of those passed         ->  wrong_texts()  nothing, the problem itself, the answer of another row
    verify, texts                       ->  asked()        Reply: a text, the verdict on it, the seconds that it took

A row's right text is its reference or its answer in the form that the prompt asks for: a reference may be prose that
states no answer, and a program has no answer beside it. A verifier that raises gives an unjudged verdict that says so.
"""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import pyarrow as pa

from trd_ray.config import Recipe, own_wordings
from trd_ray.errors import UserError
from trd_ray.verify import Verdict, unjudged
from trd_ray.verify.gym.gym_verifier import entry_of
from trd_ray.wordings import WORDINGS

Row = dict[str, Any]  # the columns of rows.PROBLEM
Verify = Callable[[str, Row], Verdict]
Form = Callable[[Row], str]  # how the answer of a row is stated, one of FORMS or PLAIN

# How an answer is stated, by what a prompt says of it.
FORMS: dict[str, str] = {r"\boxed": r"\boxed{ANSWER}", "####": "#### ANSWER", "<answer>": "<answer>ANSWER</answer>"}
PLAIN = "ANSWER"
_POWER = re.compile(r"e[+-]?\d{4}")


@dataclass(frozen=True)
class KnownText:
    row: int  # its place among the rows
    kind: Literal["reference", "answer", "empty", "problem", "another"]
    text: str

    @property
    def right(self) -> bool:
        return self.kind in ("reference", "answer")


@dataclass(frozen=True)
class Reply:
    asked: KnownText
    verdict: Verdict
    seconds: float


def form_of(recipe: Recipe, task: str | None = None) -> Form:
    r"""How the prompt of a row wants its answer stated: `\boxed{ANSWER}`, or ANSWER alone where it names no form.

    `task` is that of the wordings by default, for held-out problems whose own it is.
    """
    common = recipe.prompts.model_dump(exclude_none=True)
    own = own_wordings(recipe.data)
    usual = _asked(common, task or recipe.task)
    asked = {
        one.name: _asked(common | own.get(one.name, {}), recipe.verify.task_of(one.name, is_item=False))
        for one in recipe.data.sources
    }

    def form(row: Row) -> str:
        # An item of reasoning_gym says the form itself, whatever the wording around it says.
        return FORMS["<answer>"] if entry_of(row) else asked.get(row.get("source") or "", usual)

    return form


def _asked(prompts: dict[str, Any], task: str) -> str:
    wording = f"{prompts.get('solve', '')} {prompts.get('system', '')}"
    default = WORDINGS.get(prompts.get("task", task), {}).get("solve", "")
    return next((form for text in (wording, default) for sign, form in FORMS.items() if sign in text), PLAIN)


def spread_rows(table: pa.Table, many: int) -> list[Row]:
    """So many rows of a table, evenly from its first to its last, since data sets are often sorted."""
    many = min(many, table.num_rows)
    return [table.slice(i * table.num_rows // many, 1).to_pylist()[0] for i in range(many)]


def stated(answer: str, form: str) -> str:
    return answer if r"\boxed" in answer and r"\boxed" in form else form.replace("ANSWER", answer)


def right_texts(rows: Sequence[Row], form: Form) -> list[KnownText]:
    """What must pass, row by row; nothing for a row that has neither a reference nor an answer."""
    found = []
    for i, row in enumerate(rows):
        if row["reference"].strip():
            found.append(KnownText(i, "reference", _fenced(row["reference"]) if row["tests"] else row["reference"]))
        if row["answer"].strip():
            found.append(KnownText(i, "answer", stated(row["answer"], form(row))))
    return found


def wrong_texts(rows: Sequence[Row], right: Iterable[Reply]) -> list[KnownText]:
    """What must not pass, row by row. Another row's answer is given as it passed there, if it did."""
    texts: dict[int, str] = {}
    for reply in sorted(right, key=lambda r: (r.verdict.passed, r.asked.kind == "answer")):
        texts[reply.asked.row] = reply.asked.text
    keys = [_key(row) for row in rows]
    found = []
    for i, row in enumerate(rows):
        found += [KnownText(i, "empty", ""), KnownText(i, "problem", row["problem"])]
        after = ((i + k) % len(rows) for k in range(1, len(rows)))
        other = next((j for j in after if j in texts and keys[j] != keys[i] and texts[j] != texts.get(i)), None)
        if other is not None:
            found.append(KnownText(i, "another", texts[other]))
    return found


def asked(verify: Verify, rows: Sequence[Row], texts: Sequence[KnownText], until: float) -> list[Reply]:
    """The verifier's word on each text, in order; no row is begun after `until`, by time.monotonic().

    Raises UserError where this machine cannot judge at all.
    """
    found: list[Reply] = []
    for i, one in enumerate(texts):
        new_row = i == 0 or texts[i - 1].row != one.row
        if found and new_row and time.monotonic() > until:
            break
        start = time.monotonic()
        try:
            verdict = verify(one.text, dict(rows[one.row]))  # a copy: a verifier may change what it is given
        except UserError:
            raise
        except Exception as e:  # noqa: BLE001 - a verifier may be anybody's function
            verdict = unjudged(f"the verifier raised {type(e).__name__}: {' '.join(str(e).split())[:200]}")
        found.append(Reply(one, verdict, time.monotonic() - start))
    return found


def _key(row: Row) -> object:
    """Equal for rows whose answers are surely the same, so that neither is a wrong answer to the other."""
    answer = "".join(row["answer"].split()).casefold().strip(".$")
    if not answer:
        return row["reference"].strip()
    if _POWER.search(answer):  # 10 to the power of all its digits would take for ever
        return answer
    try:
        return Fraction(re.sub(r"\\[dt]?frac\{(-?\d+)\}\{(-?\d+)\}", r"\1/\2", answer.replace(",", "")))
    except (ValueError, ZeroDivisionError):
        return answer


def _fenced(program: str) -> str:
    return program if "```" in program else f"```python\n{program.rstrip()}\n```"
