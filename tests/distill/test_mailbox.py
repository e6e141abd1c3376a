import asyncio
from typing import Any

from trd_ray.distill.mailbox import CONTROLLER, Command, Mailbox


def run(story: Any) -> None:
    asyncio.run(asyncio.wait_for(story, 60))


def test_every_method_may_be_called_twice():
    """As Ray does where an answer was lost on its way."""

    async def story() -> None:
        box = Mailbox(ranks=2)
        for _ in range(2):
            await box.post(0, Command("step", {"number": 7}, [["a"], ["b"]]))
        taken = [await box.take(0, rank) for rank in (0, 1, 1)]
        assert [command.per_rank for command in taken] == [[["a"]], [["b"]], [["b"]]]
        for rank in (0, 1, 1):
            await box.answer(0, rank, f"from {rank}", 1.0, 2.0)
        for _ in range(2):
            result = await box.result(0, 5)
            assert (result.done, result.value, set(result.times)) == (True, "from 0", {0, 1})
        assert result.parts == [None, None]
        await box.post(1, Command("sync"))
        assert not (await box.result(1, 0.01)).done

    run(story())


def test_what_each_rank_has_found_of_its_own_share_is_told_in_the_order_of_ranks_and_forgotten_with_the_next_command():
    async def story() -> None:
        box = Mailbox(ranks=3)
        await box.post(0, Command("step", per_rank=[["a"], ["b"], ["c"]]))
        for rank in (2, 0, 1):
            assert not (await box.result(0, 0.001)).parts
            await box.answer(0, rank, {"loss": 1.0}, 1.0, 2.0, f"tokens of {rank}")
        result = await box.result(0, 5)
        assert (result.value, result.parts) == ({"loss": 1.0}, ["tokens of 0", "tokens of 1", "tokens of 2"])
        await box.post(1, Command("sync"))
        assert not box.answers

    run(story())


def test_a_command_that_nobody_waits_for_any_longer_is_carried_out_before_the_next():
    async def story() -> None:
        box = Mailbox(ranks=1)
        await box.post(0, Command("start"))
        assert not (await box.result(0, 0.001)).done
        await box.post(1, Command("step"))
        for number, name in enumerate(["start", "step"]):
            assert (await box.take(number, 0)).name == name
            await box.answer(number, 0, name, 1.0, 2.0)
        assert (await box.result(1, 5)).value == "step"
        await box.post(2, Command("stop"))
        assert list(box.commands) == [2] and not box.answers and not box.times

    run(story())


def test_silence_is_counted_while_the_driver_waits_and_ends_with_a_beat():
    now = [0.0]

    async def story() -> None:
        box = Mailbox(ranks=1, monotonic=lambda: now[0])
        for who in (0, CONTROLLER):
            await box.beat(who, f"actor {who}")  # type: ignore[arg-type]
        await box.post(0, Command("step"))
        for _ in range(10):
            silent = (await box.result(0, 0.001)).silent_s
            now[0] += 1.0
            await box.beat(0, "actor 0")  # type: ignore[arg-type]
        assert silent[CONTROLLER] == 9.0 and silent[0] <= 1.0
        assert await box.members() == {0: "actor 0", CONTROLLER: "actor controller"}

    run(story())


def test_a_rank_that_was_never_heard_of_is_silent_from_when_all_are_up():
    now = [0.0]

    async def story() -> None:
        box = Mailbox(ranks=2, monotonic=lambda: now[0])
        await box.beat(1, "actor 1")  # type: ignore[arg-type]
        await box.post(0, Command("start"))
        assert set((await box.result(0, 0.001)).silent_s) == {1}
        for _ in range(2):
            await box.expect()
        for _ in range(10):
            silent = (await box.result(0, 0.001)).silent_s
            now[0] += 1.0
            await box.beat(1, "actor 1")  # type: ignore[arg-type]
        assert silent[0] == 9.0 and silent[1] <= 1.0
        await box.beat(0, "actor 0")  # type: ignore[arg-type]
        await box.expect()
        assert (await box.result(0, 0.001)).silent_s[0] <= 1.0

    run(story())


def test_a_machine_that_slept_or_a_driver_that_did_not_wait_makes_nobody_silent():
    now = [0.0]

    async def story() -> None:
        box = Mailbox(ranks=1, monotonic=lambda: now[0])
        await box.beat(0, "actor")  # type: ignore[arg-type]
        await box.post(0, Command("step"))
        await box.result(0, 0.001)
        now[0] += 3600.0
        assert (await box.result(0, 0.001)).silent_s[0] <= 3.0
        now[0] += 3600.0
        await box.post(1, Command("step"))
        assert (await box.result(1, 0.001)).silent_s[0] <= 3.0

    run(story())
