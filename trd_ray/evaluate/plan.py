"""Everything that is read and checked before an evaluation starts: model, benchmarks, prompts, lengths and the base.

    model or recipe, names of benchmarks, overrides  ->  plan()  ->  EvaluationPlan: a recipe to start engines with, and
                                                                     an Exam (problems, prompts, settings) for each
                                                                     benchmark or set

Without names it is what a run of the recipe is evaluated on: the problems of evaluation.path and each of
evaluation.sets. `plan` raises UserError for anything that cannot work, before a directory is made or an engine starts.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from trd_ray import models
from trd_ray.config import EvaluationConfig, Recipe
from trd_ray.config.effects import ANSWERS
from trd_ray.config.keys import affecting, in_group
from trd_ray.engine.launch import engine_dtype
from trd_ray.errors import Faults, UserError
from trd_ray.evaluate.before_training import before_training
from trd_ray.evaluate.beside import beside
from trd_ray.evaluate.exam_sources import ExamSource, sources
from trd_ray.evaluate.samples import prompt_sha256, settings_of_judge, verifier_of
from trd_ray.evaluate.target import Target, target
from trd_ray.preflight import checks
from trd_ray.problems import benchmarks
from trd_ray.score.stats import Score, from_json
from trd_ray.session.inputs import (
    Inputs,
    fixed_numbers,
    require_sandbox,
    require_verifier,
    with_judge,
)
from trd_ray.session.person_needed import require_no_person_on
from trd_ray.stream.answers import Question
from trd_ray.stream.stages import with_prompt
from trd_ray.views import Views, setting_of

_OF_ANSWERS = {group: in_group(group, affecting(ANSWERS)) for group in ("evaluation", "sampler")}


@dataclass(frozen=True)
class Base:
    """What a checkpoint is compared with."""

    score: Score
    settings: dict[str, Any] | None  # None for an evaluation during training, which does not record them
    alike: bool = False  # whether it is known to have been asked in the same way


@dataclass(frozen=True)
class Exam:
    """One benchmark or set as this model will be asked it."""

    name: str  # its files have the same name
    about: dict[str, Any]  # title, task, source, licence, notes; of a set also its name and whether it is a guard
    evaluation: EvaluationConfig  # as resolved for this benchmark
    questions: list[Question]
    prompts: dict[str, str]  # problem_id -> digest of the prompt's tokens
    verifiers: dict[str, str]  # problem_id -> what a verdict on it depends on
    prompt_tokens: checks.Tokens
    thinking: str  # how the chat template is asked
    base: Base | None

    @property
    def keys(self) -> list[tuple[str, int]]:
        return [(q.problem_id, sample) for q in self.questions for sample in range(self.evaluation.samples)]

    @property
    def settings(self) -> dict[str, Any]:
        """What a sample depends on in addition to weights, prompt and seed."""
        asked = {"chat_template_kwargs": self.about["chat_template_kwargs"]}
        return {"evaluation": self.evaluation.model_dump(mode="json", include=_OF_ANSWERS["evaluation"]) | asked}

    def __str__(self) -> str:
        e = self.evaluation
        guard = " (guard)" if self.about.get("guard") else ""
        return (
            f"{self.name}{guard}: {len(self.questions)} problems x {e.samples} samples, temperature {e.temperature:g}, "
            f"top-p {e.top_p:g}, top-k {e.top_k or 'off'}, at most {e.response_tokens} tokens, prompts of "
            f"{self.prompt_tokens} tokens; {self.thinking}{''.join(f'; note: {n}' for n in self.about['notes'])}"
        )


@dataclass(frozen=True)
class EvaluationPlan:
    target: Target
    recipe: Recipe  # what the engines start with
    inputs: Inputs
    exams: list[Exam]
    directory: Path
    beside: str = ""  # the run that the checkpoint is of, if that run still goes on

    def __str__(self) -> str:
        where = f", beside run {self.beside}" if self.beside else ""
        return "\n".join([f"{self.target.name} in {self.directory}{where}", *map(str, self.exams)])

    def settings(self, exam: Exam) -> dict[str, Any]:
        """Settings that must be equal for samples on disk to be used again.

        Weights and prompts must be equal too. Their contents are compared: see `weights.fingerprint` and
        `prompt_sha256`.
        """
        r = self.recipe
        engine = r.sampler.model_dump(mode="json", include=_OF_ANSWERS["sampler"])
        return {"seed": r.seed} | exam.settings | {"sampler": engine | {"dtype": engine_dtype(r.sampler, r)}}


@dataclass(frozen=True)
class _Model:
    path: str  # resolved
    tokenizer: Any
    facts: models.ModelFacts


def plan(argument: str, names: list[str], overrides: list[str], base: str | None = None) -> EvaluationPlan:
    asked = target(argument, overrides)
    living, r = beside(asked.recipe, overrides)
    faults = Faults()
    found = sources(asked, r, names, faults)
    if not found and not faults.sentences:
        raise UserError(
            f"there is nothing to evaluate {argument} on: name a file of problems, or benchmarks of this list\n"
            f"{benchmarks.listing()}"
        )
    directory = r.directory.absolute()
    model = None
    with faults:
        path = models.resolve(r.student.path, r.student.revision)
        tokenizer = models.tokenizer(path, r.student.revision, r.student.trust_remote_code)
        model = _Model(path, tokenizer, models.facts(path, r.student.revision, r.student.trust_remote_code))
    faults.require_none()
    assert model is not None
    if any(source.verify.asks_a_person for source in found):
        require_no_person_on("evaluation", r.verify)
    exams: list[Exam] = []
    findings = None
    longest = 0
    for source in found:
        if any(exam.name == source.name for exam in exams):
            raise UserError(f"{source.name} is named twice: name each benchmark once")
        with faults:
            exam, findings = _exam(r, source, model)
            compared = _base(base, directory, exam) if base else _own_base(asked, r, source, exam)
            exams.append(replace(exam, base=compared))
            longest = max(longest, exam.prompt_tokens.longest + exam.evaluation.response_tokens)
    faults.require_none()
    if not r.sampler.max_model_len:  # a longer context would only take memory from the cache
        r = r.model_copy(update={"sampler": r.sampler.model_copy(update={"max_model_len": longest})})
    assert findings is not None
    tables = pa.concat_tables([source.found.table for source in found])
    set_aside = [problem for source in found for problem in source.found.set_aside]
    inputs = Inputs(
        "evaluate", r, model.path, dict.fromkeys(r.by_teacher, model.path), None, tables, 0, findings, model.facts,
        dict.fromkeys(r.by_teacher, model.facts), set_aside, fixed_numbers(r, "sampler"),
    )  # fmt: skip
    require_sandbox(r, inputs.held_out)
    if judged := [source.found.table for source in found if source.verify.names_judge]:
        inputs = with_judge(inputs, pa.concat_tables(judged))
    for source in found:
        if source.verify.chosen:
            inputs.notes += require_verifier(r, {source.key: source.found.table})
    return EvaluationPlan(asked, r, inputs, exams, directory, living)


def _exam(r: Recipe, source: ExamSource, model: _Model) -> tuple[Exam, checks.Findings]:
    """The exam without a base."""
    name = source.name
    about = source.about
    problems = source.found.table
    verify = source.verify
    prompts = r.prompts.model_copy(update={"task": about["task"]})
    own = r.model_copy(update={"evaluation": source.evaluation, "verify": verify, "prompts": prompts})
    try:
        findings = checks.check(
            own, problems=None, evaluation=problems, student=model.facts,
            teacher=dict.fromkeys(own.by_teacher, model.facts), student_tokenizer=model.tokenizer,
            teacher_tokenizer={teacher: model.tokenizer for teacher in own.by_teacher},
            trains=False,
        )  # fmt: skip
    except UserError as e:
        raise UserError(*(f"{name}: {sentence}" for sentence in e.sentences)) from e
    assert findings.evaluation_prompt is not None
    views = Views(own, model.tokenizer, model.tokenizer)
    evaluation = findings.recipe.evaluation
    questions = []
    for problem in problems.to_pylist():
        prompt_ids = views.evaluation(problem["problem"], **setting_of(problem))
        shown = with_prompt(problem, verify, views, prompt_ids)
        questions.append(Question(name, shown, prompt_ids, evaluation, verify))
    kwargs = evaluation.chat_template_kwargs or r.student.chat_template_kwargs
    exam = Exam(
        name=name,
        about=about | {"chat_template_kwargs": kwargs},
        evaluation=evaluation,
        questions=questions,
        prompts={q.problem_id: prompt_sha256(q.prompt_ids) for q in questions},
        verifiers={q.problem_id: verifier_of(q.problem, q.verify, settings_of_judge(own)) for q in questions},
        prompt_tokens=findings.evaluation_prompt,
        thinking=_thinking(kwargs),
        base=None,
    )
    return exam, findings


def _thinking(kwargs: dict[str, Any]) -> str:
    """How the chat template is asked; preflight requires a setting for every template with a thinking mode."""
    told = ", ".join(f"{key}={json.dumps(value)}" for key, value in kwargs.items())
    return f"chat template with {told}" if told else "chat template as it is, it has no thinking mode"


def _own_base(asked: Target, r: Recipe, source: ExamSource, exam: Exam) -> Base | None:
    """What the run of the checkpoint scored on the same problems before training, if it did and asked them alike."""
    if asked.trained is None or asked.run is None or source.of is None:
        return None
    prompts = r.prompts.model_copy(update={"task": exam.about["task"]})
    now = r.model_copy(update={"evaluation": exam.evaluation, "verify": source.verify, "prompts": prompts})
    ids = {q.problem_id for q in exam.questions}
    score, note = before_training(asked.run, asked.trained, now, source.of, ids)
    if exam.about.get("guard") and not score:
        note = note or "not compared, since the run has no score of it from before training"
    exam.about["notes"] += [note] if note else []
    return Base(score, None, alike=True) if score else None


def _base(base: str, directory: Path, exam: Exam) -> Base:
    """The score to compare with; `base` is a directory of an evaluation, one next to this one's, or a JSON file."""
    name = exam.name
    places = [Path(base).expanduser(), directory.parent / base, directory / "evaluation" / base]
    places = [place if place.suffix == ".json" else place / "evaluation" / f"{name}.json" for place in places]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        raise UserError(
            f"there is no score of {name} in {base}: evaluate the base on it first, with run_dir={base}, or correct "
            "--base"
        )
    try:
        tree = json.loads(place.read_text())
        score = from_json(tree)
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{place} holds no score of this version of the program: evaluate the base again") from e
    ours, theirs = {q.problem_id for q in exam.questions}, score.per_problem.keys()
    if ours != theirs:
        raise UserError(
            f"{place} has {len(theirs)} problems, of which {len(theirs & ours)} are among the {len(ours)} of {name} "
            "here: evaluate both on the same problems (evaluation.limit, the same file)"
        )
    return Base(score, tree.get("settings"))
