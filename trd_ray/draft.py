"""`trd init`: the first recipe for your own data and model, every line explained.

    a model, problems, held-out problems  ->  look at their columns, chat template and context  ->  draft()  ->  YAML

The recipe is read back, and its data with it, before a file exists. What cannot work is refused there.
"""

import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from trd_ray import config, made_here
from trd_ray.errors import UserError

# What data sets in general call our columns, the likeliest first.
USUAL = {
    "problem": ("problem", "Problem", "question", "prompt", "query", "input", "instruction"),
    "answer": ("answer", "Answer", "final_answer", "expected_answer", "ground_truth", "target", "label"),
    "reference": ("reference", "solution", "reference_solution", "rationale", "explanation", "output"),
    "problem_id": ("problem_id", "id", "unique_id", "question_id"),
    "tests": ("tests", "input_output"),
}
PROMPT_TOKENS = {True: 8192, False: 1024}  # for a problem and its reference, with and without a GPU
CONTEXT_TOKENS = 32768  # assumed for a model that cannot be looked at
LONGEST_RESPONSE_TOKENS = 16384  # the paper's
THINKS = re.compile(r"Qwen/Qwen3-[\d.]+B(-A\d+B)?")  # known by name alone, as --model's default
STEPS = 8  # that one pass over the problems should have at least
CPU_RESPONSE_TOKENS = 512  # a CPU decodes tens of tokens a second
FEW_CORES = 4  # with fewer, the actors get half a core each


@dataclass(frozen=True)
class Wish:
    """What `trd init` was told; None where it was told nothing."""

    file: Path
    model: str
    teacher: str | None
    mode: Literal["opsd", "opd"]
    data: str | None
    held_out: str | None
    columns: dict[str, str]


@dataclass(frozen=True)
class Problems:
    """What a look at a source of problems found; `count` is None where there was nothing to look at."""

    path: str
    columns: dict[str, str]  # those that are called otherwise than ours
    count: int | None = None
    unreferenced: int = 0
    tested: bool = False


def write(wish: Wish) -> str:
    """Write the recipe, and return what to do next. Raises UserError, having written nothing."""
    if not str(wish.file).isprintable():
        raise UserError(f"{str(wish.file)!r} holds a control character: give the file another name")
    if wish.file.exists():
        raise UserError(f"{wish.file} is there already: name another file, or delete it")
    if not wish.file.parent.is_dir():
        raise UserError(f"there is no folder {wish.file.parent} to write {wish.file.name} to: make it first")
    if wish.mode == "opd" and not wish.teacher:
        raise UserError("--mode opd needs a stronger model that teaches: add --teacher MODEL, or leave --mode out")
    if wish.mode == "opsd" and wish.teacher and wish.teacher != wish.model:
        raise UserError("in --mode opsd the model teaches itself: leave --teacher out, or give --mode opd")
    for ours in wish.columns.keys() - USUAL.keys():
        raise UserError(f"--column {ours}=NAME: our columns are {', '.join(USUAL)}")
    data = _look(wish, wish.data, "data") if wish.data else Problems("problems.jsonl", {})
    if wish.mode == "opsd" and data.count is not None and data.unreferenced == data.count:
        raise UserError(
            f"--mode opsd shows the model a reference solution, and {data.path} has none: name its column with "
            "--column reference=NAME, or give a stronger model with --mode opd --teacher MODEL"
        )
    text = draft(wish, data, _held_out(wish))
    recipe = config.from_tree(yaml.safe_load(text))
    try:
        with wish.file.open("x") as file:
            file.write(text)
    except OSError as e:
        raise UserError(f"{wish.file} cannot be written ({e.strerror}): name another file") from e
    then = f"trd train {shlex.quote(str(wish.file))} --dry-run"
    seen = "" if data.count is None else f": {data.count} problems"
    first = "" if wish.data else f"put your problems into {recipe.data.path} (the recipe says how), then "
    return f"wrote {wish.file}{seen}\nnext: {first}{then}"


def _held_out(wish: Wish) -> Problems | None:
    if not wish.held_out:
        return None
    from trd_ray.problems import benchmarks

    benchmarks.require_name(wish.held_out)
    if benchmarks.is_name(wish.held_out):
        return Problems(wish.held_out, {})
    return _look(wish, wish.held_out, "evaluation")


def _look(wish: Wish, path: str, group: Literal["data", "evaluation"]) -> Problems:
    """Read a source as a run would, so that what is wrong with it is said now."""
    from trd_ray.problems.columns import problems
    from trd_ray.problems.load import has_tests
    from trd_ray.problems.schemas import recognised
    from trd_ray.problems.sources import read

    spec = config.DataConfig(path=path) if group == "data" else config.EvaluationConfig(path=path)
    source = read(spec, group)
    names = source.names
    columns = {}
    for ours, usual in USUAL.items():
        given = wish.columns.get(ours)
        if given and given not in names and group == "data":
            raise UserError(f"--column {ours}={given}: {path} has no such column, only {', '.join(names)}")
        theirs = given if given in names else next((name for name in usual if name in names), None)
        if theirs:
            columns[ours] = theirs
    if "tests" in columns and "answer" not in wish.columns:
        columns.pop("answer", None)
    elif known := recognised(names, next((row for _, row in source.rows()), {}), columns):
        columns = known.columns | columns
    for ours in ("problem", "answer"):
        if ours not in columns and not (ours == "answer" and "tests" in columns):
            raise UserError(
                f"{path} has the columns {', '.join(names)}, and none of them is called as the {ours} usually is: "
                f"name it with --column {ours}=NAME"
            )
    if not names:
        raise UserError(f"{path} holds no problems: check {group}.path")
    table, _ = problems(source, columns, group, path)
    references = table["reference"].to_pylist()
    return Problems(
        path=path,
        columns={ours: theirs for ours, theirs in columns.items() if ours != theirs},
        count=table.num_rows,
        unreferenced=sum(not text.strip() for text in references),
        tested=has_tests(table),
    )


def draft(wish: Wish, data: Problems, held_out: Problems | None) -> str:
    """The recipe as text; reads nothing but the models' own files."""
    contexts = [_context(model) for model in (wish.model, wish.teacher) if model]
    context = min((c for c in contexts if c), default=CONTEXT_TOKENS)
    response = min(LONGEST_RESPONSE_TOKENS if _has_gpu() else CPU_RESPONSE_TOKENS, context // 4)
    parts = [_opening(wish, data), _models(wish), _data(wish, data)]
    prompt = min(context - response, PROMPT_TOKENS[_has_gpu()] + response)
    known = (
        "a context of the models" if all(contexts) else "a context that is assumed (config.json tells the models' own)"
    )
    parts += [_lengths(response, prompt, f"{known}: {context}"), _learner(prompt + response)]
    parts.append(_evaluation(held_out, response))
    return "\n\n".join(parts)


def _opening(wish: Wish, data: Problems) -> str:
    name = re.sub(r"[^\w.-]+", "-", wish.file.stem).strip("-.") or "mine"
    rollouts = 64
    while data.count is not None and rollouts > 1 and data.count < STEPS * rollouts:
        rollouts //= 2
    return f"""\
# Written by `trd init`. Every key can also be given on the command line, as in `trd train {wish.file} steps=20`.
#
#   trd train {wish.file} --dry-run      check everything, start nothing
#   trd train {wish.file}                train, and evaluate before and after
#   trd train {wish.file} --resume       go on after Ctrl-C or a crash

name: {_scalar(name)}  # the run's folder is runs/NAME
rollouts_per_step: {rollouts}  # attempts behind each update of the weights; a pass over the problems is the whole run
# steps: 100  # a shorter or a longer run than one pass over the problems"""


def _models(wish: Wish) -> str:
    student = f"""\
student:  # the model that learns
  path: {_scalar(wish.model)}  # a folder, or a name on the Hugging Face hub
{_thinking(wish.model, "student")}"""
    if wish.mode == "opsd":
        return f"""{student}
teacher:  # who rewrites the student's attempts, and whose distribution it learns
  mode: opsd  # the student itself, shown the reference solution; opd is another, stronger model
  follow: frozen  # as it was before training; ema or live follow it"""
    teacher = str(wish.teacher)
    return f"""{student}
teacher:  # who rewrites the student's attempts, and whose distribution it learns
  mode: opd  # another, stronger model with the same tokenizer; opsd is the student itself, shown the reference
  path: {_scalar(teacher)}  # a folder, or a name on the hub
{_thinking(teacher, "teacher")}"""


def _thinking(model: str, who: str) -> str:
    """A model with a thinking mode must be told which."""
    template = _read(model, "chat_template.jinja") + _read(model, "tokenizer_config.json")
    value = "true" if who == "student" else "false"
    why = "must be stated; false answers at once" if who == "student" else "a rewrite needs no search before it"
    if "enable_thinking" in template or (not template and THINKS.fullmatch(model)):
        return f"  chat_template_kwargs: {{enable_thinking: {value}}}  # {why}"
    return f"  # chat_template_kwargs: {{enable_thinking: {value}}}  # for a model with a thinking mode"


def _data(wish: Wish, data: Problems) -> str:
    lines = [
        "data:  # the problems to train on",
        f"  path: {_scalar(data.path)}  # JSONL, Parquet, a folder of them, or a data set on the hub;"
        " a relative path starts where trd is called",
    ]
    if data.count is None:
        lines.append(
            '  # one problem a line: {"problem": "1+1?", "answer": "2", "reference": "1+1=2, so \\\\boxed{2}"}'
        )
    if data.columns:
        lines.append(f"  columns: {_mapping(data.columns)}  # our name: the name in the file")
    if wish.mode == "opsd" and data.unreferenced:
        lines.append(f"  without_reference: drop  # {data.unreferenced} of {data.count} problems have no reference")
    task, how = ("code", "tests run in a sandbox") if data.tested else ("math", "the last \\boxed{} is compared")
    lines += [
        "prompts:  # the words around a problem",
        f"  task: {task}  # math asks for \\boxed{{}}, code for a program",
    ]
    lines += ["verify:  # what counts as solved", f"  function: null  # {how}; FILE.py:NAME: a function of your own"]
    return "\n".join(lines if _has_gpu() else [*lines, _cpus()])


def _lengths(response: int, prompt: int, context: str) -> str:
    engine = "" if _has_gpu() else f"\n{_cpus()}\n  extra: {{enforce_eager: true}}  # vLLM starts without compiling"
    return f"""\
# Lengths are tokens, within {context}.
# An answer that is longer is cut, and a cut answer fails.
sampler:  # the student's attempts
  max_response_tokens: {response}  # the longest answer{engine}
refiner:  # the teacher's rewrites
  max_prompt_tokens: {prompt}  # the problem, the reference and the attempt; a longer attempt is cut
  max_response_tokens: {response}  # the longest answer{engine}"""


def _learner(longest: int) -> str:
    rate = """\
learner:  # what updates the weights
  lr: 2.0e-6  # the learning rate of all weights; adapters take more, such as 2.0e-5
  # lora: {}  # adapters (rank 64) in place of all weights: less memory"""
    if _has_gpu():
        return rate
    return f"""\
{rate}
{_cpus()}
  dtype: float32  # of weights and computation; a GPU's default is bfloat16
  tokens_per_micro_batch: {longest}  # more of them take more memory and less time
  chunk_tokens: 256  # the same, of the loss"""


def _evaluation(held_out: Problems | None, response: int) -> str:
    if held_out is None:
        return """\
evaluation:  # before and after training
  path: null  # nothing is measured: name a file of problems that are not trained on, or a benchmark such as aime24
"""
    columns = f"\n  columns: {_mapping(held_out.columns)}  # as of data" if held_out.columns else ""
    return f"""\
evaluation:  # before and after training
  path: {_scalar(held_out.path)}  # problems that are not trained on{columns}
  samples: {16 if _has_gpu() else 4}  # answers to each problem; the paper takes 16
  max_response_tokens: {response}  # as in training
"""


def _cpus() -> str:
    cores = len(os.sched_getaffinity(0))
    return f"  cpus: {0.5 if cores < FEW_CORES else 1}  # this machine has {cores} cores and no GPU"


def _has_gpu() -> bool:
    """Whether there is a GPU, without importing torch, which takes seconds."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _context(model: str) -> int | None:
    """How many positions a model has; None unless its config.json is at hand."""
    try:
        tree: Any = json.loads(_read(model, "config.json"))
        tree = tree.get("text_config") or tree
        return int(tree["max_position_embeddings"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _read(model: str, name: str) -> str:
    """A small file of a model's folder, or of the hub's cache; "" where it is not here."""
    folder = Path(model).expanduser()
    if model in made_here.MODELS:
        from trd_ray import models

        folder = Path(models.resolve(model))
    place: Any = folder / name
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            place = try_to_load_from_cache(model, name)
        except HFValidationError:
            return ""
    try:
        return Path(place).read_text() if isinstance(place, str | Path) else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _mapping(columns: dict[str, str]) -> str:
    return "{" + ", ".join(f"{ours}: {_scalar(theirs)}" for ours, theirs in columns.items()) + "}"


def _scalar(text: str) -> str:
    """Any text as a YAML value on one line, quoted only where it must be."""
    if re.fullmatch(r"[\w./-]+", text) and yaml.safe_load(text) == text:
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
