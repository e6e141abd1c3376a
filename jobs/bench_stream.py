"""`python jobs/bench_stream.py`: what a step costs beyond sampling, refining and training, and what saturates first.

    made-up problems -> a real run: pools, stages, verifiers, feed, mailbox, Ray Data, Ray Train, weight sync, loop
        -> its rows and the CPU of its processes -> wall of a step to its bound, CPU a row, what reaches a core first

A stand-in replaces two things, which both sleep: vLLM's AsyncLLM and the learner's arithmetic. A row's lengths are a
function of its seed, so what a step must take is known exactly: P, the longest way of a row through sampling and
refining; S, the longest sampling; T, training. Nothing queues in an engine.

    staleness 0: P + T      staleness k, keep: max(T, (P + T) / (k + 1))      drain: max(T, S, (P + T) / (k + 1))

The wall is a mean over the steps after the first, from one recorded step to the next. Engines share a few processes,
half of them sample and half refine. Options: `--help`. A mistake in them is one sentence and exit code 2. Ctrl-C ends
the run, and all its processes.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

from stand_in.meter import DRIVER, Meter, Usage

from trd_ray.errors import RunFailed, UserError

HERE = Path(__file__).resolve().parent
NEVER_STEPS = 4  # so many steps are on the way at a time where nothing becomes stale
VOCABULARY = 151_936
PROBLEM_TOKENS, REFERENCE_TOKENS = 150, 400
HOSTS = "engine hosts"


@dataclass(frozen=True)
class Settings:
    rows: int
    steps: int
    engines: int
    hosts: int
    staleness: str
    in_flight: str
    raw_median: int
    refined_median: int
    max_tokens: int
    sigma: float
    token_seconds: float
    learner_seconds: float
    scale: float
    rows_per_block: int | None
    store_gib: float
    seed: int

    @property
    def seconds_a_token(self) -> float:
        return self.token_seconds * self.scale

    @property
    def train_seconds(self) -> float:
        return self.learner_seconds * self.scale

    @property
    def together(self) -> int:
        """How many steps are on their way at a time."""
        return NEVER_STEPS if self.staleness == "never" else int(self.staleness) + 1


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


def write_problems(file: Path, count: int) -> None:
    """Sums of digits, each its own; all have the answer that the stand-in gives to half of its seeds."""
    with open(file, "w") as out:
        for i in range(count):
            digits = f"{i:06d}" + "0123456789" * (PROBLEM_TOKENS // 10)
            reference = ("1+2=3; " * (REFERENCE_TOKENS // 4)) + r"\boxed{7}"
            problem = {"problem_id": f"sum-{i}", "problem": "+".join(digits), "answer": "7", "reference": reference}
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
        "verify": {"cpus": 0.25},
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


@dataclass
class Seen:
    """What the driver notes while the run goes on."""

    up_at: float = 0.0  # when the engines and the learner were up
    recorded_at: list[float] = field(default_factory=list)  # for each step
    first: Usage | None = None  # after the first step
    last: Usage | None = None  # after the last step
    stand_in: tuple[float, float] = (0.0, 0.0)  # CPU seconds that the stand-in itself has used, at the same times


@contextlib.contextmanager
def standing_in(s: Settings, seen: Seen, meter: Meter) -> Iterator[None]:
    """Within the block, a run has engines and a learner that sleep, and is watched."""
    import ray
    from stand_in import asleep
    from stand_in.hosted import HostedPool

    from trd_ray.session.session import Session
    from trd_ray.train.loop import Training

    wait, record = Session.wait_until_started, Training.record

    def wait_and_note(session: Session) -> None:
        wait(session)
        seen.up_at = time.time()

    def record_and_note(training: Training, steps: int, *arguments: Any) -> None:
        record(training, steps, *arguments)
        seen.recorded_at.append(time.time())
        if steps in (1, s.steps):
            spent = sum(ray.get([pool.spent_s.remote() for pool in training.session.pools.values()]))
            if steps == 1:
                seen.first, seen.stand_in = meter.read(), (spent, spent)
            else:
                seen.last, seen.stand_in = meter.read(), (seen.stand_in[0], spent)

    in_front = [str(HERE / "stand_in" / "in_front"), str(HERE)]
    path = os.pathsep.join(filter(None, [*in_front, os.environ.get("PYTHONPATH")]))
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}))
        stack.enter_context(patch("trd_ray.engine.launch.Pool", HostedPool))
        stack.enter_context(patch("trd_ray.distill.trainer.work", partial(asleep.work, s.train_seconds)))
        stack.enter_context(patch.object(Session, "wait_until_started", wait_and_note))
        stack.enter_context(patch.object(Training, "record", record_and_note))
        yield


def measure(s: Settings, folder: Path) -> Seen:
    """Run it. What the run prints goes to run.out, of which the end is shown if it fails."""
    from trd_ray.train import command

    make_model(folder / "model")
    write_problems(folder / "problems.jsonl", s.rows * min(s.steps, 4))
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


# What it says


@dataclass(frozen=True)
class StepFacts:
    """Tokens of the longest rows of a step, and when its first request began."""

    way_tokens: int  # sampling and refining of one row
    raw_tokens: int
    refined_tokens: int
    started_at: float
    ended_at: list[float]  # when each row's refinement was there


def step_facts(file: Path) -> StepFacts:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(file, columns=["y_o.ids", "y_o.start_s", "y_r.ids", "y_r.start_s", "y_r.seconds"])

    def column(y: str, name: str) -> Any:
        return pc.struct_field(table[y].combine_chunks(), name)

    raw, refined = (pc.list_value_length(column(y, "ids")).to_pylist() for y in ("y_o", "y_r"))
    ends = [a + b for a, b in zip(*(column("y_r", n).to_pylist() for n in ("start_s", "seconds")), strict=True)]
    way = max(a + b for a, b in zip(raw, refined, strict=True))
    return StepFacts(way, max(raw), max(refined), min(column("y_o", "start_s").to_pylist()), ends)


def bound(s: Settings, facts: StepFacts) -> float:
    """The least seconds that a step can take where such steps follow one another."""
    way, train = facts.way_tokens * s.seconds_a_token, s.train_seconds
    least = max(train, (way + train) / s.together)
    if s.in_flight == "drain" and s.staleness not in ("0", "never"):
        least = max(least, facts.raw_tokens * s.seconds_a_token)
    return least


@dataclass(frozen=True)
class Report:
    settings: dict[str, Any]
    wall_s: float
    bound_s: float
    ratio: float
    longest_s: dict[str, float]  # P, S, R, T: means over the measured steps
    first_request_s: float  # from engines and learner up to the first request
    cpu_ms_a_row: dict[str, float]
    cpu_ms_a_row_in_all: float  # without the engines' hosts
    busiest: list[dict[str, Any]]  # processes: role, share of a core, rows a second at which it fills one
    store_mib: float
    driver_mib: float
    walls_s: list[float]


def report(s: Settings, seen: Seen, folder: Path) -> Report:
    facts = [step_facts(file) for file in sorted((folder / "run" / "rows").glob("step-*.parquet"))]
    assert seen.first and seen.last and len(facts) == s.steps
    walls = [b - a for a, b in zip(seen.recorded_at, seen.recorded_at[1:], strict=False)]
    span, measured = sum(walls), facts[1:]
    wall, least = span / len(walls), _mean([bound(s, f) for f in measured])
    # Rows of later steps are already on their way when the first step ends, so each side counts what it finished.
    recorded = s.rows * len(measured)
    begin, end = seen.recorded_at[0], seen.recorded_at[-1]
    refined = sum(begin <= t <= end for f in facts for t in f.ended_at) or recorded
    cpu = {
        role: 1e3 * (seconds - seen.first.roles.get(role, 0.0)) / _rows_of(role, recorded, refined)
        for role, seconds in sorted(seen.last.roles.items())
    }
    cpu["stand-in alone"] = 1e3 * (seen.stand_in[1] - seen.stand_in[0]) / refined
    in_all = sum(ms for role, ms in cpu.items() if role not in (HOSTS, "stand-in alone"))
    tokens = {
        "P": _mean([f.way_tokens for f in measured]),
        "S": _mean([f.raw_tokens for f in measured]),
        "R": _mean([f.refined_tokens for f in measured]),
    }
    longest = {name: n * s.seconds_a_token for name, n in tokens.items()} | {"T": s.train_seconds}
    return Report(
        asdict(s), wall, least, wall / least, longest, facts[0].started_at - seen.up_at, cpu, in_all,
        _busiest(seen.first, seen.last, span, recorded, refined), seen.last.store_bytes / 2**20,
        seen.last.driver_bytes / 2**20, walls,
    )  # fmt: skip


def _mean(values: list) -> float:
    return sum(values) / len(values)


def _rows_of(role: str, recorded: int, refined: int) -> int:
    return recorded if role in (DRIVER, "learner") else refined


def _busiest(first: Usage, last: Usage, span: float, recorded: int, refined: int) -> list[dict[str, Any]]:
    """The three busiest processes, engines' hosts aside: in a real run every engine has a process of its own."""
    used = [
        (seconds - first.processes.get(pid, ("", 0.0))[1], role)
        for pid, (role, seconds) in last.processes.items()
        if role != HOSTS
    ]
    top = sorted(used, reverse=True)[:3]
    return [
        {"role": role, "core_share": cpu / span, "rows_per_s_at_one_core": _rows_of(role, recorded, refined) / cpu}
        for cpu, role in top
        if cpu > 0
    ]


def text(r: Report) -> str:
    s = Settings(**r.settings)
    cpu = ", ".join(f"{role} {ms:.1f}" for role, ms in r.cpu_ms_a_row.items() if role not in (HOSTS, "stand-in alone"))
    longest = ", ".join(f"{name} {seconds:.2f}" for name, seconds in r.longest_s.items())
    busiest = "; ".join(
        f"{b['role']} {b['core_share']:.0%} of a core, full at {b['rows_per_s_at_one_core']:.0f} rows/s"
        for b in r.busiest
    )
    return f"""
{s.rows} rows a step, {s.engines} engines, staleness {s.staleness}, {s.in_flight}; {len(r.walls_s)} steps after the \
first; raw median {s.raw_median}, refined {s.refined_median}, at most {s.max_tokens} tokens
wall of a step      {r.wall_s:.2f} s ({min(r.walls_s):.2f} to {max(r.walls_s):.2f})
bound of a step     {r.bound_s:.2f} s ({longest} s)
ratio               {r.ratio:.3f}
CPU a row           {r.cpu_ms_a_row_in_all:.1f} ms: {cpu}
engines' hosts      {r.cpu_ms_a_row.get(HOSTS, 0.0):.1f} ms a row, of which the stand-in makes up answers for \
{r.cpu_ms_a_row["stand-in alone"]:.1f}
busiest             {busiest}
object store        {r.store_mib:.0f} MiB high water; driver {r.driver_mib:.0f} MiB
first request       {r.first_request_s:.1f} s after engines and learner were up"""


# The command


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def settings(arguments: list[str]) -> tuple[Settings, bool, Path | None]:
    """The settings, whether a line of JSON is wanted, and where the run's files stay. Raises UserError."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rows", type=positive, default=128, help="a step; default 128")
    add("--steps", type=positive, default=4, help="rounded up so that whole rounds are measured; default 4")
    add("--engines", type=positive, default=8, help="half sample, half refine; default 8")
    add("--hosts", type=positive, default=2, help="processes that they share; default 2")
    add("--staleness", choices=["0", "1", "2", "never"], default="0")
    add("--in-flight", choices=["drain", "keep"], default="drain")
    add("--raw-median", type=positive, default=7700, help="tokens; default 7,700")
    add("--refined-median", type=positive, default=880, help="tokens; default 880")
    add("--max-tokens", type=positive, default=16_384, help="of a response; default 16,384")
    add("--sigma", type=float, default=0.65, help="of the lengths' logarithm; default 0.65")
    add("--token-seconds", type=float, default=0.02, help="of decoding a token; default 0.02")
    add("--learner-seconds", type=float, default=60.0, help="of a step; default 60")
    add("--scale", type=float, default=0.05, help="of all these seconds; default 0.05")
    add("--rows-per-block", type=positive, help="default: the recipe's own default")
    add("--store-gib", type=float, default=2.0, help="size of the object store; default 2")
    add("--seed", type=int, default=0)
    add("--json", action="store_true", help="also one line of JSON")
    add("--keep", type=Path, metavar="FOLDER", help="where the run's files stay; default: nowhere")
    chosen = vars(parser.parse_args(arguments))
    wants_json, keep = chosen.pop("json"), chosen.pop("keep")
    s = Settings(**chosen)
    if not 2 <= s.engines <= 4096:
        raise UserError(f"--engines {s.engines} must be from 2, one that samples and one that refines, to 4096")
    if not 0 <= s.sigma < 10:
        raise UserError(f"--sigma {s.sigma} must be from 0 to below 10")
    if s.max_tokens > 24_576:
        raise UserError(f"--max-tokens {s.max_tokens} must leave the context of 65,536 room: give at most 24576")
    for name in ("token_seconds", "learner_seconds", "scale", "store_gib"):
        if not 0 < getattr(s, name) < 1e6:
            raise UserError(f"--{name.replace('_', '-')} {getattr(s, name)} must be a positive number")
    rounds = -(-max(1, s.steps - 1) // s.together)
    return Settings(**(asdict(s) | {"steps": 1 + rounds * s.together})), wants_json, keep


def main(arguments: list[str]) -> int:
    try:
        s, wants_json, keep = settings(arguments)
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
    print(text(found))
    if wants_json:
        print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    from trd_ray.session.supervise import supervised

    sys.exit(supervised(main, sys.argv[1:]))
