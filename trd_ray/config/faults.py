"""What pydantic found wrong with a recipe, told in one sentence for each key, which says what was expected."""

import types
from typing import Any, Union, get_origin

import yaml

from trd_ray.config.close_words import did_you_mean
from trd_ray.config.node import Node, group_of
from trd_ray.config.tree import Recipe

# What pydantic's error types ask for, completed with the error's own context.
_WANTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text (quote it if it looks like a number)",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "model_type": "a group of keys",
    "dict_type": "a group of keys",
    "tuple_type": "a list",
}

# Keys of earlier versions, with what is written instead.
_REPLACED = {
    "refiner.share_sampler": "write placement: shared at the top of the recipe (placement=shared on the command line)"
}


def sentences(errors: list[Any]) -> list[str]:
    """One sentence for each key. The branches of a union (a number, or the word never) are told as one."""
    wanted: dict[str, list[str]] = {}
    found: dict[str, Any] = {}
    told = []
    for error in errors:
        where = ".".join(map(str, _in_tree(error["loc"])))
        if error["type"] == "extra_forbidden":
            known = list(_node(error["loc"][:-1]).model_fields)
            told.append(_unknown(where, str(error["loc"][-1]), error["input"], known))
        elif error["type"] == "value_error":
            told.append(f"{where} {error['ctx']['error']}".strip())
        elif error["type"] == "missing":
            told.append(f"{where} is missing")
        elif error["type"] in _WANTED:
            wanted.setdefault(where, []).append(_WANTED[error["type"]].format(**error.get("ctx", {})))
            found[where] = error["input"]
        else:
            told.append(f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, but found {error['input']!r}")
    return [*told, *(f"{key} must be {' or '.join(wanted[key])}, but found {found[key]!r}" for key in wanted)]


def _unknown(where: str, key: str, value: Any, known: list[str]) -> str:
    if where in _REPLACED:
        return f"there is no key {where} any more: {_REPLACED[where]}"
    group, dot, rest = key.partition(".")
    if dot and group in known:
        for name in reversed(rest.split(".")):
            value = {name: value}
        written = yaml.safe_dump({group: value}, default_flow_style=True, width=1000).strip()[1:-1]
        return f"unknown key {where}: in a file write it as {written[:200]}"
    return f"unknown key {where}{did_you_mean(key, known)}"


def _in_tree(loc: tuple) -> tuple:
    """The keys of an error's location, without the branch of a union that pydantic appends."""
    node: Any = Recipe
    for depth, part in enumerate(loc):
        if get_origin(node) in (Union, types.UnionType):
            return loc[:depth]
        if get_origin(node) is dict and group_of(node):  # groups by name
            node = group_of(node)
            continue
        if not (isinstance(node, type) and issubclass(node, Node) and part in node.model_fields):
            return loc
        annotation = node.model_fields[part].annotation
        node = annotation if get_origin(annotation) is dict else group_of(annotation) or annotation
    return loc


def _node(keys: tuple) -> type[Node]:
    node: Any = Recipe
    for key in keys:
        annotation = node if get_origin(node) is dict else node.model_fields[key].annotation
        node = annotation if get_origin(annotation) is dict and annotation is not node else group_of(annotation)
    return node
