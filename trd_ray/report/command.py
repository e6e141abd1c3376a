"""`trd report RUN [RUN ...]`: the page of a run, or of several over each other, whatever state they are in."""

from pathlib import Path

from trd_ray.errors import UserError
from trd_ray.report.html_page import GENERATOR
from trd_ray.report.written import FILE, write_report

RUNS = Path("runs")


def run(names: list[str], to: str | None = None, price: float | None = None) -> int:
    """Write the page, say where it is, and return 0. Raises UserError for anything that the user can fix."""
    paths = [place_of(name) for name in names]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise UserError(f"{twice[0]} is named twice: name each run once")
    place = Path(to).expanduser().absolute() if to else (paths[0] / FILE if len(paths) == 1 else Path(FILE).absolute())
    _require_ours(place)
    try:
        print(f"the report is {write_report(paths, place, price)}")
    except OSError as e:
        raise UserError(f"{place} cannot be written ({e.strerror or e}): say another place with --to FILE") from e
    return 0


def place_of(name: str) -> Path:
    """The directory of a run, an evaluation or a comparison, by its path or its name below runs/."""
    path = Path(name).expanduser()
    for place in (path, RUNS / name):
        if any((place / file).is_file() for file in ("recipe.yaml", "comparison.yaml", "comparison.json")):
            return place.absolute()
    if path.is_file():
        raise UserError(f"{path} is a file: name the directory of a run")
    where = f"{path} holds no run" if path.is_dir() else f"there is no run {name}, nor {RUNS / name}"
    raise UserError(f"{where}: `trd status` lists the runs below {RUNS}/")


def _require_ours(place: Path) -> None:
    """Refuse to replace a folder, or a file that is no report."""
    if place.is_dir():
        raise UserError(f"--to {place} is a folder: name a file in it, such as {place / FILE}")
    if place.is_file():
        with open(place, "rb") as file:
            if GENERATOR.encode() not in file.read(4_000):
                raise UserError(f"{place} is no report of trd, and would be replaced: say another place with --to FILE")
