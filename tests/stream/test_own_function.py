"""What the stage gives to a function of the user's besides the problem."""

import pickle
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from trd_ray import models
from trd_ray.config import ModelConfig, VerifyConfig
from trd_ray.preflight.tokenised import verifier_with_ids
from trd_ray.stream.stages import with_ids, with_prompt
from trd_ray.stream.verifying import START_S, patience_s
from trd_ray.verify import IDS, PROMPT
from trd_ray.verify.chosen import Chosen

VIEWS: Any = SimpleNamespace(text=lambda ids: f"<user>{ids}<assistant>")


def test_a_function_of_the_user_s_gets_the_prompt_as_the_engine_saw_it_and_the_built_in_ones_nothing_more():
    own = VerifyConfig(function="package.module:score")
    assert with_prompt({"problem": "x"}, own, VIEWS, [1, 2])[PROMPT] == "<user>[1, 2]<assistant>"
    assert with_prompt({"problem": "x"}, VerifyConfig(), VIEWS, [1, 2]) == {"problem": "x"}


def test_token_ids_go_to_a_function_that_may_ask_for_them_alone():
    ids = {"yes": np.array([1, 2], np.int32)}
    asks = VerifyConfig(function="s.py:f", sources={"s.py": "def f(completions, completion_ids): ..."})
    silent = VerifyConfig(function="s.py:f", sources={"s.py": "def f(completions): ..."})
    assert with_ids({"problem": "x"}, asks, ids) == {"problem": "x", IDS: ids}
    for verify in (silent, VerifyConfig()):
        assert with_ids({"problem": "x"}, verify, ids) == {"problem": "x"}


def test_a_text_that_no_engine_wrote_has_the_ids_of_the_student_s_tokenizer():
    """Also in another process, which makes the verifier anew."""
    source = "def f(completions, completion_ids): return {'score': 1, 'feedback': [repr(completion_ids[0])]}"
    asks = VerifyConfig(function="s.py:f", sources={"s.py": source})
    student = ModelConfig(path="miniature:student")
    verify = pickle.loads(pickle.dumps(partial(verifier_with_ids, asks, student)))()
    tokenizer = models.tokenizer(models.resolve("miniature:student"))
    expected = [*tokenizer("1+2=3", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    problem = {"problem_id": "p", "problem": "1+2", "answer": "3", "reference": "", "tests": None}
    assert verify("1+2=3", problem).feedback == repr(expected)
    assert verify("", problem).feedback == repr(expected[-1:])
    verify.close()
    assert isinstance(verifier_with_ids(VerifyConfig(), student), Chosen)


def test_a_task_that_calls_a_function_has_time_for_each_call_and_its_second_try():
    own = VerifyConfig(function="package.module:score", deadline_s=30)
    assert patience_s(own, [({}, ["a", "b"], None)]) == 2 * (START_S + 2 * 2 * 30)
