"""What each model sees: the only place that words a prompt. `layouts` applies the chat template.

    problem x, reference y*, attempt y_o (token ids)  ->  Views  ->  token ids of a prompt, generation prompt included

    view                 OPD (a stronger teacher)   OPSD (the student's own weights, privileged)
    student, evaluation  x                          x
    teacher, vanilla     x                          x, y*
    refine               x, y_o                     x, y*, y_o

- What was said before a problem (`turns` of its row) comes before it in the student's and in the vanilla view, turn by
  turn. The refine view shows it as text. A system turn of the row's own stands in place of prompts.system.
- A source of data may have wordings of its own (data.sources). Default wordings are those for what judges the row: an
  item of reasoning_gym, which says itself how its answer is stated, has the plain ones also in a corpus.
- Where y* itself trains, it is tokenised here, as a response of the student's: plain text, then the end of its turn.
- No inserted text can open or close a turn (see `layouts`). The attempt is inserted as the token ids that the engine
  sampled.
- A teacher view that is too long is cut on token ids by the paper's rule: the tail of y_o, then the tail of y*, never
  the problem or the instructions.
"""

import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trd_ray.config import Each, Recipe, of_each, own_wordings
from trd_ray.errors import UserError
from trd_ray.layouts import Ids, Layouts, PlainTokens, parse, sentinel, turn_end, turn_slot
from trd_ray.wordings import FEEDBACK, ITEM_FORM, WORDINGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def said_as_text(roles: Sequence[str]) -> str:
    """How a refine prompt shows what was said before the problem, right before it."""
    turns = "".join(f"{role}: {sentinel(turn_slot(number))}\n\n" for number, role in enumerate(roles))
    return f"(It ends a conversation. Before it was said:)\n\n{turns}(The problem itself:)\n\n"


class ViewTooLong(ValueError):
    """The problem and the instructions alone exceed refiner.max_prompt_tokens. Neither may be cut."""


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
    solution: int = 0  # tokens of y* as a response; 0 where it does not train


@dataclass(frozen=True)
class Said:
    """What was said before a problem."""

    roles: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


NOTHING_SAID = Said()


def said_before(turns: str | None) -> Said:
    """From the `turns` of a row, JSON."""
    if not turns:
        return NOTHING_SAID
    found = json.loads(turns)
    return Said(tuple(turn["role"] for turn in found), tuple(turn["content"] for turn in found))


def setting_of(row: dict[str, Any]) -> dict[str, str | None]:
    """What `Views` must know of a row besides its texts."""
    return {"turns": row.get("turns"), "source": row.get("source")}


class Views:
    """The views of one recipe. Raises UserError for wordings or a chat template that cannot be used.

    `turns` and `source` are those of the row (`setting_of`). A view of a row with turns raises UserError where the chat
    template has no place for one of them.
    """

    def __init__(
        self,
        recipe: Recipe,
        student_tokenizer: "PreTrainedTokenizerBase",
        teacher_tokenizer: "PreTrainedTokenizerBase",
    ):
        self._student_tokens = PlainTokens(student_tokenizer)
        one_model = teacher_tokenizer is student_tokenizer
        self._teacher_tokens = self._student_tokens if one_model else PlainTokens(teacher_tokenizer)
        self._limit = recipe.refiner.max_prompt_tokens or sys.maxsize  # no limit before lengths are resolved
        self._feedback = recipe.refiner.feedback
        self._teacher_refines = recipe.teacher.view == "refine"
        self._rewrites = recipe.refiner.begins == "attempt"
        self._end: list[int] = []
        if recipe.train.trajectory == "reference":
            self._end = turn_end(student_tokenizer, "student", recipe.student.chat_template_kwargs)[:1]
        self._verify = recipe.verify
        self._own = own_wordings(recipe.data)
        prompts = recipe.prompts.model_dump(exclude_none=True)

        def worded(source: str | None, task: str) -> _Worded:
            where = f"data.sources {source}: prompts" if source else "prompts"
            own = prompts | self._own.get(source or "", {})
            return _Worded(recipe, task, own, where, student_tokenizer, teacher_tokenizer)

        self._make = worded
        self._stated = {source: own["task"] for source, own in self._own.items() if own.get("task")}
        self._stated_for_all = recipe.prompts.task
        self._worded: dict[tuple[str | None, str], _Worded] = {}
        self._with(None, recipe.task)
        for name in self._own:
            self._with(name, self._task(name, "", None))

    def within(self, tokens: int) -> "Views":
        """The same views, in which a teacher's prompt has no more tokens than these."""
        other = copy.copy(self)
        other._limit = min(self._limit, tokens)
        return other

    def _of(self, source: str | None, problem: str, task: str | None = None) -> "_Worded":
        return self._with(source if source in self._own else None, self._task(source, problem, task))

    def _with(self, source: str | None, task: str) -> "_Worded":
        if (source, task) not in self._worded:
            self._worded[source, task] = self._make(source, task)
        return self._worded[source, task]

    def _task(self, source: str | None, problem: str, task: str | None) -> str:
        """Whose wordings: those that the recipe says, those of `task`, or those for what judges the row."""
        stated = self._stated.get(source or "") or self._stated_for_all
        return stated or task or self._verify.task_of(source, problem.endswith(ITEM_FORM))

    def student(self, problem: str, turns: str | None = None, source: str | None = None) -> list[int]:
        """The prompt that the student samples y_o from, and its context in the loss: x alone."""
        return self._asked(self._of(source, problem).student, problem, said_before(turns))

    def solution(self, reference: str) -> list[int]:
        """y* as the student would sample it, with the token that ends its turn. Only where the recipe trains on it."""
        return [*self._student_tokens.of_text(reference), *self._end]

    def response_text(self, ids: Ids) -> str:
        """A response as an engine tells it: without special tokens."""
        return self._teacher_tokens.to_text(ids, skip_special=True)

    def text(self, prompt_ids: Ids) -> str:
        """A prompt as the student's engine sees it, for functions that judge prompt and response together."""
        return self._student_tokens.to_text(prompt_ids)

    def evaluation(
        self, problem: str, turns: str | None = None, source: str | None = None, task: str | None = None
    ) -> list[int]:
        """The student view under evaluation.chat_template_kwargs, or under the student's own where those are empty.

        `task` is whose default wordings fit what judges it, where the recipe does not say: see `held_out_task`.
        """
        return self._asked(self._of(source, problem, task).evaluation, problem, said_before(turns))

    def _asked(self, layouts: Layouts, problem: str, said: Said) -> list[int]:
        tokens = self._student_tokens
        return layouts.of(said.roles).fill({"problem": tokens.of_text(problem)} | _turns(tokens, said))

    def refine(
        self,
        problem: str,
        reference: str,
        attempt_ids: Ids,
        passed: bool | None = None,
        details: str | None = None,
        turns: str | None = None,
        source: str | None = None,
    ) -> View:
        """The prompt that y_r is sampled from. OPD leaves the reference out. Raises ViewTooLong.

        refiner.feedback says what is told of y_o's verdict: nothing, whether it `passed`, or `details` of why not.
        """
        key: bool | str | None = None if self._feedback == "none" else passed
        if self._feedback == "details" and passed is False and details:
            key = "details"
        layouts = self._of(source, problem).refine[key]
        return self._fit(layouts, problem, reference, attempt_ids, said_before(turns), details or "")

    def refiner(
        self, problem: str, reference: str, attempt_ids: Ids, passed: Any, details: Any, **setting: str | None
    ) -> View:
        """The prompt of the refiner, by refiner.from: the refine or the vanilla view. Raises ViewTooLong."""
        if self._rewrites:
            return self.refine(problem, reference, attempt_ids, passed, details, **setting)
        return self.vanilla(problem, reference, **setting)

    def teacher(
        self,
        problem: str,
        reference: str,
        attempt_ids: Ids,
        passed: bool | None = None,
        details: str | None = None,
        turns: str | None = None,
        source: str | None = None,
    ) -> View:
        """The teacher's context in the loss: the refine or the vanilla view, by teacher.view. Raises ViewTooLong."""
        if self._teacher_refines:
            return self.refine(problem, reference, attempt_ids, passed, details, turns, source)
        return self.vanilla(problem, reference, turns, source)

    def vanilla(self, problem: str, reference: str, turns: str | None = None, source: str | None = None) -> View:
        """The teacher's context without an attempt: x in OPD, x and y* in OPSD. Raises ViewTooLong."""
        return self._fit(self._of(source, problem).vanilla, problem, reference, (), said_before(turns))

    def tokens(self, problem: str, reference: str, turns: str | None = None, source: str | None = None) -> PromptTokens:
        said = said_before(turns)
        worded = self._of(source, problem)
        asked = _length(self._student_tokens, problem, said)
        one_model = self._teacher_tokens is self._student_tokens
        taught = asked if one_model else _length(self._teacher_tokens, problem, said)
        student = worded.student.of(said.roles)  # first: what both templates drop is told of the student's
        vanilla = worded.vanilla.of(said.roles)
        shown = len(self._teacher_tokens.of_text(reference)) if "reference" in vanilla.slots else 0
        told = worded.refine[None if self._feedback == "none" else False]
        return PromptTokens(
            student=asked + student.tokens,
            vanilla=taught + shown + vanilla.tokens,
            refine=taught + shown + told.of(said.roles).tokens,
            reference=shown,
            solution=len(self.solution(reference)) if self._end else 0,
        )

    def _fit(
        self, layouts: Layouts, problem: str, reference: str, attempt_ids: Ids, said: Said, details: str = ""
    ) -> View:
        layout = layouts.of(said.roles)
        tokens = self._teacher_tokens
        inserted = {"problem": tokens.of_text(problem)} | _turns(tokens, said)
        if "reference" in layout.slots:
            inserted["reference"] = tokens.of_text(reference)
        if "attempt" in layout.slots:
            inserted["attempt"] = tokens.of_attempt(attempt_ids)
        if "details" in layout.slots:
            inserted["details"] = tokens.of_text(details)
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


class _Worded:
    """The layouts of one set of wordings: those of `prompts`, or of a source that has its own."""

    def __init__(
        self,
        recipe: Recipe,
        task: str,
        own: dict[str, Any],
        where: str,
        student_tokenizer: "PreTrainedTokenizerBase",
        teacher_tokenizer: "PreTrainedTokenizerBase",
    ):
        words = {
            key: parse(f"{where}.{key}", own.get(key, default), WORDINGS["math"][key])
            for key, default in WORDINGS[task].items()
        }
        system = parse(f"{where}.system", own["system"], "") if "system" in own else None
        suffix = "_with_reference" if recipe.teacher.mode == "opsd" else ""
        solve, refine = words["solve" + suffix], words["refine" + suffix]
        feedback = recipe.refiner.feedback
        if feedback != "none" and sentinel("feedback") not in refine:
            raise UserError(
                f"refiner.feedback is {feedback}, but {where}.refine{suffix} has no place for it: "
                "put {feedback} into the wording, or set refiner.feedback=none"
            )
        asked = recipe.student.chat_template_kwargs
        evaluated = recipe.evaluation.chat_template_kwargs or asked
        taught = recipe.teacher.chat_template_kwargs
        self.student = Layouts(student_tokenizer, "student", words["solve"], system, asked)
        self.evaluation = Layouts(student_tokenizer, "student", words["solve"], system, evaluated)
        self.vanilla = Layouts(teacher_tokenizer, "teacher", solve, system, taught)
        told = FEEDBACK[task] | {"details": FEEDBACK[task][False] + sentinel("details") + "\n\n"}
        self.refine = {
            key: Layouts(
                teacher_tokenizer,
                "teacher",
                refine.replace(sentinel("feedback"), sentence),
                system,
                taught,
                said_as_text,
            )
            for key, sentence in told.items()
            if key is None or feedback != "none"
        }


def _length(tokens: PlainTokens, problem: str, said: Said) -> int:
    return len(tokens.of_text(problem)) + sum(map(len, _turns(tokens, said).values()))


def _turns(tokens: PlainTokens, said: Said) -> dict[str, list[int]]:
    return {turn_slot(number): tokens.of_text(text) for number, text in enumerate(said.texts)}


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
