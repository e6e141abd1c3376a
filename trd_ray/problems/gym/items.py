"""The items of a family of reasoning_gym as problems.

    a Cut  ->  load()  ->  GymProblems: table of rows.PROBLEM, what was set aside and why

- The problem is the item's question, and after it the form of the answer that the verifier reads.
- The column extra carries what the scorer needs: family, config, index, answer and metadata, as JSON.
- The reference is the answer in its form, where the item has one, after the solution where the metadata holds one.
- A question that is also in the test split of the same range is no training problem: small families repeat themselves.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from trd_ray import rows
from trd_ray.config import close_to
from trd_ray.errors import UserError
from trd_ray.problems.gym.family import PREFIX, Cut
from trd_ray.problems.set_aside import SetAside, begins
from trd_ray.sandbox.values import decode
from trd_ray.verify.gym.gym_verifier import KEY, PASS_AT
from trd_ray.verify.gym.library import ReasoningGym
from trd_ray.wordings import ITEM_FORM

COMPOSITE = "composite"  # a mixture of families, which is for data sources to be
NONSENSE, ASKED, SCORE_TIMEOUT_S = "certainly no answer", 3, 20.0  # what no scorer may pass
WORKED = "answer_cot"  # in the metadata of gsm_symbolic: the solution, step by step
# Where an item has no answer, its metadata may hold one of several that are right.
ONE_OF_MANY = ("example_correct_answer", "example_answer", "possible_answer")


@dataclass(frozen=True)
class GymProblems:
    problems: pa.Table  # its schema is rows.PROBLEM
    set_aside: tuple[SetAside, ...]


def load(cut: Cut, group: str, limit: int | None = None) -> GymProblems:
    """The items of a Cut, or the first `limit` of them. Raises UserError where the family cannot be had."""
    gym = ReasoningGym()
    try:
        _require_family(cut.family, gym.families(), group)
        items = cut.items[:limit]
        found = gym.items(cut.family, cut.config, items)
        trains = cut.items.start == 0
        held_out = {one.get("question") for one in gym.items(cut.family, cut.config, cut.others)} if trains else set()
        _require_scorer(gym, cut, [one for one in found if "error" not in one][:ASKED], group)
    finally:
        gym.close()
    set_aside: list[SetAside] = []
    kept = list(_kept(cut, items, found, held_out, set_aside))
    if not kept:
        raise UserError(
            f"{PREFIX}{cut.family} makes no problem with these arguments ({set_aside[0].reason}): set "
            f"{group}.arguments, or {group}.path to another family"
        )
    return GymProblems(pa.Table.from_pylist(kept, schema=pa.schema(rows.PROBLEM)), tuple(set_aside))


def _kept(
    cut: Cut, indices: range, found: list[dict[str, Any]], held_out: set[str | None], set_aside: list[SetAside]
) -> Iterator[dict[str, Any]]:
    for index, item in zip(indices, found, strict=True):
        problem_id = f"{cut.family}/{cut.config['seed']}/{index}"
        if why := item.get("error"):
            set_aside.append(SetAside(problem_id, "", f"not generated: {why}"))
        elif item["question"] in held_out:
            set_aside.append(
                SetAside(problem_id, begins(str(item["question"])), "the test split has the same question")
            )
        else:
            yield _row(cut, index, problem_id, item)


def _row(cut: Cut, index: int, problem_id: str, item: dict[str, Any]) -> dict[str, Any]:
    carried = {"family": cut.family, "config": cut.config, "index": index}
    carried |= {"answer": item["answer"], "metadata": item["metadata"]}
    held = decode(item["metadata"])
    answer = item["answer"] or _one_of_many(held)
    worked = f"{held[WORKED].strip()}\n\n" if isinstance(held.get(WORKED), str) else ""
    return {
        "problem_id": problem_id,
        "problem": f"{item['question'].rstrip()}\n\n{ITEM_FORM}",
        "answer": item["answer"] or "",
        "reference": f"{worked}<answer>{answer}</answer>" if answer else "",
        "extra": json.dumps({KEY: carried}),
    }


def _one_of_many(held: dict[str, Any]) -> str:
    one = next((held[name] for name in ONE_OF_MANY if held.get(name)), "")
    return one if isinstance(one, str) else json.dumps(one)


def _require_scorer(gym: ReasoningGym, cut: Cut, entries: list[dict[str, Any]], group: str) -> None:
    """Refuse a family whose scorer passes whatever is written, such as game_of_life_halting of 0.1.25."""
    scores = [gym.score(cut.family, cut.config, entry, NONSENSE, SCORE_TIMEOUT_S).score for entry in entries]
    if scores and all(score is not None and score >= PASS_AT for score in scores):
        raise UserError(
            f"the scorer of {PREFIX}{cut.family} gives {NONSENSE!r} full marks: nothing is learned from it, so set "
            f"{group}.path to another family"
        )


def _require_family(family: str, families: list[str], group: str) -> None:
    if family == COMPOSITE:
        raise UserError(f"{PREFIX}{COMPOSITE} mixes other families: name each of them as a source of its own")
    if family not in families:
        hint = close_to(family, families) or f": it has {len(families)}, such as {', '.join(families[:5])}"
        raise UserError(f"reasoning_gym has no family {family!r}{hint}; set {group}.path={PREFIX}FAMILY")
