"""A person as the verifier: what waits, what the file of verdicts may hold, and that nothing said is lost."""

import json
import os

import pytest

from trd_ray.config import VerifyConfig
from trd_ray.verify import AWAITS_REVIEW, Verdict, verifier
from trd_ray.verify.chosen import person_judges
from trd_ray.verify.review.given_verdicts import PersonsVerdict, append_given, key_of, read_given
from trd_ray.verify.review.review_queue import (
    Asker,
    Queued,
    append_queue,
    queue_place,
    read_queue,
    still_wanted,
    write_queue,
)
from trd_ray.verify.review.review_verifier import ReviewVerifier
from trd_ray.verify.review.settle import read_back, settled, written

PROBLEM = {"problem_id": "p1", "problem": "1+1", "answer": "2", "reference": "", "source": None, "extra": None}
HOSTILE = '\x1b[2J\x1b]0;owned\x07 \u202egnp.exe \u2028 "quoted" \\ \n\n{"key": "x"} \ud800 ' + "\x00" * 3


def config(**keys) -> VerifyConfig:
    return VerifyConfig.model_validate(keys)


# The key


def test_a_key_is_of_problem_and_text_and_the_same_in_every_run():
    assert key_of("p1", "a text") == "ce9d0ec6c74d44a76824d99075d670aa"
    assert len({key_of("p1", "ab"), key_of("p1a", "b"), key_of("p", "1ab"), key_of("p1", "ab ")}) == 4
    assert key_of("p1", "a\ud800") == key_of("p1", "a?")  # as it is stored


# The file of verdicts


def lines(place, *texts: str | bytes):
    place.write_bytes(b"\n".join(t if isinstance(t, bytes) else t.encode() for t in texts))
    return read_given(place)


def test_the_last_line_of_a_key_counts_and_one_without_a_verdict_takes_it_back(tmp_path):
    said = lines(
        tmp_path / "v",
        '{"key": "a", "passed": true}',
        '{"key": "b", "score": 0.25, "feedback": "half", "reviewer": "ann", "at": "today"}',
        '{"key": "a", "passed": false, "feedback": "the sign"}',
        '{"key": "c", "passed": true}',
        '{"key": "c", "passed": null}',
    )
    assert said.by_key["a"] == PersonsVerdict(False, None, "the sign")
    assert said.by_key["b"] == PersonsVerdict(None, 0.25, "half", "ann")
    assert said.by_key["c"].withdrawn and not said.bad and not said.complaint(tmp_path / "v")


def test_lines_that_are_no_verdict_are_named_by_number_in_one_sentence_and_the_others_count(tmp_path):
    place = tmp_path / "verdicts.jsonl"
    said = lines(
        place,
        b'\xef\xbb\xbf{"key": "a", "passed": true}\r',
        "passed",
        "[1, 2]",
        '{"passed": true}',
        '{"key": 7, "passed": true}',
        "",
        '{"key": "x"}',
        '{"key": "x", "passed": "yes"}',
        '{"key": "x", "passed": 1}',
        '{"key": "x", "score": true}',
        '{"key": "x", "score": NaN}',
        '{"key": "x", "score": 1e999}',
        '{"key": "x", "score": ' + "9" * 400 + "}",
        '{"key": "x", "passed": true, "feedback": ["a"]}',
        "[" * 100_000,
        b'{"key": "x", "passed": tr\xff\xfe',
        '{"key": "b", "score": 1}',
        '{"key": "c", "pas',
    )
    assert set(said.by_key) == {"a", "b"}
    assert list(said.bad) == [2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18]
    told = said.complaint(place)
    assert told.startswith(f"lines 2, 3, 4, 5, 7 and 10 more of {place} give no verdict and are passed over (line 2 is")
    assert "\n" not in told
    assert lines(place, '{"key": "x"}').complaint(place).startswith(f"line 1 of {place} give")
    assert read_given(tmp_path / "none").by_key == {}


def test_what_is_appended_is_read_and_half_a_line_before_it_takes_nothing_with_it(tmp_path):
    place = tmp_path / "verdicts.jsonl"
    append_given(place, "a", PersonsVerdict(True, None, "well\ndone", "ann"), at="now")
    with open(place, "a") as file:
        file.write('{"key": "b", "pas')  # the machine lost power, or an editor wrote no last newline
    append_given(place, "c", PersonsVerdict(None, 0.5))
    append_given(place, "a", PersonsVerdict())
    said = read_given(place)
    assert list(said.bad) == [2] and said.by_key["c"].score == 0.5 and said.by_key["a"].withdrawn
    assert json.loads(place.read_text().splitlines()[0])["at"] == "now"


def test_two_programs_that_append_at_once_keep_each_other_s_lines(tmp_path):
    place = tmp_path / "verdicts.jsonl"
    children = []
    for child in range(4):
        if not (pid := os.fork()):
            for i in range(50):
                append_given(place, f"{child}-{i}", PersonsVerdict(True, feedback="x" * 500))
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    said = read_given(place)
    assert len(said.by_key) == 200 and not said.bad


# The verifier


def test_a_response_waits_until_a_person_has_judged_it_and_an_empty_one_fails_at_once():
    verify = verifier(config(function="review"))
    verdict = verify("a text", PROBLEM)
    assert verdict.awaited and not verdict.judged and not verdict.passed and verdict.detail == AWAITS_REVIEW
    empty = verify(" \n", PROBLEM)
    assert empty.judged and not empty.passed and empty.detail == "empty"
    assert verify(None, PROBLEM).detail == "empty" and verify(HOSTILE, PROBLEM).awaited


@pytest.mark.parametrize(
    ("said", "pass_at", "passed", "score"),
    [
        (PersonsVerdict(True), 1.0, True, 1.0),
        (PersonsVerdict(False), 0.0, False, 0.0),  # what a person says goes before a number
        (PersonsVerdict(None, 0.5), 1.0, False, 0.5),
        (PersonsVerdict(None, 0.5), 0.5, True, 0.5),
        (PersonsVerdict(True, 0.3), 1.0, True, 0.3),
    ],
)
def test_a_person_s_verdict_is_a_verdict_as_any_other(said, pass_at, passed, score):
    given = {key_of("p1", HOSTILE): said}
    verdict = ReviewVerifier(given, pass_at)(HOSTILE, PROBLEM)
    assert (verdict.passed, verdict.score, verdict.judged, verdict.awaited) == (passed, score, True, None)
    verdict.extracted.encode()  # valid UTF-8
    assert ReviewVerifier(given)(HOSTILE, PROBLEM | {"problem_id": "p2"}).awaited


def test_feedback_and_reviewer_stand_in_the_verdict():
    given = {key_of("p1", "t"): PersonsVerdict(False, None, "the sign", "ann")}
    verdict = ReviewVerifier(given)("t", PROBLEM)
    assert verdict.feedback == "the sign" and "ann" in verdict.detail


def test_of_several_verifiers_the_others_are_asked_once_and_the_mean_comes_with_the_person():
    both = config(functions={"m": {"function": "math"}, "r": {"function": "review", "pass_at": 0.5}}, pass_at=0.7)
    text = "so \\boxed{2}"
    verdict = verifier(both)(text, PROBLEM)
    assert verdict.awaited and verdict.awaited.beside["m"].passed
    kept = read_back(written(verdict) or "")
    assert kept == verdict
    key = key_of("p1", text)
    now = settled(kept, both, {key: PersonsVerdict(None, 0.6)}, text, "p1")
    assert now.passed and now.score == pytest.approx(0.8) and now.parts == {"m": 1.0, "r": 0.6}
    assert not settled(kept, both, {key: PersonsVerdict(None, 0.4)}, text, "p1").passed  # 0.7, but r's own limit is 0.5
    assert settled(kept, both, {}, text, "p1").awaited
    assert settled(Verdict(True, 1.0, "", "", 0.0), both, {}, text, "p1").passed


def test_a_row_that_another_verifier_judges_waits_for_nobody():
    extra = {"problem_id": "p1", "extra": json.dumps({"kind": "maths"})}
    by = config(functions={"maths": {"function": "math"}, "taste": {"function": "review"}}, by="kind")
    assert verifier(by)("\\boxed{2}", PROBLEM | extra).passed
    assert not person_judges(by, PROBLEM | extra)
    assert person_judges(by, PROBLEM | {"extra": json.dumps({"kind": "taste"})})
    assert not person_judges(by, PROBLEM)  # it names no verifier: a bad row, and nobody's work
    sources = config(by_source={"essays": "review"})
    assert person_judges(sources, PROBLEM | {"source": "essays"}) and sources.asks_a_person
    assert not person_judges(sources, PROBLEM) and not config(function="math").asks_a_person


def test_review_needs_no_answers_and_its_prompts_say_nothing_of_a_form():
    assert not config(function="review").needs_answers and config(function="math").needs_answers
    assert config(function="review").usual_task == "plain"


# The queue


def response(text: str, key: str = "", **asker) -> Queued:
    turns = [{"role": "system", "content": HOSTILE}]
    found = key or key_of("p1", text)
    return Queued(
        found, "p1", HOSTILE, turns, "a reference", "2", text, 1.0, [Asker(**{"row": 3, "trajectory": "y_o"} | asker)]
    )


def test_a_line_of_the_queue_is_one_line_of_plain_ascii_whatever_the_model_wrote(tmp_path):
    write_queue(tmp_path, [response(HOSTILE), response("another")])
    content = queue_place(tmp_path).read_bytes()
    assert content.count(b"\n") == 2 and all(32 <= byte < 127 or byte == 10 for byte in content)
    first, second = read_queue(tmp_path).values()
    assert first == response(HOSTILE) and second.response == "another"
    keys = {"key", "problem", "reference", "response", "asked_by"}
    assert keys <= json.loads(content.splitlines()[0]).keys()


def test_a_response_that_several_rows_have_is_asked_about_once(tmp_path):
    write_queue(tmp_path, [response("same")])
    refinement = {"row": 9, "trajectory": "y_r", "candidate": 2, "candidates": 4, "unless_passed": ("k",)}
    append_queue(tmp_path, [response("same", **refinement), response("other")])
    with open(queue_place(tmp_path), "a") as file:
        file.write('{"key": "cut sh')
    same, other = read_queue(tmp_path).values()
    assert [asker.row for asker in same.asked_by] == [3, 9] and other.response == "other"
    assert still_wanted(same, {"k"}.__contains__)  # row 3 still wants it
    [alone] = [response("same", **refinement)]
    assert still_wanted(alone, {"x"}.__contains__) and not still_wanted(alone, {"k"}.__contains__)
