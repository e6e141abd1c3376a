from types import SimpleNamespace
from typing import Any

from trd_ray.train.evaluations import Evaluations


class Recorded:
    """The parts of a session that an evaluation uses."""

    def __init__(self, scored: tuple[str, ...] = (), held_out: Any = "problems", sets: Any = None, **keys: Any):
        sets = sets or {}  # name -> whether it is a guard that is lost, None where it is no guard
        guards = {name: SimpleNamespace(guard=lost is not None) for name, lost in sets.items()}
        evaluation = SimpleNamespace(**({"every_steps": None, "before": True, "after": True} | keys), sets=guards)
        self.sets = sets
        self.recipe = SimpleNamespace(evaluation=evaluation)
        self.inputs = SimpleNamespace(held_out=held_out, held_out_sets=dict.fromkeys(sets, "more"), total_steps=10)
        self.display = SimpleNamespace(phase=lambda text: None)
        self.directory = SimpleNamespace(
            read_evaluations=lambda of="": [SimpleNamespace(name=name) for name in scored if not of]
        )
        self.asked: list[str] = []
        self.evaluated: list[tuple[str, int, int]] = []
        self.watched_by: list[Any] = []

    def evaluate(
        self, name: str, step: int, version: int, problems: Any, while_waiting: Any = None, of: str = "", **_: Any
    ) -> Any:
        self.asked.append(of)
        self.evaluated.append((name, step, version))
        self.watched_by.append(while_waiting)
        values = {"avg@4": SimpleNamespace(value=0.25), "pass@4": SimpleNamespace(value=0.75)}
        moved = -0.5 if self.sets.get(of) else 0.0
        difference = SimpleNamespace(value=moved, clear_of_zero=moved != 0)
        pair = SimpleNamespace(differences={"avg@4": difference})
        return SimpleNamespace(samples=4, scores=values, paired_with=pair)


def evaluations(session: Any, *tell: Any) -> Evaluations:
    policy: Any = SimpleNamespace(version=5, catch_up=lambda: None, watch=lambda: None)
    return Evaluations(session, policy, lambda rows: None, *tell)


def test_which_evaluation_is_due_after_which_step():
    e = evaluations(Recorded(every_steps=4))
    assert [e.due(steps) for steps in (1, 4, 8, 10)] == [None, "step-000004", "step-000008", "trained"]
    assert evaluations(Recorded(after=False)).due(10) is None
    assert evaluations(Recorded(after=False, every_steps=5)).due(10) == "step-000010"
    assert evaluations(Recorded(held_out=None, every_steps=1)).due(10) is None


def test_what_is_planned_is_every_evaluation_that_will_be_due_with_its_samples():
    session = Recorded(every_steps=4, held_out=SimpleNamespace(num_rows=30), sets={"old": None})
    session.inputs.held_out_sets = {"old": SimpleNamespace(num_rows=7)}
    session.recipe.evaluation.of = lambda of: SimpleNamespace(samples=2 if of else 16)
    planned = evaluations(session).planned()
    assert [(one.shown, one.steps, one.samples) for one in planned] == [
        ("step-000004", 4, 480), ("step-000004 on old", 4, 14), ("step-000008", 8, 480), ("step-000008 on old", 8, 14),
        ("trained", 10, 480), ("trained on old", 10, 14),
    ]  # fmt: skip
    assert evaluations(Recorded(held_out=None, every_steps=4)).planned() == []


def test_one_that_is_due_gives_the_metrics_and_another_step_none():
    session = Recorded()
    e = evaluations(session)
    assert e.if_due(3) == {} and session.evaluated == []
    assert e.if_due(10) == {"evaluation/avg": 0.25, "evaluation/pass": 0.75}
    assert session.evaluated == [("trained", 10, 5)]


def test_a_resumed_run_makes_what_it_missed_once():
    for scored, made in (((), [("step-000004", 4, 5)]), (("step-000004",), [])):
        session = Recorded(scored, every_steps=4)
        evaluations(session).missed(4)
        assert session.evaluated == made
    session = Recorded(every_steps=4)
    evaluations(session).missed(3)
    evaluations(session).missed(0)
    assert session.evaluated == []


def test_the_base_is_evaluated_where_it_is_asked_for():
    for keys, made in (({}, [("base", 0, 0)]), ({"before": False}, []), ({"held_out": None}, [])):
        session = Recorded(**keys)
        evaluations(session).base()
        assert session.evaluated == made


def test_engines_that_restart_in_an_evaluation_get_their_weights_again_in_the_first_one_too():
    session = Recorded()
    e = evaluations(session)
    e.base()
    e.if_due(10)
    assert session.watched_by == [e.policy.watch, e.policy.watch]


def test_every_set_is_evaluated_and_its_metrics_have_its_name():
    session = Recorded(sets={"old": True, "kept": False, "new": None})
    told: list[str] = []
    e = evaluations(session, lambda score, of: told.append(of))
    e.base()
    assert session.asked == ["", "old", "kept", "new"]
    found = e.if_due(10)
    assert session.asked == told == ["", "old", "kept", "new"] * 2
    assert {name: found[name] for name in found if "lost" in name} == {
        "evaluation/old/lost": 1.0, "evaluation/kept/lost": 0.0,
    }  # fmt: skip
    assert (found["evaluation/avg"], found["evaluation/new/avg"], found["evaluation/new/pass"]) == (0.25, 0.25, 0.75)


def test_sets_are_evaluated_where_there_is_no_other_evaluation():
    session = Recorded(held_out=None, sets={"old": None})
    assert evaluations(session).if_due(10) == {"evaluation/old/avg": 0.25, "evaluation/old/pass": 0.75}


def test_a_resumed_run_makes_the_sets_that_it_missed_and_no_others():
    session = Recorded(("step-000004",), sets={"old": None}, every_steps=4)
    evaluations(session).missed(4)
    assert session.asked == ["old"]
