"""Every set of held-out problems is compared with what is trained on, and the one that overlaps is named."""

import pyarrow as pa
import pytest

from trd_ray.config import from_tree
from trd_ray.errors import UserError
from trd_ray.preflight.held_out import require_unseen, together


def table(*problems: str) -> pa.Table:
    return pa.table({"problem": list(problems), "turns": pa.nulls(len(problems), pa.string())})


TRAINED = ["1 + 1 = ?", "2 + 2 = ?"]


def test_each_set_that_is_trained_on_is_named():
    sets = {"": table("3 + 3"), "old": table("2 + 2 = ?"), "new": table("1+1=?", "9 + 9")}
    with pytest.raises(UserError) as refused:
        require_unseen(from_tree({}), TRAINED, sets)
    old, new = refused.value.sentences
    assert "evaluation.sets.old.path" in old and "1 of 1" in old
    assert "evaluation.sets.new.path" in new and "1 of 2" in new
    with pytest.raises(UserError, match="data.path and evaluation.path have"):
        require_unseen(from_tree({}), TRAINED, {"": table("1+1=?")})


def test_where_it_is_allowed_or_nothing_is_in_common_the_main_set_is_told_of():
    allowed = from_tree({"evaluation": {"allow_overlap": True}})
    found = require_unseen(allowed, TRAINED, {"": table("5 + 5"), "old": table("2 + 2 = ?")})
    assert found and (found.held_out, found.trained_on) == (1, 0)
    only = require_unseen(allowed, TRAINED, {"old": table("2 + 2 = ?")})
    assert only and only.trained_on == 1
    assert require_unseen(allowed, None, {"": table("x")}) is None and require_unseen(allowed, TRAINED, {}) is None


def test_prompts_of_all_sets_are_looked_at_together():
    both = together({"": table("a"), "old": table("b", "c")})
    assert both and both["problem"].to_pylist() == ["a", "b", "c"] and together({}) is None
