"""Rows that a person judges become what they would be if a program had judged, and no more is asked than decides."""

import itertools
import random

import numpy as np
import pytest

from trd_ray import config
from trd_ray.engine.actor import Generation
from trd_ray.rows import IN_STREAM, ROW, to_table
from trd_ray.stream.choosing import RefineCandidate, choose
from trd_ray.stream.examples import WAITS, _choose
from trd_ray.stream.held import COLUMNS, lacks
from trd_ray.stream.reviewed import queued, settled_rows, waiting_rows
from trd_ray.stream.stages import record, record_candidates, record_verdict, require_judged
from trd_ray.verify import AWAITS_REVIEW, Verdict, unjudged, verifier
from trd_ray.verify.review.given_verdicts import PersonsVerdict, key_of
from trd_ray.verify.review.review_queue import still_wanted

RULES = ("first", "first_passed", "shortest_passed", "best_score", "nearest")
REVIEW = {"function": "review"}
YES, NO = PersonsVerdict(True), PersonsVerdict(False)


def recipe(select: str = "first", n: int = 1, **keys):
    tree = {"student": {"path": "a/student"}, "verify": REVIEW, "refiner": {"select": select, "n": n}}
    return config.from_tree(tree | keys)


def generation(text: str, tokens: int) -> Generation:
    return Generation(np.arange(tokens, dtype=np.int32), text, "stop", np.zeros(tokens, np.float32), 0, "e", 0.0, 1.0)


def row(
    texts: list[str], r, lengths: list[int] | None = None, logprobs: list | None = None, number: int = 0, y_o="try"
):
    """As the stage leaves it, with these refinements; without any it was not refined."""
    made = {"row": number, "step": 1, "epoch": 0, "sample_index": 0, "seed": 1, "problem_id": "p", "problem": "1+1"}
    made |= {"answer": "", "reference": "", "student_prompt_ids": [1]}
    judge = verifier(r.verify)
    record(made, "y_o", generation(y_o, 3))
    record_verdict(made, "y_o", judge(y_o, made), 5.0)
    require_judged(made, "y_o")  # waiting is no fault
    if texts:
        refinements = [generation(t, n) for t, n in zip(texts, lengths or [2] * len(texts), strict=True)]
        verdicts = [(6.0, judge(t, made)) for t in texts]
        known = [RefineCandidate(len(g.ids), None, 0.0) for g in refinements]
        for one, logprob in zip(known, logprobs or [], strict=False):
            one.logprob = logprob
        record_candidates(made, refinements, verdicts, known)
    return made


def settle(made, r, said: dict[str, PersonsVerdict]):
    given = {key_of("p", text): one for text, one in said.items()}
    table = settled_rows(to_table([made]), r, given)
    [now] = table.to_pylist()
    return now, list(queued(table, r, given))


def test_a_row_waits_without_a_fault_and_says_so():
    now, waits = settle(row(["better"], recipe()), recipe(), {})
    assert now["review_waits"] == 2 and now["fault"] is None and now["y_r"] is None
    assert now["y_o"]["passed"] is None and now["y_o"]["score"] is None and now["y_o"]["detail"] == AWAITS_REVIEW
    assert now["refine_tokens"] == 2 and now["refine_candidates"] == 1
    assert [(one.response, one.asked_by[0].trajectory) for one in waits] == [("try", "y_o"), ("better", "y_r")]
    assert [one.key for one in waits] == [key_of("p", "try"), key_of("p", "better")]
    assert _choose(now, recipe()) == ("y_r", WAITS)
    names = {column: now[column.split(".")[0]] for column in COLUMNS if "." not in column}
    assert lacks(recipe(), [names | {"y_o.passed": None, "y_r.passed": None}]) == 0


def test_what_a_person_says_stands_in_the_row_as_a_verdict_does():
    half = PersonsVerdict(None, 0.5, "one step is missing", "ann")
    now, waits = settle(row(["better"], recipe()), recipe(), {"try": half, "better": YES})
    assert (now["y_o"]["passed"], now["y_o"]["score"], now["y_o"]["feedback"]) == (False, 0.5, "one step is missing")
    assert now["y_r"]["passed"] and now["y_r"]["text"] == "better" and now["y_r"]["ids"] == [0, 1]
    assert now["review_waits"] == 0 and not waits and waiting_rows(to_table([now])) == 0
    assert _choose(now, recipe()) == ("y_r", "")


def test_a_later_verdict_or_one_that_is_taken_back_counts_as_if_it_had_been_there_at_first():
    made, r = row(["a", "b"], recipe("first_passed", 2), lengths=[3, 2]), recipe("first_passed", 2)
    done, _ = settle(made, r, {"try": NO, "a": YES})
    assert done["y_r"]["text"] == "a" and done["review_waits"] == 0
    other, _ = settle(done, r, {"try": NO, "a": NO, "b": YES})
    assert other["y_r"]["text"] == "b"
    back, waits = settle(other, r, {"try": NO, "a": PersonsVerdict(), "b": YES})
    assert back["y_r"] is None and back["review_waits"] == 1 and [one.response for one in waits] == ["a"]
    assert settle(back, r, {"try": NO, "a": YES})[0] == done


@pytest.mark.parametrize("rule", RULES)
def test_whoever_answers_what_is_asked_in_order_gets_the_refinement_that_a_program_would_have_got(rule):
    rng = random.Random(7)
    r = recipe(rule, 3)
    asked_of_all = 0
    for passes in itertools.product([True, False], repeat=3):
        lengths, logprobs = [rng.randint(1, 4) for _ in range(3)], [rng.choice([-0.5, -1.0, None]) for _ in range(3)]
        made = row(["a", "b", "c"], r, lengths, logprobs)
        truth = dict(zip("abc", passes, strict=True))
        known = [
            RefineCandidate(n, p, float(p), logprob=lp) for n, p, lp in zip(lengths, passes, logprobs, strict=True)
        ]
        said = {"try": NO}
        while (found := settle(made, r, said))[1]:
            said[found[1][0].response] = YES if truth[found[1][0].response] else NO
        assert found[0]["y_r"]["text"] == "abc"[choose(known, rule)]
        assert found[0]["y_r"]["passed"] == truth[found[0]["y_r"]["text"]]
        asked_of_all += len(said) - 1
    assert asked_of_all == {"first": 8, "best_score": 24}.get(rule, 8 * 1 + 4 * 1 + 2 * 1)


@pytest.mark.parametrize("rule", RULES)
def test_a_refinement_is_spared_in_the_terminal_exactly_where_the_row_does_not_need_it(rule):
    r = recipe(rule, 3)
    made = row(["a", "b", "c"], r, [3, 2, 4], [-1.0, -2.0, -0.5])
    _, waits = settle(made, r, {})
    for answers in itertools.product([None, YES, NO], repeat=3):
        said = {text: one for text, one in zip("abc", answers, strict=True) if one}
        passed = {key_of("p", text) for text, one in said.items() if one.passed}
        shown = [w.response for w in waits if w.response in "abc" and w.response not in said]
        wanted = [w.response for w in waits if w.response in shown and still_wanted(w, passed.__contains__)]
        assert wanted == [w.response for w in settle(made, r, said | {"try": NO})[1]]


def test_with_repair_an_attempt_that_passes_spares_its_refinements():
    r = recipe(train={"trajectory": "repair"})
    made = row(["better"], r)
    _, waits = settle(made, r, {})
    assert not still_wanted(waits[1], {key_of("p", "try")}.__contains__)
    passed, none = settle(made, r, {"try": YES})
    assert passed["review_waits"] == 0 and not none and passed["y_r"] is None and passed["refine_tokens"] == 2
    assert _choose(passed, r) == ("y_o", "")
    failed, waits = settle(made, r, {"try": NO})
    assert failed["review_waits"] == 1 and [one.response for one in waits] == ["better"]
    assert settle(made, r, {"try": NO, "better": YES})[0]["y_r"]["passed"]


def test_of_a_row_with_a_fault_nothing_is_asked_and_an_empty_answer_asks_nobody():
    r = recipe()
    now, waits = settle(row([], r) | {"fault": "y_r: the engine refused the request"}, r, {})
    assert now["review_waits"] == 0 and not waits
    empty, waits = settle(row(["better"], r, y_o=" "), r, {})
    assert empty["y_o"]["passed"] is False and [one.response for one in waits] == ["better"]


def test_a_refinement_that_nothing_can_judge_is_a_fault_where_there_is_no_other():
    r = recipe("first_passed", 2)
    made = row(["a", "b"], r)
    unjudgeable = {"passed": False, "detail": unjudged("killed").detail, "awaited": None}
    made["review_candidates"][0] |= unjudgeable
    for said in (NO, YES):
        now, _ = settle(made, r, {"try": NO, "b": said})
        assert now["y_r"]["text"] == "b" and now["y_r"]["passed"] == said.passed and not now["fault"]
    made["review_candidates"][1] |= unjudgeable
    now, _ = settle(made, r, {"try": NO})
    assert now["fault"] == "y_r: not judged (killed)" and now["review_waits"] == 0


def test_with_several_verifiers_every_refinement_is_asked_about_that_the_mean_may_pass():
    r = recipe("first_passed", 2, verify={"functions": {"m": {"function": "math"}, "r": REVIEW}})
    made = row(["\\boxed{2}", "\\boxed{3}"], r)
    _, waits = settle(made, r, {"try": YES})
    assert [one.asked_by[0].unless_passed for one in waits] == [(), ()]  # a person's word alone decides nothing
    now, _ = settle(made, r, {"try": YES, "\\boxed{2}": YES, "\\boxed{3}": YES})
    assert now["review_waits"] == 0 and not now["y_r"]["passed"]  # by math none equals the answer ""


def test_rows_that_nobody_reviews_are_left_as_they_are_and_hostile_text_is_stored():
    plain = {"row": 0, "step": 1, "epoch": 0, "sample_index": 0, "seed": 1, "problem_id": "p", "problem": "1+1"}
    table = to_table([plain | {"answer": "", "reference": ""}])
    assert settled_rows(table, recipe(), {}) is table
    made = row(["\ud800\x1b[2J"], recipe())
    stored = to_table([{**made, "problem_number": 0}], IN_STREAM)
    assert stored["review_candidates"].to_pylist()[0][0]["text"] == "?\x1b[2J"
    assert settle(made, recipe(), {"try": NO, "?\x1b[2J": YES})[0]["y_r"]["passed"]
    assert settle(made, recipe(), {"try": NO, "\ud800\x1b[2J": YES})[0]["y_r"]["passed"]


def test_a_table_that_is_settled_twice_is_the_same_table():
    table = to_table([row(["a"], recipe(), number=0), row([], recipe(), number=1)])
    given = {key_of("p", "a"): YES}
    once = settled_rows(table, recipe(), given)
    assert settled_rows(once, recipe(), given).equals(once) and once.schema.equals(ROW)
    assert once["review_waits"].to_pylist() == [1, 1]


def test_a_verdict_that_waits_counts_neither_as_passed_nor_as_failed():
    from trd_ray.alarms.around import Around
    from trd_ray.alarms.watcher import Watcher
    from trd_ray.record.ledger import facts_of_rows, ledger
    from trd_ray.rows import light

    rows = [row(["a"], recipe(), number=i, y_o=f"try {i}") for i in range(8)]
    given = {key_of("p", "try 0"): YES, key_of("p", "try 1"): NO}
    facts = facts_of_rows(light(settled_rows(to_table(rows), recipe(), given)))
    measured = ledger(facts)
    assert measured["y_o/passed"] == 0.5 and measured["y_o/tokens_mean"] == 3 and "y_r/passed" not in measured
    assert measured["tokens/refined"] == 16
    assert not Watcher(Around.of(recipe())).step(1, measured).begun
    assert "y_o/passed" not in ledger(facts_of_rows(light(settled_rows(to_table(rows), recipe(), {}))))
    assert Verdict(True, 1.0, "", "", 0.0).awaited is None
