"""Numbers of engines that change while a run goes on, in a run whose pools are stand-ins and whose seats are real."""

import asyncio
import json
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from trd_ray.config import EngineRange, Recipe, from_tree
from trd_ray.engine.reservation import Reservation
from trd_ray.errors import UserError
from trd_ray.preflight.actors import ActorPlan, ActorSpec
from trd_ray.preflight.machines import Machine
from trd_ray.preflight.placement import Placement
from trd_ray.preflight.seats import Need, seated
from trd_ray.scale.loads import PoolLoad
from trd_ray.session import engine_room, scaling
from trd_ray.session.resizing import NoRoom
from trd_ray.session.scaling import Scaling, with_kept_numbers


class Pool:
    """Takes the calls of a pool; a resize succeeds unless it is told otherwise."""

    def __init__(self, engines: int):
        self.engines = engines
        self.sizes: list[int] = []
        self.problem: Exception | None = None
        self.up: asyncio.Event | None = None
        self.gone: Exception | None = None
        self.lives: list[dict] = []
        self.loads: list[PoolLoad] = []

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(type(self), f"_{name}").__get__(self))

    async def _resize(self, count: int, places: Any = ()) -> None:
        self.sizes.append(count)
        if self.problem:
            raise self.problem
        if self.up:
            await self.up.wait()

    async def _give_back(self) -> dict[int, Any]:
        if self.gone:
            raise self.gone
        return {}

    def _take_loads(self) -> list[PoolLoad]:
        return self.loads

    async def _status(self) -> dict[str, Any]:
        return {"lives": self.lives}


def placed(cpus: float, names: dict[str, int]) -> Placement:
    machine = Machine("here", cpus)
    plans = [ActorPlan(ActorSpec(name, n, 1.0, 0.0), {}, 0.0) for name, n in names.items()]
    found = seated([Need(name, i, 1.0, 0.0) for name, n in names.items() for i in range(n)], [machine])
    assert isinstance(found, list)
    return Placement(plans, {}, {}, 80, "gloo", 0.5, machines=(machine,), seats=tuple(found))


@dataclass
class Run:
    """What a Scaling sees of a session."""

    recipe: Recipe
    path: Any
    cpus: float = 4.0
    said: list[str] = field(default_factory=list)
    events: list[dict] = field(default_factory=list)
    handlers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shared = self.recipe.shares_engines
        engines = {name: keys for name, keys in self.recipe.engines.items() if name == "sampler" or not shared}
        names = {name: keys.bounds.start for name, keys in engines.items()}
        self.pools = {name: Pool(count) for name, count in names.items()}
        self.plan = placed(self.cpus, names)
        self.reservation, self.machines = Reservation(self.plan), self.plan.machines
        self.seating = threading.RLock()
        self.starting: list[Any] = []
        self.to_start: list[str] = []
        self.following = lambda: {"sampler": "student"}
        self.directory = SimpleNamespace(path=self.path, event=lambda kind, **facts: self.events.append(facts))
        self.display = SimpleNamespace(say=self.said.append)
        self.figures = SimpleNamespace(last={})
        self.door = SimpleNamespace(on=self.handlers.__setitem__, shows=lambda name, figures: None)


@dataclass
class Inputs:
    recipe: Recipe


@pytest.fixture
def begun(tmp_path, monkeypatch):
    made: list[Scaling] = []
    monkeypatch.setattr(scaling.ray, "get", lambda refs, timeout: refs)

    def begin(*, cpus: float = 4.0, **tree: Any) -> tuple[Run, Scaling]:
        run = Run(from_tree({"name": "r", "cluster": {"address": "local"}} | tree), tmp_path, cpus)
        made.append(Scaling(run))  # type: ignore[arg-type]
        return run, made[-1]

    yield begin
    for one in made:
        one.close()


def until(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def over(one: Scaling) -> None:
    until(lambda: all(doing.done() for doing in one._doing))
    for doing in one._doing:
        doing.result()


# By hand


def test_what_is_asked_for_is_done_said_and_kept(begun, tmp_path):
    run, one = begun()
    said = run.handlers["scale"]({"refiner": 3})
    assert said == "refiner 1 -> 3: new engines serve once they are up and have the weights"
    over(one)
    assert run.pools["refiner"].sizes == [3] and one.counts == {"sampler": 1, "refiner": 3}
    assert run.said == ["refiner 1 -> 3 (asked for)", "refiner has 3 engines now"]
    assert [event["said"] for event in run.events] == run.said
    assert len(run.plan.seats_of("refiner")) == 3
    kept = json.loads((tmp_path / "scale.json").read_text())
    assert kept["refiner"] == {"engines": 3, "by": "hand", "replicas": 1}
    assert one.figures()["refiner"] == {"engines": 3, "min": 1, "max": 1, "by": "hand"}


def test_an_engine_that_leaves_one_pool_makes_room_for_another_s(begun):
    run, one = begun(cpus=3.0, sampler={"replicas": 2})
    with pytest.raises(UserError, match="this machine has no room for 2 engines of the refiner: 1 are the most"):
        one.asked({"refiner": 2})
    assert "those that leave answer first what they hold" in one.asked({"refiner": 2, "sampler": 1})
    over(one)
    assert (run.pools["sampler"].sizes, run.pools["refiner"].sizes) == ([1], [2])
    assert [(seat.actor, seat.number) for seat in run.plan.seats] == [("sampler", 0), ("refiner", 0), ("refiner", 1)]


def test_an_engine_that_cannot_start_is_said_and_its_seat_is_free_again(begun):
    run, one = begun()
    run.pools["refiner"].problem = RuntimeError("no memory")
    one.asked({"refiner": 2})
    over(one)
    assert run.said[-1].startswith("the refiner goes on with 1 engines, since a new one could not start: RuntimeError")
    assert one.counts["refiner"] == 1 and len(run.plan.seats_of("refiner")) == 1


def test_an_engine_that_does_not_leave_in_time_is_told_and_is_waited_for_when_it_is_said_again(begun):
    run, one = begun(cpus=3.0, refiner={"replicas": 2})
    refiner = run.pools["refiner"]
    refiner.problem, refiner.lives = (
        TimeoutError("pool refiner waited 720 s"),
        [{"state": "serving"}, {"state": "leaving"}],
    )
    one.asked({"refiner": 1})
    over(one)
    assert one.counts["refiner"] == 1 and len(run.plan.seats_of("refiner")) == 2
    assert run.said[-1].startswith(
        "the refiner still has 1 engines, and 1 that leave: TimeoutError: pool refiner waited"
    )
    refiner.problem = None
    assert one.asked({"refiner": 1}) == "refiner stays at 1"
    over(one)
    assert refiner.sizes == [1, 1] and len(run.plan.seats_of("refiner")) == 1
    one.asked({"refiner": 2})
    over(one)
    assert refiner.sizes == [1, 1, 2] and one.counts["refiner"] == 2 and len(run.plan.seats_of("refiner")) == 2


def test_an_engine_that_still_leaves_is_waited_for_before_another_one_comes(begun):
    run, one = begun(cpus=3.0, refiner={"replicas": 2})
    refiner = run.pools["refiner"]
    refiner.problem, refiner.lives = TimeoutError("late"), [{"state": "serving"}, {"state": "leaving"}]
    one.asked({"refiner": 1})
    over(one)
    refiner.problem = None
    one.asked({"refiner": 2})
    over(one)
    assert refiner.sizes == [1, 1, 2] and one.counts["refiner"] == 2 and len(run.plan.seats_of("refiner")) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "say which pool"),
        ({"refinr": 2}, r"no engines of 'refinr' \(did you mean refiner\?\)"),
        ({"refiner.big": 2}, "has one teacher: say refiner=2"),
        ({"refiner": 0}, "1 engine or more"),
        ({"refiner": "many"}, "1 engine or more"),
        ({"refiner": "auto"}, "refiner.replicas of this run's recipe is a number"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_say_instead(begun, arguments, said):
    run, one = begun()
    with pytest.raises(UserError, match=said):
        one.asked(arguments)
    assert run.pools["refiner"].sizes == []


def test_one_pool_for_two_roles_says_what_to_type(begun):
    shared = {"placement": "shared", "learner": {"lora": {}}, "sync": {"lora": "adapter"}}
    _, one = begun(**shared)
    with pytest.raises(UserError, match=r"sampler's engines also refine .* say sampler=3 instead"):
        one.asked({"refiner": 3})


TEACHERS = {"maths": {"refiner": {"replicas": {"max": 3}}}, "code": {}}


def test_the_pool_of_each_of_several_teachers_is_scaled_alone_and_kept_by_its_name(begun, tmp_path):
    run, one = begun(teachers=TEACHERS)
    assert one.asked({"refiner.code": 2}).startswith("refiner.code 1 -> 2")
    over(one)
    assert {name: pool.sizes for name, pool in run.pools.items()} == {
        "sampler": [], "refiner.maths": [], "refiner.code": [2],
    }  # fmt: skip
    kept = json.loads((tmp_path / "scale.json").read_text())
    assert kept["refiner.code"] == {"engines": 2, "by": "hand", "replicas": 1}
    assert one.figures()["refiner.maths"] == {"engines": 1, "min": 1, "max": 3, "by": "policy"}
    again = with_kept_numbers(Inputs(run.recipe), tmp_path).recipe.engines  # type: ignore[arg-type]
    assert again["refiner.code"].replicas == 2 and again["refiner.maths"].bounds.max == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"refiner": 3}, "several teachers, .* say refiner.maths=3 or refiner.code=3"),
        ({"refiner.math": 3}, r"no engines of 'refiner.math' \(did you mean refiner.maths\?\)"),
        ({"refiner.code": "auto"}, "teachers.code.refiner.replicas of this run's recipe is a number"),
    ],
)
def test_with_several_teachers_a_pool_is_named_by_its_own(begun, arguments, said):
    _, one = begun(teachers=TEACHERS)
    with pytest.raises(UserError, match=said):
        one.asked(arguments)


def test_nothing_is_changed_before_the_engines_are_up_or_where_each_has_a_rank_of_the_learner(begun):
    run, one = begun()
    run.starting = ["a pool"]
    with pytest.raises(UserError, match="still start: ask again"):
        one.asked({"refiner": 2})
    run.starting = []
    run.plan = SimpleNamespace(sync_backend="ipc")
    with pytest.raises(UserError, match="sync.backend=ipc"):
        one.asked({"sampler": 2})
    assert one.asked({"sampler": 1}) == "sampler stays at 1"


def test_engines_that_have_their_gpus_in_turn_with_ranks_keep_their_number(begun):
    run, one = begun(placement="timeshare")
    assert one.asked({"refiner": 2}).startswith("refiner 1 -> 2"), "on cores"
    over(one)
    actors = [replace(a, spec=replace(a.spec, memory_utilization=0.4)) for a in run.plan.actors]
    run.plan = replace(run.plan, actors=actors)
    with pytest.raises(UserError, match="the number of engines is fixed"):
        one.asked({"refiner": 3})


def test_one_pool_in_turn_is_scaled_by_the_sampler_s_name(begun):
    _, one = begun(placement="timeshare", teacher={"follow": "live"})
    with pytest.raises(UserError, match=r"also refine in this run \(placement=timeshare\): say sampler=3 instead"):
        one.asked({"refiner": 3})


def test_a_number_without_sense_is_refused_at_once(begun):
    run, one = begun()
    with pytest.raises(UserError, match="1000 at most"):
        one.asked({"refiner": 99_999})
    with pytest.raises(UserError, match="no room for 1000 engines of the refiner: 3 are the most"):
        one.asked({"refiner": 1000})


def test_what_is_asked_for_while_a_change_is_under_way_comes_after_it(begun):
    run, one = begun()
    one.asked({"refiner": 3})
    one._doing.append(held := Future())  # it has not ended
    over_but = [doing for doing in one._doing if doing is not held]
    until(lambda: all(doing.done() for doing in over_but))
    run.pools["refiner"].sizes.clear()
    assert one.asked({"refiner": 3}) == "refiner stays at 3"
    held.set_result(None)
    over(one)
    assert run.said[-2:] == ["refiner stays at 3 (asked for)", "refiner has 3 engines now"]
    assert run.pools["refiner"].sizes == [] and one.counts["refiner"] == 3


def test_a_pool_that_has_died_is_said_and_nothing_is_under_way_then(begun):
    run, one = begun()
    run.pools["refiner"].problem = RuntimeError("the actor died")
    run.pools["refiner"].gone = RuntimeError("the actor died")
    one.asked({"refiner": 2})
    over(one)
    assert run.said[-1] == "the numbers of engines could not be changed: RuntimeError: the actor died"


# By the policy

BOUNDS = {"replicas": {"min": 1, "max": 3}}


def busy(engines: int, demand: float) -> list[PoolLoad]:
    """A minute in which nothing changed."""
    return [PoolLoad(float(second), engines, 10, 0, 0.0, demand) for second in range(60)]


def test_an_engine_is_asked_for_after_a_step_that_waited_for_its_pool(begun, tmp_path):
    run, one = begun(refiner=BOUNDS)
    run.pools["refiner"].loads, run.pools["sampler"].loads = busy(1, 4.0), busy(1, 0.2)
    one.after_step()
    over(one)
    assert run.pools["refiner"].sizes == [2] and run.said[-1] == "refiner has 2 engines now"
    assert run.said[0] == "refiner 1 -> 2 (the refiner was full in 100% of the time, and steps should take 50% less)"
    one.after_step()  # what was seen before the change says nothing
    assert json.loads((tmp_path / "scale.json").read_text())["refiner"]["by"] == "policy"


def test_the_policy_asks_for_nothing_that_the_machine_does_not_hold_and_leaves_a_person_s_pool_alone(begun):
    run, one = begun(cpus=2.0, refiner=BOUNDS)
    run.pools["refiner"].loads, run.pools["sampler"].loads = busy(1, 4.0), busy(1, 0.2)
    one.after_step()
    assert run.pools["refiner"].sizes == []
    run, one = begun(refiner=BOUNDS)
    run.pools["refiner"].loads, run.pools["sampler"].loads = busy(1, 4.0), busy(1, 0.2)
    one.asked({"refiner": 1})
    one.after_step()
    assert run.pools["refiner"].sizes == []
    assert one.asked({"refiner": "auto"}) == "refiner is left to the policy of its bounds"
    one.after_step()
    over(one)
    assert run.pools["refiner"].sizes == [2]


def test_a_pool_outside_of_its_bounds_comes_back_to_them_with_auto(begun):
    run, one = begun(refiner={"replicas": {"min": 2, "max": 3}}, cpus=6.0)
    for count, within in ((1, 2), (4, 3)):
        one.asked({"refiner": count})
        over(one)
        assert f"refiner {count} -> {within}" in one.asked({"refiner": "auto"})
        over(one)
        assert one.counts["refiner"] == within and one.figures()["refiner"]["by"] == "policy"


def test_an_engine_that_could_not_start_is_not_asked_for_again_at_once(begun, monkeypatch):
    run, one = begun(refiner=BOUNDS)
    run.pools["refiner"].problem = RuntimeError("no memory")
    for wait_s, tries in ((0, 1), (10, 1), (700, 2), (700, 2), (1300, 3)):
        times, when = one.resizing.failed.get("refiner", (0, 0.0))
        if times:
            one.resizing.failed["refiner"] = times, when - wait_s
        run.pools["refiner"].loads, run.pools["sampler"].loads = busy(1, 4.0), busy(1, 0.2)
        one._changed_s = 0.0
        one.after_step()
        over(one)
        assert len(run.pools["refiner"].sizes) == tries


# Going on


def test_a_run_that_goes_on_has_the_engines_that_it_had_as_long_as_its_recipe_asks_for_the_same(begun, tmp_path):
    recipe = from_tree({"name": "r", "cluster": {"address": "local"}, "sampler": BOUNDS})
    run, one = begun(sampler=BOUNDS)
    one.asked({"refiner": 2, "sampler": 2})
    over(one)

    def kept(recipe: Recipe) -> Recipe:
        @dataclass(frozen=True)
        class Given:
            recipe: Recipe

        return with_kept_numbers(Given(recipe), tmp_path).recipe  # type: ignore[arg-type, type-var]

    goes_on = kept(recipe)
    assert goes_on.refiner.replicas == 2 and goes_on.sampler.replicas == EngineRange(min=1, max=3, start=2)
    other = from_tree({"name": "r", "refiner": {"replicas": 4}, "sampler": BOUNDS})
    assert kept(other).refiner.replicas == 4
    (tmp_path / "scale.json").write_text("{")
    assert kept(recipe) == recipe


def test_a_run_that_ends_while_a_new_engine_starts_goes_on_with_it(begun, tmp_path):
    run, one = begun()
    run.pools["refiner"].up = asyncio.Event()
    run.handlers["scale"]({"refiner": 2})
    until(lambda: run.pools["refiner"].sizes)
    one.close()
    assert with_kept_numbers(Inputs(run.recipe), tmp_path).recipe.refiner.replicas == 2  # type: ignore[arg-type]


def test_the_numbers_are_kept_however_often_a_run_goes_on(begun, tmp_path):
    recipe = from_tree({"name": "r", "cluster": {"address": "local"}, "refiner": BOUNDS})

    @dataclass(frozen=True)
    class Given:
        recipe: Recipe

    for before, count in ((1, 2), (2, 3), (3, 4)):
        goes_on = with_kept_numbers(Given(recipe), tmp_path).recipe  # type: ignore[arg-type, type-var]
        replicas = {name: {"replicas": getattr(goes_on, name).replicas} for name in ("sampler", "refiner")}
        _, one = begun(cpus=8.0, **replicas)
        assert one.counts == {"sampler": before, "refiner": before}
        assert one.by_hand == (set() if before == 1 else {"sampler", "refiner"})
        one.asked({"sampler": count, "refiner": count})
        over(one)
        assert one.figures()["refiner"] == {"engines": count, "min": 1, "max": 3, "by": "hand"}
    other = from_tree({"name": "r", "refiner": {"replicas": 2}})
    assert with_kept_numbers(Given(other), tmp_path).recipe.refiner.replicas == 2  # type: ignore[arg-type, type-var]
    _, one = begun(refiner={"replicas": 2})  # what a person said was about another recipe
    assert "refiner" not in one.by_hand


# A cluster


def test_a_node_is_asked_for_and_given_up_with_a_sentence_and_not_asked_for_again(begun, monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(engine_room, "request_resources", lambda bundles: asked.append(bundles))
    monkeypatch.setattr(engine_room, "machines_now", lambda known, recipe: list(known))
    run, one = begun(cpus=2.0, refiner=BOUNDS, scale={"nodes_timeout_s": 0.01})
    one.room.local = False
    assert one.room.fits({"sampler": 1, "refiner": 2}, one.counts)  # a node may come
    one.asked({"refiner": 2})
    over(one)
    assert asked == [[{"CPU": 1.0}] * 3, []]
    assert "no place for another engine, also after 0 s (scale.nodes_timeout_s): refiner 1 needs" in run.said[-1]
    assert not one.room.fits({"sampler": 1, "refiner": 2}, one.counts)


def test_a_node_that_comes_is_used(begun, monkeypatch):
    here = [Machine("here", 2.0)]
    monkeypatch.setattr(engine_room, "request_resources", lambda bundles: here.append(Machine("there", 4.0)))
    monkeypatch.setattr(engine_room, "machines_now", lambda known, recipe: list(here))
    monkeypatch.setattr(engine_room, "LOOK_EVERY_S", 0.01)
    run, one = begun(cpus=2.0, refiner=BOUNDS)
    one.room.local = False
    one.asked({"refiner": 2})
    over(one)
    assert one.counts["refiner"] == 2 and run.said[-1] == "refiner has 2 engines now"
    [_, seat] = run.plan.seats_of("refiner")
    assert run.plan.machines[seat.machine].name == "there"


def test_another_change_does_not_wait_until_nodes_have_come_for_the_one_before(begun, monkeypatch):
    monkeypatch.setattr(engine_room, "request_resources", lambda bundles: None)
    monkeypatch.setattr(engine_room, "machines_now", lambda known, recipe: list(known))
    monkeypatch.setattr(engine_room, "LOOK_EVERY_S", 0.01)
    run, one = begun(cpus=3.0, sampler={"replicas": 2})
    one.room.local = False
    one.asked({"refiner": 2})
    until(lambda: any(said.startswith("asking for a node") for said in run.said))
    one.asked({"sampler": 1})
    over(one)
    assert one.counts == {"sampler": 1, "refiner": 1}
    assert any("a node is not waited for, since another change was asked for" in said for said in run.said)
    assert run.said[-1] == "sampler has 1 engine now"


def test_a_new_engine_gets_no_number_of_one_that_lives_where_the_plan_has_no_seat(begun):
    run, one = begun(cpus=8.0, refiner={"replicas": 2})
    run.figures.last["refiner"] = {"lives": [{"place": 0}, {"place": 2}]}  # that of 2 is on a node that leaves
    places = one.room._take("refiner", 2)
    assert {seat.number for seat in run.plan.seats_of("refiner")} == {0, 1, 3, 4} and not places.keys() & {0, 1, 2}


def test_at_the_end_of_a_run_no_place_is_taken(begun, monkeypatch):
    monkeypatch.setattr(engine_room, "machines_now", lambda known, recipe: pytest.fail("it looked"))
    _, one = begun()
    one.close()
    with pytest.raises(NoRoom, match="the run ends"):
        one.room._take("refiner", 1)
    with pytest.raises(UserError, match="about to end"):
        one.asked({"refiner": 2})
