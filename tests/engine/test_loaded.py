"""Which adapters an engine holds, without vLLM: how long each stays, and when another one may come."""

import asyncio
from pathlib import Path

import pytest

from stands import run
from trd_ray.engine.loaded import LoadedAdapters, slots


def files(version: int) -> dict[str, bytes]:
    return {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights %d" % version}


class Held:
    """What vLLM would hold, and every folder from which it would have read."""

    def __init__(self, at_once: int = 2):
        self.numbers: set[int] = set()
        self.folders: list[Path] = []
        self.refusal: Exception | None = None
        self.adapters = LoadedAdapters(at_once, self.add, self.remove)

    async def add(self, adapter) -> None:
        if self.refusal:
            raise self.refusal
        folder = Path(adapter.lora_path)
        assert (folder / "adapter_model.safetensors").read_bytes().startswith(b"weights")
        self.folders.append(folder)
        self.numbers.add(adapter.lora_int_id)

    async def remove(self, number: int) -> None:
        self.numbers.discard(number)

    async def update(self, version: int) -> None:
        await self.adapters.load(files(version))
        await self.adapters.serve(version)

    @property
    def version(self) -> int | None:
        return self.adapters.served and self.adapters.served.version

    def on_disk(self) -> list[bool]:
        return [folder.exists() for folder in self.folders]


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def test_an_adapter_stays_with_its_files_until_its_last_request_has_ended():
    async def story() -> None:
        held = Held()
        with held.adapters.using() as before:
            assert before is None
        await held.update(1)
        with held.adapters.using() as first, held.adapters.using() as again:
            assert first is again and held.version == 1
            await held.update(2)
            assert held.numbers == {1, 2} and held.on_disk() == [True, True]
            with held.adapters.using() as second:
                assert second is not first and held.version == 2
        await until(lambda: held.numbers == {2} and held.on_disk() == [False, True])
        await held.update(3)  # nobody uses the second
        assert held.numbers == {3} and held.on_disk() == [False, False, True]

    run(story())


def test_what_could_not_be_loaded_leaves_the_served_one_and_the_next_one_comes():
    async def story() -> None:
        held = Held()
        await held.update(1)
        held.refusal = ValueError("rank 16 is greater than 8")
        with pytest.raises(ValueError, match="rank 16"):
            await held.adapters.load(files(2))
        with pytest.raises(RuntimeError, match="no adapter was loaded that version 2"):
            await held.adapters.serve(2)
        assert held.version == 1 and held.numbers == {1} and len(held.adapters.held) == 1
        held.refusal = None
        await held.adapters.load(files(2))
        await held.adapters.give_up()
        assert held.version == 1 and held.numbers == {1}
        await held.update(2)
        assert held.version == 2 and len(held.numbers) == 1

    run(story())


def test_one_too_many_waits_for_the_oldest_one_s_last_request_or_is_given_up():
    async def story() -> None:
        held = Held()
        await held.update(1)
        with held.adapters.using():
            await held.update(2)
            with held.adapters.using():
                given_up = asyncio.create_task(held.adapters.load(files(3)))
                await asyncio.sleep(0.01)
                await held.adapters.give_up()
                with pytest.raises(RuntimeError, match="given up while it was loaded"):
                    await given_up
                waits = asyncio.create_task(held.adapters.load(files(3)))
                await asyncio.sleep(0.01)
                assert not waits.done() and held.numbers == {1, 2}
            await asyncio.sleep(0.01)
            assert not waits.done()  # the second is the one that is served
        await waits
        await held.adapters.serve(3)
        assert held.version == 3 and len(held.numbers) == 1

    run(story())


def test_the_served_adapter_that_comes_again_takes_no_place_and_waits_for_no_request():
    async def story() -> None:
        held = Held()
        await held.update(1)
        with held.adapters.using() as first:
            await held.update(2)
            with held.adapters.using():
                await held.update(2)  # every place is taken
            with held.adapters.using() as second:
                assert second is not first and held.version == 2
            assert held.numbers == {1, 2} and held.on_disk() == [True, True]
            await held.adapters.load(files(2))
            await held.adapters.give_up()
            assert held.version == 2 and held.numbers == {1, 2} and held.on_disk() == [True, True]
            with pytest.raises(RuntimeError, match="no adapter was loaded that version 3"):
                await held.adapters.serve(3)
        await until(lambda: len(held.numbers) == 1)
        await held.update(3)
        assert held.version == 3 and len(held.numbers) == 1 and held.on_disk() == [False, False, True]

    run(story())


def test_another_run_s_adapter_of_the_same_version_replaces_the_served_one():
    async def story() -> None:
        held = Held()
        await held.update(1)
        await held.adapters.load(files(1) | {"adapter_model.safetensors": b"weights of another run"})
        await held.adapters.serve(1)
        assert held.version == 1 and len(held.numbers) == 1 and held.on_disk() == [False, True]

    run(story())


def test_on_a_cpu_one_slot_is_never_taken():
    assert slots(2, on_gpu=True) == 2 and slots(2, on_gpu=False) == 3
