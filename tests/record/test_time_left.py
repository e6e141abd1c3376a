"""How long a run will still take, on a clock of the test's own."""

import pytest

from trd_ray.record.time_left import Due, Left, TimeLeft, duration, elapsed


class Run:
    """A run of `total` steps, and the time that passes in it."""

    def __init__(self, total: int, *due: Due, done: int = 0):
        self.now = 0.0
        self.left = TimeLeft(total, done, clock=lambda: self.now)
        self.left.plans(due)
        self.done = done

    def steps(self, *seconds: float) -> None:
        for took in seconds:
            self.now += took
            self.done += 1
            self.left.step(self.done)

    def evaluates(self, shown: str, samples: int, seconds: float) -> None:
        self.left.evaluating(shown, 0, samples)
        self.now += seconds
        self.left.evaluating(shown, samples, samples)

    def seconds(self) -> float:
        left = self.left.left()
        assert left is not None
        return left.seconds


def test_the_time_left_is_that_of_the_median_step_once_two_have_ended():
    run = Run(8)
    run.steps(300.0)  # the first one, with the start
    assert run.left.left() is None
    run.steps(10.0)
    assert run.seconds() == 60.0
    run.steps(10.0, 70.0, 10.0)  # one of them waited for an engine
    assert run.seconds() == 30.0


def test_only_the_last_steps_say_how_long_the_others_take():
    run = Run(100)
    run.steps(*[100.0] * 11, *[1.0] * 10)
    assert run.seconds() == 79.0


def test_what_the_first_step_says_that_it_took_is_the_pace_until_another_has_ended():
    run = Run(3)
    run.left.step(1, seconds=5.0)
    assert run.seconds() == 10.0
    run.now += 20.0
    run.left.step(2, seconds=7.0)
    assert run.seconds() == 20.0


def test_within_a_step_the_time_left_falls_and_never_below_that_of_the_steps_behind_it():
    run = Run(5)
    run.steps(10.0, 10.0)
    run.now += 4.0
    assert run.seconds() == 26.0
    run.now += 100.0
    assert run.seconds() == 20.0


def test_an_evaluation_that_is_due_costs_what_the_one_before_it_of_its_set_took():
    due = [Due(2, "step-000002", of, samples) for of, samples in (("", 40), ("old", 10))]
    due += [Due(4, "trained", of, samples) for of, samples in (("", 40), ("old", 10))]
    run = Run(4, *due)
    run.evaluates("base", 40, 100.0)
    run.evaluates("base on old", 10, 7.0)
    run.steps(1.0, 1.0)
    assert run.seconds() == 2.0 + 107.0
    run.steps(1.0)
    run.evaluates("trained", 40, 60.0)
    assert run.seconds() == 1.0 + 7.0  # the second set is still to come, and then the step is recorded


def test_the_time_of_an_evaluation_is_no_part_of_the_pace_of_steps():
    run = Run(10, Due(3, "step-000003", "", 40))
    run.steps(1.0, 2.0)
    run.now += 2.0
    run.evaluates("step-000003", 40, 500.0)
    run.left.step(3)
    assert run.seconds() == 14.0


def test_a_set_that_has_no_evaluation_yet_takes_as_long_a_sample_as_the_others():
    run = Run(3, Due(3, "trained", "new", 30))
    run.evaluates("base", 10, 20.0)
    run.steps(1.0, 1.0)
    assert run.seconds() == 1.0 + 60.0


def test_evaluations_of_which_nothing_is_known_are_said_apart():
    run = Run(4, Due(4, "trained", "", 40), Due(2, "step-000002", "", 40))
    run.steps(1.0, 1.0)
    left = run.left.left()
    assert (left.seconds, left.unmeasured) == (2.0, 1)
    assert str(left) == "about 2 s + evaluations" and str(Left(200.0)) == "about 3 min left"


def test_an_evaluation_under_way_goes_on_at_its_own_pace_which_holds_for_those_after_it():
    run = Run(4, Due(2, "step-000002", "", 40), Due(4, "trained", "", 40))
    run.steps(9.0, 1.0)
    run.done = run.left.done = 1
    run.now += 1.0
    run.left.evaluating("step-000002", 0, 40)
    run.now += 10.0
    run.left.evaluating("step-000002", 10, 40)
    assert run.left.of_evaluation() == 30.0
    assert run.seconds() == 3 * 1.0 - 1.0 + 30.0 + 40.0  # the step under way has had its second


def test_a_rest_is_no_sign_of_the_pace_and_forgets_none():
    run = Run(8)
    run.steps(10.0, 10.0)
    run.left.stands_still()
    run.now += 1000.0
    assert run.seconds() == 60.0  # it does not fall in a rest
    run.steps(10.0)  # ended a rest
    assert run.seconds() == 50.0
    run.steps(10.0)
    assert run.seconds() == 40.0


def test_nothing_is_left_after_the_last_step_and_its_evaluation():
    run = Run(2, Due(2, "trained", "", 4))
    run.steps(1.0, 1.0)
    run.evaluates("trained", 4, 3.0)
    assert run.left.left() == Left(0.0)


def test_a_run_that_goes_on_counts_from_where_it_was():
    run = Run(10, Due(4, "step-000004", "", 40), done=6)
    run.steps(3.0, 3.0)
    assert run.left.left() == Left(6.0)


@pytest.mark.parametrize(
    "seconds, said", [(0.4, "0 s"), (89.0, "89 s"), (95.0, "2 min"), (7200.0, "2.0 h"), (200_000.0, "2.3 days")]
)
def test_a_duration_is_said_as_a_person_would(seconds, said):
    assert duration(seconds) == said


def test_a_clock_shows_hours_minutes_and_seconds():
    assert elapsed(3723.9) == "1:02:03"
