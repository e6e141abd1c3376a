"""A campaign: its rounds one after another, each beside what the same run does undisturbed, in a folder that it keeps.

    corpus, undisturbed runs (once) -> a run for each draw of strikes -> checks -> round-003.json -> table.md

The folder makes it resumable: a round that this very code has made is not made again, one of other code is. Rounds that
spare Ray share a cluster, which is started when the first one needs it; those that need the same ground come together.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos_rounds import checks, results
from chaos_rounds.nodes import Nodes
from chaos_rounds.results import Calm, Result
from chaos_rounds.struck_run import StruckRun, Told
from chaos_rounds.ways import (
    EVERY_CHECKPOINT,
    EVERY_EVALUATION,
    HEARTBEAT_S,
    Ground,
    Rows,
    Strike,
    Way,
    drawn,
    steps_for,
)
from trd_ray import config, models
from trd_ray.errors import RunFailed, UserError
from trd_ray.record.events import last_events

JOBS = Path(__file__).resolve().parents[1]
IN_FRONT = JOBS / "stream_bench" / "in_front"
ROWS_PER_STEP = 8
CALM_PATIENCE_S = 1200.0
PATIENCE = 3.0  # times the undisturbed run, and HELP_S on top: longer than that, a run hangs
HELP_S = 300.0
NODES: dict[Ground, int] = {"cluster": 1, "nodes": 3}
ORDER: tuple[Ground, ...] = ("cluster", "local", "nodes")
PACE = {"median_tokens": 16, "sigma": 0.4, "max_tokens": 48, "seconds_a_token": 0.015, "sync_seconds": 0.15}


@dataclass(frozen=True)
class Settings:
    recipe: str
    overrides: tuple[str, ...]
    folder: Path
    rounds: int
    seed: int
    stand_ins: bool
    together: int
    ways: tuple[Way, ...]
    keep: bool  # also the runs that were as they must be


class Campaign:
    def __init__(self, settings: Settings):
        self.s = settings
        self.code = code_digest()
        self.steps = steps_for(settings.together)
        self.runs = drawn(settings.seed, settings.rounds, list(settings.ways), settings.together)
        # Where what nothing strikes runs: the ground does not change a row.
        self.ground: Ground = "cluster" if any(way.ground == "cluster" for way in settings.ways) else "local"
        self.nodes: Nodes | None = None
        self.temporary = Path(tempfile.gettempdir())
        recipe = config.load(settings.recipe, [*self._common(), *settings.overrides])
        self.vocabulary = _vocabulary(recipe) if settings.stand_ins else 0

    def drawn(self) -> str:
        """A line for each round."""
        return "\n".join(f"round {s.number}: {s}" for run in self.runs for s in run)

    def go(self) -> list[Result]:
        """All rounds, those of an earlier start included, in their order."""
        self.s.folder.mkdir(parents=True, exist_ok=True)
        runs = self.runs
        done = {strike.number: self._saved(strike) for run in runs for strike in run}
        pending = [run for run in runs if any(done[strike.number] is None for strike in run)]
        pending.sort(key=lambda run: ORDER.index(run[0].way.ground))
        before = sum(result is not None for result in done.values())
        _say(f"{self.s.rounds} rounds, of which {before} are done; they are kept in {self.s.folder}")
        try:
            while pending:
                run = pending.pop(0)
                for strike, result in zip(run, self._struck(run), strict=True):
                    done[result.number] = result
                    results.save(result, self.s.folder)
                    _say(_line(result))
                    if result.verdict == "missed" and len(run) > 1:  # those before it have taken its moments
                        pending.insert(0, [strike])
        finally:
            self._leave_nodes()
            found = [result for result in done.values() if result is not None]
            if found:
                text = f"{results.table(found)}\n\n{results.summary(found)}\n"
                (self.s.folder / "table.md").write_text(text)
        return found

    def _saved(self, strike: Strike) -> Result | None:
        return results.saved(self.s.folder, strike.number, self.code)

    # One run

    def _struck(self, strikes: list[Strike]) -> list[Result]:
        way = strikes[0].way
        calm = self._calm(way.rows)
        folder = self.s.folder / f"run-{strikes[0].number:03d}"
        patience_s = PATIENCE * calm.seconds + HELP_S + HEARTBEAT_S
        told, left = self._run(folder, "train", self._arguments(way.rows), strikes, way.ground, patience_s)
        directory = folder / "run"
        flaws = left + checks.said_badly(told.output)
        if not told.hung:
            same = way.rows == "corpus" or self.s.stand_ins
            try:
                flaws += checks.flaws(directory, calm.directory, self.steps, ROWS_PER_STEP, same_weights=same)
            except Exception as e:  # noqa: BLE001 - whatever is wrong with the directory is what is looked for
                flaws.append(f"the run directory cannot be checked: {type(e).__name__}: {e}")
        found = results.judged(strikes, told, flaws, last_events(directory), calm, self.code)
        if not self.s.keep and not any(result.flaws for result in found):
            shutil.rmtree(folder)
        return found

    def _calm(self, rows: Rows) -> Calm:
        """The undisturbed run, made once by this code."""
        folder = self.s.folder / f"calm-{rows}"
        facts = folder / "calm.json"
        if facts.exists() and (kept := json.loads(facts.read_text())).pop("code") == self.code:
            return Calm(folder / "run", **kept)
        _say(f"the undisturbed run ({rows})")
        told, _ = self._run(folder, "train", self._arguments(rows), [], self.ground, CALM_PATIENCE_S)
        self._require(told, folder)
        kept = {"seconds": told.seconds, "starting_s": told.starting_s}
        facts.write_text(json.dumps(kept | {"code": self.code}))
        return Calm(folder / "run", **kept)

    def _corpus(self) -> Path:
        folder = self.s.folder / "corpus"
        made = folder / "made.json"
        if not made.exists() or json.loads(made.read_text()) != self.code:
            _say("the corpus")
            told, _ = self._run(
                folder, "refine", [*self._common(), *self._of_engines()], [], self.ground, CALM_PATIENCE_S
            )
            self._require(told, folder)
            made.write_text(json.dumps(self.code))
        return folder / "run"

    def _require(self, told: Told, folder: Path) -> None:
        if told.codes[-1][1] != 0:
            raise RunFailed(f"a run that nothing struck failed: see {folder / 'run.out'}\n{told.output[-1500:]}")

    def _run(
        self, folder: Path, job: str, arguments: list[str], strikes: list[Strike], ground: Ground, patience_s: float
    ) -> tuple[Told, list[str]]:
        """What it told, and what it left in its temporary folder."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        nodes = self._on(ground)
        temporary = Path(tempfile.mkdtemp(prefix="c", dir=self.temporary))

        def environment() -> dict[str, str]:
            own = {"TMPDIR": str(temporary), "RAY_TMPDIR": str(temporary)}
            return self._environment() | own | (nodes.driver() if nodes else {})

        resume = ["--resume", "auto"]
        try:
            told = StruckRun(
                folder, [job, self.s.recipe, f"run_dir={folder / 'run'}", *arguments, *self.s.overrides, *resume],
                environment, strikes, stand_ins=self.s.stand_ins, heartbeat_s=HEARTBEAT_S, patience_s=patience_s,
                roots=(lambda: nodes.roots) if nodes else list, mend=nodes.mend if nodes else (lambda: None),
            ).go()  # fmt: skip
            left = checks.litter(temporary) + (checks.litter(nodes.temporary, Nodes.OWN) if nodes else [])
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return told, left

    # What runs are given

    def _common(self) -> list[str]:
        found = [
            f"steps={self.steps}",
            f"rollouts_per_step={ROWS_PER_STEP}",
            f"checkpoint.every_steps={EVERY_CHECKPOINT}",
        ]
        return [*found, f"heartbeat_s={HEARTBEAT_S}"]

    def _arguments(self, rows: Rows) -> list[str]:
        if rows == "corpus":
            return [*self._common(), "data.source=corpus", f"data.path={self._corpus()}", "evaluation.path=null"]
        evaluated = ["limit=4", "samples=2", "bootstrap=100", f"every_steps={EVERY_EVALUATION}"]
        return [*self._common(), *self._of_engines(), *(f"evaluation.{key}" for key in evaluated)]

    def _of_engines(self) -> list[str]:
        if not self.s.stand_ins:
            return []
        extra = json.dumps({"additional_config": {"pace": PACE | {"vocabulary": self.vocabulary}}})
        return [f"{name}.{key}" for name in ("sampler", "refiner") for key in (f"extra={extra}", "cpu_kv_cache_gib=1")]

    def _environment(self) -> dict[str, str]:
        found = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
        in_front = [str(IN_FRONT)] if self.s.stand_ins else []
        path = [*in_front, str(JOBS), str(JOBS.parent), found.get("PYTHONPATH", "")]
        found["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        # Workers of Ray that are nice would hardly run on a machine that is busy.
        return found | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}

    # The ground

    def _on(self, ground: Ground) -> Nodes | None:
        """The cluster for the rounds of this ground, started or mended; None where the run brings its own."""
        count = NODES.get(ground, 0)
        if self.nodes and (not count or self.nodes.count != count):
            self._leave_nodes()
        if not count:
            return None
        if self.nodes is None:
            self.nodes = Nodes(Path(tempfile.mkdtemp(prefix="k", dir=self.temporary)), self._environment(), count)
        self.nodes.mend()
        return self.nodes

    def _leave_nodes(self) -> None:
        if self.nodes:
            self.nodes.stop()
            self.nodes = None


def code_digest() -> str:
    """What tells whether a round was made by this very code."""
    folders = (JOBS.parent / "trd_ray", JOBS / "chaos_rounds", IN_FRONT)
    files = [JOBS / "chaos.py", *(file for folder in folders for file in folder.rglob("*.py"))]
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(f"{file.relative_to(JOBS.parent)}\n".encode() + file.read_bytes())
    return found.hexdigest()[:16]


def _vocabulary(recipe: Any) -> int:
    place = Path(models.resolve(recipe.student.path, recipe.student.revision), "config.json")
    if not place.is_file():
        raise UserError(f"stand-ins need a model that is on this machine: set student.path, not {recipe.student.path}")
    return json.loads(place.read_text())["vocab_size"]


def _line(r: Result) -> str:
    said = "; ".join(r.flaws) or r.missed or f"exit {', '.join(map(str, r.exits))}"
    return f"round {r.number}: {r.victim} {r.signal} in {r.moment} ({r.rows}, {r.ground}), {r.verdict}: {said}"


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
