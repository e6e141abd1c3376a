"""Which items of a family of reasoning_gym a split is: one range of indices is cut into splits.

    reasoning_gym:FAMILY, a split, {size, test, seed, ...}  ->  cut()  ->  Cut

    index   0 ................. size ............ size + test
            train               test

Item i of a family comes from the random numbers of seed + i. So seeds 0 and 1 share nearly all items, and a split must
not be a seed of its own. Both splits of one range are asked for with the same arguments.

Pure.
"""

from dataclasses import dataclass
from typing import Any

from trd_ray.config import GYM_PREFIX as PREFIX
from trd_ray.errors import UserError

SIZE, TEST, SEED = 1000, 100, 0
MOST_ITEMS = 1_000_000


@dataclass(frozen=True)
class Cut:
    family: str
    config: dict[str, Any]  # as the family takes it: its own arguments, seed, and size, the whole range
    items: range  # their indices
    others: range  # those of the other split of the range

    def shares(self, other: "Cut") -> bool:
        """Whether an item of the other is also one of this: the same family and arguments, and seeds that meet."""
        ours, theirs = (one.config | {"seed": None, "size": None} for one in (self, other))
        a, b = (one.config["seed"] + one.items.start for one in (self, other))
        return (self.family, ours) == (other.family, theirs) and a < b + len(other.items) and b < a + len(self.items)


def names_family(path: str | None) -> bool:
    return bool(path) and str(path).startswith(PREFIX)


def cut(path: str, split: str, arguments: dict[str, Any], group: str) -> Cut:
    """`group` are the keys of the recipe that a message names. Raises UserError."""
    family = path.removeprefix(PREFIX)
    own = dict(arguments)
    size = _count(own.pop("size", SIZE), f"{group}.arguments.size", 1)
    test = _count(own.pop("test", TEST), f"{group}.arguments.test", 1)
    seed = _count(own.pop("seed", SEED), f"{group}.arguments.seed", 0)
    if size + test > MOST_ITEMS:
        raise UserError(f"{group}.arguments.size and test are {size + test} items together: {MOST_ITEMS} are the most")
    splits = {"train": range(size), "test": range(size, size + test)}
    if split not in splits:
        raise UserError(f"{path} has the splits train and test, but {group}.split is {split!r}: set it to one of them")
    [other] = splits.keys() - {split}
    return Cut(family, own | {"seed": seed, "size": size + test}, splits[split], splits[other])


def require_apart(trained: Cut, held_out: Cut, group: str) -> None:
    """Raise UserError where items that are trained on are also held out."""
    if trained.shares(held_out):
        raise UserError(
            f"items of {PREFIX}{trained.family} are both trained on and held out, since item i comes from seed + i: "
            f"leave out {group}.arguments and {group}.split, so that the test split follows the items of "
            f"data.arguments, or set {group}.arguments.seed further away"
        )


def _count(value: Any, key: str, least: int) -> int:
    if type(value) is not int or not least <= value <= 2**31:
        raise UserError(f"{key} is {value!r}: set it to a whole number from {least} on")
    return value
