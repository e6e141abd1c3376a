"""What each model sees: the only place that words a prompt or applies a chat template.

    problem x, reference y*, attempt y_o (token ids)  ->  Views  ->  token ids of a prompt, generation prompt included

    view                 OPD (a stronger teacher)   OPSD (the student's own weights, privileged)
    student, evaluation  x                          x
    teacher, vanilla     x                          x, y*
    refine               x, y_o                     x, y*, y_o

- A chat template is rendered once a view, with a sentinel in place of each inserted text.
- The fixed texts between the sentinels are tokenised once. An inserted text is tokenised on its own, as plain text, so
  no problem can open or close a turn. SentencePiece, which by default puts a space before every text, puts one there.
- The attempt is inserted as the token ids that the engine sampled.
- A teacher view that is too long is cut on token ids by the paper's rule: the tail of y_o, then the tail of y*, never
  the problem or the instructions.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trd_ray.config import Each, Recipe, of_each
from trd_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The default wordings by verify.task. `prompts` in the recipe replaces any of them.
WORDINGS: dict[str, dict[str, str]] = {}
WORDINGS["math"] = {
    "solve": """{problem}

Reason step by step, and put the final answer in \\boxed{}.""",
    "solve_with_reference": """{problem}

Here is a reference solution to this problem:

{reference}

Solve the problem yourself, reasoning step by step, and put the final answer in \\boxed{}. Let the reference guide \
you, but do not mention it.""",
    "refine": """Below are a problem and an attempt at solving it. Rewrite the attempt as a correct, complete solution.

Problem:
{problem}

Attempt:
{attempt}

{feedback}Keep what is useful in the attempt: its approach, its notation and its correct steps. Fix every error where \
it occurs, and leave out detours, repetition and second thoughts. Output only the rewritten solution, without \
mentioning the attempt, and put the final answer in \\boxed{}.""",
    "refine_with_reference": """Below are a problem, a reference solution, and an attempt at solving the problem. \
Rewrite the attempt as a correct, complete solution.

Problem:
{problem}

Reference solution:
{reference}

Attempt:
{attempt}

{feedback}Keep what is useful in the attempt: its approach, its notation and its correct steps. Use the reference to \
find every error, fix it where it occurs, and leave out detours, repetition and second thoughts. Output only the \
rewritten solution, without mentioning the reference or the attempt, and put the final answer in \\boxed{}.""",
}
WORDINGS["code"] = {
    "solve": """{problem}

Solve this in Python. Where the problem gives a function or a class to complete, define it under that name; otherwise \
write a program that reads standard input and writes standard output. Reason first, then give the whole program in one \
```python code block.""",
    "solve_with_reference": """{problem}

Here is a reference solution to this problem:

{reference}

Solve the problem yourself in Python. Where it gives a function or a class to complete, define it under that name; \
otherwise write a program that reads standard input and writes standard output. Reason first, then give the whole \
program in one ```python code block. Let the reference guide you, but do not mention it.""",
    "refine": """Below are a programming problem and an attempt at solving it. Rewrite the attempt as a correct, \
complete solution in Python.

Problem:
{problem}

Attempt:
{attempt}

{feedback}Keep what is useful in the attempt: its approach, its names and the code that works. Fix every error where \
it occurs, mind the edge cases and the time limit, and leave out detours, repetition and second thoughts. Output only \
the rewritten solution, without mentioning the attempt: brief reasoning, then the whole program in one ```python code \
block.""",
    "refine_with_reference": """Below are a programming problem, a reference solution, and an attempt at solving the \
problem. Rewrite the attempt as a correct, complete solution in Python.

Problem:
{problem}

Reference solution:
{reference}

Attempt:
{attempt}

{feedback}Keep what is useful in the attempt: its approach, its names and the code that works. Use the reference to \
find every error, fix it where it occurs, and leave out detours, repetition and second thoughts. Output only the \
rewritten solution, without mentioning the reference or the attempt: brief reasoning, then the whole program in one \
```python code block.""",
}

# What {feedback} becomes by the verdict of y_o: a paragraph, or nothing where the verdict is not told.
FEEDBACK = {
    "math": {
        None: "",
        True: "A checker found the attempt's final answer correct.\n\n",
        False: "A checker found the attempt's final answer wrong.\n\n",
    },
    "code": {
        None: "",
        True: "The attempt passed all of the problem's tests.\n\n",
        False: "The attempt failed the problem's tests.\n\n",
    },
}

# {name} is a placeholder and {{name}} the literal text {name}. All other braces are plain text: \boxed{}, \frac{1}{x}.
_PLACEHOLDER = re.compile(r"\{\{([a-z_]{2,})\}\}|\{([a-z_]{2,})\}")
_SENTINEL = "trd8c1fslot{}slot8c1fdrt"
_SLOTS = re.compile(_SENTINEL.format("(problem|reference|attempt|details)"))


class ViewTooLong(ValueError):
    """The problem and the instructions alone exceed refiner.max_prompt_tokens. Neither may be cut."""


Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class View:
    ids: list[int]
    cut_tokens: int  # cut off the ends of y_o, then of y* and the feedback, to fit refiner.max_prompt_tokens


@dataclass(frozen=True)
class PromptTokens:
    """Lengths of the prompts of one problem, before an attempt stands in them and before anything is cut."""

    student: int
    vanilla: int
    refine: int
    reference: int  # tokens of y* in the teacher's two prompts, which may be cut; 0 in OPD


class Views:
    """The views of one recipe. Raises UserError for wordings or a chat template that cannot be used."""

    def __init__(
        self,
        recipe: Recipe,
        student_tokenizer: "PreTrainedTokenizerBase",
        teacher_tokenizer: "PreTrainedTokenizerBase",
    ):
        self._student_tokens = _Tokens(student_tokenizer)
        one_model = teacher_tokenizer is student_tokenizer
        self._teacher_tokens = self._student_tokens if one_model else _Tokens(teacher_tokenizer)
        self._limit = recipe.refiner.max_prompt_tokens or sys.maxsize  # no limit before lengths are resolved
        self._feedback = recipe.refiner.feedback
        self._teacher_refines = recipe.teacher.view == "refine"

        own = recipe.prompts.model_dump(exclude_none=True)
        task = recipe.verify.task
        words = {key: _parse(key, own.get(key, default)) for key, default in WORDINGS[task].items()}
        system = _parse("system", own["system"]) if "system" in own else None
        suffix = "_with_reference" if recipe.teacher.mode == "opsd" else ""
        solve, refine = words["solve" + suffix], words["refine" + suffix]
        if self._feedback != "none" and _SENTINEL.format("feedback") not in refine:
            raise UserError(
                f"refiner.feedback is {self._feedback}, but prompts.refine{suffix} has no place for it: "
                "put {feedback} into the wording, or set refiner.feedback=none"
            )

        asked = recipe.student.chat_template_kwargs
        evaluated = recipe.evaluation.chat_template_kwargs or asked
        taught = recipe.teacher.chat_template_kwargs
        self._student = _Layout(student_tokenizer, "student", words["solve"], system, asked)
        self._evaluation = _Layout(student_tokenizer, "student", words["solve"], system, evaluated)
        self._vanilla = _Layout(teacher_tokenizer, "teacher", solve, system, taught)
        told = FEEDBACK[task] | {"details": FEEDBACK[task][False] + _SENTINEL.format("details") + "\n\n"}
        self._refine = {
            key: _Layout(
                teacher_tokenizer, "teacher", refine.replace(_SENTINEL.format("feedback"), sentence), system, taught
            )
            for key, sentence in told.items()
            if key is None or self._feedback != "none"
        }

    def student(self, problem: str) -> list[int]:
        """The prompt that the student samples y_o from, and its context in the loss: x alone."""
        return self._student.fill({"problem": self._student_tokens.of_text(problem)})

    def evaluation(self, problem: str) -> list[int]:
        """The student view under evaluation.chat_template_kwargs, or under the student's own where those are empty."""
        return self._evaluation.fill({"problem": self._student_tokens.of_text(problem)})

    def refine(
        self, problem: str, reference: str, attempt_ids: Ids, passed: bool | None = None, details: str | None = None
    ) -> View:
        """The prompt that y_r is sampled from. OPD leaves the reference out. Raises ViewTooLong.

        refiner.feedback says what is told of y_o's verdict: nothing, whether it `passed`, or `details` of why not.
        """
        key: bool | str | None = None if self._feedback == "none" else passed
        if self._feedback == "details" and passed is False and details:
            key = "details"
        return self._fit(self._refine[key], problem, reference, attempt_ids, details or "")

    def teacher(
        self, problem: str, reference: str, attempt_ids: Ids, passed: bool | None = None, details: str | None = None
    ) -> View:
        """The teacher's context in the loss: the refine or the vanilla view, by teacher.view. Raises ViewTooLong."""
        if self._teacher_refines:
            return self.refine(problem, reference, attempt_ids, passed, details)
        return self.vanilla(problem, reference)

    def vanilla(self, problem: str, reference: str) -> View:
        """The teacher's context without an attempt: x in OPD, x and y* in OPSD. Raises ViewTooLong."""
        return self._fit(self._vanilla, problem, reference, ())

    def tokens(self, problem: str, reference: str) -> PromptTokens:
        asked = len(self._student_tokens.of_text(problem))
        one_model = self._teacher_tokens is self._student_tokens
        taught = asked if one_model else len(self._teacher_tokens.of_text(problem))
        shown = len(self._teacher_tokens.of_text(reference)) if "reference" in self._vanilla.slots else 0
        told = self._refine[None if self._feedback == "none" else False]
        return PromptTokens(
            student=asked + self._student.tokens,
            vanilla=taught + shown + self._vanilla.tokens,
            refine=taught + shown + told.tokens,
            reference=shown,
        )

    def _fit(self, layout: "_Layout", problem: str, reference: str, attempt_ids: Ids, details: str = "") -> View:
        inserted = {"problem": self._teacher_tokens.of_text(problem)}
        if "reference" in layout.slots:
            inserted["reference"] = self._teacher_tokens.of_text(reference)
        if "attempt" in layout.slots:
            inserted["attempt"] = self._teacher_tokens.of_attempt(attempt_ids)
        if "details" in layout.slots:
            inserted["details"] = self._teacher_tokens.of_text(details)
        over = excess = len(layout.fill(inserted)) - self._limit
        for slot in ("attempt", "reference", "details"):  # details are short: they are cut last
            if excess > 0 and slot in inserted:
                ids = inserted[slot]
                inserted[slot] = ids[: max(0, len(ids) - excess)]
                excess -= len(ids) - len(inserted[slot])
        if excess > 0:
            raise ViewTooLong(
                f"the problem and the instructions alone take {self._limit + excess} tokens of the teacher's prompt, "
                f"but refiner.max_prompt_tokens is {self._limit}: raise it, or leave out the problem that begins "
                f"{problem[:60]!r}"
            )
        return View(layout.fill(inserted), cut_tokens=max(0, over))


def load_views(recipe: Recipe, student_path: str, teacher_path: Each[str]) -> dict[str, Views]:
    """The views of a recipe for each teacher, with the tokenizers of its resolved models."""
    from trd_ray.models import tokenizer

    student = tokenizer(student_path, recipe.student.revision, recipe.student.trust_remote_code)
    found = {}
    for name, one in recipe.by_teacher.items():
        path, t = of_each(teacher_path)[name], one.teacher
        theirs = student if path == student_path else tokenizer(path, t.revision, t.trust_remote_code)
        found[name] = Views(one, student, theirs)
    return found


class _Layout:
    """A rendered chat template: token ids of the fixed texts, and the slots between them, one fewer."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        who: str,
        words: str,
        system: str | None,
        kwargs: dict[str, Any],
    ):
        rendered = _render(tokenizer, who, words, system, kwargs)
        self.slots: list[str] = _SLOTS.findall(rendered)
        if sorted(self.slots) != sorted(_SLOTS.findall(words)):
            raise UserError(
                f"the {who}'s chat template does not show what the user writes exactly once and unchanged: "
                "use a tokenizer whose chat_template passes the content of a message on as it is"
            )
        self.fixed: list[list[int]] = [
            tokenizer(text, add_special_tokens=False, split_special_tokens=False).input_ids
            for text in _SLOTS.split(rendered)[::2]
        ]
        self.tokens = sum(map(len, self.fixed))

    def fill(self, inserted: Mapping[str, Sequence[int]]) -> list[int]:
        ids = list(self.fixed[0])
        for slot, fixed in zip(self.slots, self.fixed[1:], strict=True):
            ids += inserted[slot]
            ids += fixed
        return ids


class _Tokens:
    """Token ids to insert into a view. None is special, whatever a text spells or a model sampled."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self._tokenizer = tokenizer
        self._size = len(tokenizer)
        added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._special = frozenset([*tokenizer.all_special_ids, *added])

    def of_text(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
        # A word-level vocabulary holds its special tokens as words, which split_special_tokens does not prevent.
        # The unknown token is special by name only: it stands for text.
        return [i for i in ids if i not in self._special or i == self._tokenizer.unk_token_id]

    def of_attempt(self, ids: Ids) -> list[int]:
        # Ids past the tokenizer's end are rows that pad the embedding. They stand for no text.
        return [i for i in np.asarray(ids, np.int32).tolist() if i < self._size and i not in self._special]


def _parse(key: str, text: str) -> str:
    """The wording prompts.<key> with sentinels in place of its placeholders."""
    # A wording holds each placeholder of its default once. {feedback} may be left out.
    known = sorted(name for _, name in _PLACEHOLDER.findall(WORDINGS["math"].get(key, "")))
    found: list[str] = []

    def replace(match: re.Match) -> str:
        literal, name = match.groups()
        if literal:
            return f"{{{literal}}}"
        if name not in known:
            raise UserError(
                f"prompts.{key} holds the unknown placeholder {{{name}}} (known in this wording: "
                f"{', '.join(f'{{{k}}}' for k in known) or 'none'}); write {{{{{name}}}}} to mean the text itself"
            )
        found.append(name)
        return _SENTINEL.format(name)

    parsed = _PLACEHOLDER.sub(replace, text)
    for name in known:
        if found.count(name) not in ((0, 1) if name == "feedback" else (1,)):
            raise UserError(
                f"prompts.{key} must hold the placeholder {{{name}}} exactly once, "
                f"but holds it {found.count(name)} times"
            )
    return parsed


def _render(
    tokenizer: "PreTrainedTokenizerBase", who: str, words: str, system: str | None, kwargs: dict[str, Any]
) -> str:
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": words})
    shown = "a user message" if system is None else "a system and a user message (prompts.system is set)"
    return rendered(tokenizer, who, messages, shown, kwargs, add_generation_prompt=True)


def rendered(
    tokenizer: "PreTrainedTokenizerBase",
    who: str,
    messages: list[dict[str, str]],
    shown: str,
    kwargs: dict[str, Any],
    add_generation_prompt: bool = False,
) -> str:
    """The messages as the chat template writes them. Raises UserError, which calls them `shown`, if it cannot."""
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **kwargs
        )
    except Exception as e:  # a template is a program: it may raise anything
        raise UserError(
            f"the {who}'s chat template cannot render {shown}: {' '.join(str(e).split())[:300]}; "
            f"check the tokenizer's chat_template and {who}.chat_template_kwargs"
        ) from e
    assert isinstance(text, str)  # tokenize=False promises it
    return text
