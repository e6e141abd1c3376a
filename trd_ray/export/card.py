"""README.md of an exported model: how it was trained, how it scored, how to load it.

    recipe, environment.json, rows/, evaluation/ of a run, and the steps behind the weights  ->  card()  ->  Markdown

The Hugging Face hub reads the front matter. Names and texts that people or models wrote are escaped everywhere.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from trd_ray import config
from trd_ray.config import Recipe
from trd_ray.record import guards
from trd_ray.record.directory import RunDirectory
from trd_ray.record.ledger import facts_of_run, ledger
from trd_ray.record.markdown import code, inline, table, visible
from trd_ray.score.stats import Score
from trd_ray.score.stats import table as score_table
from trd_ray.views import WORDINGS

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SETS = (
    "On further problems, before training and after. A guard is what the model could do before and must not lose: it "
    "is lost where the difference is below zero, clear of chance."
)
METHOD = "[Trajectory-Refined Distillation](https://arxiv.org/abs/2606.08432)"


def card(run: Path, recipe: Recipe, steps: int, form: str, dtype: str, name: str) -> str:
    """The model card. `steps` are those behind the weights; `name` is the model's name, or OWNER/NAME on the hub."""
    directory = RunDirectory.open(run)
    front = yaml.safe_dump(_front_matter(recipe, form), sort_keys=False, allow_unicode=True)
    sections = {
        "How it was trained": _training(directory, recipe, steps),
        "How it scored": _scores(directory, recipe, steps),
        "How to load it": _loading(recipe, form, dtype, name),
        "Made with": _versions(directory),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{front}---\n\n# {inline(name)}\n\n{_headline(recipe)}\n\n{body}\n"


def _front_matter(recipe: Recipe, form: str) -> dict[str, Any]:
    """What the hub reads. The licence is left out: it is the base's, and whoever publishes states it."""
    front: dict[str, Any] = {}
    if _on_hub(recipe.student.path):
        front["base_model"] = recipe.student.path
        front["base_model_relation"] = "adapter" if form == "adapter" else "finetune"
    data_sets = [path.partition(":")[0] for path in recipe.data.paths if _on_hub(path)]
    if recipe.data.source == "problems" and data_sets:
        front["datasets"] = data_sets
    front["library_name"] = "peft" if form == "adapter" else "transformers"
    front["pipeline_tag"] = "text-generation"
    modes = dict.fromkeys(one.teacher.mode for one in recipe.by_teacher.values())
    tags = ["trd_ray", "distillation", "on-policy-distillation", *modes]
    return front | {"tags": [*tags, "lora"] if recipe.learner.lora else tags}


def _on_hub(path: str) -> bool:
    return bool(_HUB_NAME.fullmatch(path.partition(":")[0])) and not Path(path).exists()


def _headline(recipe: Recipe) -> str:
    if not (recipe.loss.has_teacher or recipe.refines):
        return f"{code(recipe.student.path)}, trained on {_trains_on(recipe)}, without a teacher."
    if recipe.teachers:
        who = " and ".join(_follows(one) for one in recipe.by_teacher.values())
        return f"{code(recipe.student.path)}, trained by {METHOD} to follow {who}, each on rows of its own."
    if recipe.teacher.mode == "opsd":
        return f"{code(recipe.student.path)}, trained by {METHOD} to follow itself where it is shown the reference."
    return f"{code(recipe.student.path)}, trained by {METHOD} to follow {code(recipe.teacher_path)}."


def _follows(one: Recipe) -> str:
    return "itself where it is shown the reference" if one.teacher.mode == "opsd" else code(one.teacher_path)


def _teacher_lines(name: str, r: Recipe) -> list[list[str]]:
    """`r` is the recipe in which the teacher is the only one."""
    who = f"teacher {name}".strip()
    if r.teacher.mode == "opd":
        told = _named(r.teacher_path, r.teacher.revision)
    else:
        follows = {"frozen": "as it was before training", "ema": "a moving average", "live": "the newest weights"}
        told = f"the model itself ({follows[r.teacher.follow]}), shown the reference"
    return [
        [who, told],
        [f"mode of {name}" if name else "mode", f"{r.teacher.mode.upper()}; teacher view: {r.teacher.view}"],
    ]


def _training(directory: RunDirectory, recipe: Recipe, steps: int) -> str:
    r = recipe
    opt = recipe.learner
    weights = f"LoRA adapters, rank {opt.lora.rank}, alpha {opt.lora.alpha:g}" if opt.lora else "all weights"
    lines = [["", ""], ["base model", _named(r.student.path, r.student.revision)]]
    for name, one in r.by_teacher.items():
        lines += _teacher_lines(name, one)
    lines += [
        ["trains on", _trains_on(r)],
        ["data", ", ".join(_named(path, None) for path in r.data.paths)],
        ["steps", f"{steps} of {r.rollouts_per_step} rollouts"],
        ["loss", inline(_loss(r))],
        ["trained weights", weights],
        ["learning rate", f"{opt.lr:g} (warm-up {opt.warmup_ratio:.0%}, cosine to {opt.min_lr_ratio:.0%})"],
        ["sampling", f"temperature {r.sampler.temperature:g}, at most {r.sampler.max_response_tokens} tokens"],
        ["seed", str(r.seed)],
    ]
    return "\n\n".join([table(lines).replace("---:|", ":---|"), *_pass_rates(directory, steps, r), _recipe(r)])


def _trains_on(r: Recipe) -> str:
    theirs = {
        "attempt": "the teacher's rewrites",
        "problem": "the teacher's own solutions",
        "relay": "the teacher's continuations",
    }[r.refiner.begins]
    return {
        "y_r": f"{theirs} of its {'problems' if r.refiner.begins == 'problem' else 'attempts'}",
        "y_o": "its own attempts",
        "repair": f"its own attempts that passed, and {theirs} of the others",
        "mixture": f"its own attempts for {r.train.mixture_share:.0%} of the rows, else {theirs}",
        "reference": "the reference solutions",
    }[r.train.trajectory]


def _loss(r: Recipe) -> str:
    loss = r.loss.model_dump(exclude_defaults=True, exclude={"divergence"})
    settings = "".join(f", {key} {value}" for key, value in loss.items())
    if not r.loss.has_teacher:
        return f"cross entropy{settings}"
    return f"{r.loss.divergence.replace('_', ' ')}{settings or ' over the whole vocabulary'}"


def _pass_rates(directory: RunDirectory, steps: int, recipe: Recipe) -> list[str]:
    facts = [fact for fact in facts_of_run(directory.read_rows()) if fact["step"] <= steps]
    totals = ledger(facts) if facts else {}
    if {"y_o/passed", "y_r/passed"} <= totals.keys():
        raw, refined = totals["y_o/passed"], totals["y_r/passed"]
        theirs = "their rewrites" if recipe.refined_share == 1 else "the rewrites of some"
        theirs = "the rewrites of those that failed" if recipe.train.trajectory == "repair" else theirs
        return [f"Of {totals['rollouts']} attempts {raw:.1%} passed, of {theirs} {refined:.1%}."]
    return [f"Of {totals['rollouts']} attempts {totals['y_o/passed']:.1%} passed."] if "y_o/passed" in totals else []


def _recipe(recipe: Recipe) -> str:
    """What differs from the defaults, for whoever trains it again, without where it ran."""
    tree = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"run_dir", "cluster"})
    text = yaml.safe_dump(tree, sort_keys=False)
    return f"The recipe, as far as it differs from the defaults:\n\n{_fenced(text.strip(), 'yaml')}"


def _scores(directory: RunDirectory, recipe: Recipe, steps: int) -> str:
    """The scores of the base and of this checkpoint on evaluation.path, and on each of evaluation.sets."""
    found = _of_checkpoint(directory.read_evaluations(), steps)
    sets = {name: _of_checkpoint(directory.read_evaluations(name), steps) for name in directory.evaluated_sets()}
    shown = guards.section(sets, recipe)
    of_sets = f"{_SETS}\n\n{shown}" if shown else ""
    if not found:
        return of_sets or "This checkpoint was not evaluated during its run."
    own = found[-1]
    held_out = config.stored(directory.path / "recipe.yaml").evaluation.path
    header, *lines = score_table(found)
    note = (
        f"On {own.problems} problems of {code(str(held_out))} ({own.samples} samples each); "
        "percent, in brackets the 95% interval over problems."
    )
    main = f"{table([[inline(cell) for cell in header], *lines])}\n\n{note}"
    return f"{main}\n\n{of_sets}".rstrip()


def _of_checkpoint(found: list[Score], steps: int) -> list[Score]:
    """The score after these steps, behind that of the base; nothing where the checkpoint has none."""
    own = next((s for s in reversed(found) if s.step == steps and steps), None)
    base = next((s for s in found if s.step == 0), None)
    return [one for one in (base, own) if one] if own else []


def _loading(recipe: Recipe, form: str, dtype: str, name: str) -> str:
    adapter = form == "adapter"
    kind = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    where = json.dumps(name if _HUB_NAME.fullmatch(name) else "path/of/this/folder")
    kwargs = [f"{key}={value!r}" for key, value in recipe.student.chat_template_kwargs.items() if key.isidentifier()]
    asked = ["messages", "add_generation_prompt=True", "return_dict=True", 'return_tensors="pt"', *kwargs]
    lines = [
        *(["from peft import AutoPeftModelForCausalLM"] if adapter else []),
        f"from transformers import {'AutoTokenizer' if adapter else 'AutoModelForCausalLM, AutoTokenizer'}",
        "",
        f"model = {kind}.from_pretrained({where}, dtype={dtype!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({where})",
        'messages = [{"role": "user", "content": "..."}]',
        f"inputs = tokenizer.apply_chat_template({', '.join(asked)})",
        f"print(tokenizer.decode(model.generate(**inputs, max_new_tokens={recipe.sampler.max_response_tokens})[0]))",
    ]
    snippet = "\n".join(lines)
    wording = recipe.prompts.solve or WORDINGS[recipe.task]["solve"]
    asked_as = f"It was trained on problems that were put to it in these words:\n\n{_fenced(wording, 'text')}"
    return f"{_fenced(snippet, 'python')}\n\n{asked_as}"


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{visible(text)}\n{fence}"


def _versions(directory: RunDirectory) -> str:
    start = json.loads((directory.path / "environment.json").read_text())[-1]
    packages = ", ".join(f"{inline(name)} {inline(version)}" for name, version in start["packages"].items())
    commit = f", commit {inline(start['commit'])}" if start.get("commit") else ""
    return f"{packages}; Python {inline(start['python'])}{commit}."


def _named(path: str, revision: str | None) -> str:
    return code(path) + (f" at {code(revision)}" if revision else "")
