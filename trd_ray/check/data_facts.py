r"""What the problems of a data set are, beside what they say: copies, and answers that nothing can compare.

    table of rows.PROBLEM               ->  copies()        ->  problems that stand twice, and those that disagree
    rows that the math verifier judges  ->  without_form()  ->  answers that it can only compare letter by letter

`trd_ray.preflight` compares them with the held-out problems and measures their prompts.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from trd_ray.preflight.known_texts import Row, Verify
from trd_ray.preflight.overlap import normalised
from trd_ray.verify.math.answer import last_boxed
from trd_ray.verify.math.forms import Form, Formula, Group, Matrix, Odd, Quantity, Relation, TooDeep, read

# An answer of more words is a sentence, which no response repeats to the letter.
LONGEST_WORDS = 5
LONGEST_WORDS_WITH_NUMBERS = 3
ANOTHER_FORMULA = r"\boxed{q^{7}-8191 w}"  # no answer of a data set; it has the verifier read the expected one
UNREAD = "cannot be compared"  # how MathVerifier's detail begins where a formula could not be read

_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")  # the names of LaTeX's commands are none


@dataclass(frozen=True)
class Copies:
    problems: int
    copies: int  # beyond the first of each text
    disagreeing: int  # texts that stand with different answers
    example: str = ""  # problem_ids of two copies, of two that disagree if any do

    def __str__(self) -> str:
        said = f"{self.copies or 'none'} of {self.problems} problems stand a second time"
        return f"{said}, {self.disagreeing} of them with another answer" if self.disagreeing else said


def copies(table: pa.Table) -> Copies:
    """Texts are the same as for the overlap of two data sets: apart from case, blanks and LaTeX's dress."""
    turns = table["turns"].to_pylist() if "turns" in table.column_names else [None] * table.num_rows
    places: dict[tuple[str, str | None], list[int]] = defaultdict(list)
    for i, text in enumerate(table["problem"].to_pylist()):
        places[normalised(text), turns[i]].append(i)  # the same question after other turns is another problem
    answers = table["answer"].to_pylist()
    twice = [found for found in places.values() if len(found) > 1]
    disagree = [found for found in twice if len({answers[i].strip() for i in found}) > 1]
    example = ""
    if twice:
        first = (disagree or twice)[0][:2]
        example = " and ".join(repr(table["problem_id"][i].as_py()) for i in first)
    return Copies(table.num_rows, sum(len(found) - 1 for found in twice), len(disagree), example)


def without_form(rows: Sequence[Row], verify: Verify) -> list[Row]:
    """Rows of mathematics whose answer is a sentence, mixes words and formulas, or is no formula that can be read."""
    return [row for row in rows if row["answer"].strip() and not row["tests"] and not _has_form(row, verify)]


def _has_form(row: Row, verify: Verify) -> bool:
    if "####" in row["answer"] or ("\n" in row["answer"].strip() and "\\begin" not in row["answer"]):
        return False  # a worked solution
    boxed = last_boxed(row["answer"])
    try:
        form = read(row["answer"] if boxed is None else boxed)
    except (TooDeep, RecursionError):
        return False
    words = len(_WORD.findall(row["answer"]))
    if _is_odd(form) or words > (LONGEST_WORDS_WITH_NUMBERS if re.search(r"\d", row["answer"]) else LONGEST_WORDS):
        return False
    if not _has_formula(form):
        return True
    return not verify(ANOTHER_FORMULA, row).detail.startswith(UNREAD)


def _parts(form: Form) -> list[Form]:
    match form:
        case Group():
            return list(form.items)
        case Matrix():
            return [cell for row in form.rows for cell in row]
        case Quantity():
            return [form.value]
    return []


def _is_odd(form: Form) -> bool:
    return isinstance(form, Odd) or any(map(_is_odd, _parts(form)))


def _has_formula(form: Form) -> bool:
    return isinstance(form, Formula | Relation) or any(map(_has_formula, _parts(form)))
