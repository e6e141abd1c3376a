"""Every key of the tree with what it affects: a question about two recipes becomes one about a set of keys.

    effects of the fields (trd_ray.config.effects)  ->  effects()  ->  affecting(VERDICTS), not_affecting(ROWS, NUMBERS)
    a tree of keys, keys                            ->  only()     ->  the tree with those keys alone

A key is written with its groups: `learner.lora.rank`. A group that may be left out is a key too (`learner.lora`).
"""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, get_args

from trd_ray.config.effects import NOTHING, Effect
from trd_ray.config.node import Node, group_of
from trd_ray.config.tree import Recipe


@cache
def effects() -> dict[str, frozenset[Effect]]:
    return dict(_effects(Recipe))


def _effects(node: type[Node], prefix: str = "", above: frozenset[Effect] | None = None) -> Iterator[Any]:
    for name, field in node.model_fields.items():
        own = frozenset(one for one in field.metadata if isinstance(one, Effect))
        if not own:
            raise TypeError(f"{prefix}{name} does not say what it affects: name an effect, or NOTHING")
        own -= {NOTHING}
        own = own if above is None else own & above
        # Groups by name are one key here; what a key of one of them affects is what `as_of_the_only` does.
        group = group_of(field.annotation)
        if group is None or get_args(field.annotation):
            yield prefix + name, own
        if group is not None:
            yield from _effects(group, f"{prefix}{name}.", own)


def affecting(*asked: Effect) -> set[str]:
    """The keys that affect any of these."""
    return {key for key, found in effects().items() if found & set(asked)}


def not_affecting(*asked: Effect) -> set[str]:
    """The keys that affect none of these, whatever else they affect."""
    return effects().keys() - affecting(*asked)


def at_the_top(*asked: Effect) -> list[str]:
    """The keys and groups at the top of the tree that say they affect any of these, in the order of the tree."""
    return [name for name, field in Recipe.model_fields.items() if set(field.metadata) & set(asked)]


def in_group(group: str, keys: Iterable[str]) -> set[str]:
    """Those of the keys that are in a group, by their names within it."""
    return {key.removeprefix(f"{group}.") for key in keys if key.startswith(f"{group}.")}


def only(tree: dict[str, Any], keys: set[str], prefix: str = "") -> dict[str, Any]:
    """A tree of keys and values with no more than these keys. A group of which no key remains is left out."""
    found = {}
    for name, value in tree.items():
        key = prefix + name
        if isinstance(value, dict) and in_group(key, keys):
            if inside := only(value, keys, f"{key}."):
                found[name] = inside
        elif key in keys:
            found[name] = value
    return found
