"""`trd check` with a judge: what needs engines is said to be left out, and everything else is looked at."""

from test_check import check, rows, written

KEYS = (
    "prompts.task=math", "judge.path=miniature:student",  "judge.prompt='{problem}{response}'",
    "judge.max_response_tokens=16",
)  # fmt: skip


def test_a_judge_alone_is_not_tried_and_the_data_is_looked_at(capsys, tmp_path):
    data = written(tmp_path / "data.jsonl", rows())
    code, page, wrong = check(capsys, f"data.path={data}", "verify.function=judge", *KEYS, rows=8)
    assert (code, wrong) == (0, "")
    assert "not tried here, since a judge needs engines: 8 of 8 rows" in page
    assert "the judge: miniature:student on the pool judge" in page and "copies" in page and "views of problem" in page


def test_beside_a_judge_the_other_verifier_is_tried(capsys, tmp_path):
    data = written(tmp_path / "data.jsonl", rows())
    functions = "verify.functions={m: {function: math}, j: {function: judge}}"
    code, page, wrong = check(capsys, f"data.path={data}", functions, *KEYS, rows=8)
    assert (code, wrong) == (0, "") and "the judge's part" in page and "asked in another order" in page
    odd = written(tmp_path / "odd.jsonl", [row | {"answer": "17"} for row in rows()])
    code, _, wrong = check(capsys, f"data.path={odd}", functions, *KEYS, rows=8)
    assert code == 2 and "reference" in wrong


def test_one_row_is_shown_and_its_verdict_is_left_out(capsys, tmp_path):
    data = written(tmp_path / "data.jsonl", rows())
    code, page, _ = check(capsys, f"data.path={data}", "verify.function=judge", *KEYS, row="7")
    assert code == 0 and "is not tried here: a judge needs engines" in page


def test_a_judge_that_cannot_be_asked_is_wrong_with_the_recipe(capsys, tmp_path):
    data = written(tmp_path / "data.jsonl", rows())
    code, _, wrong = check(
        capsys, f"data.path={data}", "verify.function=judge", *KEYS, "judge.prompt='{problem}'", rows=8
    )
    assert code == 2 and "judge.prompt must hold the placeholder {response} exactly once" in wrong
