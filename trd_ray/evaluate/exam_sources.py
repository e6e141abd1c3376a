"""What a model is evaluated on, before the model is read: a benchmark, a file, evaluation.path or one of its sets.

    target, recipe, names  ->  sources()  ->  an ExamSource for each: its problems, how they are sampled, what judges

- A benchmark has its own number of samples, token limit, wordings and rules, of which the recipe or an override may
  replace the first two.
- The problems of evaluation.path and of evaluation.sets are asked and judged as in the run: `evaluation.*` says how,
  the wordings and the verifier are the recipe's. A benchmark and a family of reasoning_gym keep their own rules.
- A file that is named is judged by the recipe's function too, if it has one of the user's own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trd_ray.config import EvaluationConfig, Recipe, VerifyConfig
from trd_ray.errors import Faults, UserError
from trd_ray.evaluate.target import Target, set_named
from trd_ray.evaluate.target import word as file_name
from trd_ray.preflight.held_out import key_of, shared_arguments
from trd_ray.problems import benchmarks
from trd_ray.problems.gym import family
from trd_ray.problems.load import ProblemSet, held_out_task, held_out_verify, load_benchmark, load_problems


@dataclass(frozen=True)
class ExamSource:
    """The problems of an exam, and what is known about them before the model is read."""

    name: str
    about: dict[str, Any]
    evaluation: EvaluationConfig  # the settings they are sampled with
    found: ProblemSet
    verify: VerifyConfig  # what judges them
    key: str  # what a message calls them
    of: str | None = None  # the set that they are of a run of the recipe, "" for evaluation.path; None for no set of it


def sources(asked: Target, r: Recipe, names: list[str], faults: Faults) -> list[ExamSource]:
    """What is named, else evaluation.path and all of evaluation.sets; what cannot be read goes to `faults`."""
    trained = asked.trained or r
    found: list[ExamSource] = []
    for name in names:
        with faults:
            of = set_named(name, r)
            found.append(_of_set(r, trained, of) if of else _named(r, trained, name))
    if not names and asked.has_path and r.evaluation.path:
        with faults:
            found.append(_named(r, trained, r.evaluation.path))
    for of in r.evaluation.sets if not names else ():
        with faults:
            found.append(_of_set(r, trained, of))
    return found


def _of_set(r: Recipe, trained: Recipe, of: str) -> ExamSource:
    """One of evaluation.sets, as a run evaluates it."""
    e = r.evaluation.of(of)
    try:
        found = load_problems(e, r.verify, r.data.columns, also_arguments=shared_arguments(trained, e.path))
    except UserError as e_:
        raise UserError(*(f"{key_of(of)}: {sentence}" for sentence in e_.sentences)) from e_
    b = found.benchmark
    about = {
        "title": b.title if b else str(e.path),
        "task": _task(r, e, found),
        "source": b.source if b else str(e.path),
        "licence": b.licence if b else "your own",
        "notes": list(b.notes) if b else [],
        "set": of,
        "guard": r.evaluation.sets[of].guard,
    }
    return ExamSource(_name_of_set(r, of), about, e, found, held_out_verify(e, r.verify), f"{key_of(of)}.path", of)


def _task(r: Recipe, e: EvaluationConfig, found: ProblemSet) -> str:
    """Whose default wordings the problems are asked in, as a run asks them; all are of one kind."""
    [first] = found.table.slice(0, 1).to_pylist()
    return r.prompts.task or held_out_task(e, r.verify, first["problem"], first["tests"] is not None)


def _name_of_set(r: Recipe, of: str) -> str:
    """The set's own name, which is also that of its files, unless a benchmark or evaluation.path has the same."""
    path = r.evaluation.path
    taken = benchmarks.is_name(of) or (path and of == _name_of_file(path))
    return f"set-{of}" if taken else of


def _name_of_file(spec: str) -> str:
    return file_name(spec if ":" in spec else Path(spec).stem)


def _named(r: Recipe, trained: Recipe, spec: str) -> ExamSource:
    """A benchmark, a file, a family of reasoning_gym, or evaluation.path."""
    e = r.evaluation
    given = e.model_fields_set
    of = "" if spec == e.path else None
    if family.names_family(spec) and spec != e.path:
        e = e.model_copy(update={"path": spec, "split": "test", "arguments": {}})
    if spec == e.path and not benchmarks.is_name(spec):
        # The recipe names its columns. A word is a data set of the hub without an owner.
        as_written = e.model_copy(update={"format": "hub"}) if e.format == "auto" and benchmarks.is_word(spec) else e
        also = shared_arguments(trained, spec)
        found = load_problems(as_written, r.verify, r.data.columns, also_arguments=also)
        about = {"title": spec, "task": _task(r, e, found), "source": spec, "licence": "your own", "notes": []}
        return ExamSource(_name_of_file(spec), about, e, found, held_out_verify(as_written, r.verify), spec, of)
    found = load_benchmark(spec, e, r.verify, r.data.columns)
    b = found.benchmark
    assert b is not None
    own = ("samples", "temperature", "top_p", "max_response_tokens")
    evaluation = e.model_copy(update={key: getattr(b, key) for key in own if key not in given})
    about = {"title": b.title, "task": b.task, "source": b.source, "licence": b.licence, "notes": list(b.notes)}
    verify = r.verify.built_in()
    if r.verify.has_own and not benchmarks.is_name(spec):
        verify = r.verify
        about["task"] = r.prompts.task or r.verify.usual_task
    return ExamSource(file_name(b.name), about, evaluation, found, verify, spec, of)
