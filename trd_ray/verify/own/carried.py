"""Modules out of texts: what a function's file imports from its folder, where that folder may not be.

    {"helpers.py": text, "parts/words.py": text}  ->  Carried.install()  ->  import helpers, from parts import words

The finder stands before the path, as the folder of `python score.py` does, and behind what Python has built in. A
module of that name which is imported already makes room. Nothing is written to the disk.

This module runs where the function is, so it imports nothing but the standard library.
"""

import linecache
import sys
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from pathlib import PurePath


class Carried(MetaPathFinder, Loader):
    """`folder` is what the paths of the modules begin with, for traces."""

    def __init__(self, texts: dict[str, str], folder: str):
        self._texts = texts
        self._folder = PurePath(folder)

    def install(self) -> None:
        if not self._texts:
            return
        tops = {place.partition("/")[0].removesuffix(".py") for place in self._texts}
        ours = {top for top in tops if not (BuiltinImporter.find_spec(top) or FrozenImporter.find_spec(top))}
        for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
            del sys.modules[name]
        path = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else len(sys.meta_path)
        sys.meta_path.insert(path, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if path:  # a package that is installed has submodules of its own
            return None
        below = fullname.replace(".", "/")
        for place, is_package in ((f"{below}/__init__.py", True), (f"{below}.py", False)):
            if place in self._texts:
                spec = ModuleSpec(fullname, self, origin=str(self._folder / place), is_package=is_package)
                spec.has_location = True
                return spec
        is_folder = any(place.startswith(f"{below}/") for place in self._texts)
        return ModuleSpec(fullname, None, is_package=True) if is_folder else None

    def exec_module(self, module: types.ModuleType) -> None:
        assert module.__spec__ and module.__spec__.origin
        origin = module.__spec__.origin
        run_text(self._texts[PurePath(origin).relative_to(self._folder).as_posix()], origin, module)


def run_text(text: str, place: str, module: types.ModuleType) -> None:
    """Run the text of a file as that module, with its lines where inspect and traces look for them."""
    linecache.cache[place] = (len(text), None, text.splitlines(keepends=True), place)
    exec(compile(text, place, "exec"), vars(module))
