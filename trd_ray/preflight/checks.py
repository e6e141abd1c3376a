"""Checks of a recipe with its models and data, before any engine starts: what cannot work is refused.

    recipe, problems, ModelFacts and tokenizers of both models  ->  check()  ->  Findings, or a UserError

They compare the vocabularies of student and teacher, the tokens that end a turn, the lengths of all prompts with the
contexts, and held-out with training problems. `placement` checks the machines.
"""

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from trd_ray.config import ONLY, Each, Recipe, group_of_teacher, keys_of, of_each, own_wordings, pool_of
from trd_ray.errors import Faults, UserError
from trd_ray.models import ModelFacts
from trd_ray.preflight import lengths, trainable
from trd_ray.preflight.arguments import require_arguments
from trd_ray.preflight.held_out import require_unseen, together
from trd_ray.preflight.lengths_of_each import fit_each
from trd_ray.preflight.overlap import Overlap, asked_texts
from trd_ray.preflight.pairs import same_ends, same_vocabulary, thinking_is_stated
from trd_ray.problems import order
from trd_ray.problems.load import held_out_task
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
        told = (
            f"a corpus of {self.rows} rows, {self.steps} steps of {self.rows_per_step} rollouts on "
            f"{len(self.problems)} problems"
        )
        passes = self.steps / max(1, self.rows // self.rows_per_step)
        return f"{told} in {passes:.3g} passes" if passes > 1 else told


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
    taught: Mapping[str, int] = field(default_factory=dict)  # how many problems each of several teachers has

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
            if self.taught:
                parts.append(", ".join(f"{count} taught by {name}" for name, count in self.taught.items()))
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
    teacher: Each[ModelFacts],
    student_tokenizer: "PreTrainedTokenizerBase",
    teacher_tokenizer: "Each[PreTrainedTokenizerBase]",
    corpus: Corpus | None = None,
    trains: bool = True,
) -> Findings:
    """Refuse what cannot work: raises UserError. `problems` is None for a corpus, `evaluation` where there is none.

    `sets` are the held-out problems of evaluation.sets.
    """
    taught, facts, tokenizers = recipe.by_teacher, of_each(teacher), of_each(teacher_tokenizer)
    faults = Faults()
    held_out = ({} if evaluation is None else {"": evaluation}) | dict(sets or {})
    evaluation = together(held_out)
    if trains:
        _trainable(recipe, student, list(facts.values()), faults)
    for pool, engine in recipe.engines.items():
        with faults:
            require_arguments(f"{keys_of(pool)}.extra", engine.extra)
    with faults:
        # Without prompts.task the words of a held-out problem are chosen by what judges it.
        _wordings_fit(recipe, problems, evaluation if recipe.prompts.task else None)
    with faults:
        thinking_is_stated(
            recipe, student_tokenizer, tokenizers, problems is not None or trains, evaluation is not None
        )
    padded: dict[str, str] = {}
    in_both = None
    for name in taught:
        with faults:
            padded[name] = same_vocabulary(student, facts[name], student_tokenizer, tokenizers[name])
    with faults:
        trained = asked_texts(problems) if problems is not None else corpus.problems if corpus else None
        in_both = require_unseen(recipe, trained, held_out)
    views: dict[str, Views] = {}
    for name, one in taught.items():
        templates = bool(student_tokenizer.chat_template and tokenizers[name].chat_template)
        if templates:
            with faults:
                views[name] = Views(one, student_tokenizer, tokenizers[name])
        if name in views or not templates:  # else Views has told of a template that renders nothing
            with faults:
                same_ends(one, student, facts[name], student_tokenizer, tokenizers[name], group_of_teacher(name))
    findings = None
    if len(views) == len(taught):
        with faults:
            findings = _lengths(recipe, views, problems, held_out, student, facts)
    faults.require_none()
    assert findings is not None
    told = "; ".join(dict.fromkeys(filter(None, padded.values())))
    if told and trains:
        logger.warning(told)
    return replace(findings, padded=told if trains else "", overlap=in_both, corpus=corpus)


def _trainable(recipe: Recipe, student: ModelFacts, teachers: Sequence[ModelFacts], faults: Faults) -> None:
    with faults:
        trainable.no_bias(student, *(teachers if recipe.loss.has_teacher else ()))
    with faults:
        trainable.has_targets(recipe, student)
    with faults:
        trainable.has_compiler(recipe)
    for teacher in teachers if recipe.loss.has_teacher else ():
        with faults:
            trainable.has_support(recipe, student, teacher)


def _lengths(
    recipe: Recipe,
    views: Mapping[str, Views],
    problems: pa.Table | None,
    held_out: Mapping[str, pa.Table],
    student: ModelFacts,
    teachers: Mapping[str, ModelFacts],
) -> Findings:
    """Findings from the lengths of all prompts: what they leave room for, or a UserError."""
    taught = recipe.by_teacher
    contexts = {name: lengths.Contexts.of(one, student, teachers[name]) for name, one in taught.items()}
    rows = _by_teacher(problems, list(taught))
    asked = {name: [_problem(row, views[name]) for row in its] for name, its in rows.items()}
    first, view = next(iter(taught)), next(iter(views.values()))  # of the student, which each of them shows alike
    evaluated = _evaluated(recipe, held_out, view)
    prompts = [tokens for *_, tokens in evaluated]
    faults = Faults()
    if any(rows.values()) or evaluated:
        with faults:
            lengths.require_positions("sampler", recipe.sampler.max_model_len, student)
    for name, one in taught.items():
        if rows[name] and recipe.refines and not recipe.shares_engines:
            with faults:
                lengths.require_positions(keys_of(pool_of(name)), one.refiner.max_model_len, teachers[name])
        if one.needs_references:
            with faults:
                _references(one, rows[name], group_of_teacher(name))
    with faults:
        resolved = lengths.resolve(taught[first], contexts[first], [p.tokens for p in asked[first]], prompts)
        lengths.require_held_out(resolved, evaluated, contexts[first].sampler, student.max_positions)
    fitted = None
    with faults:
        fitted = fit_each(recipe, asked, prompts, contexts, student, teachers)
    faults.require_none()
    assert fitted is not None
    r = fitted.recipe
    kept = [(one, p.tokens) for name, one in r.by_teacher.items() for p in fitted.kept[name]]
    longest = [lengths.longest_tokens(one, p) for one, p in kept]
    without_attempt = [
        min(one.refiner.prompt_tokens, p.refine if one.teacher.view == "refine" and one.shows_attempts else p.vanilla)
        for one, p in kept
    ]
    return Findings(
        recipe=r,
        problems=len(kept),
        length=order.length(
            len(kept), rollouts_per_step=r.rollouts_per_step, samples_per_problem=r.sampler.n, steps=r.steps
        )
        if kept
        else None,
        student_prompt=_tokens([p.student for _, p in kept]),
        teacher_prompt=_tokens(without_attempt),
        evaluation_problems=len(evaluated),
        evaluation_prompt=_tokens(prompts),
        longest_sequence_tokens=max(longest, default=0),
        shared_vocabulary=min(model.vocab_size for model in (student, *teachers.values())),
        too_long=tuple(fitted.set_aside),
        taught={name: len(fitted.kept[name]) for name in taught if name},
    )


def _by_teacher(problems: pa.Table | None, teachers: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each of the teachers, with what their prompts hold."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in teachers}
    columns = [*_ASKED, "reference", *(["teacher"] if ONLY not in found else [])]
    for row in problems.select(columns).to_pylist() if problems is not None else ():
        found[row.get("teacher", ONLY)].append(row)
    return found


def _evaluated(recipe: Recipe, sets: Mapping[str, pa.Table], views: Views) -> list[tuple[str, str, int]]:
    """Id, text and length of the prompt of every held-out problem."""
    found = []
    for name, table in sets.items():
        e = recipe.evaluation.of(name)
        has_tests = table["tests"].is_valid().to_pylist()
        for row, tests in zip(table.select(_ASKED).to_pylist(), has_tests, strict=True):
            task = held_out_task(e, recipe.verify, row["problem"], tests)
            prompt = views.evaluation(row["problem"], **setting_of(row), task=task)
            found.append((row["problem_id"], row["problem"], len(prompt)))
    return found


def _problem(row: dict[str, Any], views: Views) -> lengths.Problem:
    tokens = views.tokens(row["problem"], row["reference"], **setting_of(row))
    return lengths.Problem(row["problem_id"], row["problem"], tokens)


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
    """Whether it has tests, for each problem whose source has no wordings of its own."""
    worded = {name for name, own in own_wordings(recipe.data).items() if "solve" in own or "task" in own}
    has_tests = problems["tests"].is_valid().to_pylist()
    return [has for has, source in zip(has_tests, problems["source"].to_pylist(), strict=True) if source not in worded]


def _references(recipe: Recipe, rows: Sequence[dict[str, Any]], group: str) -> None:
    without = [row["problem_id"] for row in rows if not row["reference"].strip()]
    if without:
        needs = f"{group}.mode=opsd shows the teacher the reference solution"
        other = f"set {group}.mode=opd and {group}.path to a stronger model"
        if recipe.train.trajectory == "reference":
            needs, other = "train.trajectory=reference trains on the reference solution", "another train.trajectory"
        raise UserError(
            f"{needs}, but {len(without)} of {len(rows)} problems have none, the first being {without[0]}: set "
            f"data.columns.reference=NAME to the column with them, or data.without_reference=drop, or {other}"
        )


def _tokens(found: list[int]) -> Tokens | None:
    return Tokens(round(statistics.median(found)), max(found)) if found else None
