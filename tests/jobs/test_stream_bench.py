"""The stand-ins of the stream benchmark do what its bounds assume."""

import asyncio
import importlib.util
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
import bench_stream  # noqa: E402
from stream_bench.results import StepFacts, bound_s  # noqa: E402
from stream_bench.settings import settings  # noqa: E402


def stand_in():
    """The stand-in's module, without its hiding vLLM from other tests of this process."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "standing_vllm"}
    file = ROOT / "jobs" / "stream_bench" / "in_front" / "vllm.py"
    spec = importlib.util.spec_from_file_location("standing_vllm", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["standing_vllm"] = module
    spec.loader.exec_module(module)
    sys.modules.update(before)
    return module


vllm = stand_in()
PACE = {"median_tokens": 40, "sigma": 0.5, "max_tokens": 80, "seconds_a_token": 0.01, "vocabulary": 1000}


def engine():
    return vllm.AsyncLLM.from_engine_args(SimpleNamespace(additional_config={"pace": PACE}))


async def answer(llm, seed, max_tokens=80):
    params = SimpleNamespace(seed=seed, n=1, max_tokens=max_tokens, prompt_logprobs=None)
    [output] = [output async for output in llm.generate({"prompt_token_ids": [1, 2]}, params, str(seed))]
    return output.outputs[0]


def test_a_length_depends_on_the_seed_alone_and_is_cut_at_the_maximum():
    async def lengths():
        llm = engine()
        return [len((await answer(llm, seed)).token_ids) for seed in (1, 2, 3, 1)]

    found = asyncio.run(lengths())
    assert found[0] == found[3] == vllm.Pace(**PACE).tokens(1)
    assert {vllm.Pace(**PACE).tokens(seed) for seed in range(500)} <= set(range(1, 81))


def test_half_of_the_seeds_answer_right():
    pace = vllm.Pace(**PACE)
    right = sum(vllm._completion(0, seed, 10, pace).text.endswith(vllm.RIGHT) for seed in range(1000))
    assert 400 < right < 600


def test_keep_freezes_what_decodes_for_as_long_as_the_pause_lasts():
    async def frozen():
        llm = engine()
        begin = time.monotonic()
        under_way = asyncio.create_task(answer(llm, 1))
        await asyncio.sleep(0.05)
        await llm.pause_generation(mode="keep")
        await asyncio.sleep(0.5)
        assert not under_way.done()
        await llm.resume_generation()
        output = await under_way
        return time.monotonic() - begin, len(output.token_ids) * PACE["seconds_a_token"]

    took, alone = asyncio.run(frozen())
    assert alone + 0.5 <= took < alone + 0.9


def test_drain_lets_requests_finish_and_admits_none_until_the_engine_goes_on():
    async def drained():
        llm = engine()
        under_way = asyncio.create_task(answer(llm, 1))
        await asyncio.sleep(0.05)
        await llm.pause_generation(mode="wait")
        await asyncio.sleep(0)
        assert under_way.done()
        later = asyncio.create_task(answer(llm, 2, max_tokens=1))
        await asyncio.sleep(0.1)
        assert not later.done()
        await llm.resume_generation()
        await later

    asyncio.run(drained())


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        ("--staleness 0", 30.0 + 4.0),
        ("--staleness 1 --in-flight keep", (30.0 + 4.0) / 2),
        ("--staleness 2 --in-flight keep", (30.0 + 4.0) / 3),
        ("--staleness 2 --in-flight keep --learner-seconds 40", 40.0),
        ("--staleness 2 --in-flight drain", 20.0),  # no step is shorter than its longest sampling
        ("--staleness 1 --in-flight drain --learner-seconds 40", 40.0),
    ],
)
def test_the_bound_is_that_of_the_staleness(arguments, seconds):
    s, _, _ = settings(f"--token-seconds 1 --learner-seconds 4 --scale 1 {arguments}".split(), "")
    facts = StepFacts(raw_tokens=20, refined_tokens=10, started_at=0.0, refined_at=[])
    assert bound_s(s, facts) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ("--rows 0", "at least 1"),
        ("--engines 1", "from 2"),
        ("--sigma nan", "sigma"),
        ("--scale 0", "--scale"),
        ("--staleness 3", "never"),
        ("--max-tokens 60000", "24576"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, remedy, capsys):
    assert bench_stream.main(arguments.split()) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1 and remedy in sentence


@pytest.mark.parametrize(("in_flight", "unmeasured"), [("keep", 0), ("drain", 2)])
def test_whole_rounds_of_steps_are_measured_and_where_a_run_drains_not_its_last(in_flight, unmeasured):
    # With staleness 2 three steps are sampled at once and end together, so a part of a round would mislead. The weights
    # of the last two steps have nothing to drain.
    found = [settings(["--staleness", "2", "--in-flight", in_flight, "--steps", n], "")[0] for n in "1458"]
    assert [s.last_steps for s in found] == 4 * [unmeasured]
    assert [s.steps - s.last_steps for s in found] == [4, 4, 7, 10]
