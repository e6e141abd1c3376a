"""A function or class that somebody has in Python becomes a name that another process can load.

    one of an importable file  ->  reference_to()  ->  "/path/score.py:passes"
    one of a package           ->                  ->  "package.module:passes"
    one of a notebook, or of   ->                  ->  "FOLDER/own-passes-1f0c...py:passes", a file that holds it and
    the script that runs                               what it uses: imports, functions, classes and assignments

A notebook or a script starts the run as well, so its whole source cannot be imported by the run: only the statements
that the object needs, and those that these need, are written down. They run again where the file is loaded. What cannot
be carried that way (a lambda, a function inside another, one that uses what no such statement made) is refused.
"""

import ast
import builtins
import hashlib
import inspect
import symtable
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.own_code import FORM, split

_BINDS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
_KNOWN = frozenset(dir(builtins)) | {"__name__", "__file__", "__doc__", "__builtins__", "__class__"}
_PACKAGES = tuple({sysconfig.get_paths()[name] for name in ("purelib", "platlib", "stdlib", "platstdlib")})


def reference_to(given: Any, folder: Path) -> str:
    """How the recipe names `given`, which may be such a name already. Raises UserError.

    A file that has to be written goes to `folder`, under a name that its content decides.
    """
    if isinstance(given, str):
        split(given)
        return given
    name = getattr(given, "__qualname__", None)
    if not (inspect.isfunction(given) or inspect.isclass(given) or inspect.isbuiltin(given)) or not name:
        raise UserError(
            f"{_shown(given)} cannot be sent to the processes of a run: give a function, a class (which each process "
            f"calls once, without arguments) or its name as {FORM}"
        )
    if "<lambda>" in name:
        raise UserError("a lambda has no name by which the processes of a run could load it: define it with def")
    if "<locals>" in name:
        raise UserError(
            f"{given.__name__} is defined inside another function, whose values the processes of a run do not have: "
            "define it at the top of a file or a cell, and give it what it needs as arguments of the recipe"
        )
    module = sys.modules.get(given.__module__, sys.modules["__main__"])
    _require_by_name(given, name, module)
    if module is sys.modules["__main__"]:
        return _written(name, _cells(), folder)
    file = getattr(module, "__file__", None) or ""
    is_alone = "." not in module.__name__ and file.endswith(".py") and not file.startswith(_PACKAGES)
    return f"{Path(file).resolve()}:{name}" if is_alone else f"{module.__name__}:{name}"


def _require_by_name(given: Any, name: str, module: ModuleType) -> None:
    """Raise UserError where the name stands for something else by now, or for nothing."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not given:
        raise UserError(
            f"{module.__name__}.{name} is another object than the one that was given: give a function or class under "
            "the name that it was defined with"
        )


def _cells() -> list[str]:
    """The sources of what is defined in `__main__`, in the order in which they ran."""
    main = sys.modules["__main__"]
    sources = [cell for cell in getattr(main, "In", []) if isinstance(cell, str)]  # of a notebook
    file = getattr(main, "__file__", None)
    if file and Path(file).is_file():
        sources.insert(0, Path(file).read_text())
    return sources


def _written(name: str, cells: Sequence[str], folder: Path) -> str:
    """A file with the statements that define `name` and what it uses, the last ones where a name has several."""
    text = carried(name, cells)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    place = folder / f"own-{name.split('.')[0]}-{digest}.py"
    if not place.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(place, text)
        except OSError as e:
            raise UserError(f"{folder} cannot hold {name} ({e.strerror or e}): set run_dir to another place") from e
    return f"{place.absolute()}:{name}"


def carried(name: str, cells: Sequence[str]) -> str:
    """The source of a module that defines `name`, out of cells of a notebook or a script. Raises UserError."""
    statements = list(_statements(cells))
    places = {one: i for i, (_, statement) in enumerate(statements) for one in _bound(statement)}
    top = name.split(".")[0]
    if top not in places:
        raise UserError(
            f"the source of {top} is not to be had here: define it in a file, and import it or name it as {FORM}"
        )
    needed: set[int] = set()
    waiting = [top]
    while waiting:
        cell, statement = statements[at := places[waiting.pop()]]
        # All bindings in the cell that made it last: together they make a value, as `x = []` and `x = x + [1]`.
        names = set(_bound(statement))
        alike = [i for i, (c, s) in enumerate(statements[: at + 1]) if c == cell and names & set(_bound(s))]
        for i in set(alike) - needed:
            needed.add(i)
            waiting += _used(statements[i][1], places, top)
    future = [s for _, s in statements if isinstance(s, ast.ImportFrom) and s.module == "__future__"]
    body = dict.fromkeys(ast.unparse(s) for s in [*future, *(statements[i][1] for i in sorted(needed))])
    return f'"""{top}, as it was given to trd_ray.api."""\n\n' + "\n\n".join(body) + "\n"


def _statements(cells: Sequence[str]) -> Iterator[tuple[int, ast.stmt]]:
    for number, source in enumerate(cells):
        try:
            tree = ast.parse(source)
        except SyntaxError:  # a cell that never ran
            continue
        for statement in tree.body:
            yield number, statement


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a statement at the top defines; none for one that does anything else, such as starting a run."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).split(".")[0] for alias in statement.names]
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        found = [node for target in targets for node in ast.walk(target)]
        plain = all(
            isinstance(node, ast.Name | ast.Tuple | ast.List | ast.Starred | ast.expr_context) for node in found
        )
        return [node.id for node in found if isinstance(node, ast.Name)] if plain else []
    if isinstance(statement, ast.Try | ast.If):  # imports of what may be missing
        parts = [*statement.body, *statement.orelse]
        if isinstance(statement, ast.Try):
            parts += [*statement.finalbody, *(one for handler in statement.handlers for one in handler.body)]
        if all(isinstance(part, (*_BINDS, ast.Pass)) for part in parts):
            return [name for part in parts for name in _bound(part)]
    return []


def _used(statement: ast.stmt, places: dict[str, int], top: str) -> list[str]:
    """The names of other statements that one uses. Raises UserError for one that no statement defines."""
    found = _globals(symtable.symtable(ast.unparse(statement), "own", "exec"))
    own = set(_bound(statement))
    missing = sorted(found - _KNOWN - places.keys() - own)
    if missing:
        raise UserError(
            f"{top} uses {missing[0]}, which no import, def, class or assignment at the top of this script or notebook "
            f"defines: define it there, or put {top} into a file and import it"
        )
    return [name for name in found if name in places]


def _globals(table: symtable.SymbolTable) -> set[str]:
    is_top = table.get_type() == "module"
    found = {s.get_name() for s in table.get_symbols() if s.is_referenced() and (is_top or s.is_global())}
    return found.union(*(_globals(child) for child in table.get_children()))


def _shown(given: Any) -> str:
    return f"an object of type {type(given).__name__}"
