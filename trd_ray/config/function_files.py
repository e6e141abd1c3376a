"""The files of a user's functions, read where the recipe is: their text is part of the recipe from then on.

    verify.function: score.py:score, the recipe's folder, the working directory  ->  with_sources()  ->  verify.sources
                     and what score.py imports from its own folder (imported_files.py)

So a worker on another node needs no shared folder, and a run that goes on, or a checkpoint that is evaluated, has the
function that the run began with. A text that a recipe holds already is not read again.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from trd_ray.config.imported_files import among, below, imported, python_text
from trd_ray.config.mixed_sources import verifiers_by_source
from trd_ray.config.verify_keys import VerifyConfig, is_own, own_parts
from trd_ray.errors import UserError

if TYPE_CHECKING:
    from trd_ray.config.tree import Recipe


def with_sources(recipe: "Recipe", beside: Path | None = None) -> "Recipe":
    """The recipe with the text of the functions' files, which are `beside` it. Raises UserError.

    Also with what its sources of data say of verifiers: whoever judges a row has nothing of the recipe but `verify`.
    """
    verify = recipe.verify
    if by_source := verifiers_by_source(recipe.data):
        verify = verify.model_copy(update={"by_source": by_source})
        recipe = recipe.model_copy(update={"verify": verify})
    if not verify.has_own:
        return recipe
    known: dict[str, str] = {}
    for place in _files(verify):
        known |= _texts(place, verify.sources, beside)
    # A parameter is called as the data calls its column, whatever data.columns makes of it.
    columns = {theirs: ours for ours, theirs in recipe.data.columns.items() if ours != "tests"} | verify.columns
    return recipe.model_copy(update={"verify": verify.model_copy(update={"sources": known, "columns": columns})})


def sources_beside(tree: dict, folder: Path) -> dict[str, str]:
    """The texts of those files of functions, named in a tree of keys, that lie in the folder of its recipe."""
    try:
        verify = VerifyConfig.model_validate(tree.get("verify") or {})
    except ValidationError:
        return {}  # it is refused where the whole tree is checked
    found = dict(verify.sources)
    for place in _files(verify):
        if place not in found and (folder / Path(place).expanduser()).is_file():
            found |= _texts(place, verify.sources, folder)
    return found


def _files(verify: VerifyConfig) -> list[str]:
    own = [own_parts(one.function)[0] for one in verify.chosen.values() if is_own(one.function)]
    return [place for place in dict.fromkeys(own) if place.endswith(".py")]


def _texts(place: str, held: dict[str, str], beside: Path | None) -> dict[str, str]:
    """The text of a function's file and of those that it imports from its folder, all `held` or all read."""
    folder = Path(place).parent  # as the recipe calls it, so that no text depends on the machine
    if place in held:
        text = held[place]
        found = imported(text, *among(held, folder))
    else:
        file = _found(place, beside)
        text = python_text(file)
        found = imported(text, *below(file.parent))
    return {str(folder / name): source for name, source in found.items()} | {place: text}


def _found(name: str, beside: Path | None) -> Path:
    given = Path(name).expanduser()
    places = [given] if given.is_absolute() else [folder / given for folder in (beside, Path.cwd()) if folder]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        looked = " or ".join(dict.fromkeys(str(place.parent.absolute()) for place in places))
        raise UserError(f"verify.function: there is no file {given.name} in {looked}: correct its path")
    return place
