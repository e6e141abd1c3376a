"""`eval` for a process that scores what models wrote: it reads literals and formulas, and calls nothing else.

    a scorer's eval(answer), or SymPy's eval(a formula that it parsed)  ->  narrow_eval  ->  value, or ValueError

Scorers of reasoning_gym give a model's text to `eval`, some of them through SymPy's parser, which ends in `eval` too.
So the one of `builtins` is replaced before the first answer is scored. Whatever library a text takes its way through,
no name of it is called but those of FORMULAS, and no attribute of anything is reached.

The file is loaded by a script, so it imports nothing of trd_ray.
"""

import ast
import builtins
import sys
from typing import Any

_eval = builtins.eval
_exec = builtins.exec

# What SymPy's parser writes around the numbers and names of a text, and the functions that a formula may have.
FORMULAS = frozenset(
    name
    for names in (
        "Symbol Integer Float Rational factorial factorial2 binomial Abs sign floor ceiling sqrt cbrt root exp log ln",
        "sin cos tan cot sec csc asin acos atan acot asec acsc sinh cosh tanh coth asinh acosh atanh acoth",
        "Min Max re im conjugate gcd lcm Add Mul Pow Integral Derivative",
    )
    for name in names.split()
)
_NODES = (
    ast.Expression,
    ast.Constant,
    ast.List,
    ast.Tuple,
    ast.Set,
    ast.Dict,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.Call,
    ast.Name,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.expr_context,
)
_IMPORTS = {"from sympy import *"}  # SymPy's parser runs this, and nothing else, to have its own names
# These make classes and load modules by eval and exec, of what is written in modules.
_LIBRARIES = {"collections", "dataclasses", "importlib._bootstrap"}


def narrow_eval(source: Any, globals: dict | None = None, locals: Any = None, /) -> Any:
    """The value of a literal or a formula. ValueError for anything else, SyntaxError where it cannot be read."""
    if _caller() in _LIBRARIES:
        return _eval(source, globals, locals)
    if not isinstance(source, str):
        raise ValueError("only text is evaluated here")
    tree = ast.parse(source.lstrip(" \t"), mode="eval")
    for node in ast.walk(tree):
        _require_plain(node)
    if globals is None:  # a scorer's own: its names would be the scorer's
        return _eval(compile(tree, "<answer>", "eval"), {"__builtins__": {}})
    return _eval(compile(tree, "<answer>", "eval"), globals, locals)


def narrow_exec(source: Any, globals: dict | None = None, locals: Any = None, /) -> None:
    if _caller() not in _LIBRARIES and source not in _IMPORTS:
        raise ValueError("nothing is executed here")
    _exec(source, globals, locals)


def narrow() -> None:
    """From now on, `eval` and `exec` of this process are those of this module."""
    builtins.eval = narrow_eval
    builtins.exec = narrow_exec


def _caller() -> str:
    """The module that called the function that calls this one."""
    return sys._getframe(2).f_globals.get("__name__", "")


def _require_plain(node: ast.AST) -> None:
    if not isinstance(node, _NODES):
        raise ValueError(f"a {type(node).__name__} is not evaluated")
    if isinstance(node, ast.Name) and node.id.startswith("_"):
        raise ValueError(f"the name {node.id[:50]} is not evaluated")
    if isinstance(node, ast.Call) and not (
        isinstance(node.func, ast.Name) and node.func.id in FORMULAS and not node.keywords
    ):
        raise ValueError("this is not called")
