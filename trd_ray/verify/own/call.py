"""What a function is called with: the response and its problem, in the words of whoever wrote the function.

    CallShape, text, problem  ->  keywords()  ->  the arguments by name, or MissingColumn
    CallShape, columns        ->  unfilled()  ->  the parameters that nothing fills

A problem is a row of rows.PROBLEM. Its `extra`, a JSON object of the data's other columns, is opened here, so that a
function sees all columns alike. A function that takes lists gets lists of one: no verdict depends on its neighbours.

This module runs where the function is, so it imports nothing but the standard library.
"""

import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from trd_ray.verify.own.shape import BY_NAME, OPENRLHF, OURS, RESPONSES, TRL, VERL, VERL_LISTS, CallShape

# The columns of rows.PROBLEM that a function may ask for by name. Tests are for the code verifier alone.
COLUMNS = ("problem_id", "problem", "answer", "reference", "source", "teacher")
# As trd_ray.verify.verdict has them.
PROMPT = "student_prompt"  # the templated prompt, where the stage gave it
IDS = "completion_ids"  # the response's token ids, where they are known


class MissingColumn(Exception):
    """A parameter that nothing in this row fills."""


def keywords(shape: CallShape, text: str, problem: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """The arguments that the function gets; `columns` maps its parameters to columns of other names.

    Raises MissingColumn.
    """
    everything = _everything(shape, text, problem, columns)
    if shape.takes_all:
        return everything
    if lacking := [name for name in shape.required if name not in everything]:
        raise MissingColumn(f"its parameter {lacking[0]} has no column in this row")
    return {name: everything[name] for name in shape.required + shape.optional if name in everything}


def unfilled(shape: CallShape, extra: Iterable[str], columns: dict[str, str]) -> list[str]:
    """The parameters that nothing fills in data with these further columns."""
    row = dict.fromkeys(COLUMNS, "") | {"extra": dict.fromkeys(extra, "")}
    everything = _everything(shape, "", row, columns)
    return [name for name in shape.required if name not in everything]


def opened(problem: dict[str, Any]) -> dict[str, Any]:
    """The problem with `extra` and `turns` as what their JSON says, {} and [] where there is none."""
    return problem | {name: _json(problem.get(name), empty) for name, empty in (("extra", {}), ("turns", []))}


def _json(value: Any, empty: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value else value or empty


def _everything(shape: CallShape, text: str, problem: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    problem = opened(problem)
    fields = {name: problem[name] for name in COLUMNS if name in problem} | problem["extra"]
    fields |= {name: fields[column] for name, column in columns.items() if column in fields}
    give = {OURS: _ours, TRL: _trl, VERL: _verl, VERL_LISTS: _verl_lists, OPENRLHF: _openrlhf, BY_NAME: _by_name}
    return give[shape.kind](shape, text, problem, fields)


def _ours(shape: CallShape, text: str, problem: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"text": text, "problem": problem}


def _trl(shape: CallShape, text: str, problem: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    given = {"prompts": _prompt(shape, problem), "completions": _response(shape, text)} | _ids(shape, problem)
    return _trainer() | {name: [value] for name, value in (fields | given).items()}


def _verl(shape: CallShape, text: str, problem: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    extra = problem["extra"]
    info = extra.get("extra_info")
    rewarded = extra.get("reward_model")
    truth = rewarded.get("ground_truth") if isinstance(rewarded, dict) else None  # as it was before it became text
    return fields | {
        "data_source": extra.get("data_source") or problem.get("source") or "",
        "solution_str": text,
        "ground_truth": problem["answer"] if truth is None else truth,
        "extra_info": info if isinstance(info, dict) else extra,
    }


def _verl_lists(shape: CallShape, text: str, problem: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    one = _verl(shape, text, problem, fields)
    lists = {f"{name}s": [one[name]] for name in ("data_source", "solution_str", "ground_truth", "extra_info")}
    return {name: [value] for name, value in fields.items()} | lists


def _openrlhf(shape: CallShape, text: str, problem: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    prompt = problem.get(PROMPT) or problem["problem"]
    given = {"queries": prompt + text, "prompts": prompt, "labels": problem["answer"]}
    return {name: [value] for name, value in (fields | given).items()}


def _by_name(shape: CallShape, text: str, problem: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    extra = problem["extra"]
    known = {"info": extra, "task": problem.get("source") or "", "state": {}, "extra": extra}
    known |= _trainer() | {"prompt": problem["problem"]} | fields | _ids(shape, problem)
    if known["prompt"] == problem["problem"]:  # also where data.columns names a column prompt as the problem
        known["prompt"] = _prompt(shape, problem)
    response = next(name for name in RESPONSES if name in shape.required + shape.optional)
    return known | {response: _response(shape, text)}


def _prompt(shape: CallShape, problem: dict[str, Any]) -> Any:
    if not shape.messages:
        return problem["problem"]
    return [*problem["turns"], {"role": "user", "content": problem["problem"]}]


def _response(shape: CallShape, text: str) -> Any:
    return [{"role": "assistant", "content": text}] if shape.messages else text


def _ids(shape: CallShape, problem: dict[str, Any]) -> dict[str, Any]:
    """The response's token ids. Where nobody knows them, None for a function that must have the parameter."""
    if IDS in problem or IDS in shape.required:
        return {IDS: problem.get(IDS)}
    return {}


def _trainer() -> dict[str, Any]:
    """What trainers pass besides. Nothing trains here and nothing is logged, so these do nothing."""
    state = SimpleNamespace(global_step=0, max_steps=0, epoch=0.0, num_train_epochs=0, log_history=[])
    return {"trainer_state": state, "log_extra": _ignore, "log_metric": _ignore}


def _ignore(*_: Any, **__: Any) -> None:
    pass
