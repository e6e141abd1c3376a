"""Who starts in the middle of a run finds a seat on the nodes that are there; who lives keeps his."""

from trd_ray.config import from_tree
from trd_ray.config.rank_counts import RankRange
from trd_ray.preflight.actors import ActorPlan, ActorSpec
from trd_ray.preflight.machines import Machine
from trd_ray.preflight.placement import Placement
from trd_ray.preflight.reseating import ranks_that_fit, seats_for
from trd_ray.preflight.seats import Need, seated

RECIPE = from_tree({"sync": {"backend": "gloo"}})


def node(name: str, gpus: int = 0, cpus: float = 16.0) -> Machine:
    return Machine(name, cpus, gpus=gpus, gpu_gib=80.0 if gpus else None, node_id=f"id of {name}")


def planned(
    machines: list[Machine], backend: str = "gloo", cpus: float = 1.0, **actors: tuple[int, float]
) -> Placement:
    """name=(how many, GPUs of each)."""
    plans = [ActorPlan(ActorSpec(name, n, cpus, gpus), {}, 0.0) for name, (n, gpus) in actors.items()]
    needs = [Need(name, i, cpus, gpus) for name, (n, gpus) in actors.items() for i in range(n)]
    found = seated(needs, machines)
    assert isinstance(found, list), found
    return Placement(plans, {}, {}, 80, backend, 0.5, machines=tuple(machines), seats=tuple(found))


def where(plan: Placement) -> dict[tuple[str, int], tuple[str, tuple[int, ...]]]:
    return {(s.actor, s.number): (plan.machines[s.machine].name, s.gpus) for s in plan.seats}


def test_an_engine_whose_node_is_gone_sits_on_another_and_all_others_stay():
    a, b, c = node("a", 2), node("b", 2), node("c", 2)
    before = planned([a, b], sampler=(2, 1), refiner=(2, 1))
    on_b = [who for who, (name, _) in where(before).items() if name == "b"]
    found = seats_for(on_b, before, [c, a], RECIPE)
    assert found.fits, found.reasons
    kept = {who: place for who, place in where(before).items() if who not in on_b}
    assert where(found).items() >= kept.items()
    assert {where(found)[who][0] for who in on_b} == {"c"}
    assert [(s.actor, s.number) for s in found.seats] == [(s.actor, s.number) for s in before.seats]


def test_a_free_gpu_of_a_node_that_lives_is_taken_and_those_that_are_in_use_are_not():
    a, b = node("a", 3), node("b", 1)
    before = planned([a, b], sampler=(2, 1), refiner=(1, 1))
    [lost] = [who for who, (name, _) in where(before).items() if name == "b"] or [("refiner", 0)]
    found = seats_for([lost], before, [a], RECIPE)
    assert found.fits
    gpus = [gpu for name, seat in where(found).values() if name == "a" for gpu in seat]
    assert sorted(gpus) == [0, 1, 2]


def test_what_no_longer_fits_says_who_needs_what_and_keeps_the_seats_of_the_others():
    a, b = node("a", 1), node("b", 1)
    before = planned([a, b], sampler=(1, 1), refiner=(1, 1))
    lost = next(who for who, (name, _) in where(before).items() if name == "b")
    found = seats_for([lost], before, [a], RECIPE)
    assert not found.fits and found.reasons[0].startswith(f"{lost[0]} 0 needs 1 GPUs, 1 CPUs of one node")
    assert lost not in where(found) and len(found.seats) == 1


def test_the_ranks_start_together_and_those_of_before_are_no_longer_there():
    a, b = node("a", 4), node("b", 4)
    before = planned([a, b], sampler=(4, 1), learner=(4, 1))
    home = next(name for (actor, _), (name, _) in where(before).items() if actor == "sampler")
    left = a if home == "a" else b
    fresh = node("c", 2)
    found = seats_for([("learner", i) for i in range(2)], before, [left, fresh], RECIPE)
    assert found.fits
    assert {who: name for who, (name, _) in where(found).items() if who[0] == "learner"} == {
        ("learner", 0): "c", ("learner", 1): "c",
    }  # fmt: skip
    assert not seats_for([("learner", i) for i in range(4)], before, [left, fresh], RECIPE).fits


def test_a_rank_does_not_sit_on_what_the_engines_of_a_gpu_hold_of_it():
    """Their placement group has all of the GPU that the learner did not have."""
    a, b = node("a", 2), node("b", 1)
    before = planned([a, b], sampler=(1, 0.4), learner=(1, 1))
    home = where(before)["sampler", 0]
    living = a if home[0] == "a" else b
    rest = living.gpus - 1
    found = seats_for([("learner", i) for i in range(rest + 1)], before, [living], RECIPE)
    assert not found.fits and "learner" in found.reasons[0]


def test_engines_beyond_those_of_the_recipe_need_what_the_others_need():
    a = node("a", 2)
    before = planned([a], sampler=(1, 1))
    found = seats_for([("sampler", 1)], before, [a], RECIPE)
    assert found.fits and where(found)["sampler", 1] == ("a", (1,))
    assert not seats_for([("sampler", 1), ("sampler", 2)], before, [a], RECIPE).fits


def test_a_way_of_the_weights_that_no_longer_works_is_said():
    """By ipc the rank must be on the engine's GPU, but somebody else has the CPUs there."""
    recipe = from_tree({"sampler": {"gpus": 0.5}, "learner": {"gpus": 0.5}})
    before = planned([node("a", 1)], backend="ipc", sampler=(1, 0.5), learner=(1, 0.5))
    found = seats_for([("learner", 0)], before, [node("a", 1, cpus=1), node("b", 1)], recipe)
    assert not found.fits and "sync.backend=ipc needs every engine that follows the learner" in found.reasons[0]
    assert seats_for([("learner", 0)], before, [node("a", 1), node("b", 1)], recipe).fits


def test_without_gpus_the_cpus_of_a_node_decide():
    a, b = node("a", cpus=2), node("b", cpus=2)
    before = planned([a, b], sampler=(2, 0), learner=(2, 0))
    lost = [who for who, (name, _) in where(before).items() if name == "b" and who[0] == "sampler"]
    found = seats_for(lost, before, [a], RECIPE)
    assert bool(lost) and not found.fits and "0 CPUs left" in found.reasons[0]
    assert seats_for(lost, before, [a, node("c", cpus=2)], RECIPE).fits


def test_of_the_numbers_of_ranks_that_a_recipe_allows_the_largest_that_has_seats_is_taken():
    a, b, c = node("a", 4), node("b", 4), node("c", 2)
    recipe = RECIPE.model_copy(
        update={"learner": RECIPE.learner.model_copy(update={"workers": RankRange(min=2, max=8)})}
    )

    def sized(ranks: int) -> Placement:
        return Placement([ActorPlan(ActorSpec("learner", ranks, 1.0, 1.0), {}, 0.0)], {}, {}, 80, "gloo", 0.5)

    before = planned([a, b], sampler=(2, 1), learner=(6, 1))
    with_engines, other = (a, b) if where(before)["sampler", 0][0] == "a" else (b, a)
    cases = [([a, b, c], 8), ([a, b], 6), ([with_engines, c], 4), ([other, c], 6), ([c], 2), ([node("d", 1)], None)]
    for machines, fits in cases:
        found = ranks_that_fit(before, machines, recipe, sized)
        assert (found and found[0]) == fits
        if found:
            assert found[1].specs["learner"].replicas == fits and found[1].specs["sampler"].replicas == 2
    assert ranks_that_fit(before, [a, b, c], recipe.with_ranks(3), sized)[0] == 3  # type: ignore[index]


def test_a_rank_with_a_share_of_a_gpu_finds_none_where_engines_hold_all_of_it():
    a, b = node("a", 1), node("b", 1)
    before = planned([a, b], sampler=(2, 0.3), learner=(1, 0.5))
    places = where(before)
    assert {places["sampler", 0][0], places["sampler", 1][0]} == {"a", "b"}
    other = b if places["learner", 0][0] == "a" else a
    assert not seats_for([("learner", 0)], before, [other], RECIPE).fits
    found = seats_for([("learner", 0)], before, [a, b], RECIPE)
    assert found.fits and where(found) == places
