"""Real vLLM engines in real Ray actors: what a pool answers, and what it does when engines die, come and go."""

import os
import pickle
import subprocess
import sys

import numpy as np
import psutil
import pytest
import ray
from ray.exceptions import RayActorError

from serving import CONTEXT, EOS, Served, greedy_requests, pool_spec, processes_writing_to, prompts, until
from trd_ray.engine.actor import Request
from trd_ray.engine.client import Client
from trd_ray.engine.pool import PoolFailed

PAPER = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
pytestmark = pytest.mark.timeout(400)


def test_requests_go_to_the_least_loaded_engine(tied):
    one_call = tied.ask([Request(prompt_ids=p, seed=0, max_tokens=50) for p in prompts(30, 8)])
    assert sorted(_by_engine(one_call).values()) == [15, 15]
    calls = [tied.begin([Request(prompt_ids=p, seed=0, max_tokens=100)]) for p in prompts(20, 8)]
    assert sorted(_by_engine([g for call in calls for g in tied.answers(call)]).values()) == [10, 10]
    [long] = tied.endless_prompts(1, 300)
    busy = tied.begin(greedy_requests([long], 300))
    tied.wait(lambda status: status["running"] == 1)
    short = [tied.ask(greedy_requests([p], 1))[0].engine for p in prompts(5, 8)]
    assert {tied.answers(busy)[0].engine, *short} == {"tied-0", "tied-1"} and len(set(short)) == 1


def test_greedy_answers_are_those_of_transformers(tied, untied):
    for served in (tied, untied):
        asked = prompts(6, 10)
        answers = served.ask(greedy_requests(asked, 40))
        assert [g.ids for g in answers] == [served.greedy(p, 40) for p in asked]


def test_recorded_logprobs_are_of_the_model_itself_whatever_the_sampling(untied):
    asked = prompts(20, 12)
    answers = untied.ask([Request(prompt_ids=p, seed=i, max_tokens=60, **PAPER) for i, p in enumerate(asked)])
    gaps = [abs(a - b) for p, g in zip(asked, answers, strict=True) for a, b in _pairs(untied, p, g)]
    assert len(gaps) > 300
    assert sum(gaps) / len(gaps) < 1e-5 and max(gaps) < 1e-3


def test_scoring_a_prompt_gives_the_models_logprobs_of_it(tied):
    asked = prompts(8, 40)
    scored = tied.ask([Request(prompt_ids=p, seed=0, prompt_logprobs=True, **PAPER) for p in asked])
    for p, g in zip(asked, scored, strict=True):
        assert g.prompt_logprobs == pytest.approx(tied.logprobs(p[:1], p[1:]), abs=1e-4)
        assert len(g.ids) == 1


def test_what_the_prefix_cache_holds_of_a_prompt_is_scored_again(tied):
    [p] = prompts(1, 280, seed=5)  # a block of the cache has 128 or 256 tokens on a CPU
    tied.ask([Request(prompt_ids=p, seed=0, max_tokens=4)] * 2)  # both engines hold it
    for cached in (p, p[:260] + p[:16]):
        [g] = tied.ask([Request(prompt_ids=cached, seed=0, prompt_logprobs=True)])
        assert g.prompt_logprobs == pytest.approx(tied.logprobs(cached[:1], cached[1:]), abs=1e-4)


def test_a_prompt_that_is_scored_must_leave_room_for_a_token(tied):
    [whole] = prompts(1, CONTEXT)
    one_shorter, full = (Request(prompt_ids=p, seed=0, prompt_logprobs=True) for p in (whole[:-1], whole))
    assert len(tied.ask([one_shorter])[0].prompt_logprobs) == CONTEXT - 2
    [told] = tied.ask([full])
    assert told.finish == "refused" and str(CONTEXT) in told.refused


def test_a_finish_reason_says_how_the_answer_ended(untied):
    asked = prompts(300, 6)
    answers = untied.ask([Request(prompt_ids=p, seed=i, temperature=2.0, max_tokens=30) for i, p in enumerate(asked)])
    for g in answers:
        assert g.finish == ("stop" if g.ids[-1] == EOS else "length")
        assert EOS not in g.ids[:-1] and len(g.ids) == len(g.logprobs)
        assert len(g.ids) == 30 or g.finish == "stop"
        assert "<" not in g.text  # special tokens are among the ids, not in the text
    assert any(g.ids == [EOS] and g.text == "" for g in answers), "no answer was empty"
    assert any(set(g.ids[:-1]) & {0, 2, 3} for g in answers), "no answer had a special token inside"
    assert {g.finish for g in answers} == {"stop", "length"}


def test_an_answer_ends_where_the_context_does(tied):
    [prompt] = prompts(1, CONTEXT - 5)
    answers = tied.ask([Request(prompt_ids=prompt, seed=i, max_tokens=100) for i in range(20)])
    for g in answers:
        assert len(g.ids) == 5 and g.finish == "length" or g.ids[-1] == EOS and g.finish == "stop"
    assert any(g.finish == "length" for g in answers)


def test_a_prompt_longer_than_the_context_is_refused_and_harms_nobody(tied):
    [told] = tied.ask(greedy_requests([[5] * (CONTEXT + 1)], 1))
    assert told.finish == "refused" and told.ids == [] and str(CONTEXT) in told.refused
    assert len(tied.ask(greedy_requests(prompts(1, 5), 1))) == 1 and tied.status()["restarts"] == 0


def test_the_same_seed_gives_the_same_sample_and_n_gives_different_ones(tied):
    request = Request(prompt_ids=prompts(1, 8)[0], seed=7, max_tokens=30, temperature=2.0, n=3)
    first, second = (future.result(timeout=60) for future in tied.begin([request, request]))
    assert [g.ids.tolist() for g in first] == [g.ids.tolist() for g in second]
    assert len({tuple(g.ids.tolist()) for g in first}) == 3


def test_more_prompt_tokens_than_one_scheduler_step_takes_are_all_answered(untied):
    # Seeded requests whose prompt is cut in two have ended vLLM's engine process on the CPU.
    answers = untied.ask([Request(prompt_ids=p, seed=i, max_tokens=2) for i, p in enumerate(prompts(50, 301))])
    assert len(answers) == 50 and untied.status()["restarts"] == 0


def test_a_killed_engine_is_restarted_and_every_request_answered(untied):
    asked = untied.endless_prompts(4, 200)
    calls = [untied.begin(greedy_requests([p], 200)) for p in asked]
    untied.wait(lambda status: status["running"] == 4)
    untied.engine_process(0).kill()
    status = untied.wait(lambda status: status["restarts"] == 1)
    assert status["restarting"] and not status["needs_weights"] and not status["failure"]
    assert [untied.answers(call)[0].ids for call in calls] == [untied.greedy(p, 200) for p in asked]
    # It started with the weights of the pool's version, so nobody has to send them.
    status = untied.status()
    assert (status["restarts"], status["needs_weights"], status["restarting"]) == (1, False, False)


def test_a_pool_whose_process_is_killed_goes_on_with_its_engine_and_answers_who_waits(untied):
    asked = untied.endless_prompts(4, 400)
    before = untied.status()
    flying = [untied.begin(greedy_requests([p], 400)) for p in asked]
    untied.wait(lambda status: status["running"] == 4)
    core = untied.engine_process(0)
    at_gate = untied.begin(greedy_requests(prompts(1, 8), 5), untied.version + 1)
    untied.wait(lambda status: status["waiting"] == 1)
    psutil.Process(before["pid"]).kill()
    assert [untied.answers(call)[0].ids for call in flying] == [untied.greedy(p, 400) for p in asked]
    status = untied.wait(lambda status: status["up"] == 1)
    assert status["pid"] != before["pid"] and core.is_running()
    kept = ("version", "restarts", "needs_weights", "engines")
    assert {name: status[name] for name in kept} == {name: before[name] for name in kept}
    untied.perturb()
    assert untied.push() is None
    assert [g.version for g in untied.answers(at_gate)] == [untied.version]
    untied.begin_anew()


def test_a_pool_shrinks_and_grows_while_requests_run(tied):
    asked = tied.endless_prompts(6, 250)
    calls = [tied.begin(greedy_requests([p], 250)) for p in asked]
    tied.wait(lambda status: status["running"] == 6)
    ray.get(tied.pool.resize.remote(1), timeout=60)
    assert tied.status()["engines"] == 1
    until(lambda: not processes_writing_to(tied.logs()[1]), 10)
    growing = tied.pool.resize.remote(2)
    alone = [g for _ in range(5) for g in tied.ask(greedy_requests(asked[:2], 20))]
    assert set(_by_engine(alone)) == {"tied-0"}
    ray.get(growing, timeout=200)
    answers = [tied.answers(call)[0] for call in calls]
    assert [g.ids for g in answers] == [tied.greedy(p, 250) for p in asked]
    assert set(_by_engine(answers)) == {"tied-0", "tied-1"}
    # At the version that engines start with, the new one serves at once.
    assert set(_by_engine(tied.ask(greedy_requests(asked, 5)))) == {"tied-0", "tied-2"}
    with pytest.raises(ValueError, match="at least 1 engine"):
        ray.get(tied.pool.resize.remote(0))


def test_an_engine_that_cannot_start_fails_the_pool_with_the_reason(ray_cluster, tiny_tied, tmp_path):
    missing = Served.starting(pool_spec("missing", str(tmp_path / "no-model"), tmp_path))
    too_long = Served.starting(pool_spec("too_long", tiny_tied, tmp_path, max_model_len=100_000))
    nowhere = Served.starting(pool_spec("nowhere", tiny_tied, tmp_path), num_cpus=1000, start_timeout_s=5)
    client = Client(too_long[0])
    waiting = client.submit(greedy_requests([[5]], 1)[0])
    expected = {
        missing: ["engine missing-0 failed to start", "no-model"],
        too_long: ["engine too_long-0 failed to start", "100000", "max_model_len"],
        nowhere: ["engine nowhere-0 did not start within 5 s", "1000 CPUs", "nowhere.start_timeout_s"],
    }
    for (pool, started), words in expected.items():
        with pytest.raises(PoolFailed) as failed:
            ray.get(started, timeout=120)
        failure = ray.get(pool.status.remote())["failure"]
        assert str(failed.value.cause) == failure
        assert all(word in failure for word in words), failure
    with pytest.raises(PoolFailed, match="100000"):
        waiting.result(timeout=10)
        assert len(failure.splitlines()) > 5 or pool is nowhere[0], "the log's tail is not in the message"
    client.close()
    ray.get([pool.shutdown.remote() for pool, _ in expected], timeout=60)


def test_tokens_and_log_probabilities_come_as_arrays_and_a_prompt_may_be_one(tied):
    [prompt] = prompts(1, 10)
    asked = greedy_requests([prompt], 20) + greedy_requests([np.array(prompt, np.int32)], 20)
    [as_list], [as_array] = (future.result(timeout=60) for future in tied.begin(asked))
    assert (as_list.ids == as_array.ids).all() and as_list.ids.tolist() == tied.greedy(prompt, 20)
    assert (as_list.ids.dtype, as_list.logprobs.dtype) == (np.int32, np.float32)
    [scored] = tied.begin([Request(np.array(prompt, np.int32), seed=0, prompt_logprobs=True)])[0].result(timeout=60)
    assert scored.prompt_logprobs.dtype == np.float32 and len(scored.prompt_logprobs) == 9


def test_a_cancelled_request_counts_no_longer_and_its_engine_goes_on(tied):
    [prompt] = tied.endless_prompts(1, 300)
    [cancelled] = tied.begin(greedy_requests([prompt], 1500))
    tied.wait(lambda status: status["running"] == 1)
    cancelled.cancel()
    tied.wait(lambda status: status["running"] == 0)
    assert [g.ids for g in tied.ask(greedy_requests([prompt] * 2, 20))] == [tied.greedy(prompt, 20)] * 2


def test_an_actor_that_is_killed_while_it_asks_leaves_no_request_counted(tied):
    @ray.remote(num_cpus=0, max_restarts=1)
    class Stage:
        def __init__(self, pool):
            self.client = Client(pool)

        async def ask(self, request):
            return await self.client.generate(request)

    [prompt] = tied.endless_prompts(1, 300)
    stage = Stage.remote(tied.pool)
    lost = [stage.ask.remote(request) for request in greedy_requests([prompt] * 3, 1500)]
    tied.wait(lambda status: status["running"] == 3)
    ray.kill(stage, no_restart=False)
    with pytest.raises(RayActorError):
        ray.get(lost, timeout=60)
    again = greedy_requests([prompt], 20)[0]
    until(lambda: not isinstance(_outcome(stage.ask.remote(again)), RayActorError), 60)
    assert tied.wait(lambda status: status["running"] == 0, 5)["restarts"] == 0
    ray.kill(stage)


def test_a_terminal_interrupt_does_not_reach_the_engines(tied):
    groups = {os.getpgid(tied.engine_process(0).pid), os.getpgid(tied.actor_process(0).pid)}
    assert groups == {tied.actor_process(0).pid}  # not the driver's group, to which Ctrl-C goes
    assert os.getpgrp() not in groups


def test_what_an_engine_started_ends_with_it_even_if_ray_was_killed_before(tmp_path):
    code = """
import subprocess, sys, time
from trd_ray.engine.actor import take_descendants_along
take_descendants_along()
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as actor:
        started = psutil.Process(int(actor.stdout.readline()))
        actor.kill()
    until(lambda: not started.is_running() or started.status() == "zombie", 10)


def test_a_failure_keeps_its_message_when_it_travels():
    assert str(pickle.loads(pickle.dumps(PoolFailed("why\nlog")))) == "why\nlog"


def _outcome(ref):
    try:
        return ray.get(ref, timeout=60)
    except RayActorError as e:
        return e


def _by_engine(answers) -> dict[str, int]:
    engines = [g.engine for g in answers]
    return {e: engines.count(e) for e in engines}


def _pairs(served, prompt, generation):
    return zip(generation.logprobs, served.logprobs(prompt, generation.ids), strict=True)
