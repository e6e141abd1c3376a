"""How every program begins and ends: train, refine, evaluate and compare, in one order.

    begin()    refuses a place that does not last
    require()  refuses a cluster that lacks what is asked of it, or whose nodes start no sandbox where programs run
    claimed()  takes the directory, and names there the problems that were set aside; from here on what ends the program
               becomes one sentence, with what is kept and the command that goes on
    running()  starts the stop signals, the display, the separation of Ray's messages, and Ray itself
    session()  does the same, and gives the Session of the engines

Nothing is written before `claimed`. Each block undoes at its end what it did, in reverse order: engines, Ray, the
display, the claim. The first who needs Ray connects to it, once (see `trd_ray.session.cluster`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import ray

from trd_ray.config import Recipe
from trd_ray.errors import RunFailed, UserError
from trd_ray.preflight import placement
from trd_ray.preflight.machines import Machine
from trd_ray.problems.set_aside import SetAside, counted, write_set_aside
from trd_ray.record.beacon import Beacon
from trd_ray.record.claim import require_lasting
from trd_ray.record.directory import RunDirectory
from trd_ray.record.display import Display
from trd_ray.record.elsewhere import Elsewhere
from trd_ray.record.mirror import Mirror
from trd_ray.session import last_words
from trd_ray.session.cluster import Connection
from trd_ray.session.door import Door
from trd_ray.session.endings import KEPT, missing_the_raylet, told
from trd_ray.session.inputs import Inputs
from trd_ray.session.porter import porter
from trd_ray.session.quiet import ray_apart
from trd_ray.session.session import Session
from trd_ray.session.stop import StopSignals

LOOK_FOR_NODES_S = 5.0


@contextmanager
def begin(program: str, place: Path, recipe: Recipe) -> Iterator["Beginning"]:
    """Begin `program`, a key of endings.KEPT, which will write to `place`; `recipe` says where Ray is."""
    require_lasting(place)
    with ExitStack() as stack:
        yield Beginning(program, stack.enter_context(Connection(recipe)), KEPT[program], stack)


@dataclass(frozen=True)
class Running:
    stop: StopSignals
    machines: list[Machine]
    door: Door


@dataclass
class Beginning:
    program: str
    connection: Connection
    kept: Callable[[Path], str]  # what is on disk and how to go on; a program that can say more sets its own
    _stack: ExitStack = field(repr=False)
    directory: Path = Path()  # once it is claimed
    door: Door = field(default_factory=lambda: Door(Path(), ""))  # of the directory, once it is claimed
    mirror: Mirror | None = None

    def require(self, *inputs: Inputs, wait_s: float = 0.0) -> None:
        """Raise UserError if the cluster lacks something for these inputs; a local one is not started for that.

        `wait_s` is how long nodes may take to come.
        """
        machines = self._machines(inputs, wait_s)
        stores = [one.plan(machines).object_store_gib for one in inputs]
        self.connection.object_store_gib = max(self.connection.object_store_gib, *stores)
        if any(one.compiles_kernels(machines) for one in inputs):
            self.connection.require_compilers()
        for backend in dict.fromkeys(one.recipe.verify.sandbox for one in inputs if one.runs_code):
            self.connection.require_sandboxes(backend)

    def _machines(self, inputs: Sequence[Inputs], wait_s: float) -> list[Machine]:
        """The nodes, once all of the inputs fit on them."""
        deadline = time.monotonic() + wait_s
        waits = False
        while True:
            machines = self.connection.machines()
            try:
                for one in inputs:
                    placement.require(one.plan(machines))
                return machines
            except UserError as e:
                if self.connection.local or time.monotonic() >= deadline:
                    raise
                if not waits:
                    print(f"waiting up to {wait_s:.0f} s (cluster.wait_for_nodes_s) for nodes, since {e}", flush=True)
                waits = True
            time.sleep(LOOK_FOR_NODES_S)

    def claimed(self, directory: RunDirectory, *inputs: Inputs) -> None:
        self.directory = directory.path
        self._stack.callback(directory.release)
        self.door = self._stack.enter_context(Door(directory.path, self.program))
        if inputs:
            self._stack.callback(last_words.say, heartbeat_s=None)  # the end of a program may take long
            last_words.watched(directory.path, min(one.recipe.heartbeat_s for one in inputs))
        self._stack.enter_context(told(directory.path, self.program, lambda path: self.kept(path)))
        for note in dict.fromkeys(note for one in inputs for note in one.notes):
            print(note, flush=True)
        if set_aside := list(dict.fromkeys(problem for one in inputs for problem in one.set_aside)):
            print(name_set_aside(directory.path, set_aside), flush=True)

    def mirror_to(self, place: Elsewhere, directory: RunDirectory, recipe: Recipe, done: int) -> None:
        """Copy what the claimed directory holds, `done` steps, and what comes; raises UserError if none can be."""
        beacon = Beacon(place, directory.path)
        beacon.light()
        self._stack.callback(beacon.put_out)  # also if nothing is run
        self.mirror = Mirror(directory, place, recipe, beacon)
        self.mirror.committed(done)
        self.door.shows("mirror", self.mirror.facts)

    def finish_mirror(self, failed: bool = False) -> None:
        """Wait for what is still to be copied; a run that has not failed otherwise fails if something is missing."""
        mirror, self.mirror = self.mirror, None
        lacks = mirror.close(self.door.look) if mirror else None
        if lacks and failed:
            print(lacks, flush=True)
        elif lacks:
            raise RunFailed(f"the run is done, but {lacks}")

    @contextmanager
    def running(self, display: Display | None = None) -> Iterator[Running]:
        with ExitStack() as stack:
            stop = stack.enter_context(StopSignals())
            if display:
                stack.enter_context(display)
            log = self.directory / "logs" / "ray.log"
            stack.enter_context(ray_apart(log))
            if display and not self.connection.connected:
                display.phase("starting Ray")
            stack.callback(self.connection.close)
            with last_words.beating():
                self.connection.connect()
            stop.install()  # again, since Ray has installed handlers of its own
            if ray.is_initialized():
                self.door.is_in_ray(ray.get_runtime_context().gcs_address, self.connection.local)
            if not self.connection.local:
                stack.enter_context(porter(self.door))
            stack.enter_context(missing_the_raylet(log))
            yield Running(stop, self.connection.machines(), self.door)

    @contextmanager
    def session(self, inputs: Inputs, directory: RunDirectory, display: Display) -> Iterator[Session]:
        """A session whose pools are not started yet; they are stopped when the block is left."""
        with self.running(display) as running:
            session = Session(inputs, directory, display, running.stop, running.machines, door=running.door)
            session.mirror = self.mirror
            failed = True
            try:
                yield session
                failed = False
            finally:
                display.phase("stopping")
                with last_words.beating():  # every wait in it has a deadline
                    session.close()
                if self.mirror:
                    display.phase(f"copying to {self.mirror.place.url}")
                    self.finish_mirror(failed)


def name_set_aside(folder: Path, set_aside: list[SetAside]) -> str:
    """Write set_aside.jsonl, and return a sentence that says so."""
    file = folder / "set_aside.jsonl"
    write_set_aside(file, set_aside)
    return f"problems: {counted(set_aside)}, named in {file}"
