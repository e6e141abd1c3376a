"""`trd recipes`: the recipes and comparisons that ship with the package, and what each needs.

    recipes/*.yaml, recipes/compare/*.yaml  ->  the opening comment and the keys of each  ->  listing()

A file's first sentence says what it does and on which machine. Whether it needs a network follows from the models and
data that it names. So the listing cannot say anything else than the files do.
"""

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml

from trd_ray import config, made_here
from trd_ray.config import Recipe
from trd_ray.errors import UserError

MACHINE = re.compile(r",? (?:on|for) (\d+ cores without a GPU|(?:\d+ nodes of )?\d+ GPUs? of \d+ GB)")
FOLDER = Path(str(resources.files("trd_ray"))) / "recipes"


@dataclass(frozen=True)
class Shipped:
    name: str
    text: str  # what it does, one sentence
    machine: str  # "2 cores without a GPU", "1 GPU of 24 GB", "2 nodes of 8 GPUs of 80 GB"
    fetched: tuple[str, ...]  # models and data that are fetched from the hub, unless they are in its cache


def recipes() -> list[Shipped]:
    """The recipes that ship, those first that run anywhere."""
    return sorted(map(_recipe, FOLDER.glob("*.yaml")), key=_ease)


def comparisons() -> list[Shipped]:
    return sorted(map(_comparison, (FOLDER / "compare").glob("*.yaml")), key=_ease)


def listing() -> str:
    """The table for the terminal."""
    parts = []
    for title, found in (
        ("Recipes: trd train NAME, trd refine NAME", recipes()),
        ("Comparisons: trd compare NAME", comparisons()),
    ):
        width = max(len(s.name) for s in found)
        parts.append(title)
        for s in found:
            network = f"fetches {', '.join(s.fetched)}" if s.fetched else "no network"
            parts += [f"  {s.name:{width}}  {s.text}", f"  {'':{width}}  {s.machine}; {network}"]
        parts.append("")
    return "\n".join(
        [*parts, "trd recipes NAME prints one, to start your own from; trd init writes one for your data."]
    )


def text(name: str) -> str:
    """A recipe or comparison as it is written. Raises UserError for another name."""
    files = [*FOLDER.glob("*.yaml"), *(FOLDER / "compare").glob("*.yaml")]
    found = {file.stem: file for file in files}
    if name not in found:
        raise UserError(f"no recipe or comparison {name!r} ships with the package{config.did_you_mean(name, [*found])}")
    return found[name].read_text()


def _recipe(file: Path) -> Shipped:
    return _shipped(file, [config.load(str(file))])


def _comparison(file: Path) -> Shipped:
    tree = yaml.safe_load(file.read_text())
    layers = [tree.get("set") or {}, (tree.get("tuning") or {}).get("set") or {}]
    evaluated = tuple(str(layer["evaluation"]["path"]) for layer in layers if "path" in layer.get("evaluation", {}))
    return _shipped(file, [config.load(mode["recipe"]) for mode in tree["modes"].values()], evaluated)


def _shipped(file: Path, found: list[Recipe], evaluated: tuple[str, ...] = ()) -> Shipped:
    sentence = _first_sentence(file.read_text())
    machine = MACHINE.search(sentence)
    assert machine, f"the first sentence of {file.name} does not say on which machine it runs"
    teachers = [[one.teacher.path for one in r.by_teacher.values()] for r in found]
    paths = [(r.student.path, *of_r, *r.data.paths) for r, of_r in zip(found, teachers, strict=True)]
    named = [path for of_r in paths for path in of_r if path]
    # What a comparison evaluates on replaces what its recipes do.
    named += [path for path in evaluated or [r.evaluation.path for r in found] if path]
    fetched = tuple(path for path in dict.fromkeys(named) if path not in made_here.MODELS | made_here.PROBLEMS)
    return Shipped(file.stem, MACHINE.sub("", sentence, count=1), machine[1], fetched)


def _first_sentence(yaml_text: str) -> str:
    """The first sentence of the comment that opens a file."""
    lines = re.match(r"(#.*\n)+", yaml_text)
    assert lines
    comment = " ".join(line.lstrip("# ") for line in lines[0].split("\n#\n")[0].splitlines())
    return re.split(r"(?<=\.) (?=[A-Z])", " ".join(comment.split()))[0]


def _ease(s: Shipped) -> tuple[bool, bool, str]:
    return "without" not in s.machine, bool(s.fetched), s.name
