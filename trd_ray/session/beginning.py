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

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from trd_ray.config import Recipe
from trd_ray.preflight import placement
from trd_ray.preflight.machines import Machine
from trd_ray.problems.set_aside import SetAside, counted, write_set_aside
from trd_ray.record.claim import require_lasting
from trd_ray.record.directory import RunDirectory
from trd_ray.record.display import Display
from trd_ray.session.cluster import Connection
from trd_ray.session.endings import KEPT, missing_the_raylet, told
from trd_ray.session.inputs import Inputs
from trd_ray.session.quiet import ray_apart
from trd_ray.session.session import Session
from trd_ray.session.stop import StopSignals


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


@dataclass
class Beginning:
    program: str
    connection: Connection
    kept: Callable[[Path], str]  # what is on disk and how to go on; a program that can say more sets its own
    _stack: ExitStack = field(repr=False)
    directory: Path = Path()  # once it is claimed

    def require(self, *inputs: Inputs) -> None:
        """Raise UserError if the cluster lacks something for these inputs; a local one is not started for that."""
        machines = self.connection.machines()
        for one in inputs:
            placed = one.plan(machines)
            placement.require(placed)
            self.connection.object_store_gib = max(self.connection.object_store_gib, placed.object_store_gib)
        if any(one.compiles_kernels(machines) for one in inputs):
            self.connection.require_compilers()
        for backend in dict.fromkeys(one.recipe.verify.sandbox for one in inputs if one.runs_code):
            self.connection.require_sandboxes(backend)

    def claimed(self, directory: RunDirectory, *inputs: Inputs) -> None:
        self.directory = directory.path
        self._stack.callback(directory.release)
        self._stack.enter_context(told(directory.path, self.program, lambda path: self.kept(path)))
        for note in dict.fromkeys(note for one in inputs for note in one.notes):
            print(note, flush=True)
        if set_aside := list(dict.fromkeys(problem for one in inputs for problem in one.set_aside)):
            print(name_set_aside(directory.path, set_aside), flush=True)

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
            self.connection.connect()
            stop.install()  # again, since Ray has installed handlers of its own
            stack.enter_context(missing_the_raylet(log))
            yield Running(stop, self.connection.machines())

    @contextmanager
    def session(self, inputs: Inputs, directory: RunDirectory, display: Display) -> Iterator[Session]:
        """A session whose pools are not started yet; they are stopped when the block is left."""
        with self.running(display) as running:
            session = Session(inputs, directory, display, running.stop, running.machines)
            try:
                yield session
            finally:
                display.phase("stopping")
                session.close()


def name_set_aside(folder: Path, set_aside: list[SetAside]) -> str:
    """Write set_aside.jsonl, and return a sentence that says so."""
    file = folder / "set_aside.jsonl"
    write_set_aside(file, set_aside)
    return f"problems: {counted(set_aside)}, named in {file}"
