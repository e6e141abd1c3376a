"""TRD from Python, in a script or a notebook. This module is the public surface; everything else may change.

    from trd_ray.api import train

    run = train("miniature_opsd", run_dir="runs/first", steps=5)
    run.metrics; run.rows; run.scores; run.path

    train(recipe, problems=, verifier=, ...)      ->  Run
    refine(recipe, problems=, verifier=, ...)     ->  datasets.Dataset: a corpus, to look at, filter and train on
    evaluate(model, benchmarks, problems=, ...)   ->  Run, whose scores are the benchmarks'
    verify(texts, problems, verifier=, ...)       ->  a list of Verdict
    open_run(path)                                ->  Run, of a directory

- A recipe is the name of a shipped one, a YAML file or a dict of keys. Further keyword arguments are keys of the recipe
  that go before it: `steps=5`, `learner={"lr": 1e-5}`, `**{"learner.lr": 1e-5}`.
- Errors are exceptions: UserError (what you can fix), RunFailed, Stopped. Nothing calls sys.exit.
- A run has a process of its own (trd_ray.api.apart): a notebook's kernel outlives it, and a script needs no guard. So
  code that is given as an object is written down by its source, and shares no variable with the caller.

API.md, next to this package's README, has an example of each.
"""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trd_ray import cache, config
from trd_ray.api import given
from trd_ray.api.apart import run_apart
from trd_ray.api.run import Run, open_run
from trd_ray.errors import Lost, RunFailed, UserError
from trd_ray.session.stop import Stopped
from trd_ray.verify import Verdict

if TYPE_CHECKING:
    import datasets

__all__ = [
    "Run", "RunFailed", "Stopped", "UserError", "Verdict", "evaluate", "open_run", "refine", "train", "verify",
]  # fmt: skip

Recipe = str | PathLike[str] | Mapping[str, Any]
Resume = Literal["no", "auto", "required"]


def train(
    recipe: Recipe,
    problems: Any = None,
    verifier: Any = None,
    *,
    held_out: Any = None,
    metric: Any = None,
    callbacks: Iterable[Any] = (),
    resume: Resume = "no",
    quiet: bool = False,
    **keys: Any,
) -> Run:
    """Train, and return the run once it has ended.

    - `problems`: the path of a file or folder, a name on the hub, a list of dicts, a datasets.Dataset, a pandas or
      pyarrow table; or what `refine` gave, which is then trained on as a corpus. None: the recipe's `data`.
    - `held_out`: the same for the problems that are evaluated before and after. Where problems are given, and neither
      this nor evaluation.path, nothing is evaluated.
    - `verifier`, `metric`, `callbacks`: functions and classes, or their names as file.py:NAME or package.module:NAME.
    - `resume`: "auto" goes on with the run in the directory, and returns one that is done at once.
    - `quiet`: nothing is printed.

    Raises UserError, RunFailed or Stopped. If a callback stopped the run, it is returned and says so (`stopped`).
    """
    tree, folder = _tree(recipe, problems, verifier, held_out, metric, callbacks, keys)
    return _run("train", tree, folder, resume, quiet)


def refine(
    recipe: Recipe,
    problems: Any = None,
    verifier: Any = None,
    *,
    metric: Any = None,
    callbacks: Iterable[Any] = (),
    resume: Resume = "no",
    quiet: bool = False,
    **keys: Any,
) -> "datasets.Dataset":
    """Sample, verify, refine and verify every problem once, and return the corpus; arguments are those of `train`.

    The run directory stays, and `open_run` opens it.
    """
    tree, folder = _tree(recipe, problems, verifier, None, metric, callbacks, keys)
    return _run("refine", tree, folder, resume, quiet).dataset()


def evaluate(
    model: Recipe | Run,
    benchmarks: str | Sequence[str] = (),
    *,
    problems: Any = None,
    verifier: Any = None,
    name: str | None = None,
    base: str | PathLike[str] | None = None,
    quiet: bool = False,
    **keys: Any,
) -> Run:
    """Sample, verify and score a model on benchmarks and on problems of your own; called again, it goes on.

    - `model`: a folder, a hub name, a run (also as a Run) or a checkpoint of it, or a recipe, whose student it is.
    - `benchmarks`: names such as "aime24", "aime24:/path", files, or names of the recipe's evaluation.sets. Where
      neither these nor problems are given: evaluation.path and all of evaluation.sets.
    - `problems`, `verifier`, `quiet`: as for `train`. `name`: what the tables call the model. `base`: the directory of
      a former evaluation to compare with.

    The scores of the Run are those of the benchmarks and sets, by the names of their files. Raises as `train` does.
    """
    from trd_ray.evaluate.target import require_names, target

    words: list[str] = [benchmarks] if isinstance(benchmarks, str) else list(benchmarks)
    if isinstance(model, Mapping):
        tree = given.tree_of(model, keys)
        directory = config.from_tree(tree).directory
        argument, above = str(given.write_recipe(tree, _beside(directory) / f"{directory.name}-evaluate.yaml")), {}
    else:
        argument, above = fspath(model.path if isinstance(model, Run) else model), given.tree_of({}, keys)
    folder = _beside(target(argument, given.overrides(above)).recipe.directory)
    above |= given.own_code(folder, verifier)
    if problems is not None:
        words.append(given.problems(problems, folder, "held-out")["path"])
    overrides = given.overrides(above)
    require_names(words, target(argument, overrides).recipe)
    path = target(argument, overrides).recipe.directory
    at = fspath(base) if base is not None else None
    options = [word for option, value in (("--name", name), ("--base", at)) if value for word in (option, value)]
    request = {"job": "evaluate", "model": argument, "benchmarks": words, "overrides": overrides, "name": name}
    run_apart(request | {"base": at, "words": ["evaluate", argument, *words, *overrides, *options]}, quiet)
    return Run(path)


def verify(
    texts: Sequence[str] | str,
    problems: Any,
    verifier: Any = None,
    *,
    recipe: Recipe | None = None,
    **keys: Any,
) -> list[Verdict]:
    """What the verifier says of each text: of texts[i] on problem i, or of all on the only problem.

    `problems` is as for `train`, or one dict. `keys` are keys of the recipe's `verify`, such as timeout_s=5. It runs
    here, without Ray. Raises UserError, and RunFailed where what judges does not start on this machine.
    """
    from trd_ray.preflight.tokenised import verifier_with_ids
    from trd_ray.problems.load import load_problems
    from trd_ray.verify import verifier as verifier_of
    from trd_ray.verify.judged_together import judge_all

    texts = [texts] if isinstance(texts, str) else list(texts)
    folder = cache.root() / given.FOLDER
    tree = given.tree_of({} if recipe is None else recipe, {f"verify.{key}": value for key, value in keys.items()})
    tree = given.tree_of(tree, given.own_code(folder, verifier))
    one = isinstance(problems, Mapping) and not hasattr(problems, "num_rows")
    named = given.problems([problems] if one else problems, folder)
    asked = config.from_tree(given.with_problems(tree, named))
    rows = load_problems(asked.data, asked.verify).table.to_pylist()
    if len(rows) == 1:
        rows = rows * len(texts)
    if len(rows) != len(texts):
        raise UserError(f"there are {len(texts)} texts and {len(rows)} problems: give one problem a text, or only one")
    judge = verifier_of(asked.verify) if recipe is None else verifier_with_ids(asked.verify, asked.student)
    try:
        found = judge_all(judge, list(zip(texts, rows, strict=True)))
    except Lost as e:
        raise RunFailed(str(e)) from e
    return [verdict for _, verdict in found]


def _tree(
    recipe: Recipe, problems: Any, verifier: Any, held_out: Any, metric: Any, callbacks: Iterable[Any], keys: Any
) -> tuple[dict[str, Any], Path]:
    """The keys of a run, checked, and its directory."""
    tree = given.tree_of(recipe, keys)
    directory = config.from_tree(tree).directory
    folder = _beside(directory)
    tree = given.tree_of(tree, given.own_code(folder, verifier, metric, callbacks))
    if problems is not None:
        tree = given.with_problems(tree, given.problems(problems, folder))
        if held_out is None and "path" not in (tree.get("evaluation") or {}):
            tree = given.tree_of(tree, {"evaluation": {"path": None}})
    if held_out is not None:
        tree = given.with_held_out(tree, given.problems(held_out, folder, "held-out"))
    config.from_tree(tree)
    return tree, directory


def _beside(directory: Path) -> Path:
    """Where what was given is written: the run directory itself must be new."""
    return directory.parent / given.FOLDER


def _run(job: str, tree: dict[str, Any], directory: Path, resume: Resume, quiet: bool) -> Run:
    if resume not in ("no", "auto", "required"):
        raise UserError(f'resume is "no", "auto" or "required", but found {resume!r}')
    place = given.write_recipe(tree, _beside(directory) / f"{directory.name}.yaml")
    words = [job, str(place), *([] if resume == "no" else [f"--resume={resume}"])]
    request = {"job": job, "recipe": str(place), "resume": resume, "words": words}
    return Run(directory, run_apart(request, quiet))
