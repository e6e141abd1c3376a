"""What a verifier's word on texts of known verdicts says about the verifier, and about the data.

    rows, replies (known_texts)  ->  Soundness  ->  counts for people, faults with their remedies

More than TOLERATED of the rows are a fault. Fewer are shown: large data sets have wrong rows, and one of them is no
reason to refuse all of the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from trd_ray.preflight.known_texts import FORMS, PLAIN, Form, KnownText, Reply, Row, Verify, asked, stated

TOLERATED = 0.02
TRIED_ROWS = 3  # in which other forms of the answer are tried
SHOWN_CHARACTERS = 60

KINDS = {"empty": "empty text", "problem": "the problem itself", "another": "another problem's answer"}
_WHY = {
    "empty": "a student that says nothing would be taken for right: let the verifier return no pass for empty text",
    "problem": "a student that repeats the question would be taken for right: let the verifier read the answer of the "
    "response alone, not whatever it finds anywhere in it",
    "another": "wrong answers would be taken for right: let the verifier compare the whole answer with that of the "
    "row, and check that data.columns.answer names the column with it",
}


@dataclass
class Soundness:
    rows: Sequence[Row]
    replies: Sequence[Reply]  # on right and wrong texts
    form: Form
    shows_reference: bool = False  # whether a model is shown the references, as in OPSD
    group: str = "data"  # the keys of the recipe that say where the rows are
    tolerated: float = TOLERATED  # the share of rows that are shown and refuse nothing
    other_form: str = ""  # another form of the answer that passes where the asked one does not
    _by_kind: dict[str, list[Reply]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for reply in self.replies:
            if reply.verdict.judged:
                self._by_kind.setdefault(reply.asked.kind, []).append(reply)

    @property
    def right(self) -> dict[int, bool]:
        """Row -> whether its reference or its answer passes."""
        found: dict[int, bool] = {}
        for kind in ("reference", "answer"):
            for reply in self._by_kind.get(kind, []):
                found[reply.asked.row] = found.get(reply.asked.row, False) or reply.verdict.passed
        return found

    def passing(self, kind: str) -> list[Reply]:
        return [reply for reply in self._by_kind.get(kind, []) if reply.verdict.passed]

    @property
    def contradicted(self) -> list[Reply]:
        """References that state another answer than their row, which the verifier takes for right when stated alone."""
        alone = {reply.asked.row for reply in self.passing("answer")}
        references = self._by_kind.get("reference", [])
        return [r for r in references if r.asked.row in alone and not r.verdict.passed and r.verdict.extracted]

    @property
    def silent(self) -> int:
        """References that state no answer, of rows whose answer passes."""
        alone = {reply.asked.row for reply in self.passing("answer")}
        references = self._by_kind.get("reference", [])
        return sum(r.asked.row in alone and not r.verdict.passed and not r.verdict.extracted for r in references)

    def counts(self) -> list[tuple[str, str]]:
        """What was asked, and how much of it passed."""
        right = self.right
        said = f"{sum(right.values())} of {len(right)} pass" if right else "not asked: no row has one"
        found = [("the reference or the answer", said)]
        for kind, label in KINDS.items():
            replies = self._by_kind.get(kind, [])
            asked_about = sum(reply.asked.kind == kind for reply in self.replies)
            said = f"{len(self.passing(kind))} of {len(replies)} pass" if asked_about else "not asked"
            without = asked_about - len(replies)
            found.append((label, f"{said}, {without} without a verdict" if without else said))
        if self.contradicted:
            found.append(("references", f"{len(self.contradicted)} state another answer than their row"))
        if self.silent:
            found.append(("references", f"{self.silent} state no answer; the answer alone passes"))
        return found

    def faults(self) -> list[str]:
        """A sentence for each thing that is wrong."""
        judged = [reply for replies in self._by_kind.values() for reply in replies]
        found = self._unjudged()
        if not judged:
            return found
        wrong = [reply for reply in judged if not reply.asked.right]
        if wrong and all(reply.verdict.passed for reply in judged):
            return [
                *found,
                f"the verifier passes everything: all {len(judged)} texts, of which {len(wrong)} are empty, the "
                "problem itself or another problem's answer; nothing could be learned from it: check what it compares, "
                "and that what it returns for a wrong answer is 0, False or a verdict that does not pass",
            ]
        if self.right and not any(reply.verdict.passed for reply in judged):
            return [*found, f"the verifier passes nothing: none of {len(self.right)} right answers{self._failing()}"]
        found += self._right()
        for kind in KINDS:
            passing = self.passing(kind)
            if self._too_many(len(passing), len(self._by_kind.get(kind, []))):
                found.append(
                    f"the verifier passes {KINDS[kind]} in {len(passing)} of {len(self._by_kind[kind])} rows, such as "
                    f"{self._named(passing[0].asked)}: {_WHY[kind]}"
                )
        return found + self._references() + self._one_answer()

    def _right(self) -> list[str]:
        right = self.right
        failing = len(right) - sum(right.values())
        if not self._too_many(failing, len(right)):
            return []
        return [f"the verifier fails {failing} of {len(right)} right answers{self._failing()}"]

    def _failing(self) -> str:
        """The first right answer that fails, and what to do."""
        right = self.right
        row = next(row for row, passes in right.items() if not passes)
        reply = [r for r in self.replies if r.asked.row == row and r.asked.right][-1]
        said = f" ({reply.verdict.detail})" if reply.verdict.detail else ""
        form = self.form(self.rows[row])
        remedy = (
            f"stated as {self.other_form!r} it passes, but the prompt asks for {form!r}: let prompts.solve ask "
            "for the form that the verifier reads"
            if self.other_form
            else f"check that {self.group}.columns.answer names the column with the final answer, and that the "
            f"verifier reads the form that the prompt asks for, which is {form!r}"
        )
        return f", such as {reply.asked.text[-SHOWN_CHARACTERS:]!r} of {self._named(reply.asked)}{said}: {remedy}"

    def _unjudged(self) -> list[str]:
        unjudged = [reply for reply in self.replies if not reply.verdict.judged]
        rows = {reply.asked.row for reply in unjudged}
        if not self._too_many(len(rows), len({reply.asked.row for reply in self.replies})):
            return []
        first = unjudged[0]
        return [
            f"{len(unjudged)} of {len(self.replies)} texts have no verdict, such as that of "
            f"{self._named(first.asked)}: {first.verdict.detail}; rows without a verdict do not train: fix the "
            "verifier, or leave such rows out"
        ]

    def _references(self) -> list[str]:
        contradicted = self.contradicted
        asked = len(self._by_kind.get("reference", []))
        if not self.shows_reference or not self._too_many(len(contradicted), asked):
            return []
        first = contradicted[0]
        answer = self.rows[first.asked.row]["answer"]
        return [
            f"{len(contradicted)} of {asked} references state another answer than their row, such as that of "
            f"{self._named(first.asked)}, which ends in {first.verdict.extracted[:SHOWN_CHARACTERS]!r} where the "
            f"answer is {answer[:SHOWN_CHARACTERS]!r}; the teacher is shown them: check data.columns.reference and "
            "data.columns.answer, or leave these rows out"
        ]

    def _one_answer(self) -> list[str]:
        answers = {row["answer"] for row in self.rows}
        few = len(self.rows) < 8
        if few or len(answers) > 1 or any(row["tests"] or not row["answer"] for row in self.rows):
            return []
        return [
            f"all {len(self.rows)} rows have the answer {answers.pop()[:SHOWN_CHARACTERS]!r}, so a student that always "
            f"says so would pass: check that {self.group}.columns.answer names the column with the answer"
        ]

    def _too_many(self, rows: int, of: int) -> bool:
        return rows > self.tolerated * of

    def _named(self, text: KnownText) -> str:
        return f"problem {self.rows[text.row]['problem_id']!r}"


def passing_form(verify: Verify, sound: Soundness, until: float) -> str:
    """Another form in which the answers of failing rows pass, "" for none."""
    failing = [row for row, passes in sound.right.items() if not passes and sound.rows[row]["answer"].strip()]
    for form in (*FORMS.values(), PLAIN):
        texts = [
            KnownText(row, "answer", stated(sound.rows[row]["answer"], form))
            for row in failing[:TRIED_ROWS]
            if form != sound.form(sound.rows[row])
        ]
        replies = asked(verify, sound.rows, texts, until)
        if replies and all(reply.verdict.passed for reply in replies):
            return form
    return ""
