"""The judge travels with the task that verifies, and its time is counted."""

from typing import Any

import pytest

from trd_ray.config import JudgeConfig, VerifyConfig
from trd_ray.errors import BadRow
from trd_ray.stream import verifying
from trd_ray.stream.judging import JudgeAt, JudgingTask, judging_s
from trd_ray.verify import Verdict
from trd_ray.verify.judge.judge_verifier import AT_ONCE

JUDGE = JudgeAt.of(
    JudgeConfig(path="w", start_timeout_s=60, request_timeout_s=10, tries=2), "/w", 4096, pool="a handle"
)


class Remote:
    def __init__(self) -> None:
        self.called: list[tuple[tuple, dict]] = []

    def remote(self, *arguments: Any, **keywords: Any) -> str:
        self.called.append((arguments, keywords))
        return "a reference"


def test_a_task_gets_the_judge_beside_what_every_task_gets():
    task = Remote()
    assert JudgingTask(task, JUDGE).remote("{}", [], "tests") == "a reference"
    assert task.called == [(("{}", [], "tests"), {"judge": JUDGE})]


def test_one_process_makes_one_judge():
    assert len({JUDGE, JudgeAt(**vars(JUDGE))}) == 1


def test_calls_that_are_made_at_once_take_the_time_of_one():
    assert JUDGE.verdict_s == 80
    assert [judging_s(JUDGE, texts) for texts in (1, AT_ONCE, AT_ONCE + 1)] == [80, 80, 160]
    assert judging_s(None, 5) == 0


def test_in_the_task_the_judge_judges(monkeypatch):
    def verify(text: str, problem: dict) -> Verdict:
        if text == "odd":
            raise BadRow("its column is torn")
        return Verdict(True, 1.0, text, "", 0.0)

    made: list[Any] = []
    monkeypatch.setattr(verifying, "judging_verifier", lambda config, judge: made.append(judge) or verify)
    [[(_, fine), (_, odd)]] = verifying.verdicts("{}", [({}, ["fine", "odd"], None)], judge=JUDGE)
    assert made == [JUDGE] and fine.passed and not odd.judged


@pytest.mark.parametrize("judge", [None, JUDGE])
def test_a_verifier_task_is_a_judging_one_where_there_is_a_judge(judge):
    assert isinstance(verifying.verifier_task(VerifyConfig(), judge), JudgingTask) == bool(judge)
