"""One pool for both roles is named where it is possible."""

import pytest

from trd_ray.config import from_tree
from trd_ray.preflight.sharing import sharing

ADAPTERS = {"learner": {"lora": {}}, "sync": {"lora": "adapter"}}


@pytest.mark.parametrize(
    ("tree", "keys"),
    [
        (ADAPTERS, "placement=shared."),
        ({"learner": {"lora": {}}}, "placement=shared sync.lora=adapter."),
        (
            {"learner": {"lora": {}}, "sync": {"in_flight": "keep"}},
            "placement=shared sync.lora=adapter sync.in_flight=drain.",
        ),
        ({"teacher": {"follow": "live"}}, "placement=shared."),
        (
            ADAPTERS | {"refiner": {"max_model_len": 512}, "sampler": {"max_model_len": 256}},
            "sampler.max_model_len=512",
        ),
        ({"placement": "timeshare", "learner": {"lora": {}}}, "long: sync.lora=adapter."),
        ({}, None),
        (ADAPTERS | {"placement": "shared"}, None),
        (ADAPTERS | {"placement": "timeshare"}, None),
        ({"learner": {"lora": {}}, "teacher": {"follow": "ema"}}, None),
        ({"learner": {"lora": {}}, "teacher": {"mode": "opd", "path": "t"}}, None),
        (ADAPTERS | {"train": {"trajectory": "y_o"}, "teacher": {"view": "vanilla"}}, None),
    ],
)
def test_one_pool_is_named_where_it_is_possible_and_never_chosen(tree, keys):
    asked = from_tree(tree)
    said = sharing(asked)
    assert said is None if keys is None else keys in said
    assert asked.placement == tree.get("placement", "separate")
