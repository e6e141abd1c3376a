"""`python jobs/bench_step.py`: trained tokens a second of one optimizer step, our learner beside TRL's distillation.

    random student, teacher, rollouts of long-tailed lengths -> a process for each method, which waits for its turn
        -> step 1: same loss, same gradients, or no figures -> steps 2..: ours, TRL, ours, TRL, ... -> Markdown table

All minimise forward KL(teacher || student) over the whole vocabulary, as the sum over a step's response tokens divided
by their number. TRL's trainers run as a user would run them, in `trainer.train()`; a step is timed between its
callbacks. `DistillationTrainer` is handed the rollouts where it would generate them, `GKDTrainer` reads them from its
data set (lmbda = 0). Methods may hold equally many tokens at a time: TRL's batch size times the longest sequence.

Options: `--help`. A mistake in them is one sentence and exit code 2; methods that do not agree are exit code 1.
"""

import argparse
import multiprocessing
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch

from trd_ray.errors import UserError

LR, BETAS, GRAD_CLIP = 1e-5, (0.9, 0.95), 100.0  # so wide a clip that gradients are compared as they are
START_S, STEP_S = 600, 1800  # until a process is ready, and for a step
SAMPLE = 4096  # entries of each parameter's gradient that are compared
TOLERANCE = {"float32": (1e-4, 1e-3), "bfloat16": (2e-2, 1e-1)}  # relative: of the loss, of the gradients


@dataclass(frozen=True)
class Settings:
    device: str
    dtype: str
    hidden: int
    layers: int
    vocabulary: int
    rollouts: int
    median_tokens: int
    sigma: float
    max_tokens: int
    batch: int
    repeats: int
    seed: int
    compile: bool


@dataclass(frozen=True)
class Rollout:
    prompt_ids: list[int]
    response_ids: list[int]

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass
class Step:
    """What a method reports of one optimizer step."""

    seconds: float
    cpu_seconds: float  # of all threads: what another program's load changes least
    loss: float
    computed_tokens: int  # that went through the student's layers, padding included
    peak_mib: float  # most memory so far beyond what was held before the first step
    gradients: dict[str, torch.Tensor] | None  # samples, of the first step


def rollouts(s: Settings) -> list[Rollout]:
    """Responses lognormal around the median, cut at the maximum; prompts of 30 to 100 tokens."""
    rng = random.Random(s.seed)

    def ids(n: int) -> list[int]:
        return [rng.randrange(2, s.vocabulary) for _ in range(n)]

    lengths = [
        min(s.max_tokens, max(1, round(s.median_tokens * rng.lognormvariate(0, s.sigma)))) for _ in range(s.rollouts)
    ]
    return [Rollout(ids(rng.randint(30, 100)), ids(n)) for n in lengths]


def make_models(s: Settings, folder: Path) -> None:
    """A random Qwen3 student and a teacher of its shape, with logits spread as those of trained models are."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "Wait": 2, "However": 3}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<pad>", eos_token="<eos>")
    heads = max(1, s.hidden // 64)
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(s.seed + seed)
        config = Qwen3Config(
            vocab_size=s.vocabulary,
            hidden_size=s.hidden,
            intermediate_size=3 * s.hidden,
            num_hidden_layers=s.layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            head_dim=64,
            tie_word_embeddings=True,
            initializer_range=1.5 * s.hidden**-0.5,
            max_position_embeddings=s.max_tokens + 100,
            eos_token_id=1,
            pad_token_id=0,
            bos_token_id=None,
        )
        Qwen3ForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


# In a method's own process


class Turns:
    """The clock of a method's steps: each waits for the parent's word and then reports."""

    def __init__(self, parent: Connection, device: str):
        self.parent, self.cuda = parent, device == "cuda"
        self.before: float | None = None  # bytes held before the first step
        self.started = self.cpu_started = 0.0

    def begin(self) -> None:
        if self.before is None:
            self._forget_peak()
            self.before = torch.cuda.memory_allocated() if self.cuda else psutil.Process().memory_info().rss
            self.parent.send("ready")
        self.parent.recv()
        self.started, self.cpu_started = time.perf_counter(), time.process_time()

    def end(self, loss: float, computed_tokens: int, gradients: dict[str, torch.Tensor] | None) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        seconds, cpu = time.perf_counter() - self.started, time.process_time() - self.cpu_started
        assert self.before is not None
        self.parent.send(Step(seconds, cpu, loss, computed_tokens, (self._peak() - self.before) / 2**20, gradients))

    def _forget_peak(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes what is resident now

    def _peak(self) -> float:
        if self.cuda:
            return torch.cuda.max_memory_allocated()
        high_water = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert high_water
        return int(high_water[1]) * 1024


def sampled(parameters: Any) -> dict[str, torch.Tensor]:
    """Up to SAMPLE entries of each gradient, spread over it; `parameters` are pairs of name and parameter."""
    out = {}
    for name, p in parameters:
        grad = p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad
        flat = grad.detach().flatten()
        out[name] = flat[:: max(1, len(flat) // SAMPLE)].float().cpu()
    return out


def ours(turns: Turns, s: Settings, folder: Path, rows: list[Rollout]) -> None:
    import torch.distributed as dist

    from trd_ray import config
    from trd_ray.distill.batches import Example, collate, micro_batches, split
    from trd_ray.distill.learner import Learner

    dist.init_process_group(
        "nccl" if turns.cuda else "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
    )
    learner_settings = {
        "dtype": s.dtype,
        "tokens_per_micro_batch": s.batch * max(r.tokens for r in rows),
        "lr": LR,
        "betas": BETAS,
        "weight_decay": 0.0,
        "grad_clip": GRAD_CLIP,
        "warmup_ratio": 0.0,
        "min_lr_ratio": 1.0,
        "compile": s.compile,
    }
    recipe = config.from_tree(
        {
            "student": {"path": str(folder / "student")},
            "teacher": {"mode": "opd", "path": str(folder / "teacher")},
            "learner": learner_settings,
        }
    )
    learner = Learner(
        recipe,
        student_path=str(folder / "student"),
        teacher_path=str(folder / "teacher"),
        tokenizer_path=str(folder / "student"),
        total_steps=s.repeats + 1,
        device=torch.device(s.device),
    )
    gradients: dict[str, torch.Tensor] = {}
    hook = learner.optimizer.register_step_pre_hook(lambda *_: gradients.update(sampled(learner.trained.items())))
    examples = [Example(i, r.prompt_ids, r.prompt_ids, r.response_ids) for i, r in enumerate(rows)]
    c = recipe.learner

    def updates() -> list[list[list[Example]]]:
        return [micro_batches(u, c.tokens_per_micro_batch, c.packing)[0] for u in split(examples, 1, 1)]

    micro = [collate(m, 0, c.packing).student.input_ids_BT.numel() for u in updates() for m in u]
    for step in range(s.repeats + 1):
        turns.begin()
        metrics = learner.step(updates())
        turns.end(metrics["loss"], sum(micro), None if step else gradients)
        hook.remove()
    dist.destroy_process_group()


def run_trl(turns: Turns, s: Settings, base: type, folder: Path, arguments: Any, **kwargs: Any) -> None:
    """Train with a subclass of a TRL trainer that counts, and callbacks that take turns."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    class Counted(base):
        loss_sum, computed_tokens = 0.0, 0

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            masks = (inputs[name] for name in ("attention_mask", "prompt_mask", "completion_mask") if name in inputs)
            self.computed_tokens += sum(mask.numel() for mask in masks)
            return super().compute_loss(model, inputs, *args, **kwargs)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            self.loss_sum = self.loss_sum + loss
            return loss

    class Clock(TrainerCallback):
        gradients: dict[str, torch.Tensor] | None = None

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            trainer.loss_sum, trainer.computed_tokens = 0.0, 0
            turns.begin()

        def on_pre_optimizer_step(self, arguments: Any, state: Any, control: Any, **parts: Any) -> None:
            self.gradients = None if state.global_step else sampled(parts["model"].named_parameters())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.end(float(trainer.loss_sum), trainer.computed_tokens, self.gradients)

    trainer: Any = Counted(
        model=str(folder / "student"),
        teacher_model=AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=getattr(torch, s.dtype)),
        processing_class=AutoTokenizer.from_pretrained(folder / "student", padding_side="left"),
        args=arguments,
        callbacks=[Clock()],
        **kwargs,
    )
    trainer.train()


def trl_arguments(s: Settings, folder: Path, batch: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": s.rollouts // batch,
        "max_steps": s.repeats + 1,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "weight_decay": 0.0,
        "max_grad_norm": GRAD_CLIP,
        "gradient_checkpointing": False,  # TRL's default is True, which computes the layers' forward pass twice
        "bf16": s.dtype == "bfloat16",
        "torch_compile": s.compile,
        "use_cpu": s.device == "cpu",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "beta": 0.0,  # forward KL
        "temperature": 1.0,
    }


def trl_distillation(turns: Turns, s: Settings, folder: Path, rows: list[Rollout]) -> None:
    from datasets import Dataset
    from trl.trainer.distillation_config import DistillationConfig
    from trl.trainer.distillation_trainer import DistillationTrainer

    class OnGivenRollouts(DistillationTrainer):
        """The prompt is a row's number, its completion is the row's."""

        def _tokenize_prompts(self, prompts: list[str]) -> Any:
            self.asked = [rows[int(p)] for p in prompts]
            return [r.prompt_ids for r in self.asked], None, {}

        def _generate_single_turn(self, *_: Any, **__: Any) -> Any:
            return [r.response_ids for r in self.asked]

    arguments = DistillationConfig(max_completion_length=s.max_tokens, **trl_arguments(s, folder, s.batch))
    data = Dataset.from_dict({"prompt": [str(i) for i in range(len(rows))]})
    run_trl(turns, s, OnGivenRollouts, folder, arguments, train_dataset=data)


def trl_gkd(turns: Turns, s: Settings, folder: Path, rows: list[Rollout], sampling: str = "random") -> None:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    arguments = GKDConfig(
        lmbda=0.0,
        max_length=max(r.tokens for r in rows),
        train_sampling_strategy=sampling,
        **trl_arguments(s, folder, s.batch),
    )
    data = Dataset.from_dict(
        {
            "prompt": [""] * len(rows),
            "input_ids": [r.prompt_ids + r.response_ids for r in rows],
            "completion_mask": [[0] * len(r.prompt_ids) + [1] * len(r.response_ids) for r in rows],
        }
    )
    run_trl(turns, s, GKDTrainer, folder, arguments, train_dataset=data)


def trl_gkd_grouped(turns: Turns, s: Settings, folder: Path, rows: list[Rollout]) -> None:
    trl_gkd(turns, s, folder, rows, sampling="group_by_length")


def trl_gkd_batch_1(turns: Turns, s: Settings, folder: Path, rows: list[Rollout]) -> None:
    trl_gkd(turns, replace(s, batch=1), folder, rows)


METHODS: dict[str, tuple[str, Callable[[Turns, Settings, Path, list[Rollout]], None]]] = {
    "ours": ("trd_ray learner", ours),
    "distillation": ("TRL DistillationTrainer", trl_distillation),
    "gkd": ("TRL GKDTrainer", trl_gkd),
    "gkd-grouped": ("TRL GKDTrainer, grouped by length", trl_gkd_grouped),
    "gkd-1": ("TRL GKDTrainer, batch size 1", trl_gkd_batch_1),
}


def work(parent: Connection, method: str, s: Settings, folder: Path, rows: list[Rollout]) -> None:
    """The whole life of a method's process; what it writes goes to a file, of which the parent shows the end."""
    log = os.open(folder / f"{method}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    METHODS[method][1](Turns(parent, s.device), s, folder, rows)


# In the parent


@dataclass
class Contestant:
    method: str
    process: Any
    pipe: Connection
    log: Path
    steps: list[Step]
    failure: str = ""

    def hear(self, wait_s: float) -> Any:
        """The next report; None, and `failure` set, where the process has ended or takes too long."""
        try:
            if self.pipe.poll(wait_s):
                return self.pipe.recv()
            self.failure = f"no answer for {wait_s:.0f} s"
        except EOFError:
            self.process.join(10)
            last = (self.log.read_text().strip().splitlines() or ["no output"])[-1]
            killed = "; killed, most likely for want of memory" if self.process.exitcode == -9 else ""
            self.failure = f"exit code {self.process.exitcode}{killed}: {last[:200]}"
        return None

    def step(self) -> None:
        self.pipe.send("step")
        if report := self.hear(STEP_S):
            self.steps.append(report)


def disagreement(one: Step, other: Step, dtype: str) -> str | None:
    """In what two methods' first steps differ beyond the type's tolerance; None where they agree."""
    most_loss, most_gradient = TOLERANCE[dtype]
    loss = abs(one.loss - other.loss) / abs(one.loss)
    if not loss <= most_loss:
        return f"loss {other.loss:.6g} instead of {one.loss:.6g}"
    assert one.gradients is not None and other.gradients is not None
    if one.gradients.keys() != other.gradients.keys():
        return f"gradients of {sorted(one.gradients.keys() ^ other.gradients.keys())} on one side only"
    a, b = (torch.cat([g[name].double() for name in one.gradients]) for g in (one.gradients, other.gradients))
    apart = float((a - b).norm() / a.norm())
    return None if apart <= most_gradient else f"gradients {apart:.2g} of their norm apart"


def measure(s: Settings, methods: list[str], rows: list[Rollout], folder: Path) -> list[Contestant]:
    """Every method in its own process, one step at a time in turn; the first step of each is not timed but compared."""
    make_models(s, folder)
    context = multiprocessing.get_context("spawn")
    contestants = []
    for method in methods:
        pipe, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, method, s, folder, rows), daemon=True)
        process.start()
        theirs.close()
        contestants.append(Contestant(method, process, pipe, folder / f"{method}.log", []))
        contestants[-1].hear(START_S)  # one after the other: loading is heavy
    for _ in range(s.repeats + 1):
        for contestant in contestants:
            if not contestant.failure:
                contestant.step()
    for contestant in contestants:
        contestant.pipe.close()
        contestant.process.join(60)
        contestant.process.kill()
    return contestants


def table(contestants: list[Contestant], rows: list[Rollout]) -> str:
    """Markdown: a row for each method."""
    trained, real = sum(len(r.response_ids) for r in rows), sum(r.tokens for r in rows)
    seconds = {c.method: [step.seconds for step in c.steps[1:]] for c in contestants if len(c.steps) > 1}
    cpu_seconds = {c.method: [step.cpu_seconds for step in c.steps[1:]] for c in contestants if len(c.steps) > 1}
    lines = [
        "| method | s/step (least, most) | trained tokens/s | ours is faster by | CPU s/step | ours by CPU time "
        "| padded share | peak memory, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for c in contestants:
        name = METHODS[c.method][0]
        if c.failure:
            lines.append(f"| {name} | failed: {c.failure} | | | | | | |")
            continue
        times, last = seconds[c.method], c.steps[-1]
        median, cpu = statistics.median(times), statistics.median(cpu_seconds[c.method])
        by, by_cpu = (
            f"{statistics.median(of[c.method]) / statistics.median(of['ours']):.2f}x" if "ours" in of else ""
            for of in (seconds, cpu_seconds)
        )
        lines.append(
            f"| {name} | {median:.2f} ({min(times):.2f}, {max(times):.2f}) | {trained / median:,.0f} | {by} "
            f"| {cpu:.2f} | {by_cpu} | {1 - real / last.computed_tokens:.0%} | {last.peak_mib:,.0f} |"
        )
    return "\n".join(lines)


def notes(s: Settings, rows: list[Rollout]) -> str:
    import transformers

    lengths = sorted(len(r.response_ids) for r in rows)
    where = torch.cuda.get_device_name() if s.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"""
{where}; torch {torch.__version__}, transformers {transformers.__version__}, TRL {version("trl")}; {s.dtype}\
{", compiled" if s.compile else ""}. Student and teacher: Qwen3, hidden {s.hidden}, {s.layers} layers, \
vocabulary {s.vocabulary:,}.
A step: {s.rollouts} rollouts, {sum(lengths):,} trained tokens; responses lognormal, median {s.median_tokens}, \
sigma {s.sigma}, at most {s.max_tokens} (here {lengths[0]} to {lengths[-1]}); prompts 30 to 100. TRL: batch size \
{s.batch} unless said otherwise; ours: as many tokens a micro-batch as {s.batch} of the longest.
Median of {s.repeats} steps after one that is not timed. First steps agree in loss and gradients within \
{TOLERANCE[s.dtype][0]:g} and {TOLERANCE[s.dtype][1]:g}.
Not included: generation, TRL's data loading, logging, checkpoints, more than one rank, activation checkpointing. \
Memory is beyond the loaded models.
"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def settings(arguments: list[str]) -> tuple[Settings, list[str]]:
    """Raises UserError for what cannot be measured."""

    def positive(text: str) -> int:
        if not text.isdecimal() or not int(text):
            raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
        return int(text)

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=list(TOLERANCE), help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--sigma", type=float, default=1.0, help="of the lengths' logarithm; 0: all alike")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"of {', '.join(METHODS)}; default: all")
    for name, default, what in (
        ("hidden", 256, "size of both models"),
        ("layers", 4, "of both models"),
        ("vocabulary", 32_000, "tokens"),
        ("rollouts", 16, "a step"),
        ("median-tokens", 96, "of a response"),
        ("max-tokens", 1024, "of a response"),
        ("batch", 4, "TRL's batch size; our micro-batches hold as many tokens"),
        ("repeats", 3, "timed steps of each method"),
    ):
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"{what}; default {default}")
    chosen = vars(parser.parse_args(arguments))
    methods = chosen.pop("methods").split(",")
    chosen["dtype"] = chosen["dtype"] or ("bfloat16" if chosen["device"] == "cuda" else "float32")
    s = Settings(**chosen)
    if unknown := [m for m in methods if m not in METHODS]:
        raise UserError(f"there is no method {unknown[0]!r}: choose from {', '.join(METHODS)}")
    if s.rollouts % s.batch:
        raise UserError(
            f"--rollouts {s.rollouts} is not a multiple of --batch {s.batch}, which TRL's accumulation needs"
        )
    if s.vocabulary < 8:
        raise UserError(f"--vocabulary {s.vocabulary} leaves no tokens to sample: give at least 8")
    if not 0 <= s.sigma < 10:
        raise UserError(f"--sigma {s.sigma} must be from 0 to below 10")
    if s.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU that torch can see: leave it out to measure on the CPU")
    if not find_spec("trl"):
        raise UserError("TRL is not installed, which this compares with: pip install trl==1.16.0")
    return s, methods


def main(arguments: list[str]) -> int:
    try:
        s, methods = settings(arguments)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    rows = rollouts(s)
    with tempfile.TemporaryDirectory() as folder:
        contestants = measure(s, methods, rows, Path(folder))
    started = [c for c in contestants if c.steps]
    for c in started[1:]:
        if difference := disagreement(started[0].steps[0], c.steps[0], s.dtype):
            names = METHODS[c.method][0], METHODS[started[0].method][0]
            print(f"no figures, for {names[0]} does not take the step of {names[1]}: {difference}", file=sys.stderr)
            return 1
    print(table(contestants, rows))
    print(notes(s, rows))
    return int(any(c.failure for c in contestants))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
