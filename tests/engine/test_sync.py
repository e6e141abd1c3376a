"""Weight updates from a trainer process into running engines: what is served when, by which weights, after deaths."""

import copy
import threading
import time

import pytest
import ray
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from serving import Served, greedy_requests, logprobs, processes_writing_to, prompts, until
from trd_ray import config
from trd_ray.distill.learner import Learner
from trd_ray.engine.actor import Request
from trd_ray.engine.pool import PoolFailed
from trd_ray.engine.sync import WeightSync

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_after_each_update_every_engine_answers_with_the_new_weights(pools, name):
    served: Served = pools[name]
    asked = prompts(10, 10)
    before = [served.greedy(p, 30) for p in asked]
    for _ in range(3):
        served.perturb()
        assert served.push() is None
        expected = [served.greedy(p, 30) for p in asked]
        assert expected != before, "the update changed nothing, so the test shows nothing"
        answers = served.ask(greedy_requests(asked, 30), min_version=served.version)
        assert [g.ids for g in answers] == expected
        assert {g.version for g in answers} == {served.version} == {served.status()["version"]}
        assert len({g.engine for g in answers}) == served.status()["engines"]
        before = expected


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_the_prefix_cache_never_serves_keys_of_old_weights(pools, name):
    served: Served = pools[name]
    prompt = prompts(1, 400)[0]  # several cache blocks
    for _ in range(2):
        for _ in range(2 * served.status()["engines"]):  # on every engine, the second time from the cache
            [g] = served.ask(greedy_requests([prompt], 20))
            assert g.logprobs == pytest.approx(served.logprobs(prompt, g.ids), abs=1e-3)
        served.perturb()
        assert served.push() is None
    [g] = served.ask(greedy_requests([prompt], 20))
    assert g.logprobs == pytest.approx(served.logprobs(prompt, g.ids), abs=1e-3)


def test_engines_that_rest_get_the_next_weights_before_they_answer_again(tied):
    """As they do where the learner has their GPUs meanwhile. On a CPU vLLM pauses, and frees nothing."""
    asked = prompts(6, 8)
    restarts = tied.status()["restarts"]
    ray.get(tied.pool.rest.remote(), timeout=60)
    held = tied.begin(greedy_requests(asked, 20))
    tied.perturb()
    for tags in (["weights"], ["kv_cache"]):
        status = tied.wait(lambda status: status["waiting"] == 6)
        assert status["running"] == 0 and status["phase"] == ("asleep" if tags == ["weights"] else "waking")
        ray.get(tied.pool.wake.remote(tags), timeout=60)
        if tags == ["weights"]:
            assert tied.push() is None
    answers = tied.answers(held)
    assert [g.ids for g in answers] == [tied.greedy(p, 20) for p in asked]
    assert {g.version for g in answers} == {tied.version}
    tied.perturb()
    assert tied.push() is None, "vLLM takes the next update as ever"
    again = tied.ask(greedy_requests(asked, 20), min_version=tied.version)
    assert [g.ids for g in again] == [tied.greedy(p, 20) for p in asked]
    assert tied.status()["restarts"] == restarts and tied.status()["phase"] == "awake"


def test_a_request_for_a_version_is_given_to_no_engine_before_all_serve_it(tied):
    early = tied.begin(greedy_requests(prompts(6, 8), 5), tied.version + 1)
    anyone = []
    seen = []

    def in_the_middle():
        anyone.append(tied.begin(greedy_requests(prompts(6, 8), 5)))  # any version would do, but none is served now
        time.sleep(0.5)
        seen.append((tied.status(), time.time()))

    tied.perturb()
    assert tied.wait(lambda status: status["waiting"] == 6)["running"] == 0
    tied.during_send = in_the_middle
    assert tied.push() is None
    tied.during_send = lambda: None
    [(status, when)] = seen
    assert (status["waiting"], status["running"], status["version"]) == (12, 0, tied.version - 1)
    for call in (early, anyone[0]):
        answers = tied.answers(call)
        assert [g.ids for g in answers] == [tied.greedy(p, 5) for p in prompts(6, 8)]
        assert all(g.version == tied.version and g.start_s > when for g in answers)


def test_drain_lets_requests_finish_on_the_weights_that_began_them(tied):
    asked = tied.endless_prompts(4, 300)
    old = copy.deepcopy(tied.model)
    flying = tied.begin(greedy_requests(asked, 300))
    tied.wait(lambda status: status["running"] == 4)
    tied.perturb()
    pushing = threading.Thread(target=tied.push)
    pushing.start()
    tied.wait(lambda status: status["updating"])
    late = tied.begin(greedy_requests(asked, 5))  # while the others drain
    pushing.join()
    for p, g in zip(asked, tied.answers(flying), strict=True):
        assert g.version == tied.version - 1 and len(g.ids) == 300
        assert g.logprobs == pytest.approx(logprobs(old, p, g.ids), abs=1e-3)
    assert [(g.version, g.ids) for g in tied.answers(late)] == [(tied.version, tied.greedy(p, 5)) for p in asked]


def test_keep_lets_requests_go_on_with_the_new_weights_and_records_the_oldest_version(untied):
    for attempt in range(5):  # until the weights come while all of them run, which on a busy machine they may not
        asked = untied.endless_prompts(4, 300)
        old = copy.deepcopy(untied.model)
        flying = untied.begin(
            [
                Request(prompt_ids=p, seed=attempt, temperature=0.1 * (i % 2), max_tokens=2000)
                for i, p in enumerate(asked)
            ]
        )
        untied.wait(lambda status, flying=flying: status["running"] == 4 or any(one.done() for one in flying))
        untied.perturb()
        assert untied.push() is None
        if not any(one.done() for one in flying):  # the pool hears of an answer a little later
            break
        untied.answers(flying)
        untied.model.load_state_dict(old.state_dict())  # under whose weights these answers are long
        assert untied.push() is None
    else:
        pytest.fail("no request outlived an update")
    went_on = 0
    for p, g in zip(asked, untied.answers(flying), strict=True):
        assert g.version == untied.version - 1
        before, after = logprobs(old, p, g.ids), untied.logprobs(p, g.ids)
        of_old = [abs(a - b) < 1e-3 for a, b in zip(g.logprobs, before, strict=True)]
        of_new = [abs(a - b) < 1e-3 for a, b in zip(g.logprobs, after, strict=True)]
        # From the update on, the keys of the whole sequence are the new weights'.
        switch = of_old.index(False)
        assert switch > 0 and all(of_new[switch:])
        went_on += len(g.ids) - switch
    assert went_on > 50


@pytest.mark.parametrize(("name", "backend"), [("adapted", "adapter"), ("untied", "gloo")])
def test_engines_answer_as_the_learner_s_adapters_do_sent_merged_or_as_they_are(
    pools, tiny_untied, tmp_path, name, backend
):
    served: Served = pools[name]
    lora = {"dtype": "float32", "lora": {"rank": 8, "alpha": 16}}
    learner = Learner(
        config.from_tree({"student": {"path": tiny_untied}, "learner": lora}), student_path=tiny_untied,
        teacher_path=tiny_untied, tokenizer_path=tiny_untied, total_steps=1, device=torch.device("cpu"),
    )  # fmt: skip
    sync = WeightSync(learner, [served.pool], backend=backend, dtype=torch.float32, timeout_s=120)
    asked, before = prompts(6, 10), []
    for step in range(2):
        torch.manual_seed(step)
        with torch.no_grad():
            for p in learner.trained.values():
                p.to_local().add_(0.1 * torch.randn(p.shape))
        assert sync.push(served.version + 1) is None
        served.version += 1
        for file, content in learner.adapter_files().items():
            (tmp_path / file).write_bytes(content)
        base = AutoModelForCausalLM.from_pretrained(tiny_untied, dtype=torch.float32)
        served.model = PeftModel.from_pretrained(base, tmp_path).merge_and_unload()  # type: ignore[operator]
        answers = served.ask(greedy_requests(asked, 30), min_version=served.version)
        assert [g.ids for g in answers] == [served.greedy(p, 30) for p in asked] != before
        before = [g.ids for g in answers]
        for prompt, g in zip(asked, answers, strict=True):
            assert g.logprobs == pytest.approx(learner.logprobs([(prompt, g.ids)])[0], abs=1e-3)
    sync.close()
    served.sync = None  # the next push connects anew


def test_an_engine_that_dies_before_the_transfer_delays_it_and_the_others_answer(tied):
    """An actor is killed while the requests before an update drain: they are asked again, of the other engine."""
    restarts = tied.status()["restarts"]
    [actor, core] = tied.actor_process(0), tied.engine_process(0)
    asked = tied.endless_prompts(4, 300)
    expected = [tied.greedy(p, 300) for p in asked]
    flying = [tied.begin(greedy_requests([p], 300)) for p in asked]
    tied.wait(lambda status: status["running"] == 4)
    tied.perturb()
    problems = []
    pushing = threading.Thread(target=lambda: problems.append(tied.push()))
    pushing.start()
    tied.wait(lambda status: status["updating"])
    actor.kill()
    pushing.join()
    until(lambda: not core.is_running(), 10)
    assert "tied-0, pause" in problems[0]
    assert [tied.answers(call)[0].ids for call in flying] == expected
    assert {tied.answers(call)[0].version for call in flying} == {tied.version}
    status = tied.status()
    assert status["restarts"] == restarts + 1 and status["restarting"] and not status["needs_weights"]
    # The restarted engine holds the weights of version 0, and gets none of the requests until it is sent others.
    tied.wait(lambda status: status["needs_weights"])
    assert len({g.engine for g in tied.ask(greedy_requests(asked, 5))}) == 1
    assert tied.push() is None
    _both_answer_with_the_new_weights(tied)


def test_an_engine_that_dies_in_the_transfer_makes_all_start_afresh(tied):
    """The others have lost their old weights and have not all of the new ones."""
    restarts = tied.status()["restarts"]
    tied.during_send = tied.engine_process(0).kill
    tied.perturb()
    problem = tied.push()
    tied.during_send = lambda: None
    assert "update_weights" in problem or "Connection" in problem, problem
    waiting = tied.begin(greedy_requests(prompts(4, 8), 20))
    status = tied.wait(lambda status: not status["restarting"])
    assert status["restarts"] == restarts + 2 and status["needs_weights"] and status["waiting"] == 4
    assert tied.push() is None
    assert [g.ids for g in tied.answers(waiting)] == [tied.greedy(p, 20) for p in prompts(4, 8)]
    _both_answer_with_the_new_weights(tied)


def _both_answer_with_the_new_weights(tied: Served) -> None:
    answers = tied.ask(greedy_requests(prompts(4, 8), 20), min_version=tied.version)
    assert [g.ids for g in answers] == [tied.greedy(p, 20) for p in prompts(4, 8)]
    assert len({g.engine for g in answers}) == 2 and {g.version for g in answers} == {tied.version}
    assert not tied.status()["needs_weights"]


def test_the_second_death_in_a_row_fails_the_pool_and_all_who_wait(untied):
    restarts = untied.status()["restarts"]
    [prompt] = untied.endless_prompts(1, 300)
    flying = untied.begin(greedy_requests([prompt], 300))
    untied.wait(lambda status: status["running"] == 1)
    untied.engine_process(0).kill()
    untied.wait(lambda status: status["needs_weights"])
    later = untied.begin(greedy_requests([prompt], 5), untied.version + 1)
    untied.engine_process(0).kill()
    untied.wait(lambda status: bool(status["failure"]))  # it is idle, and noticed all the same
    problem = untied.push()
    assert "died twice in a row" in problem
    failure = untied.status()["failure"]
    assert "engine untied-0 died twice in a row" in failure
    assert failure.splitlines()[-1] in untied.logs()[0].read_text().splitlines()
    assert untied.status()["restarts"] == restarts + 1
    for call in (flying, later, untied.begin(greedy_requests([prompt], 1))):
        with pytest.raises(PoolFailed, match="died twice in a row"):
            untied.answers(call)


def test_shutdown_leaves_no_process_and_tells_those_who_wait(pools):
    tied = pools["tied"]
    flying = tied.begin(greedy_requests(tied.endless_prompts(1, 300), 1500))
    waiting = tied.begin(greedy_requests([[5]], 1), tied.version + 1)
    tied.wait(lambda status: status["running"] == 1)
    ray.get([served.pool.shutdown.remote() for served in pools.values()], timeout=60)
    for call in (flying, waiting):
        with pytest.raises(PoolFailed, match="shut down"):
            tied.answers(call)
    until(lambda: not any(processes_writing_to(log) for served in pools.values() for log in served.logs()), 10)
