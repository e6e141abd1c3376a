"""The names of vLLM's engine arguments, read from its source: importing vLLM takes many seconds.

sampler.extra, refiner.extra, judge.extra  ->  require_arguments()  ->  UserError for a name that vLLM does not know
"""

import ast
import difflib
import functools
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from trd_ray.errors import UserError

_CLASSES = ("EngineArgs", "AsyncEngineArgs")


def require_arguments(key: str, names: Iterable[str]) -> None:
    """Refuse names that are no engine argument of the vLLM installed here. Raises UserError, a sentence for each."""
    names = list(names)
    known = engine_arguments() if names else None
    if known is None:
        return
    unknown = []
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else "its documentation lists them under engine arguments"
            unknown.append(f"{key}.{name} is no engine argument of vLLM ({hint})")
    if unknown:
        raise UserError(*unknown)


@functools.cache
def engine_arguments() -> frozenset[str] | None:
    """The fields of AsyncEngineArgs. None where they cannot be read: vLLM itself then says which it does not know."""
    try:
        spec = find_spec("vllm")
        [folder] = (spec and spec.submodule_search_locations) or []
        tree = ast.parse((Path(folder) / "engine" / "arg_utils.py").read_text())
    except (ImportError, OSError, ValueError, SyntaxError):
        return None
    fields = {
        line.target.id
        for part in tree.body
        if isinstance(part, ast.ClassDef) and part.name in _CLASSES
        for line in part.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }
    return frozenset(fields) or None
