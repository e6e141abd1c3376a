"""Replicas are a number or bounds."""

import pytest

from trd_ray.config import EngineRange, dump, from_tree
from trd_ray.errors import UserError


def replicas(value):
    return from_tree({"sampler": {"replicas": value}}).sampler


def test_a_number_stays_one_and_bounds_begin_with_the_fewest():
    assert replicas(3).replicas == 3 and replicas(3).bounds == EngineRange(min=3, max=3, start=3)
    assert replicas("3").replicas == 3
    assert replicas({"max": 4}).bounds == EngineRange(min=1, max=4, start=1)
    assert replicas({"min": 2, "max": 4, "start": 3}).bounds.start == 3


def test_a_recipe_with_bounds_is_read_as_it_was_written():
    recipe = from_tree({"refiner": {"replicas": {"min": 1, "max": 4}}})
    import yaml

    assert from_tree(yaml.safe_load(dump(recipe))) == recipe


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "sampler.replicas must be at least 1, but found 0"),
        ("many", "sampler.replicas must be a whole number, or {min: 1, max: 4}, but found 'many'"),
        (1.5, "a whole number"),
        (True, "must not be true or false"),
        ({"min": 3, "max": 2}, "1 <= min <= start <= max"),
        ({"min": 1}, "max is missing"),
        ({"min": 1, "most": 4}, "there is no key most"),
        ({"min": 1, "max": "4"}, "whole numbers"),
        ({"min": 0, "max": 4}, "1 <= min"),
    ],
)
def test_other_values_are_refused_with_what_was_expected(value, said):
    with pytest.raises(UserError) as e:
        replicas(value)
    assert said in str(e.value)
