"""How a function wants to be called, read from the names of its parameters.

    a function or a class with __call__  ->  shape_of()  ->  CallShape, or Unreadable with what to change

The names tell who a function was written for:

    text, problem                                        this package
    completions                                          TRL: lists, one entry a completion, and a list for each column
    solution_str, ground_truth, data_source, extra_info  verl; with an s at the end of each it takes lists
    queries, prompts, labels                             OpenRLHF: lists; a query is the prompt with the response
    completion, response, text or output                 one response, and every other parameter by its name

This module runs where the function is, so it imports nothing but the standard library.
"""

import inspect
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

OURS = "ours, (text, problem)"
TRL = "TRL's (prompts, completions, **columns)"
VERL = "verl's (data_source, solution_str, ground_truth, extra_info)"
VERL_LISTS = "verl's (data_sources, solution_strs, ground_truths, extra_infos)"
OPENRLHF = "OpenRLHF's (queries, prompts, labels)"
BY_NAME = "by name"

# The parameter that tells each shape; the first of RESPONSES that a function has is the response.
_TELLING = (("completions", TRL), ("queries", OPENRLHF), ("solution_strs", VERL_LISTS), ("solution_str", VERL))
RESPONSES = ("completion", "response", "text", "output")
MAX_DEPTH = 3  # of functions that call one another, in which the use of messages is looked for


class Unreadable(Exception):
    """A function that cannot be called by its parameters' names; the message says what to change."""


@dataclass(frozen=True)
class CallShape:
    kind: str
    required: tuple[str, ...]  # parameters without a default
    optional: tuple[str, ...]
    takes_all: bool  # has **kwargs
    batched: bool  # takes lists and returns one
    is_async: bool
    is_class: bool
    messages: bool  # completions are chat messages, not text

    def __str__(self) -> str:
        named = f"{self.kind} ({', '.join(self.required + self.optional)})" if self.kind == BY_NAME else self.kind
        told = [named, "batched" if self.batched else "one at a time"]
        told += ["async"] if self.is_async else []
        told += ["a class, made once a process"] if self.is_class else []
        if self.kind in (TRL, BY_NAME):
            told.append(f"completions as {'messages' if self.messages else 'text'}")
        return ", ".join(told)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "CallShape":
        parameters: dict[str, Any] = {name: tuple(tree[name]) for name in ("required", "optional")}
        return cls(**tree | parameters)


def shape_of(found: Any, arguments: dict[str, Any], completions: str = "auto") -> CallShape:
    """The shape of what a name stands for. `arguments` are given to a function beside its row, to a class when made.

    Raises Unreadable.
    """
    is_class = isinstance(found, type)
    called = _called(found)
    if is_class:
        _require_makeable(found, arguments)
    parameters = _parameters(called, skip_self=is_class)
    bound = () if is_class else arguments
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = {p.name for p in named}
    if unknown := [name for name in bound if name not in names and not takes_all]:
        raise Unreadable(
            f"has no parameter {unknown[0]}, which verify.arguments gives it: leave that out, or correct its name"
        )
    kind = _kind(names)
    free = [p for p in named if p.name not in bound]
    return CallShape(
        kind=kind,
        required=tuple(p.name for p in free if p.default is p.empty),
        optional=tuple(p.name for p in free if p.default is not p.empty),
        takes_all=takes_all,
        batched=kind in (TRL, VERL_LISTS, OPENRLHF),
        is_async=inspect.iscoroutinefunction(called),
        is_class=is_class,
        messages=reads_content(called) if completions == "auto" else completions == "messages",
    )


def _called(found: Any) -> Callable[..., Any]:
    """What is called in the end: the function, or __call__ of a class or of an object."""
    if isinstance(found, type):
        if "__call__" not in vars(found) and not any("__call__" in vars(base) for base in found.__mro__[:-1]):
            raise Unreadable("is a class without __call__: give it one, or name a function")
        return found.__call__
    if not callable(found):
        raise Unreadable(f"is of type {type(found).__name__}: name a function, or a class with __call__")
    if inspect.isroutine(found) or hasattr(found, "func"):  # the latter is a functools.partial
        return found
    return found.__call__


def _require_makeable(cls: type, arguments: dict[str, Any]) -> None:
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as e:
        raise Unreadable(f"cannot be made with verify.arguments={arguments} ({e}): give what its __init__ takes") from e
    except ValueError:  # one that is written in C; it says itself what it lacks
        return


def _parameters(called: Callable[..., Any], skip_self: bool) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(called).parameters.values())[skip_self:]
    except (ValueError, TypeError) as e:
        raise Unreadable(f"has no parameters that can be read ({e}): wrap it in a Python function") from e
    if hidden := [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]:
        raise Unreadable(f"takes {hidden[0]} by position only: remove the / from its parameters")
    return parameters


def _kind(names: set[str]) -> str:
    if {"text", "problem"} <= names:
        return OURS
    for telling, kind in _TELLING:
        if telling in names:
            return kind
    if names & set(RESPONSES):
        return BY_NAME
    raise Unreadable(
        f"has the parameters ({', '.join(sorted(names))}), none of which is a response: name one completions (a list, "
        f"as in TRL), solution_str (verl), queries (OpenRLHF), or {', '.join(RESPONSES[:-1])} or {RESPONSES[-1]}"
    )


def reads_content(called: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether the code, or a function beside it that it calls, has the word by which a message's text is read."""
    inner = getattr(called, "func", called)  # of a functools.partial
    inner = getattr(inspect.unwrap(inner), "__func__", inspect.unwrap(inner))
    code = getattr(inner, "__code__", None)
    if code is None or depth == 0:
        return False
    if _has_content(code):
        return True
    beside = getattr(inner, "__globals__", {})
    helpers = (beside.get(name) for name in _names(code))
    own = (one for one in helpers if isinstance(one, types.FunctionType) and one.__globals__ is beside)
    return any(reads_content(one, depth - 1) for one in own)


def _has_content(code: types.CodeType) -> bool:
    inside = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return "content" in code.co_consts or any(map(_has_content, inside))


def _names(code: types.CodeType) -> set[str]:
    inside = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return set(code.co_names).union(*map(_names, inside))
