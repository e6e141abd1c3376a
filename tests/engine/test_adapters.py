"""Adapters come beside the requests under way: what is answered by which, and what a pool does where one fails."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from serving import Served, greedy_requests, logprobs, prompts, until
from stands import ANSWER, ASK, Stand, Stands, run, without_ray
from trd_ray import config
from trd_ray.distill.learner import Learner
from trd_ray.engine.actor import Request
from trd_ray.engine.adapters import AdapterSender
from trd_ray.engine.fleet import State
from trd_ray.engine.loaded import LoadedAdapters
from trd_ray.engine.sync import WeightSync
from trd_ray.engine.update import EngineFailed

pytestmark = pytest.mark.timeout(400)
BASE = Request([5], seed=0, adapter=False)


# A learner's rank


class Gathered:
    """Two adapters, the second of which cannot be copied if so told; and pools that note what they are told."""

    def __init__(self, fails: bool = False):
        self.told: list[Any] = []
        self.gathered: list[str] = []
        self.fails = fails

    def adapter_tensors(self, dtype):
        for name in ("a", "b", "c"):
            self.gathered.append(name)
            yield name, SimpleNamespace(cpu=self.broken) if self.fails and name == "b" else torch.ones(2, dtype=dtype)

    def broken(self):
        raise MemoryError("no room on the host")

    def packed_adapter(self, tensors):
        return {name: (tensor.dtype, tensor.sum().item()) for name, tensor in tensors.items()}

    def load_adapter(self, files) -> None:
        self.told.append(files)

    def serve_adapter(self, version: int) -> None:
        self.told.append(version)


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_sends_one_object_in_the_engines_type_and_every_rank_gathers(monkeypatch, rank):
    monkeypatch.setattr(ray, "put", lambda value: ("one object", value))
    both = Gathered()
    AdapterSender(both, torch.bfloat16, rank).send(both, 7, lambda call: call() if rank == 0 else None)
    files = {name: (torch.bfloat16, 2.0) for name in "abc"}
    assert both.told == ([("one object", files), 7] if rank == 0 else [])
    assert both.gathered == ["a", "b", "c"]


def test_a_rank_that_fails_while_it_gathers_goes_on_to_the_end_with_the_others():
    both = Gathered(fails=True)
    with pytest.raises(MemoryError, match="no room on the host"):
        AdapterSender(both, torch.bfloat16, 0).send(both, 7, lambda call: call())
    assert both.told == [] and both.gathered == ["a", "b", "c"]


# A pool whose engines are stand-ins


@pytest.fixture
def stands(monkeypatch, tmp_path):
    without_ray(monkeypatch)
    return Stands(tmp_path, 2, transfer_backend="adapter")


async def update(s: Stands, version: int) -> None:
    await s.pool.load_adapter(["a reference"])
    await s.pool.serve_adapter(version)


def test_an_update_pauses_no_engine_and_waits_for_no_request(stands):
    async def story() -> None:
        s = stands
        await s.pool.start()
        for stand in s.started:
            stand.hold("generate")
        flying = asyncio.create_task(s.client.generate(ASK))
        await s.until(lambda: any("generate" in stand.calls for stand in s.started))
        later = asyncio.create_task(s.client.generate(ASK, 1))
        await s.pool.load_adapter(["a reference"])
        assert s.states() == [State.SERVING] * 2 and (await s.pool.status())["updating"]
        meanwhile = asyncio.create_task(s.client.generate(ASK))
        await s.until(lambda: sum(stand.calls.count("generate") for stand in s.started) == 2)
        await s.pool.serve_adapter(1)
        await s.until(lambda: sum(stand.calls.count("generate") for stand in s.started) == 3)
        assert not any({"pause", "resume", "start_weight_update"} & set(stand.calls) for stand in s.started)
        for stand in s.started:
            stand.hold("generate").set()
        assert [len(await one) for one in (flying, meanwhile, later)] == [len(ANSWER)] * 3

    run(story())


def test_an_engine_that_cannot_load_it_leaves_the_old_version_served_and_the_next_one_comes(stands):
    async def story() -> None:
        s = stands
        await s.pool.start()
        s.started[1].failing["load_adapter"] = ValueError("rank 16")
        with pytest.raises(EngineFailed, match="p-1, load_adapter: ValueError: rank 16"):
            await s.pool.load_adapter(["a reference"])
        await s.pool.abort_weight_update()
        assert [stand.calls[-1] for stand in s.started] == ["give_up_adapter"] * 2
        with pytest.raises(EngineFailed, match="told to serve_adapter in a weight update that was given up"):
            await s.pool.serve_adapter(1)
        assert s.states() == [State.SERVING] * 2 and s.fleet.version == 0 and s.fleet.restarts == 0
        assert len(await s.client.generate(ASK)) == 1
        s.started[1].failing.clear()
        await update(s, 1)
        assert s.states() == [State.SERVING] * 2 and s.fleet.version == 1

    run(story())


@pytest.mark.parametrize("method", ["load_adapter", "serve_adapter"])
def test_an_engine_that_dies_in_an_update_starts_again_alone_and_waits_for_the_next(stands, method):
    async def story() -> None:
        s = stands
        await s.pool.start()
        await update(s, 1)
        s.prepare = lambda stand: stand.hold("start")
        dies = s.started[0]
        dies.hold(method)
        begun = asyncio.create_task(update(s, 2))
        await s.until(lambda: dies.calls.count(method) == 2)
        dies.killed.set()
        with pytest.raises(EngineFailed, match=f"p-0, {method}"):
            await begun
        await s.pool.abort_weight_update()
        assert s.states() == [State.STARTING, State.SERVING] and s.fleet.restarts == 1 and s.fleet.version == 1
        s.started[2].hold("start").set()
        await s.until(lambda: s.states() == [State.STALE, State.SERVING])
        assert (await s.pool.status())["needs_weights"]
        await update(s, 2)
        assert s.states() == [State.SERVING] * 2 and not (await s.pool.status())["needs_weights"]

    run(story())


class Adapters:
    """What a stand-in holds of adapters: two at most, as an engine at staleness 1."""

    def __init__(self, stand: Stand):
        self.numbers: set[int] = set()
        self.loaded = LoadedAdapters(2, self.add, self.remove)
        self.answer, stand.call = stand.call, self.call  # type: ignore[method-assign]

    async def add(self, adapter: Any) -> None:
        self.numbers.add(adapter.lora_int_id)

    async def remove(self, number: int) -> None:
        self.numbers.discard(number)

    async def call(self, method: str, arguments: tuple) -> Any:
        answer = await self.answer(method, arguments)
        if method == "load_adapter":
            await self.loaded.load(*arguments[0])
        elif method == "serve_adapter":
            await self.loaded.serve(*arguments)
        elif method == "give_up_adapter":
            await self.loaded.give_up()
        return answer


@pytest.mark.parametrize("dies_in", ["serve_adapter", None], ids=["while it is served", "afterwards"])
def test_an_adapter_that_is_sent_again_after_a_death_waits_for_no_request_of_the_engine_that_lives(stands, dies_in):
    async def story() -> None:
        s, adapters = stands, []
        s.prepare = lambda stand: adapters.append(Adapters(stand))

        async def send(version: int) -> None:
            await s.pool.load_adapter([{"weights": b"%d" % version}])
            await s.pool.serve_adapter(version)

        await s.pool.start()
        lives, dies = adapters[0], s.started[1]
        await send(1)
        with lives.loaded.using():  # a long request on version 1
            if dies_in:
                dies.hold(dies_in)
                begun = asyncio.create_task(send(2))
                await s.until(lambda: lives.loaded.served.version == 2)
                dies.killed.set()
                with pytest.raises(EngineFailed, match=f"p-1, {dies_in}"):
                    await begun
                await s.pool.abort_weight_update()
            else:
                await send(2)
                await s.fleet.restart(s.fleet.lives[1])
            await s.until(lambda: s.states() == [State.SERVING, State.STALE])
            with lives.loaded.using():  # and one on version 2: both places are taken
                await send(2)
                assert s.states() == [State.SERVING] * 2 and s.fleet.version == 2
                assert [one.numbers for one in adapters[::2]] == [{1, 2}, {1}]
        await s.until(lambda: len(lives.numbers) == 1)
        await send(3)
        assert lives.loaded.served.version == 3 and len(lives.numbers) == 1

    run(story())


def test_an_engine_that_comes_up_in_an_update_waits_for_the_next(stands):
    async def story() -> None:
        s = stands
        await s.pool.start()
        await s.pool.load_adapter(["a reference"])
        await s.fleet.restart(s.fleet.lives[0])
        await s.until(lambda: s.states() == [State.SERVING] * 2)
        s.pool.coming.engines = s.pool.coming.engines[1:]  # the other one did load it
        await s.pool.serve_adapter(1)
        assert s.states() == [State.STALE, State.SERVING]

    run(story())


def test_the_base_model_is_asked_of_any_engine_that_is_up_and_waits_for_no_version(stands):
    async def story() -> None:
        s = stands
        await s.pool.start()
        await s.pool.forget_weights()
        assert s.states() == [State.STALE] * 2
        assert len(await s.client.generate(BASE, 7)) == 1
        waits = asyncio.create_task(s.client.generate(ASK))
        await s.until(lambda: s.pool.at_gate != {})
        await s.pool.load_adapter(["a reference"])
        assert s.states() == [State.UPDATING] * 2
        assert len(await s.client.generate(BASE)) == 1 and not waits.done()
        await s.pool.abort_weight_update()
        assert s.states() == [State.STALE] * 2
        await update(s, 0)
        assert len(await waits) == 1

    run(story())


def test_engines_that_are_sent_whole_weights_have_no_base_model_to_ask(monkeypatch, tmp_path):
    without_ray(monkeypatch)

    async def story() -> None:
        s = Stands(tmp_path, 1)
        await s.pool.start()
        with pytest.raises(ValueError, match="pool p is sent whole weights"):
            await s.client.generate(BASE)

    run(story())


# vLLM


@pytest.fixture
def adapted(pools) -> Served:
    return pools["adapted"]


class Student:
    """A learner whose adapters go to the engine, beside the merged model as the oracle of each version."""

    def __init__(self, served: Served, model: str, tmp_path: Any, rank: int = 8):
        lora = {"dtype": "float32", "lora": {"rank": rank, "alpha": 16}}
        recipe = config.from_tree({"student": {"path": model}, "learner": lora})
        self.learner = Learner(
            recipe, student_path=model, teacher_path=model, tokenizer_path=model, total_steps=1,
            device=torch.device("cpu"),
        )  # fmt: skip
        self.served, self.model, self.folder = served, model, tmp_path
        self.sync = WeightSync(self.learner, [served.pool], backend="adapter", dtype=torch.float32, timeout_s=120)

    def push(self) -> str | None:
        problem = self.sync.push(self.served.version + 1)
        self.served.version += problem is None
        return problem

    def step(self, seed: int) -> None:
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in self.learner.trained.values():
                p.to_local().add_(0.1 * torch.randn(p.shape))

    def merged(self) -> torch.nn.Module:
        for file, content in self.learner.adapter_files().items():
            (self.folder / file).write_bytes(content)
        base = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        return PeftModel.from_pretrained(base, self.folder).merge_and_unload()  # type: ignore[operator]


def held(served: Served) -> set[int]:
    [engine] = served.client._engines.values()
    return ray.get(engine.held_adapters.remote(), timeout=60)


def near(generation, model: torch.nn.Module, prompt: list[int]) -> bool:
    return generation.logprobs == pytest.approx(logprobs(model, prompt, generation.ids), abs=1e-3)


def test_a_request_in_flight_ends_on_its_adapter_and_refines_on_the_base_while_the_next_one_comes(
    adapted, tiny_untied, tmp_path
):
    student = Student(adapted, tiny_untied, tmp_path)
    student.step(1)
    assert student.push() is None
    old, base = student.merged(), AutoModelForCausalLM.from_pretrained(tiny_untied, dtype=torch.float32)
    asked = [*adapted.endless_prompts(2, 300, old), *adapted.endless_prompts(1, 300, base), *prompts(3, 8, seed=3)]
    flying = adapted.begin(greedy_requests(asked[:2], 1500))
    refining = adapted.begin([Request(asked[2], seed=0, temperature=0, max_tokens=1500, adapter=False)])
    adapted.wait(lambda status: status["running"] == 3)
    student.step(2)
    assert student.push() is None
    new = student.merged()
    assert len(held(adapted)) == 2
    quick = adapted.ask(greedy_requests(asked[3:], 20), adapted.version)
    beside = adapted.ask([Request(p, seed=0, temperature=0, max_tokens=20, adapter=False) for p in asked[3:]])
    over = [future.done() for future in [*flying, *refining]]
    assert not any(over) and len(held(adapted)) == 2, "nothing was in flight beside the update"
    for p, g in zip(asked[:2], adapted.answers(flying), strict=True):
        assert g.version == adapted.version - 1 and len(g.ids) > 300 and near(g, old, p) and not near(g, new, p)
    for p, g in zip([asked[2], *asked[3:]], [*adapted.answers(refining), *beside], strict=True):
        assert g.version == 0 and near(g, base, p) and not near(g, new, p)
    for p, g in zip(asked[3:], quick, strict=True):
        assert g.version == adapted.version and near(g, new, p) and not near(g, old, p)
    until(lambda: len(held(adapted)) == 1, 30)


def test_prompts_are_scored_with_the_adapter_and_without_it_in_one_batch(adapted, tiny_untied, tmp_path):
    student = Student(adapted, tiny_untied, tmp_path)
    student.step(5)
    assert student.push() is None
    new, base = student.merged(), AutoModelForCausalLM.from_pretrained(tiny_untied, dtype=torch.float32)
    asked = prompts(6, 12, seed=5)
    found = adapted.ask(
        [Request(p, seed=0, prompt_logprobs=True, adapter=i % 2 == 0) for i, p in enumerate(asked)], adapted.version
    )
    for i, (p, g) in enumerate(zip(asked, found, strict=True)):
        expected = logprobs(base if i % 2 else new, p[:1], p[1:])
        assert g.prompt_logprobs == pytest.approx(expected, abs=1e-3)


def test_an_adapter_that_vllm_refuses_leaves_the_old_one_served_and_the_next_push_works(adapted, tiny_untied, tmp_path):
    student = Student(adapted, tiny_untied, tmp_path)
    student.step(3)
    assert student.push() is None
    before, served, asked = student.merged(), adapted.version, prompts(3, 8)
    problem = Student(adapted, tiny_untied, tmp_path, rank=16).push()
    assert problem and "adapted-0, load_adapter" in problem and "rank 16" in problem
    answers = adapted.ask(greedy_requests(asked, 20), served)
    assert all(g.version == served and near(g, before, p) for p, g in zip(asked, answers, strict=True))
    student.step(4)
    assert student.push() is None
    answers = adapted.ask(greedy_requests(asked, 20), adapted.version)
    after = student.merged()
    assert all(near(g, after, p) for p, g in zip(asked, answers, strict=True))
    status = adapted.status()
    assert len(held(adapted)) == 1 and status["restarts"] == 0 and not status["needs_weights"]
