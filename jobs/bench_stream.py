"""`python jobs/bench_stream.py`: what a step costs beyond sampling, refining and training, and what saturates first.

    made-up problems -> a real run: pools, stages, verifiers, feed, mailbox, Ray Data, Ray Train, weight sync, loop
        -> its rows and the CPU of its processes -> wall of a step to its bound, CPU a row, what reaches a core first

A stand-in replaces two things, which both sleep: vLLM's AsyncLLM and the learner's arithmetic. A row's lengths are a
function of its seed and nothing queues in an engine, so the least that a step can take is known exactly: see
trd_ray/record/bounds.py.

The wall is a mean over the steps after the first, from one recorded step to the next; where a run drains, without its
last ones, after which nothing is left to drain. Engines share a few processes, half of them sample and half refine.
Options: `--help`. A mistake in them is one sentence and exit code 2. Ctrl-C ends the run, and all its processes.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from stream_bench.meter import Meter, Usage
from stream_bench.results import Seen, report, text
from stream_bench.settings import Settings, settings

from trd_ray.errors import RunFailed, UserError

HERE = Path(__file__).resolve().parent
VOCABULARY = 151_936
PROBLEM_TOKENS, REFERENCE_TOKENS = 150, 400
POLL_S = 0.25  # as the feed does
SETTLE_S = 6.0  # for the stages to start, once the learner has
MOST_PROBLEMS = 4096  # a run that needs more meets them again


# What the run is given


def make_model(folder: Path) -> None:
    """A tiny random Qwen3 with a large vocabulary and a long context, and the miniature models' tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    from trd_ray import models

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=65_536, tie_word_embeddings=True, eos_token_id=4,
        pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(models.resolve("miniature:student")).save_pretrained(folder)


def write_problems(file: Path, count: int, tests_kib: int | None) -> None:
    """Sums of digits, each its own; all have the answer that the stand-in gives to half of its seeds.

    Tests are one case of random digits, which no other problem has.
    """
    random = os.urandom(512 * tests_kib).hex() if tests_kib else ""
    with open(file, "w") as out:
        for i in range(count):
            digits = f"{i:06d}" + "0123456789" * (PROBLEM_TOKENS // 10)
            reference = ("1+2=3; " * (REFERENCE_TOKENS // 6)) + r"\boxed{7}"
            texts = {"problem_id": f"sum-{i}", "problem": "+".join(digits), "answer": "7", "reference": reference}
            problem: dict[str, Any] = texts
            if tests_kib:
                at = (7919 * i) % len(random)
                case = f"{i}:{random[at:]}{random[:at]}"
                problem["tests"] = {"kind": "stdio", "inputs": [case], "outputs": ["7"], "compare": "tokens"}
            out.write(json.dumps(problem) + "\n")


def recipe(s: Settings, folder: Path) -> Any:
    from trd_ray import config

    def engines(replicas: int, median: int) -> dict[str, Any]:
        pace = {
            "median_tokens": median,
            "sigma": s.sigma,
            "max_tokens": s.max_tokens,
            "seconds_a_token": s.seconds_a_token,
            "vocabulary": VOCABULARY,
        }
        # vLLM's own place for what only a platform knows.
        extra = {"additional_config": {"pace": pace, "hosts": max(1, s.hosts // 2)}}
        return {
            "replicas": replicas, "cpus": 0, "gpus": 0, "max_response_tokens": s.max_tokens, "cpu_kv_cache_gib": 8,
            "extra": extra,
        }  # fmt: skip

    tree = {
        "name": "bench-stream",
        "run_dir": str(folder / "run"),
        "seed": s.seed,
        "steps": s.steps,
        "rollouts_per_step": s.rows,
        "student": {"path": str(folder / "model")},
        "data": {"path": str(folder / "problems.jsonl")},
        "prompts": {
            "solve": "{problem}",
            "solve_with_reference": "{problem}<|reference|>{reference}",
            "refine": "{problem}<|attempt|>{attempt}",
            "refine_with_reference": "{problem}<|reference|>{reference}<|attempt|>{attempt}",
        },
        "sampler": engines((s.engines + 1) // 2, s.raw_median),
        "refiner": engines(max(1, s.engines // 2), s.refined_median),
        "verify": {"cpus": 0.25, "task": "code" if s.tests_kib else "math"},
        "stream": {
            "max_staleness": s.staleness if s.staleness == "never" else int(s.staleness),
            "rows_per_block": s.rows_per_block,
        },
        "sync": {"in_flight": s.in_flight},
        "learner": {"dtype": "float32", "cpus": 0.5, "gpus": 0},
        "evaluation": {"path": None},
        "checkpoint": {"every_steps": 1_000_000},
        "cluster": {"address": "local", "object_store_gib": s.store_gib, "memory_gib": 1e6},
    }
    return config.from_tree(tree)


# The run, and what is seen of it


@contextlib.contextmanager
def standing_in(s: Settings, seen: Seen, meter: Meter) -> Iterator[None]:
    """Within the block, a run has engines and a learner that sleep, and is watched."""
    import ray
    from stream_bench import asleep
    from stream_bench.hosted import HostedPool

    from trd_ray.session.session import Session
    from trd_ray.train.loop import Training

    wait, record = Session.wait_until_started, Training.record

    def wait_and_note(session: Session) -> None:
        seen.idle = _idle(session, meter, s.idle_seconds)
        ray.get([pool.let_start.remote() for pool in session.pools.values()])
        wait(session)

    def record_and_note(training: Training, steps: int, *arguments: Any) -> None:
        record(training, steps, *arguments)
        seen.recorded_at.append(time.time())
        if steps in (1, s.steps - s.last_steps):
            pools = training.session.pools
            spent = sum(ray.get([pool.spent_s.remote() for pool in pools.values()]))
            [seen.up_at] = ray.get([pools["sampler"].when_up.remote()])
            if steps == 1:
                seen.first, seen.stand_in = meter.read(), (spent, spent)
            else:
                seen.last, seen.stand_in = meter.read(), (seen.stand_in[0], spent)

    in_front = [str(HERE / "stream_bench" / "in_front"), str(HERE)]
    path = os.pathsep.join(filter(None, [*in_front, os.environ.get("PYTHONPATH")]))
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}))
        stack.enter_context(patch("trd_ray.engine.launch.Pool", HostedPool))
        stack.enter_context(patch("trd_ray.distill.trainer.work", partial(asleep.work, s.train_seconds)))
        stack.enter_context(patch.object(Session, "wait_until_started", wait_and_note))
        stack.enter_context(patch.object(Training, "record", record_and_note))
        yield


def _idle(session: Any, meter: Meter, seconds: float) -> tuple[Usage, Usage, float]:
    """Usage before and after some seconds in which all is up but the engines, and the driver waits as for rows."""
    readings = []
    for wait_s in (SETTLE_S, seconds):
        begin = time.monotonic()
        while time.monotonic() - begin < wait_s:
            time.sleep(POLL_S)
            session.look()
        readings.append((meter.read(), time.monotonic()))
    (before, from_s), (after, to_s) = readings
    return before, after, to_s - from_s


def measure(s: Settings, folder: Path) -> Seen:
    """Run it. What the run prints goes to run.out, of which the end is shown if it fails."""
    from trd_ray.train import command

    make_model(folder / "model")
    write_problems(folder / "problems.jsonl", s.problems or min(MOST_PROBLEMS, s.rows * s.steps), s.tests_kib)
    seen = Seen()
    meter = Meter(str(HERE))
    try:
        with standing_in(s, seen, meter), open(folder / "run.out", "w") as out, contextlib.redirect_stdout(out):
            command.run(recipe(s, folder))
    except (RunFailed, UserError):
        print((folder / "run.out").read_text()[-3000:], file=sys.stderr)
        raise
    finally:
        meter.close()
    return seen


# The command


def main(arguments: list[str]) -> int:
    try:
        s, wants_json, keep = settings(arguments, __doc__ or "")
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    from trd_ray.session.stop import Stopped

    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            found = report(s, measure(s, folder), folder)
        except (UserError, RunFailed) as e:
            print(e, file=sys.stderr)
            return 2 if isinstance(e, UserError) else 1
        except Stopped as e:
            print(f"stopped by {e}", file=sys.stderr)
            return e.exit_code
        except KeyboardInterrupt:  # before the run has begun
            return 130
    print(text(found))
    if wants_json:
        print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    from trd_ray.session.supervise import supervised

    sys.exit(supervised(main, sys.argv[1:]))
