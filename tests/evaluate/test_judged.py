"""`trd evaluate` with a judge: where it has rows to judge it has a pool, and its verdicts are its own."""

import json
from pathlib import Path

import pytest

from trd_ray.config import VerifyConfig, from_tree
from trd_ray.errors import UserError
from trd_ray.evaluate.plan import EvaluationPlan, plan
from trd_ray.evaluate.samples import settings_of_judge, verifier_of
from trd_ray.preflight.machines import described

JUDGE = (
    "verify.function=judge", "judge.path=miniature:student", "judge.prompt='{problem}{response}'",
    "judge.max_response_tokens=16", "evaluation.max_response_tokens=20",
)  # fmt: skip
AIME = f"aime24:{Path(__file__).parents[1]}/problems/benchmark_files/math_ai_aime24.jsonl"


@pytest.fixture
def own(tmp_path) -> str:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"problem": f"{i}+2", "answer": str(i + 2)}) + "\n" for i in range(3)))
    return str(file)


def pools(planned: EvaluationPlan) -> list[str]:
    return [actor.spec.name for actor in planned.inputs.plan(described("4x80GiB")).actors]


def test_a_file_that_the_judge_judges_brings_its_pool_and_says_how_it_is_asked(own):
    planned = plan("miniature:student", [], [f"evaluation.path={own}", *JUDGE, "judge.replicas={max: 3}"])
    assert pools(planned) == ["sampler", "judge", "verifier"]
    assert planned.inputs.judge and Path(planned.inputs.judge_path).is_dir()
    asked, fixed = planned.inputs.notes
    assert "the judge: miniature:student on the pool judge" in asked and "judge.replicas are bounds" in fixed


def test_without_a_row_for_the_judge_there_is_no_pool(own):
    by_source = [one for one in JUDGE if not one.startswith("verify")] + ["verify.by_source={essays: judge}"]
    assert pools(plan("miniature:student", [], [f"evaluation.path={own}", *by_source])) == ["sampler", "verifier"]
    assert pools(plan("miniature:student", [AIME], [*JUDGE[:-1], "evaluation.max_response_tokens=100"])) == [
        "sampler", "verifier",
    ]  # fmt: skip
    assert "judge" in pools(plan("miniature:student", [], [f"evaluation.path={own}", *JUDGE]))


def test_a_judge_that_cannot_be_asked_is_refused_before_engines_start(own):
    with pytest.raises(UserError, match="judge.prompt must hold the placeholder {response} exactly once"):
        plan("miniature:student", [], [f"evaluation.path={own}", *JUDGE, "judge.prompt='{problem}'"])


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ({"path": "other"}, True),
        ({"prompt": "{problem} {response}"}, True),
        ({"temperature": 1.0}, True),
        ({"dtype": "float16"}, True),
        ({"replicas": 4}, False),
        ({"request_timeout_s": 9}, False),
    ],
)
def test_a_verdict_is_made_again_where_another_judge_might_give_another(changed, stale):
    problem = {"answer": "4", "tests": None}

    def of(**judge: object) -> str:
        recipe = from_tree({"verify": {"function": "judge"}, "judge": {"path": "wise", **judge}})
        return verifier_of(problem, recipe.verify, settings_of_judge(recipe))

    assert (of() != of(**changed)) == stale
    maths = from_tree({})
    assert verifier_of(problem, VerifyConfig(), settings_of_judge(maths)) == verifier_of(problem, VerifyConfig())
