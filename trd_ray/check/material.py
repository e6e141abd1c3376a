"""What a check looks at: the problems of a recipe, its tokenizers and views, and what `trd_ray.preflight` finds.

    recipe  ->  gather()  ->  Material, and the faults that were met on the way

No engine and no Ray is started, and it does not matter which machine this is. Whatever cannot be had is None, and its
fault says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from trd_ray import models
from trd_ray.config import ONLY, ModelConfig, Recipe
from trd_ray.errors import Faults
from trd_ray.preflight import checks
from trd_ray.preflight.held_out import held_out_sets
from trd_ray.preflight.judge_fits import judge_fits
from trd_ray.preflight.known_texts import Row, spread_rows
from trd_ray.preflight.overlap import asked_texts
from trd_ray.problems.load import load_problems
from trd_ray.problems.spool import where
from trd_ray.problems.whose import with_teachers_of
from trd_ray.views import Views

ROWS_TO_JUDGE = 100  # whose prompts for the judge are measured


@dataclass
class Material:
    recipe: Recipe  # its lengths are numbers where there are findings
    problems: pa.Table | None = None  # without those that data.too_long leaves out
    held_out: dict[str, pa.Table] = field(default_factory=dict)  # "": that of evaluation.path
    findings: checks.Findings | None = None
    student_tokenizer: Any = None
    # By teacher, for each of them or for none; ONLY is one that has no name.
    views: Mapping[str, Views] = field(default_factory=dict)
    teacher_tokenizers: Mapping[str, Any] = field(default_factory=dict)
    judge: str = ""  # how the judge is asked, where there is one

    def of_teacher(self, row: Row) -> tuple[Recipe, Views, Any]:
        """For the teacher of a row: the recipe in which it is the only one, its views and its tokenizer."""
        name = row.get("teacher") or ONLY
        return self.recipe.by_teacher[name], self.views[name], self.teacher_tokenizers[name]


def gather(recipe: Recipe, faults: Faults) -> Material:
    found = Material(recipe)
    with faults:
        found.problems = with_teachers_of(recipe, load_problems(recipe.data, recipe.verify).table)
    found.held_out = {name: one.table for name, one in held_out_sets(recipe, recipe.evaluation.names, faults).items()}
    student = None
    with faults:
        student, found.student_tokenizer = _model(recipe.student, recipe.student.path)
    teachers, tokenizers = _teachers(recipe, student, found.student_tokenizer, faults)
    if student and len(teachers) == len(recipe.by_teacher):
        found.teacher_tokenizers = tokenizers
    if found.problems is not None and student and found.teacher_tokenizers:
        is_corpus = recipe.data.source == "corpus"
        with faults:
            found.findings = checks.check(
                recipe,
                problems=None if is_corpus else found.problems,
                evaluation=found.held_out.get(""),
                sets={name: table for name, table in found.held_out.items() if name},
                student=student,
                teacher=teachers,
                student_tokenizer=found.student_tokenizer,
                teacher_tokenizer=tokenizers,
                corpus=_corpus(recipe, found.problems) if is_corpus else None,
            )
        if found.findings:
            found.recipe = found.findings.recipe
            left_out = {one.problem_id for one in found.findings.too_long}
            keep = [one not in left_out for one in found.problems["problem_id"].to_pylist()]
            found.problems = where(found.problems, keep) if left_out else found.problems
    with faults:
        if recipe.verify.names_judge and recipe.judge.path:
            facts, words = _model(recipe.judge, recipe.judge.path)
            rows = spread_rows(found.problems, ROWS_TO_JUDGE) if found.problems is not None else []
            its = [row for row in rows if recipe.verify.may_ask_judge(row["source"])]
            found.judge = judge_fits(found.recipe, facts, words, its)
    with faults:
        found.views = {
            name: Views(found.recipe.by_teacher[name], found.student_tokenizer, theirs)
            for name, theirs in found.teacher_tokenizers.items()
        }
    return found


def _teachers(
    recipe: Recipe, student: models.ModelFacts | None, student_tokenizer: Any, faults: Faults
) -> tuple[dict[str, models.ModelFacts], dict[str, Any]]:
    """Facts and tokenizers by teacher, without those that cannot be had."""
    facts: dict[str, models.ModelFacts] = {}
    tokenizers: dict[str, Any] = {}
    for name, one in recipe.by_teacher.items():
        with faults:
            if one.teacher.path:
                facts[name], tokenizers[name] = _model(one.teacher, one.teacher.path)
            elif student:
                facts[name], tokenizers[name] = student, student_tokenizer
    return facts, tokenizers


def _model(model: ModelConfig, path: str) -> tuple[models.ModelFacts, Any]:
    resolved = models.resolve(path, model.revision)
    tokenizer = models.tokenizer(resolved, model.revision, model.trust_remote_code)
    return models.facts(resolved, model.revision, model.trust_remote_code), tokenizer


def _corpus(recipe: Recipe, problems: pa.Table) -> checks.Corpus:
    texts = list(dict.fromkeys(asked_texts(problems)))
    rows = recipe.rollouts_per_step
    return checks.Corpus(problems.num_rows, max(1, problems.num_rows // rows), rows, texts)
