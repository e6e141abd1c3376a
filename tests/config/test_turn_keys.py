"""placement=timeshare: what it cannot have, who has one pool, and how engines rest."""

import pytest

from trd_ray import config
from trd_ray.errors import UserError

TURNS = {"placement": "timeshare"}
ADAPTERS = TURNS | {"learner": {"lora": {}}, "sync": {"lora": "adapter"}}
JUDGED = {"verify": {"function": "judge"}}
OPD = {"teacher": {"mode": "opd", "path": "t"}}


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"stream": {"max_staleness": 1}}, "stream.max_staleness is 1: set stream.max_staleness=0"),
        ({"sampler": {"replicas": {"max": 4}}}, "sampler.replicas is a range: set sampler.replicas=4"),
        ({"refiner": {"replicas": {"max": 2}}}, "refiner.replicas is a range: set refiner.replicas=2"),
        ({"learner": {"workers": {"min": 2, "max": 8}}}, "learner.workers is a range: set learner.workers=8"),
        ({"sampler": {"gpus": 0.5}}, "sampler.gpus is 0.5: leave it out (sampler.gpus=null)"),
        ({"learner": {"gpus": 1}}, "learner.gpus is 1: leave it out (learner.gpus=null)"),
        ({"refiner": {"tensor_parallel": 2}}, "set refiner.tensor_parallel=1, or placement=separate"),
        (JUDGED | {"judge": {"path": "j", "gpus": 0.5}}, "judge.gpus is 0.5, which could be of one of those"),
        ({"sync": {"backend": "nccl"}}, "set sync.backend=auto, or placement=separate"),
    ],
)
def test_what_cannot_take_turns_is_refused_with_what_to_set(tree, told):
    with pytest.raises(UserError) as refused:
        config.from_tree(TURNS | tree)
    assert told in str(refused.value)


def test_both_schedules_that_never_run_ahead_are_allowed():
    assert config.from_tree(TURNS).takes_turns
    assert config.from_tree(TURNS | {"stream": {"max_staleness": "never"}}).takes_turns
    assert not config.from_tree({"placement": "separate"}).takes_turns


@pytest.mark.parametrize(
    ("tree", "one_pool"),
    [
        (ADAPTERS, True),
        (TURNS | {"teacher": {"follow": "live"}}, True),
        (TURNS | {"learner": {"lora": {}}}, False),  # merged weights have no base model below them
        (TURNS, False),
        (ADAPTERS | OPD, False),
        (TURNS | {"learner": {"lora": {}}, "teacher": {"follow": "ema"}}, False),
        (ADAPTERS | {"refiner": {"dtype": "float32"}}, False),
        ({"placement": "shared", "teacher": {"follow": "live"}}, True),
        ({"learner": {"lora": {}}, "sync": {"lora": "adapter"}}, False),
    ],
)
def test_one_pool_samples_and_refines_in_turns_wherever_it_could_otherwise(tree, one_pool):
    assert config.from_tree(tree).shares_engines == one_pool


def test_keys_of_a_pool_that_is_not_there_are_nobody_s_fault():
    assert config.from_tree(ADAPTERS | {"refiner": {"gpus": 0.3, "replicas": {"max": 3}}}).shares_engines


@pytest.mark.parametrize(
    ("tree", "sampler", "refiner"),
    [
        (ADAPTERS, "keep", "keep"),
        (TURNS, "drop", "keep"),
        (TURNS | OPD, "drop", "keep"),
        (TURNS | {"teacher": {"follow": "live"}}, "drop", "drop"),
        (TURNS | {"stream": {"max_staleness": "never"}}, "keep", "keep"),
    ],
)
def test_weights_go_where_new_ones_come_and_stay_where_none_do(tree, sampler, refiner):
    recipe = config.from_tree(tree)
    assert (recipe.rest_of("sampler"), recipe.rest_of("refiner")) == (sampler, refiner)
