"""Python values as JSON trees and back: what crosses the sandbox's wall, never pickle.

    value  ->  encode  ->  null, true, 1, 0.5, "text", [...] or {"tag": ...}  ->  decode  ->  value

A tree may come from a hostile program, so `decode` builds built-in types alone and bounds the depth. `encode` reads a
subclass of a built-in type through that type, so a method that a program has overridden is never called.
This file also runs inside the sandbox, so it imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # inside, every start would pay for the import
    from typing import Any

MAX_DEPTH = 100  # of nesting; a deeper value is Opaque
# Of one dict or set. Keys made to collide take quadratic time to insert, whole or in the low bits of their hashes.
MAX_EQUAL_HASHES, MAX_KEYS = 100, 100_000
_PLAIN_INT = 1 << 63  # a larger int travels as hexadecimal, which has no limit of digits and costs linear time


class Opaque:
    """A value of a type that does not cross the wall. Equal to nothing, not even to itself."""

    def __init__(self, type_name: str):
        self.type_name = type_name

    def __repr__(self) -> str:
        return f"<{self.type_name}>"

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


def encode(value: Any) -> Any:
    """The tree of None, bool, int, float, str, bytes, complex, list, tuple, set, frozenset, dict and nests of them.

    - A subclass counts as its base: a Counter is a dict, an IntEnum an int.
    - A NumPy scalar counts as its Python value.
    - Anything else becomes Opaque, and so do a list that holds itself and what nests deeper than MAX_DEPTH.
    """
    return _encode(value, 0, set())


def decode(tree: Any) -> Any:
    """The value of a tree. ValueError for one that `encode` cannot have made."""
    try:
        return _decode(tree, 0)
    except (TypeError, KeyError, OverflowError, RecursionError, AttributeError) as e:
        raise ValueError(f"not an encoded value: {type(e).__name__}") from None


def _encode(value: Any, depth: int, path: set[int]) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_PLAIN_INT < value < _PLAIN_INT else {"int": hex(value)}
    if kind is float:
        return value if value - value == 0 else {"float": float.__repr__(value)}  # nan, inf, -inf
    if kind.__module__ == "numpy" and hasattr(kind, "item") and kind.__name__ != "ndarray":
        return _encode_scalar(value, depth, path)
    for base in (int, float, str):
        if issubclass(kind, base):
            return _encode(_PLAIN[base](value), depth, path)
    if issubclass(kind, (bytes, bytearray)):
        return {"bytes": (bytes if issubclass(kind, bytes) else bytearray).hex(value)}
    if issubclass(kind, complex):
        value = complex.__pos__(value)
        return {"complex": [_encode(value.real, 0, path), _encode(value.imag, 0, path)]}
    base = next((b for b in (list, tuple, dict, set, frozenset) if issubclass(kind, b)), None)
    if base is None:
        return {"opaque": type.__getattribute__(kind, "__qualname__")[:200]}
    if depth >= MAX_DEPTH or id(value) in path:
        return {"opaque": f"{base.__name__} nested too deep"}
    path.add(id(value))
    if base is dict:
        items = [[_encode(k, depth + 1, path), _encode(v, depth + 1, path)] for k, v in dict.items(value)]
        tree = {"dict": items}
    else:
        parts = [_encode(part, depth + 1, path) for part in base.__iter__(value)]
        if base in (set, frozenset):
            parts.sort(key=repr)  # the same bytes for equal sets, whatever the hash seed
        tree = parts if base is list else {base.__name__: parts}
    path.discard(id(value))
    return tree


_PLAIN = {int: int.__pos__, float: float.__pos__, str: str.__str__}


def _encode_scalar(value: Any, depth: int, path: set[int]) -> Any:
    plain = value.item()
    if type(plain) in (bool, int, float, complex, str, bytes):
        return _encode(plain, depth, path)
    return {"opaque": type(value).__name__}


def _decode(tree: Any, depth: int) -> Any:
    if depth > MAX_DEPTH + 1:
        raise ValueError("nested too deep")
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, list):
        return [_decode(part, depth + 1) for part in tree]
    if len(tree) != 1:
        raise ValueError("one tag expected")
    ((tag, body),) = tree.items()
    if tag == "dict":
        items = [(_decode(k, depth + 1), _decode(v, depth + 1)) for k, v in body]
        _refuse_collisions([k for k, _ in items])
        return dict(items)
    if tag in ("tuple", "set", "frozenset"):
        parts = [_decode(part, depth + 1) for part in _of_type(list, body)]
        if tag == "tuple":
            return tuple(parts)
        _refuse_collisions(parts)
        return set(parts) if tag == "set" else frozenset(parts)
    if tag == "complex":
        re, im = (_decode(part, MAX_DEPTH) for part in body)
        return complex(_of_type(float, re), _of_type(float, im))
    if tag == "int":
        return int(_of_type(str, body), 16)
    if tag == "float":
        return float({"nan": "nan", "inf": "inf", "-inf": "-inf"}[body])
    if tag == "bytes":
        return bytes.fromhex(body)
    if tag == "opaque":
        return Opaque(_of_type(str, body))
    raise ValueError(f"unknown tag {tag[:50]!r}")


def _refuse_collisions(keys: list) -> None:
    if len(keys) > MAX_KEYS:
        raise ValueError("too many keys")
    if len(keys) - len({hash(key) for key in keys}) > MAX_EQUAL_HASHES:
        raise ValueError("too many keys with equal hashes")


def _of_type(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value
