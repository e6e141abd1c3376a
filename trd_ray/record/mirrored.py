"""What the mirror of a run holds, and the run directory made of it on a machine that has none, or an older one.

    checkpoint.mirror, run_dir  ->  Mirrored.of()  ->  restore()  ->  the run directory, whole or not at all

What mirror.json lists is complete. What it does not list does not count.
"""

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trd_ray.config import Recipe, stored
from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.record.best import kept_checkpoints, value_of
from trd_ray.record.claim import claim
from trd_ray.record.directory import FOLDERS, RunDirectory
from trd_ray.record.elsewhere import Copy, Elsewhere, short

MANIFEST = "mirror.json"
IMMUTABLE = ("rows", "checkpoints")  # the folders whose files do not change while a run is copied
AT_ONCE = 4  # files that are copied at a time
# Besides rows, metrics and checkpoints: what is short, and changes while the run goes on.
SMALL_FILES = (
    *("recipe.yaml", "environment.json", "train.log", "timeline.json", "events.jsonl", "scale.json", "set_aside.jsonl"),
    *("alarms.json", "summary.md", "report.html", "evaluation/*", "evaluation/*/*", "tensorboard/*"),
    *("trackers/*.json", "review/*"),
)


@dataclass
class Manifest:
    """What is complete in a mirror. `steps` are done, and metrics.jsonl there ends with them."""

    steps: int = 0
    checkpoints: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> the metrics in its state.json
    files: dict[str, Copy] = field(default_factory=dict)  # those of IMMUTABLE

    @classmethod
    def read(cls, place: Elsewhere) -> "Manifest | None":
        """None where nothing was mirrored. Raises OSError."""
        content = place.read(MANIFEST)
        if content is None:
            return None
        try:
            tree = json.loads(content)
            files = {name: Copy(**copy) for name, copy in tree.pop("files").items()}
            if odd := [name for name in files if ".." in Path(name).parts or name.split("/")[0] not in IMMUTABLE]:
                raise ValueError(f"it lists {odd[0]}")
            return cls(**tree, files=files)
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise OSError(f"{MANIFEST} there is damaged: {short(e)}") from e

    def write(self, place: Elsewhere) -> None:
        place.replace(MANIFEST, json.dumps(asdict(self), indent=1).encode())

    def of(self, checkpoint: str) -> dict[str, Copy]:
        """The files of one checkpoint."""
        return {name: copy for name, copy in self.files.items() if name.startswith(f"checkpoints/{checkpoint}/")}

    def kept(self, last: int, best: str | None, best_is: str, more: tuple[str, ...] = ()) -> set[str]:
        """The checkpoints that stay: of those here, and of `more`, whose metrics are not known."""
        values = {name: value_of(metrics, best) if best else None for name, metrics in self.checkpoints.items()}
        found = [(name, values.get(name)) for name in sorted(values.keys() | set(more))]
        return kept_checkpoints(found, last, best_is)


@dataclass(frozen=True)
class Mirrored:
    """The mirror of a run, as it is before the run begins or goes on."""

    place: Elsewhere
    directory: Path
    manifest: Manifest | None  # None where nothing was mirrored yet
    recipe: Recipe

    @classmethod
    def of(cls, recipe: Recipe) -> "Mirrored | None":
        """None where the recipe has no mirror. Raises UserError if the mirror cannot be read, or is the run itself."""
        if not recipe.checkpoint.mirror:
            return None
        place = Elsewhere.at(recipe.checkpoint.mirror, recipe.directory.name)
        if place.is_folder(recipe.directory):
            raise UserError(
                f"checkpoint.mirror={recipe.checkpoint.mirror} is the folder that run_dir lies in, so the mirror would "
                "be the run directory itself: set checkpoint.mirror to another place"
            )
        with as_user_error(place):
            return cls(place, recipe.directory, Manifest.read(place), recipe)

    @property
    def is_ahead(self) -> bool:
        """Whether the run has gone on elsewhere: the mirror has steps that the run directory lacks."""
        if self.manifest is None:
            return False
        if not (self.directory / "recipe.yaml").is_file():
            return True
        return self.manifest.steps > _steps_in(RunDirectory(self.directory))

    def stored_recipe(self) -> Recipe:
        """The recipe of the mirrored run."""
        with as_user_error(self.place), tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "recipe.yaml"
            self.place.get("recipe.yaml", file)
            return stored(file)

    def refuse_new_run(self) -> None:
        """Raise UserError if a run that begins would take the place of one that the mirror holds."""
        if self.manifest is not None and not (self.directory / "recipe.yaml").is_file():
            raise UserError(
                f"the mirror {self.place.url} already holds a run, with {self.manifest.steps} steps: continue it with "
                "--resume, or set run_dir or checkpoint.mirror to a new place"
            )

    def restore(self, say: Callable[[str], object]) -> None:
        """Make the run directory as the mirror has it; an older one is moved aside. Raises UserError."""
        manifest = self.manifest
        if manifest is None:
            return
        gib = sum(copy.size for name, copy in manifest.files.items() if self._is_needed(name)) / 2**30
        say(f"mirror: going on from step {manifest.steps} of {self.place.url}: copying {gib:.2f} GiB from there")
        self._sweep()
        fresh = self.directory.with_name(f".{self.directory.name}.{os.getpid()}.tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            with ExitStack() as stack:
                fresh.mkdir(parents=True)
                stack.callback(os.close, claim(fresh))  # says that somebody is at it
                with as_user_error(self.place):
                    self._fetch(manifest, fresh)
                self._move_aside(say)
                os.rename(fresh, self.directory)
        except OSError as e:
            raise UserError(
                f"run directory {self.directory} cannot be made from its mirror ({short(e)}): make room or give write "
                "permission there, or set run_dir to another place"
            ) from e
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _sweep(self) -> None:
        """Delete what restores that were killed on this machine have left beside the run directory."""
        for lock in self.directory.parent.glob(f".{self.directory.name}.*.tmp/.lock"):
            with suppress(OSError, UserError):  # somebody holds it
                if f" on {socket.gethostname()} since " in lock.read_text():
                    os.close(claim(lock.parent))
                    shutil.rmtree(lock.parent, ignore_errors=True)

    def _is_needed(self, name: str) -> bool:
        """Whether a run goes on with the file: all rows, the newest checkpoint and the best one."""
        assert self.manifest is not None
        c = self.recipe.checkpoint
        folder, _, rest = name.partition("/")
        return folder != "checkpoints" or rest.partition("/")[0] in self.manifest.kept(1, c.best, c.best_is)

    def _fetch(self, manifest: Manifest, fresh: Path) -> None:
        for folder in FOLDERS:
            (fresh / folder).mkdir(parents=True)
        small = {*SMALL_FILES, "metrics.jsonl"}
        for name in self.place.listing(""):
            folder = name.rpartition("/")[0]
            if name in small or f"{folder}/*" in small or f"{folder.partition('/')[0]}/*/*" in small:
                (fresh / folder).mkdir(parents=True, exist_ok=True)
                self.place.get(name, fresh / name)
        _end_metrics(RunDirectory(fresh), manifest.steps)
        needed = [name for name in manifest.files if self._is_needed(name)]

        def get(name: str) -> None:
            if self.place.get(name, fresh / name) != manifest.files[name]:
                raise OSError(f"{name} there is not what was copied")

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(get, needed))

    def _move_aside(self, say: Callable[[str], object]) -> None:
        """Give the run directory another name if it is behind its mirror: what was recorded is not deleted."""
        if not (self.directory / "recipe.yaml").is_file():
            return
        lock = claim(self.directory)  # a run under way is not behind
        try:
            taken = [p for p in self.directory.parent.glob(f"{self.directory.name}.behind-*")]
            aside = self.directory.with_name(f"{self.directory.name}.behind-{len(taken) + 1}")
            os.rename(self.directory, aside)
            say(
                f"mirror: it holds more of the run than was here, which is kept in {aside}: to go on from that, put it "
                "back and set checkpoint.mirror to another place"
            )
        finally:
            os.close(lock)


@contextmanager
def as_user_error(place: Elsewhere) -> Iterator[None]:
    """Turn what a mirror does not give into a UserError that names it."""
    try:
        yield
    except OSError as e:
        raise UserError(
            f"the mirror {place.url} cannot be read ({short(e)}): put that right, or set checkpoint.mirror to another "
            "place"
        ) from e


def _steps_in(directory: RunDirectory) -> int:
    """The steps from which a run here goes on: of the newest checkpoint, or, where none is made, of a corpus."""
    found = directory.checkpoints()
    if found:
        return found[-1][0]
    lines = directory.read_metrics()
    return 0 if lines and "lr" in lines[0] else len(lines)


def _end_metrics(directory: RunDirectory, steps: int) -> None:
    """Leave out the steps that a copy which was cut off has brought: their rows are not in its list."""
    lines = directory.read_metrics()
    kept = [line for line in lines if line["step"] <= steps]
    if len(kept) < len(lines):
        write_atomically(directory.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
