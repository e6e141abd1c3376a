"""Checks of a recipe with its models and data, before any engine starts: what cannot work is refused.

    recipe, problems, ModelFacts and tokenizers of both models  ->  check()  ->  Findings, or a UserError

They compare the vocabularies of student and teacher, the tokens that end a turn, the lengths of all prompts with the
contexts, and held-out with training problems. `placement` checks the machines.
"""

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from trd_ray.config import Recipe, own_wordings
from trd_ray.errors import Faults, UserError
from trd_ray.layouts import rendered
from trd_ray.models import ModelFacts
from trd_ray.preflight import lengths, trainable
from trd_ray.preflight.arguments import require_arguments
from trd_ray.preflight.held_out import require_unseen, together
from trd_ray.preflight.overlap import Overlap, asked_texts
from trd_ray.problems import order
from trd_ray.problems.set_aside import SetAside
from trd_ray.views import Views, setting_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
_ASKED = ["problem_id", "problem", "turns", "source"]  # of a problem, for the lengths of its prompts


@dataclass(frozen=True)
class Tokens:
    """Lengths of one kind of prompt, over all problems."""

    median: int
    longest: int

    def __str__(self) -> str:
        return f"{self.median} (median) to {self.longest}"


@dataclass(frozen=True)
class Corpus:
    """Rollouts and refinements that were made before and are trained on."""

    rows: int
    steps: int  # that a run on it has
    rows_per_step: int
    problems: Sequence[str]  # the texts of those that it trains on

    def __str__(self) -> str:
        return (
            f"a corpus of {self.rows} rows, {self.steps} steps of {self.rows_per_step} rollouts on "
            f"{len(self.problems)} problems"
        )


@dataclass(frozen=True)
class Findings:
    """What `check` learned. --dry-run prints it, and the placement uses it."""

    recipe: Recipe  # every length is a number
    problems: int  # those that are too long not counted
    length: order.Length | None  # the run's; None for a corpus
    student_prompt: Tokens | None
    teacher_prompt: Tokens | None  # no attempt is counted; None where no problem is sampled
    evaluation_problems: int
    evaluation_prompt: Tokens | None
    longest_sequence_tokens: int  # prompt and response of the longest row that the learner may meet
    shared_vocabulary: int  # rows of lm_head that both models have, which are compared
    padded: str = ""  # says which model has more rows, if one has
    overlap: Overlap | None = None  # None where there are not both held-out and training problems
    corpus: Corpus | None = None
    too_long: tuple[SetAside, ...] = ()  # data.too_long=drop left them out

    @property
    def dropped_too_long(self) -> int:
        return len(self.too_long)

    def __str__(self) -> str:
        parts = []
        if self.length and self.student_prompt:
            n = self.length
            parts.append(f"{self.problems} problems, {n.steps} steps of {n.rows // n.steps} rollouts")
            if n.dropped_rows:
                parts.append(f"{n.dropped_rows} rollouts of a partial last step left out")
            if self.too_long:
                parts.append(
                    f"{self.dropped_too_long} that are too long left out, such as {self.too_long[0].problem_id!r}"
                )
            parts.append(f"prompts of {self.student_prompt} tokens")
        if self.corpus:
            parts.append(str(self.corpus))
        if self.evaluation_prompt:
            parts.append(
                f"{self.evaluation_problems} problems to evaluate on, prompts of {self.evaluation_prompt} tokens"
            )
        parts += [str(found) for found in (self.overlap, self.padded) if found]
        return "; ".join(parts) or "nothing to sample"


def check(
    recipe: Recipe,
    *,
    problems: pa.Table | None,
    evaluation: pa.Table | None,
    sets: Mapping[str, pa.Table] | None = None,
    student: ModelFacts,
    teacher: ModelFacts,
    student_tokenizer: "PreTrainedTokenizerBase",
    teacher_tokenizer: "PreTrainedTokenizerBase",
    corpus: Corpus | None = None,
    trains: bool = True,
) -> Findings:
    """Refuse what cannot work: raises UserError. `problems` is None for a corpus, `evaluation` where there is none.

    `sets` are the held-out problems of evaluation.sets.
    """
    faults = Faults()
    held_out = ({} if evaluation is None else {"": evaluation}) | dict(sets or {})
    evaluation = together(held_out)
    if trains:
        with faults:
            trainable.no_bias(student, teacher)
        with faults:
            trainable.has_targets(recipe, student)
        with faults:
            trainable.has_compiler(recipe)
        with faults:
            trainable.has_support(recipe, student, teacher)
    for pool in ("sampler", "refiner"):
        with faults:
            require_arguments(f"{pool}.extra", getattr(recipe, pool).extra)
    with faults:
        _wordings_fit(recipe, problems, evaluation)
    with faults:
        _thinking_is_stated(recipe, student_tokenizer, teacher_tokenizer, problems is not None or trains, evaluation)
    padded = ""
    in_both = None
    with faults:
        padded = _same_vocabulary(student, teacher, student_tokenizer, teacher_tokenizer)
    with faults:
        trained = asked_texts(problems) if problems is not None else corpus.problems if corpus else None
        in_both = require_unseen(recipe, trained, held_out)
    templates = bool(student_tokenizer.chat_template and teacher_tokenizer.chat_template)
    views = findings = None
    if templates:
        with faults:
            views = Views(recipe, student_tokenizer, teacher_tokenizer)
    if views or not templates:  # else Views has told of a template that renders nothing
        with faults:
            _same_ends(recipe, student, teacher, student_tokenizer, teacher_tokenizer)
    if views:
        with faults:
            findings = _lengths(recipe, views, problems, evaluation, student, teacher)
    faults.require_none()
    assert findings is not None
    if padded and trains:
        logger.warning(padded)
    return replace(findings, padded=padded if trains else "", overlap=in_both, corpus=corpus)


def _lengths(
    recipe: Recipe,
    views: Views,
    problems: pa.Table | None,
    evaluation: pa.Table | None,
    student: ModelFacts,
    teacher: ModelFacts,
) -> Findings:
    """Findings from the lengths of all prompts: what they leave room for, or a UserError."""
    contexts = lengths.Contexts.of(recipe, student, teacher)
    rows = problems.select([*_ASKED, "reference"]).to_pylist() if problems is not None else []
    tokens = [views.tokens(row["problem"], row["reference"], **setting_of(row)) for row in rows]
    asked = [lengths.Problem(row["problem_id"], row["problem"], n) for row, n in zip(rows, tokens, strict=True)]
    held_out = evaluation.select(_ASKED).to_pylist() if evaluation is not None else []
    evaluated = [
        (row["problem_id"], row["problem"], len(views.evaluation(row["problem"], **setting_of(row))))
        for row in held_out
    ]
    prompts = [tokens for *_, tokens in evaluated]
    faults = Faults()
    if rows or held_out:
        with faults:
            lengths.require_positions("sampler", recipe.sampler.max_model_len, student)
    if rows and recipe.refines and recipe.placement != "shared":
        with faults:
            lengths.require_positions("refiner", recipe.refiner.max_model_len, teacher)
    if recipe.teacher.mode == "opsd":
        with faults:
            _references(rows)
    with faults:
        resolved = lengths.resolve(recipe, contexts, tokens, prompts)
        lengths.require_held_out(resolved, evaluated, contexts.sampler, student.max_positions)
    fitted = None
    with faults:
        fitted = lengths.fit(recipe, asked, prompts, contexts, student, teacher)
    faults.require_none()
    assert fitted is not None
    r = fitted.recipe
    kept = [p.tokens for p in fitted.kept]
    longest = [lengths.longest_tokens(r, p) for p in kept]
    without_attempt = [
        min(r.refiner.prompt_tokens, p.refine if r.teacher.view == "refine" else p.vanilla) for p in kept
    ]
    return Findings(
        recipe=r,
        problems=len(kept),
        length=order.length(
            len(kept), rollouts_per_step=r.rollouts_per_step, samples_per_problem=r.sampler.n, steps=r.steps
        )
        if kept
        else None,
        student_prompt=_tokens([p.student for p in kept]),
        teacher_prompt=_tokens(without_attempt),
        evaluation_problems=len(evaluated),
        evaluation_prompt=_tokens(prompts),
        longest_sequence_tokens=max(longest, default=0),
        shared_vocabulary=min(student.vocab_size, teacher.vocab_size),
        too_long=tuple(fitted.set_aside),
    )


def _same_vocabulary(
    student: ModelFacts,
    teacher: ModelFacts,
    student_tokenizer: "PreTrainedTokenizerBase",
    teacher_tokenizer: "PreTrainedTokenizerBase",
) -> str:
    """Refuse different vocabularies. Return a sentence about an lm_head that is padded further, or ""."""
    remedy = "the KL compares them token by token: choose a student and a teacher that share one tokenizer"
    ours, theirs = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    differ = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if differ:
        ids = [vocabulary.get(differ[0], "absent") for vocabulary in (ours, theirs)]
        raise UserError(
            f"student and teacher have different vocabularies: {len(differ)} tokens differ, such as {differ[0]!r}, "
            f"which is {ids[0]} in {student.path} and {ids[1]} in {teacher.path}; {remedy}"
        )
    smaller = min(student, teacher, key=lambda model: model.vocab_size)
    if max(ours.values()) >= smaller.vocab_size:
        raise UserError(
            f"the tokenizer of {smaller.path} has ids up to {max(ours.values())}, but its config.json a vocab_size of "
            f"{smaller.vocab_size}: the two do not belong together; save model and tokenizer again"
        )
    if student.vocab_size == teacher.vocab_size:
        return ""
    return (
        f"the lm_head of {student.path} has {student.vocab_size} rows and that of {teacher.path} {teacher.vocab_size}, "
        f"of which the first {smaller.vocab_size} are compared: their tokenizers agree, one is padded further"
    )


def _wordings_fit(recipe: Recipe, *tables: pa.Table | None) -> None:
    """Refuse default wordings of the other task: a prompt that asks for a boxed answer gets no program."""
    if recipe.prompts.solve or recipe.task == "plain":
        return
    task = recipe.task
    faults = Faults()
    for group, table in zip(("data", "evaluation"), tables, strict=True):
        tests = _tested(recipe, table) if table is not None else []
        if tests and sum(tests) == (len(tests) if task == "math" else 0):
            found, other = ("tests", "code") if task == "math" else ("no tests", "math")
            apart = ", or evaluate this benchmark apart, with trd evaluate" if group == "evaluation" else ""
            faults.add(
                f"prompts.task is {task}, whose prompts do not fit the problems of {group}.path, which have {found}: "
                f"set prompts.task={other} or prompts.solve{apart}"
            )
    faults.require_none()


def _tested(recipe: Recipe, problems: pa.Table) -> list[bool]:
    """Whether it has tests, for each problem whose source has no prompt of its own."""
    worded = {name for name, own in own_wordings(recipe.data).items() if "solve" in own}
    has_tests = problems["tests"].is_valid().to_pylist()
    return [has for has, source in zip(has_tests, problems["source"].to_pylist(), strict=True) if source not in worded]


def _thinking_is_stated(
    recipe: Recipe,
    student: "PreTrainedTokenizerBase",
    teacher: "PreTrainedTokenizerBase",
    samples: bool,
    evaluation: pa.Table | None,
) -> None:
    """Refuse to guess between two modes whose lengths and scores differ by far."""
    r = recipe
    used = [("student", student, r.student), ("teacher", teacher, r.teacher)] if samples else []
    if evaluation is not None:
        used.append(("evaluation", student, r.evaluation if r.evaluation.chat_template_kwargs else r.student))
    faults = Faults()
    for group, tokenizer, asked in used:
        if "enable_thinking" in str(tokenizer.chat_template) and "enable_thinking" not in asked.chat_template_kwargs:
            faults.add(
                f"the chat template has a thinking mode, and {group}.chat_template_kwargs does not say whether it is "
                f"used: set {group}.chat_template_kwargs={{enable_thinking: true}}, or false"
            )
    faults.require_none()


def _same_ends(
    recipe: Recipe,
    student: ModelFacts,
    teacher: ModelFacts,
    student_tokenizer: "PreTrainedTokenizerBase",
    teacher_tokenizer: "PreTrainedTokenizerBase",
) -> None:
    faults = Faults()
    ends = []
    with faults:
        ends.append(_turn_ends(student, student_tokenizer, "student", recipe.student.chat_template_kwargs))
    if ends or teacher_tokenizer is not student_tokenizer:  # one model is told once
        with faults:
            ends.append(_turn_ends(teacher, teacher_tokenizer, "teacher", recipe.teacher.chat_template_kwargs))
    faults.require_none()
    if ends[0] != ends[1]:
        told = [repr(student_tokenizer.decode([i])) for i in ends]
        raise UserError(
            f"the student ends its turn with {told[0]}, the teacher with {told[1]}, so the student would never "
            "learn to stop: choose two models of one family, or give both the same chat_template"
        )


def _turn_ends(model: ModelFacts, tokenizer: "PreTrainedTokenizerBase", who: str, kwargs: dict[str, Any]) -> int:
    """The token that the chat template puts after an answer. It must be one that ends generation."""
    if not tokenizer.chat_template:
        raise UserError(
            f"the {who}'s tokenizer ({model.path}) has no chat template: use an instruct model, or put a "
            "chat_template.jinja next to its tokenizer.json"
        )
    answer = "an-answer-8c1f"
    messages = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
    text = rendered(tokenizer, who, messages, "a question and its answer", kwargs)
    after = tokenizer(text.rpartition(answer)[2].lstrip(), add_special_tokens=False).input_ids
    stops = ", ".join(f"{tokenizer.decode([i])!r} ({i})" for i in model.eos_ids) or "none"
    remedy = f"set eos_token_id in the generation_config.json of {model.path} to the template's end token"
    if not after:
        raise UserError(
            f"the {who}'s chat template puts nothing after an answer, so generation would never learn to end; the "
            f"model's eos is {stops}: let the template of {model.path} end an assistant's turn with it"
        )
    if after[0] not in model.eos_ids:
        raise UserError(
            f"the {who}'s chat template ends a turn with {tokenizer.decode([after[0]])!r} ({after[0]}), which is not "
            f"the model's eos: {stops}; {remedy}"
        )
    return after[0]


def _references(rows: Sequence[dict[str, Any]]) -> None:
    without = [row["problem_id"] for row in rows if not row["reference"].strip()]
    if without:
        raise UserError(
            f"teacher.mode=opsd shows the teacher the reference solution, but {len(without)} of {len(rows)} problems "
            f"have none, the first being {without[0]}: set data.columns.reference=NAME to the column with them, or "
            "data.without_reference=drop, or set teacher.mode=opd and teacher.path to a stronger model"
        )


def _tokens(found: list[int]) -> Tokens | None:
    return Tokens(round(statistics.median(found)), max(found)) if found else None
