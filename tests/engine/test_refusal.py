"""A request that vLLM finds wrong is answered with a refusal, and the others of its call with their generations."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.exceptions import VLLMValidationError

from trd_ray.engine.actor import Engine, EngineDied
from trd_ray.engine.generations import Generation, Request, whole


def engine(error: Exception, errored: bool = False) -> Any:
    """An engine whose vLLM raises over prompts of more than one token."""

    async def generate(request: Request) -> list[Generation]:
        if len(request.prompt_ids) > 1:
            raise error
        return [Generation(np.array([5]), "a", "stop", np.array([-0.1]), 3, "p-0", 0.0, 0.0)]

    made: Any = Engine.__new__(Engine)
    made.llm, made.spec, made.version = SimpleNamespace(errored=errored), SimpleNamespace(name="p-0"), 3
    made._generate = generate
    return made


def asked(made: Any) -> list[list[Generation]]:
    return whole(*asyncio.run(made.generate([Request([1], 0), Request([1, 2], 0, n=2), Request([1], 0)])))


@pytest.mark.parametrize("error", [VLLMValidationError("too long", parameter="input_tokens"), ValueError("too long")])
def test_a_refusal_is_an_answer(error):
    first, refused, last = asked(engine(error))
    assert [g.text for g in (*first, *last)] == ["a", "a"] and not first[0].refused
    assert len(refused) == 2 and "too long" in refused[0].refused
    assert (refused[0].finish, refused[0].ids.tolist(), refused[0].text) == ("refused", [], "")


def test_what_a_dead_engine_raises_is_its_death_and_a_bug_is_no_refusal():
    with pytest.raises(EngineDied):
        asked(engine(ValueError("x"), errored=True))
    with pytest.raises(ZeroDivisionError):
        asked(engine(ZeroDivisionError("x")))
