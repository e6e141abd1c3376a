"""`trd evaluate`: sample, verify and score a checkpoint on benchmarks, and go on where an earlier start ended.

    plan -> what is on disk already -> engines, if anything is left to sample -> samples and verdicts as they come
         -> evaluation/<benchmark>.json and .parquet, evaluation.md, tables

The files of a benchmark are written as soon as it is finished; samples of the next one are under way by then. Ctrl-C, a
crash or SIGKILL loses what is in the engines at that moment. The same command goes on from the samples on disk.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from trd_ray.config import JUDGE_POOL, SAMPLER, Recipe
from trd_ray.distill import checksums
from trd_ray.errors import UserError
from trd_ray.evaluate import report
from trd_ray.evaluate.beside import hold, is_whole
from trd_ray.evaluate.plan import EvaluationPlan, Exam, plan
from trd_ray.evaluate.progress import Progress
from trd_ray.evaluate.samples import Samples
from trd_ray.evaluate.target import run_of, target
from trd_ray.evaluate.weights import fingerprint
from trd_ray.record.directory import RunDirectory
from trd_ray.record.display import console_for_results
from trd_ray.report.written import report as report_html
from trd_ray.session.beginning import Beginning, begin
from trd_ray.session.cluster import Connection
from trd_ray.session.dry import DryRun
from trd_ray.session.last_words import beating
from trd_ray.session.room_beside import wait_for_room
from trd_ray.session.session import Session
from trd_ray.stream.answers import Ask, Sampled, answers, seed_of_sample

LOOKS = 3  # for a checkpoint that its run has not deleted meanwhile


def dry_run(argument: str, names: list[str], overrides: list[str], base: str | None, asked: DryRun) -> int:
    """Print the resolved recipe, the benchmarks, the engines with their memory, and whether the cluster holds them."""
    planned = plan(argument, names, overrides, base)
    with Connection(planned.recipe) as connection:
        placed = planned.inputs.plan(connection.machines(), asked.gpu_gib)
    return asked.show(planned.recipe, planned.inputs.notes, str(planned), placed)


def run(argument: str, names: list[str], overrides: list[str], name: str | None, base: str | None) -> int:
    """Score a model, a run's checkpoint or a recipe's student on benchmarks; `name` is its name in the tables.

    Returns exit code 0. Raises what ended it early: UserError for anything that the user can fix.
    """
    console = console_for_results()
    with ExitStack() as stack:
        planned = plan(_held(argument, overrides, stack), names, overrides, base)
        beginning = stack.enter_context(begin("evaluate", planned.directory, planned.recipe))
        console.print(str(planned), markup=False, soft_wrap=True)
        if not planned.directory.exists():
            beginning.require(planned.inputs)
        directory = _claim(planned.directory, planned.recipe)
        beginning.claimed(directory, planned.inputs)
        samples = {exam.name: stack.enter_context(s) for exam, s in _open(planned)}
        evaluation = Evaluation(planned, directory, samples, name or planned.target.name)
        beginning.kept = evaluation.kept
        if evaluation.left:
            beginning.require(planned.inputs)
            evaluation.run(beginning)
        results = [evaluation.finish(exam) for exam in planned.exams]
        place = report.write_markdown(planned.directory, planned.recipe)
        with beating():
            report_html(planned.directory)
    report.show(console, results, planned.recipe)
    console.print(f"everything is in {planned.directory}, the report is {place.name}", soft_wrap=True, markup=False)
    return 0


def _held(argument: str, overrides: list[str], stack: ExitStack) -> str:
    """The argument, with a checkpoint's folder in place of its run: it stays until the stack is closed.

    A run that goes on deletes old checkpoints, so the newest one may go while it is looked for.
    """
    for _ in range(LOOKS):
        model = target(argument, overrides).recipe.student.path
        if hold(model, stack):
            return str(Path(model).parent) if Path(argument).expanduser().is_dir() and run_of(Path(model)) else argument
    raise UserError(f"{model} was deleted meanwhile: raise checkpoint.keep_last of its run")


class Evaluation:
    """The samples of all benchmarks: those on disk, and those still to be made."""

    def __init__(self, planned: EvaluationPlan, directory: RunDirectory, samples: dict[str, Samples], name: str):
        self.plan = planned
        self.directory = directory
        self.samples = samples
        self.name = name
        self.exams = {exam.name: exam for exam in planned.exams}
        self.results: dict[str, report.Result] = {}
        self.to_verify = {exam.name: sum(not self._verified(exam, key) for key in exam.keys) for exam in planned.exams}
        self.samples_left = any(key not in samples[exam.name] for exam in planned.exams for key in exam.keys)

    @property
    def left(self) -> bool:
        return any(self.to_verify.values())

    def kept(self, directory: Path) -> str:
        done = sum(key in self.samples[exam.name] for exam in self.plan.exams for key in exam.keys)
        total = sum(len(exam.keys) for exam in self.plan.exams)
        return f"{done} of {total} samples are kept in {directory}: the same command goes on"

    def run(self, beginning: Beginning) -> None:
        """Sample and verify what is left; without samples to make no engines are started but those of a judge."""
        progress = Progress({exam.name: (len(exam.questions), exam.evaluation.samples) for exam in self.plan.exams})
        self._show_kept(progress)
        with beginning.session(self.plan.inputs, self.directory, progress) as session:
            if self.samples_left or self.plan.inputs.judge:
                run = run_of(Path(self.plan.recipe.student.path))
                if self.plan.beside and run:
                    wait_for_room(
                        session.plan, "sampler", self.plan.beside, verifier_cpus=self.plan.recipe.verify.cpus,
                        also=[JUDGE_POOL] if self.plan.inputs.judge else [],
                        while_waiting=session.check, say=progress.phase, is_whole=lambda: is_whole(run),
                    )  # fmt: skip
                progress.phase("starting engines")
                idle = () if self.samples_left else (SAMPLER,)
                session.start(student_path=self.plan.inputs.student_path, version=0, without=idle)
                session.wait_until_started()
            progress.phase("sampling and verifying")
            progress.begin()
            self._take(session, progress)

    def _take(self, session: Session, progress: Progress) -> None:
        def while_waiting() -> None:
            session.look()
            progress.look()

        recipe = self.plan.recipe
        unjudged = 0
        for event in answers(
            self._asks(), pool=session.pools.get("sampler"), sampler=recipe.sampler, verify=recipe.verify,
            judge=session.judge(), while_waiting=while_waiting,
        ):  # fmt: skip
            question = event.ask.question
            samples = self.samples[event.ask.question.benchmark]
            exam = self.exams[question.benchmark]
            problem_id = question.problem_id
            key = (problem_id, event.ask.sample)
            if isinstance(event, Sampled):
                samples.add(key, event.ask.seed, exam.prompts[problem_id], event.generation)
                progress.sampled(exam.name, len(event.generation.ids))
                continue
            samples.judge(key, exam.verifiers[problem_id], event.verdict)
            unjudged += not event.verdict.judged
            progress.verified(exam.name, problem_id, event.verdict.passed)
            self.to_verify[exam.name] -= 1
            if not self.to_verify[exam.name]:
                progress.say(report.headline(self.finish(exam)))
        if unjudged:
            said = "could not be judged and count as not passed: the same command judges them again"
            progress.say(f"warning: {unjudged} samples {said}")

    def _asks(self) -> Iterator[Ask]:
        """What is left, problem by problem, since samples of one problem share the cache of their prompt."""
        for exam in self.plan.exams:
            samples = self.samples[exam.name]
            for question in exam.questions:
                for sample in range(exam.evaluation.samples):
                    key = (question.problem_id, sample)
                    if not self._verified(exam, key):
                        seed = seed_of_sample(self.plan.recipe.seed, *key)
                        text, ids = samples.response(key) if key in samples else (None, [])
                        yield Ask(question, sample, seed, text, ids)

    def _verified(self, exam: Exam, key: tuple[str, int]) -> bool:
        return self.samples[exam.name].verified(key, exam.verifiers[key[0]])

    def _show_kept(self, progress: Progress) -> None:
        for exam in self.plan.exams:
            samples = self.samples[exam.name]
            for key in exam.keys:
                if key in samples:
                    passed = samples.passed(key) if self._verified(exam, key) else None
                    progress.kept(exam.name, key[0], passed)

    def finish(self, exam: Exam) -> report.Result:
        """Write the files of a benchmark, once every sample of it has a verdict."""
        if exam.name not in self.results:
            samples = self.samples[exam.name]
            self.results[exam.name] = found = report.result(self.plan, exam, samples, self.name)
            samples.parquet(self.plan.directory / "evaluation" / f"{exam.name}.parquet", exam.keys)
            report.write(self.plan.directory, found)
        return self.results[exam.name]


def _open(planned: EvaluationPlan) -> Iterator[tuple[Exam, Samples]]:
    folder = planned.directory / "evaluation"
    inputs = planned.inputs
    known: dict[str, Any] | None = next(filter(None, map(Samples.model, sorted(folder.glob("*.jsonl")))), None)
    model = fingerprint(inputs.student_path, planned.recipe.student.revision, known)
    _require_as_written(Path(inputs.student_path), model)
    for exam in planned.exams:
        samples = Samples.open(folder / f"{exam.name}.jsonl", planned.settings(exam) | {"model": model})
        for problem_id, prompt in exam.prompts.items():
            samples.check_prompt(problem_id, exam.evaluation.samples, prompt)
        yield exam, samples


def _require_as_written(folder: Path, model: dict[str, Any]) -> None:
    """Refuse a checkpoint whose model folder is no longer what was written; `model` is its fingerprint."""
    sums = (checksums.read(folder.parent) or {}) if folder.name == "model" else {}
    for name, facts in model.get("files", {}).items():
        if sums.get(f"model/{name}", facts["blake2b"]) != facts["blake2b"]:
            raise UserError(f"{folder / name} is not what the run wrote: it is damaged, so evaluate another checkpoint")


def _claim(path: Path, recipe: Recipe) -> RunDirectory:
    """Claim a directory for evaluations of one checkpoint; `Samples` decides what may differ from its last start."""
    if any((path / "rows").glob("*")) or any((path / "checkpoints").glob("*")) or (path / "metrics.jsonl").exists():
        raise UserError(f"run directory {path} holds a training run: set run_dir to a place of the evaluation's own")
    return RunDirectory.create(
        path,
        recipe,
        resume=(path / "recipe.yaml").exists(),
        may_change=set(Recipe.model_fields),
        folders=("evaluation", "logs"),
    )
