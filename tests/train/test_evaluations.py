from types import SimpleNamespace
from typing import Any

from trd_ray.train.evaluations import Evaluations


class Recorded:
    """The parts of a session that an evaluation uses."""

    def __init__(self, scored: tuple[str, ...] = (), held_out: Any = "problems", **keys: Any):
        evaluation = SimpleNamespace(**({"every_steps": None, "before": True, "after": True} | keys))
        self.recipe = SimpleNamespace(evaluation=evaluation)
        self.inputs = SimpleNamespace(held_out=held_out, held_out_sets={}, total_steps=10)
        self.display = SimpleNamespace(phase=lambda text: None)
        self.directory = SimpleNamespace(read_evaluations=lambda of="": [SimpleNamespace(name=name) for name in scored])
        self.evaluated: list[tuple[str, int, int]] = []
        self.watched_by: list[Any] = []

    def evaluate(self, name: str, step: int, version: int, problems: Any, while_waiting: Any = None, **_: Any) -> Any:
        self.evaluated.append((name, step, version))
        self.watched_by.append(while_waiting)
        values = {"avg@4": SimpleNamespace(value=0.25), "pass@4": SimpleNamespace(value=0.75)}
        return SimpleNamespace(samples=4, scores=values)


def evaluations(session: Any) -> Evaluations:
    policy: Any = SimpleNamespace(version=5, catch_up=lambda: None, watch=lambda: None)
    return Evaluations(session, policy, lambda rows: None)


def test_which_evaluation_is_due_after_which_step():
    e = evaluations(Recorded(every_steps=4))
    assert [e.due(steps) for steps in (1, 4, 8, 10)] == [None, "step-000004", "step-000008", "trained"]
    assert evaluations(Recorded(after=False)).due(10) is None
    assert evaluations(Recorded(after=False, every_steps=5)).due(10) == "step-000010"
    assert evaluations(Recorded(held_out=None, every_steps=1)).due(10) is None


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
