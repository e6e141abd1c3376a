"""Code of the user's own that a recipe names: `score.py:passes`, `package.module:Watch`.

    a reference, the folder of the recipe  ->  placed()  ->  the reference, with the file found beside the recipe
    a reference                            ->  load()    ->  the function or class, or a UserError
    what `load` gave, what it shall be     ->  made()    ->  a class is called once, anything else stays

A file's own folder is put at the end of the import path, so that it may import its neighbours. One file is one module,
however many of its names are asked for. Whoever has the object in Python instead of a name: `trd_ray.own_source`.
"""

import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from trd_ray.errors import UserError

FORM = "file.py:NAME or package.module:NAME"
OUT_OF_FILES = "trd_own_"  # how the names of modules begin that `load` has made out of files
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def split(reference: str) -> tuple[str, str]:
    """(the file or the module, the name in it). Raises UserError for what has another form."""
    place, colon, name = str(reference).rpartition(":")
    is_place = place.endswith(".py") or _NAME.fullmatch(place)
    if not (colon and is_place and _NAME.fullmatch(name) and place.isprintable()):
        raise UserError(f"{str(reference)[:200]!r} names no code: write it as {FORM}")
    return place, name


def checked(reference: str | None) -> str | None:
    """The reference, unchanged. Raises ValueError where it has no form that can name code: for a validator of a key."""
    if reference is not None:
        try:
            split(reference)
        except UserError as e:
            raise ValueError(str(e)) from e
    return reference


def placed(reference: str, beside: Path) -> str:
    """The reference with the path of its file from here, where the file lies in `beside`; else it is unchanged."""
    try:
        place, name = split(reference)
    except UserError:  # it is refused where the key is checked, by name
        return reference
    there = beside / Path(place).expanduser()
    return f"{there}:{name}" if place.endswith(".py") and there.is_file() else reference


def load(reference: str, beside: Path | None = None) -> Any:
    """What the reference names. Raises UserError, also where the file or module raises while it is imported."""
    place, name = split(reference)
    module = _of_file(place, beside) if place.endswith(".py") else _of_name(place, beside)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(f"{place} has no {name}{hint}: correct {reference}")
        found = getattr(found, part)
    return found


def made(reference: str, found: Any) -> Any:
    """An instance of a class, made without arguments; anything else as it is. Raises UserError."""
    if not isinstance(found, type):
        return found
    try:
        return found()
    except (Exception, SystemExit) as e:
        raise UserError(f"{reference} is a class that cannot be made without arguments ({_why(e)}): fix it") from e


def _of_file(place: str, beside: Path | None) -> ModuleType:
    given = Path(place).expanduser()
    tried = list(dict.fromkeys(folder / given for folder in (beside or Path(), Path())))
    file = next((one.resolve() for one in tried if one.is_file()), None)
    if file is None:
        raise UserError(f"there is no file {' or '.join(map(str, tried))}: name code as {FORM}")
    try:
        digest = hashlib.sha256(str(file).encode() + b"\0" + file.read_bytes()).hexdigest()[:12]
    except OSError as e:
        raise UserError(f"{file} cannot be read ({e.strerror}): check its permissions") from e
    name = f"{OUT_OF_FILES}{re.sub(r'[^A-Za-z0-9_]', '_', file.stem)}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    _can_import_from(file.parent)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # there first: dataclasses look it up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        del sys.modules[name]
        raise UserError(f"{file} cannot be imported ({_why(e, file)}): fix it") from e
    return module


def _of_name(name: str, beside: Path | None) -> ModuleType:
    _can_import_from(beside or Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name and (name == e.name or name.startswith(f"{e.name}.")):
            raise UserError(
                f"there is no module {e.name}: install it where the run starts, or name a file, as {FORM}"
            ) from e
        raise UserError(f"the module {name} cannot be imported ({_why(e)}): fix it") from e
    except (Exception, SystemExit) as e:
        raise UserError(f"the module {name} cannot be imported ({_why(e)}): fix it") from e


def _can_import_from(folder: Path) -> None:
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.append(place)  # last, so that nothing of the user's takes the place of a package


def _why(e: BaseException, file: Path | None = None) -> str:
    said = " ".join(str(e).split())[:200]
    lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == str(file)]
    where = f", line {lines[-1]}" if lines else ""
    return f"{type(e).__name__}{f': {said}' if said else ''}{where}"
