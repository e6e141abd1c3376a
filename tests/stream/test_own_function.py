"""What the stage gives to a function of the user's besides the problem."""

from types import SimpleNamespace
from typing import Any

from trd_ray.config import VerifyConfig
from trd_ray.stream.stages import with_prompt
from trd_ray.stream.verifying import START_S, patience_s
from trd_ray.verify import PROMPT

VIEWS: Any = SimpleNamespace(text=lambda ids: f"<user>{ids}<assistant>")


def test_a_function_of_the_user_s_gets_the_prompt_as_the_engine_saw_it_and_the_built_in_ones_nothing_more():
    own = VerifyConfig(function="package.module:score")
    assert with_prompt({"problem": "x"}, own, VIEWS, [1, 2])[PROMPT] == "<user>[1, 2]<assistant>"
    assert with_prompt({"problem": "x"}, VerifyConfig(), VIEWS, [1, 2]) == {"problem": "x"}


def test_a_task_that_calls_a_function_has_time_for_each_call_and_its_second_try():
    own = VerifyConfig(function="package.module:score", deadline_s=30)
    assert patience_s(own, [({}, ["a", "b"], None)]) == 2 * (START_S + 2 * 2 * 30)
