"""The files that a Python file imports from its own folder, found by reading and never by importing.

    a file's text, what reads a file below its folder  ->  imported()  ->  path below the folder -> text
    "import helpers", "from parts.words import last"                       helpers.py, parts/__init__.py, parts/words.py

The folder of a file comes first, as it does for `python file.py`. A folder without an __init__.py is a package only
where nothing that is installed has its name, as for Python. Imports that no statement makes, as by import_module, are
not seen.
"""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

from trd_ray.errors import UserError

MAX_FILES = 100
MAX_BYTES = 1 << 20  # of all files; they go to every task that verifies
INSTALLED_HERE = "trd_ray"  # every process has it, and a score.py may lie in the folder of a checkout

Reader = Callable[[str], str | None]  # path below the folder -> text; None where there is no such file
HasFolder = Callable[[str], bool]


def imported(text: str, read: Reader, has_folder: HasFolder) -> dict[str, str]:
    """What the file with this text imports, and what that imports in turn. Raises UserError beyond the limits."""
    found: dict[str, str] = {}
    waiting = list(_imports(text, ""))
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        for place, package in _places(name, read, has_folder):
            if place in found:
                break
            if (source := read(place)) is not None:
                found[place] = source
                _require_few(place, found, text)
                new = [one for one in _imports(source, package) if one not in seen]
                seen.update(new)
                waiting += new
                break
    return found


def below(folder: Path) -> tuple[Reader, HasFolder]:
    """What reads the files of a folder on the disk. Raises UserError for one that is no Python."""

    @cache
    def read(place: str) -> str | None:
        return python_text(folder / place) if (folder / place).is_file() else None

    @cache
    def has_folder(place: str) -> bool:
        if not (folder / place).is_dir():
            return False
        top = place.partition("/")[0]
        installed = None if (folder / top / "__init__.py").is_file() else PathFinder.find_spec(top)
        return installed is None or installed.origin is None or Path(installed.origin).is_relative_to(folder)

    return read, has_folder


def among(texts: dict[str, str], folder: Path) -> tuple[Reader, HasFolder]:
    """The same for texts that a recipe has already, by their paths."""
    return (
        lambda place: texts.get(str(folder / place)),
        lambda place: any(Path(one).is_relative_to(folder / place) for one in texts),
    )


def python_text(place: Path) -> str:
    """The text of a Python file. Raises UserError."""
    try:
        source = place.read_bytes()
        if len(source) > MAX_BYTES:
            raise UserError(
                f"verify.function: {place} has more than {MAX_BYTES} bytes: keep its data in a file of its own, or "
                "make it a package that every node has, and write package.module:name"
            )
        text = source.decode("utf-8-sig")
        ast.parse(text, str(place))
    except SyntaxError as e:
        raise UserError(f"verify.function: line {e.lineno} of {place} is no Python ({e.msg}): correct it") from e
    except (OSError, ValueError) as e:
        raise UserError(f"verify.function: {place} cannot be read as Python ({e}): correct it") from e
    return text


def _places(name: str, read: Reader, has_folder: HasFolder) -> Iterator[tuple[str, str]]:
    """Where a module may be, each with the package that its relative imports count from."""
    parts = name.split(".")
    for i in range(1, len(parts)):  # a package above it, which must be there
        above = "/".join(parts[:i])
        if read(f"{above}/__init__.py") is None and not has_folder(above):
            return
    place = "/".join(parts)
    yield f"{place}/__init__.py", name
    yield f"{place}.py", name.rpartition(".")[0]


def _imports(text: str, package: str) -> Iterator[str]:
    """The modules that a text names in its imports, with those that may be names in them instead."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            named = [base, *(f"{base}.{alias.name}" for alias in node.names)] if base else []
        else:
            continue
        for one in named:
            parts = one.split(".")
            if parts[0] != INSTALLED_HERE:
                yield from (".".join(parts[:i]) for i in range(1, len(parts) + 1))


def _base(node: ast.ImportFrom, package: str) -> str:
    """The module that names are imported from; "" for a relative import outside of a package, which Python refuses."""
    if not node.level:
        return node.module or ""
    parts = package.split(".") if package else []
    if node.level > len(parts):
        return ""
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _require_few(place: str, found: dict[str, str], text: str) -> None:
    size = len(text.encode()) + sum(len(one.encode()) for one in found.values())
    if len(found) <= MAX_FILES and size <= MAX_BYTES:
        return
    limit = f"{MAX_FILES} files" if len(found) > MAX_FILES else f"{MAX_BYTES} bytes"
    raise UserError(
        f"verify.function: with what it imports from its folder, such as {place}, it has more than {limit}, which "
        "would travel to every task that verifies: make it a package, install that on every node, and write "
        "package.module:name"
    )
