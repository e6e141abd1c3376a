"""Rows that a person judges, with what persons have said by now; made again as often as somebody says more.

    table of rows.ROW, recipe, given verdicts  ->  settled_rows()  ->  the table: y_o's verdict, y_r once it is chosen,
                                                                       review_waits
                                               ->  queued()        ->  the responses that still wait, for the queue

A row keeps all of its refinements (review_candidates), and what was known before a person spoke (review_awaited). So
a later line in the file of verdicts, also one that takes a verdict back, counts as if it had been there at first.
With train.trajectory=repair a row whose attempt passes has no y_r, as in a run in which no person judges.

Pure.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trd_ray.config import ONLY, Recipe, RefinerConfig
from trd_ray.errors import BadRow
from trd_ray.rows import TRAJECTORY, to_table
from trd_ray.stream.choosing import RefineCandidate, choose, preferred, still_asked
from trd_ray.stream.examples import BAD_ROW
from trd_ray.stream.stages import require_judged, verdict_fields
from trd_ray.stream.trajectories import needs_refinement
from trd_ray.verify import UNJUDGED, Awaited, Verdict
from trd_ray.verify.review.given_verdicts import key_of
from trd_ray.verify.review.review_queue import Asker, Queued
from trd_ray.verify.review.review_verifier import Given
from trd_ray.verify.review.settle import read_back, settled


def settled_rows(table: pa.Table, recipe: Recipe, given: Given) -> pa.Table:
    """The same table where no row of it is a person's to judge."""
    if not _reviewed(table).num_rows:
        return table
    return to_table([_settled(row, recipe, given) for row in table.to_pylist()])


def queued(table: pa.Table, recipe: Recipe, given: Given) -> Iterator[Queued]:
    """Those of settled rows that wait, in the order in which a person should see them."""
    waits = table.filter(pc.greater(table["review_waits"], 0))  # pyright: ignore
    for row in waits.to_pylist():
        yield from _queued(row, recipe, given)


def waiting_rows(table: pa.Table) -> int:
    """How many of the table's rows wait for a person."""
    return pc.sum(pc.greater(table["review_waits"], 0)).as_py() or 0  # pyright: ignore


def _reviewed(table: pa.Table) -> pa.Table:
    return table.filter(pc.or_(table["review_awaited"].is_valid(), table["review_candidates"].is_valid()))  # pyright: ignore


def _settled(row: dict[str, Any], recipe: Recipe, given: Given) -> dict[str, Any]:
    if row["review_awaited"] is None and row["review_candidates"] is None:
        return row
    if row["fault"]:  # it never trains, so nobody needs to judge it
        return row | {"review_waits": 0}
    row = dict(row)
    waits = 0
    if row["review_awaited"] is not None:
        verdict = _now(row, row["y_o"]["text"], row["review_awaited"], recipe, given)
        row["y_o"] = row["y_o"] | verdict_fields(verdict)
        waits += verdict.awaited is not None
    if row["review_candidates"] is not None:
        waits += _choose_y_r(row, recipe, given)
    return row | {"review_waits": waits}


def _now(row: dict[str, Any], text: str, awaited: str, recipe: Recipe, given: Given) -> Verdict:
    return settled(read_back(awaited), recipe.verify, given, text, row["problem_id"])


def _awaited(stored: str) -> Awaited:
    found = read_back(stored).awaited
    assert found is not None  # no other verdict is kept so
    return found


def _choose_y_r(row: dict[str, Any], recipe: Recipe, given: Given) -> int:
    """Choose y_r if that is possible by now; returns how many verdicts that takes yet."""
    row |= {"y_r": None, "refine_edited_share": None, "refine_student_logprob": None}
    if not needs_refinement(recipe, row["row"], bool(row["y_o"]["passed"])):
        return 0
    found = _Refinements.of(row, recipe, given)
    row["refine_candidates_passed"] = sum(bool(one["passed"]) for one in found.judged)
    if asked := found.asked:
        return len(asked)
    chosen = found.judged[choose(found.candidates, found.refiner.select, found.refiner.max_edited_share)]
    row["y_r"] = {field.name: chosen[field.name] for field in TRAJECTORY}
    row["y_r"]["verify_seconds"] = sum(one["verify_seconds"] for one in found.judged)  # for all candidates
    row |= {"refine_edited_share": chosen["edited_share"], "refine_student_logprob": chosen["student_logprob"]}
    try:
        require_judged(row, "y_r")
    except BadRow as e:
        row |= {"fault": str(e), "train": False, "dropped_because": BAD_ROW}
    return 0


@dataclass(frozen=True)
class _Refinements:
    """The refinements of a row with what is known of them."""

    judged: list[dict[str, Any]]  # rows.CANDIDATE
    candidates: list[RefineCandidate]
    refiner: RefinerConfig

    @classmethod
    def of(cls, row: dict[str, Any], recipe: Recipe, given: Given) -> "_Refinements":
        judged = []
        for one in row["review_candidates"]:
            verdict = _now(row, one["text"], one["awaited"], recipe, given) if one["awaited"] else None
            judged.append(one | verdict_fields(verdict) if verdict else one)
        candidates = [
            RefineCandidate(
                len(one["ids"]),
                one["passed"],
                one["score"] or 0.0,
                judged=not one["detail"].startswith(UNJUDGED),
                edited_share=one["edited_share"],
                logprob=one["student_logprob"],
            )
            for one in judged
        ]
        return cls(judged, candidates, recipe.by_teacher[row["teacher"] or ONLY].refiner)

    @property
    def asked(self) -> list[int]:
        return still_asked(self.candidates, self.refiner.select, self.refiner.max_edited_share)

    @property
    def order(self) -> list[int]:
        return preferred(self.candidates, self.refiner.select, self.refiner.max_edited_share)


def _queued(row: dict[str, Any], recipe: Recipe, given: Given) -> Iterator[Queued]:
    problem_id, y_o = row["problem_id"], row["y_o"]
    y_o_key = key_of(problem_id, y_o["text"])
    if y_o["passed"] is None:
        yield _one(row, y_o["text"], row["review_awaited"], Asker(row["row"], "y_o"))
    if row["review_candidates"] is None or not needs_refinement(recipe, row["row"], bool(y_o["passed"])):
        return
    found = _Refinements.of(row, recipe, given)
    # With repair a refinement is for nothing where the attempt passes.
    spared = () if needs_refinement(recipe, row["row"], y_o_passed=True) else (y_o_key,)
    by_person_alone = not any(_awaited(one["awaited"]).beside for one in found.judged if one["awaited"])
    before: list[str] = []  # refinements that are preferred, one of which may pass
    for i in found.order:
        one = found.judged[i]
        key = key_of(problem_id, one["text"])
        if i in found.asked:
            unless = dict.fromkeys((*spared, *before)) if by_person_alone else ()
            places = {"candidate": i + 1, "candidates": len(found.judged)}
            asker = Asker(row["row"], "y_r", **places, unless_passed=tuple(unless))
            yield _one(row, one["text"], one["awaited"], asker)
        if found.refiner.select != "best_score":
            before.append(key)


def _one(row: dict[str, Any], text: str, awaited: str, asker: Asker) -> Queued:
    known = _awaited(awaited)
    alone = [one.awaited.pass_at for one in known.beside.values() if one.awaited]
    return Queued(
        key=key_of(row["problem_id"], text),
        problem_id=row["problem_id"],
        problem=row["problem"],
        turns=json.loads(row["turns"]) if row["turns"] else [],
        reference=row["reference"],
        answer=row["answer"],
        response=text,
        pass_at=alone[0] if alone else known.pass_at,
        asked_by=[asker],
    )
