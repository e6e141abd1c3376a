"""Continuous batching beside a naive engine that goes token by token, and beside figures by hand."""

import random
from dataclasses import replace

import pytest

from trd_ray.economics.batching import EngineRequest, serve, serve_beside, serve_pool
from trd_ray.economics.engine_speed import EngineSpeed, gpu_of, on_cpu, on_gpu
from trd_ray.economics.model_costs import model_costs
from trd_ray.known_models import known

PLAIN = EngineSpeed(
    launch_s=1e-3, weights_s=5e-3, product_s=5e-5, sequence_s=2e-5, cached_token_s=5e-8, prefill_token_s=2e-5,
    prefill_square_s=1e-9,
)  # fmt: skip
H100 = gpu_of("H100", 80)[0]
QWEN_8B = model_costs(known()["Qwen/Qwen3-8B"])


def naive(requests: list[EngineRequest], speed: EngineSpeed) -> list[float]:
    """Every iteration on its own, without a cache that could be full. Who comes in one begins with the next."""
    t, done = 0.0, {}
    waiting = sorted(range(len(requests)), key=lambda i: requests[i].arrives_s)
    left: dict[int, int] = {}
    cached = 0.0
    while waiting or left:
        if not left:
            t = max(t, requests[waiting[0]].arrives_s)
        while waiting and requests[waiting[0]].arrives_s <= t and len(left) < speed.most_sequences:
            i = waiting.pop(0)
            t += speed.prefill_s(requests[i].prompt)
            cached += requests[i].prompt
            left[i] = requests[i].answer
        cached += len(left)
        t += speed.iteration_s(len(left), cached)
        for i in list(left):
            left[i] -= 1
            if not left[i]:
                del left[i]
                cached -= requests[i].prompt + requests[i].answer
                done[i] = t
    return [done[i] for i in range(len(requests))]


@pytest.mark.parametrize("places", [4, 256])
@pytest.mark.parametrize("late", [0.0, 0.4])
def test_time_that_jumps_from_event_to_event_is_that_of_every_iteration(places, late):
    rng = random.Random(places)
    requests = [EngineRequest(rng.random() * late, rng.randint(5, 90), rng.randint(1, 120)) for _ in range(40)]
    speed = replace(PLAIN, most_sequences=places)
    assert serve(requests, speed).finish_s == pytest.approx(naive(requests, speed), rel=1e-9)


def test_one_request_by_hand():
    found = serve([EngineRequest(0.0, 100, 10)], PLAIN)
    read = 100 * 2e-5 + 100**2 * 1e-9
    written = sum(1e-3 + 5e-3 + 2e-5 + 5e-8 * (100 + k) for k in range(1, 11))
    assert found.end_s == pytest.approx(read + written) and found.busy_s == pytest.approx(found.end_s)


def test_a_full_cache_preempts_and_still_answers_all():
    small = replace(PLAIN, cache_tokens=1000.0)
    requests = [EngineRequest(0.0, 50, 200) for _ in range(12)]
    found = serve(requests, small)
    assert found.preempted > 0 and all(end > 0 for end in found.finish_s)
    assert found.end_s > serve(requests, PLAIN).end_s * 1.5, "four fit at a time, in place of twelve"
    one = serve([EngineRequest(0.0, 50, 2000)], small)
    assert one.preempted == 0, "a sequence alone goes on, whatever the cache"


def test_qwen3_8b_at_batch_1_on_an_h100_takes_what_was_published():
    # GPUStack's benchmark of vLLM: 1.66 s for a request of ShareGPT, 7.5 ms a token.
    assert on_gpu(QWEN_8B, H100).iteration_s(1, 300) == pytest.approx(7.5e-3, rel=0.02)


def test_a_small_batch_is_bound_by_the_weights_and_a_large_one_by_products():
    speed = replace(on_gpu(QWEN_8B, H100), launch_s=0.0, sequence_s=0.0)
    read = (8.19e9 - 151_936 * 4096) * 2 / (0.72 * 3.35e12)  # all but the embedding, of which a token has one row
    assert speed.iteration_s(1, 0) == pytest.approx(speed.iteration_s(100, 0)) == pytest.approx(read, rel=1e-3)
    ridge = speed.weights_s / speed.product_s
    assert 150 < ridge < 250  # 989 TFLOP/s x 0.5 against 3.35 TB/s x 0.72, 2 FLOPs and 2 bytes a parameter
    products = 2 * (6.95e9 + 151_936 * 4096)
    assert speed.iteration_s(1024, 0) == pytest.approx(1024 * products / (0.5 * 989e12), rel=1e-3)


@pytest.mark.parametrize(("name", "body"), [("Qwen/Qwen3-8B", 6.95e9), ("Qwen/Qwen3-1.7B", 1.41e9)])
def test_the_tokens_of_a_prompt_pass_the_layers_and_no_head(name, body):
    speed = on_gpu(model_costs(known()[name]), H100)
    assert speed.prefill_token_s == pytest.approx(2 * body / (0.5 * 989e12), rel=5e-3)


def test_at_8k_tokens_of_context_the_cache_costs_more_than_the_weights():
    speed = on_gpu(QWEN_8B, H100)
    of_cache = speed.iteration_s(43, 43 * 8000) - speed.iteration_s(43, 0)
    assert 2 < of_cache / speed.weights_s < 3.5
    assert 43 / speed.iteration_s(43, 43 * 8000) == pytest.approx(1750, rel=0.2)  # tokens a second of a GPU


def test_the_tail_of_a_step_costs_almost_as_much_an_iteration_as_its_middle():
    speed = on_gpu(QWEN_8B, H100)
    alike = [EngineRequest(0.0, 250, 8000)] * 64
    one_long = [*alike[:-1], EngineRequest(0.0, 250, 16000)]
    more = serve(one_long, speed).end_s - serve(alike, speed).end_s
    assert more == pytest.approx(8000 * 7.5e-3, rel=0.1), "8,000 iterations for one sequence alone"


def test_tensor_parallelism_shares_weights_and_cache_but_not_launches():
    one, four = (on_gpu(QWEN_8B, H100, tensor_parallel=n, cache_gib=20) for n in (1, 4))
    assert four.weights_s == pytest.approx(one.weights_s / 4) and four.cache_tokens == pytest.approx(
        4 * one.cache_tokens
    )
    assert one.iteration_s(1, 0) / 4 < four.iteration_s(1, 0) < one.iteration_s(1, 0)


def test_an_fp8_cache_holds_twice_the_tokens():
    half, whole = (on_gpu(QWEN_8B, H100, cache_gib=50, kv_width=width) for width in (1, 2))
    assert half.cache_tokens == pytest.approx(2 * whole.cache_tokens)
    assert half.cached_token_s == pytest.approx(whole.cached_token_s / 2)


def test_a_prompt_that_is_known_is_not_read_again():
    speed = on_gpu(QWEN_8B, H100)
    new, known_one = (serve([EngineRequest(0.0, 2000, 1, cached)], speed).end_s for cached in (0, 2000))
    assert new - known_one == pytest.approx(speed.prefill_s(2000)) and speed.prefill_s(2000, 2000) == 0


def test_what_follows_a_request_joins_the_same_engine():
    alone = EngineRequest(0.0, 10, 50)
    both = EngineRequest(0.0, 10, 50, then=EngineRequest(0.5, 70, 20))
    found, first = serve([both], PLAIN), serve([alone], PLAIN)
    assert found.first_s == pytest.approx(first.finish_s)
    assert found.end_s == pytest.approx(first.end_s + 0.5 + serve([EngineRequest(0.0, 70, 20)], PLAIN).end_s)
    assert found.busy_s == pytest.approx(found.end_s - 0.5)


def test_several_answers_to_a_prompt_read_it_once_and_are_given_side_by_side():
    four = serve([EngineRequest(0.0, 1000, 100, others=(100, 60, 40))], PLAIN)
    # So many sequences in iteration k, each with the prompt and k tokens.
    left = [(k, sum(n >= k for n in (100, 100, 60, 40))) for k in range(1, 101)]
    by_hand = PLAIN.prefill_s(1000) + sum(PLAIN.iteration_s(n, n * (1000 + k)) for k, n in left)
    assert four.end_s == pytest.approx(by_hand)
    alone = serve([EngineRequest(0.0, 1000, 100)], PLAIN).end_s
    assert four.end_s < 1.5 * alone, "not four times as long"


def test_the_cache_holds_a_prompt_of_several_answers_once():
    small = replace(PLAIN, cache_tokens=2000.0)
    one_prompt = serve([EngineRequest(0.0, 1000, 200, others=(200, 200, 200))], small)
    four_prompts = serve([EngineRequest(0.0, 1000, 200)] * 4, small)
    assert one_prompt.preempted == 0 and one_prompt.end_s < 0.6 * four_prompts.end_s


def test_two_engines_of_a_gpu_take_turns_and_none_waits_while_there_is_work():
    short, long = EngineRequest(0.0, 10, 20, then=EngineRequest(0.0, 70, 400)), EngineRequest(0.0, 10, 420)
    first, second = serve_beside([short, long], 1, PLAIN, PLAIN)
    assert max(first.end_s, second.end_s) == pytest.approx(first.busy_s[0] + second.busy_s[0])
    assert first.end_s > 1.8 * serve([replace(short, then=None), long], PLAIN).end_s, (
        "the refinement takes every other turn"
    )
    together, after = serve_beside([short, long], 1, PLAIN, PLAIN, block=2)
    assert together.end_s == pytest.approx(serve([replace(short, then=None), long], PLAIN).end_s), (
        "its refinement waits for the long one"
    )
    assert after.end_s == pytest.approx(together.end_s + serve([short.then], PLAIN).end_s)
    apart, beside = serve_beside([long, long], 2, PLAIN, PLAIN)
    assert apart.end_s == pytest.approx(serve([long], PLAIN).end_s) and beside.busy_s == [0.0, 0.0]


def test_a_pool_of_two_engines_halves_the_work_of_each_and_keeps_the_longest():
    requests = [EngineRequest(0.0, 10, n) for n in range(1, 201)]
    one, two = (serve_pool(requests, n, PLAIN) for n in (1, 2))
    assert len(two.busy_s) == 2 and two.end_s < one.end_s
    assert two.end_s > 200 * PLAIN.base_s(1)


@pytest.mark.parametrize(
    ("kind", "gib", "name"),
    [("H100 80GB HBM3", 80, "H100"), ("H200", 140, "H200"), ("A100-SXM4-80GB", 80, "A100-80G"),
     ("A100-PCIE-40GB", 40, "A100-40G"), ("GeForce RTX 4090", 24, "RTX4090"), ("L40S", 45, "L40S"), ("L4", 22, "L4"),
     ("Tesla T4", 15, "T4"), ("B200", 178, "B200")],
)  # fmt: skip
def test_the_names_that_nvml_gives_are_found(kind, gib, name):
    gpu, is_assumed = gpu_of(kind, gib)
    assert gpu.name == name and not is_assumed


@pytest.mark.parametrize("kind", ["RTX A4000", "NVIDIA RTX A4000", "L400"])
def test_a_card_whose_name_begins_like_another_s_is_not_taken_for_it(kind):
    assert gpu_of(kind, 16)[1]


@pytest.mark.parametrize(("gib", "name"), [(80, "H100"), (140, "H200"), (40, "A100-40G"), (24, "RTX4090"), (8, "L4")])
def test_a_gpu_of_which_only_the_memory_is_known_is_said_to_be_assumed(gib, name):
    assert (gpu_of("", gib)[0].name, gpu_of("", gib)[1]) == (name, True)


def test_a_cpu_engine_costs_what_its_processes_cost():
    tiny = model_costs(known()["Qwen/Qwen3-0.6B"], 4)
    assert on_cpu(tiny, 2).iteration_s(1, 0) > 0.25  # 2.4 GB at 8 GB/s
