"""The benchmarks of the head and of the learner's step, with the share of the card's peak that they reach (MFU).

    head      python -m jobs.bench_head: needs torch alone
    step      the learner itself on random weights of Qwen3's shapes: needs torch, transformers, peft and pydantic
    step-trl  python jobs/bench_step.py: needs TRL too

MFU counts the operations that the step must do (flops.py) over the data sheet's peak, or over what a matrix product
reached where the data sheet is not known here. A part fails when it does not run, not when it is slow.
"""

import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from trd_ray.doctor.gpu import flops
from trd_ray.doctor.gpu.gpu_card import matmul_tflops
from trd_ray.doctor.gpu.gpu_tests import CHECKOUT
from trd_ray.doctor.gpu.outcome import Figures, PartFailed, PartSkipped

HEAD_SIZES = (2048, 4096)  # Qwen3-1.7B taught by Qwen3-8B
HEAD_TOKENS = (2048, 8192)
VOCABULARY = 151_936
LARGE_GIB = 70.0  # from here on shapes are those of the 8B model, else of the 1.7B one
LAYERS = 4  # of the shapes: the share of the peak is that of all layers
ROWS, PROMPT, TEACHER_PROMPT, RESPONSE = 8, 200, 8192, 880  # a step's rows as the paper's lengths have them
STEPS = 3


def run_head(folder: Path) -> Figures:
    figures: Figures = {}
    peak = _peak_tflops()
    for name, options in (("trained", []), ("frozen", ["--frozen-head"])):
        sizes = ["--sizes", "{}:{}".format(*HEAD_SIZES), "--tokens", *map(str, HEAD_TOKENS)]
        arguments = ["--device", "cuda", *sizes, "--vocabulary", str(VOCABULARY), *options]
        table = _of_checkout([sys.executable, "-m", "jobs.bench_head", *arguments])
        for tokens, method, seconds, mib in head_rows(table):
            if method in ("ours", "ours, compiled", "matrix products") and tokens == max(HEAD_TOKENS):
                work = flops.head(tokens, *HEAD_SIZES, VOCABULARY, trained=name == "trained")
                figures[f"{method} ({name}) MFU"] = f"{work / seconds / peak / 1e12:.0%}"
                figures[f"{method} ({name}) MiB"] = mib
    if not any(key.startswith("ours,") for key in figures):
        raise PartFailed("bench_head gave no row of the compiled head", figures)
    return figures


def head_rows(table: str) -> list[tuple[int, str, float, float]]:
    """(tokens, method, seconds, peak MiB) of bench_head's Markdown rows."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    return [(int(c[0]), c[2], float(c[3]), float(c[5])) for c in cells if c[0].isdecimal()]


def run_step_beside_trl(folder: Path) -> Figures:
    small = ["--hidden", "1024", "--layers", "8", "--vocabulary", "151936", "--median-tokens", "512"]
    arguments = ["--device", "cuda", *small, "--max-tokens", "4096", "--methods", "ours,distillation,gkd-1"]
    table = _of_checkout([sys.executable, "jobs/bench_step.py", *arguments])
    figures: Figures = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 8 and cells[2] and cells[0] != "method" and not cells[0].startswith("-"):
            figures[f"{cells[0]}, trained tokens/s"] = float(cells[2].replace(",", ""))
    if not figures:
        raise PartFailed("bench_step gave no figures")
    return figures


def _of_checkout(command: list[str]) -> str:
    """What a benchmark of the repository prints; its errors go to this part's log."""
    if not (CHECKOUT / "jobs").is_dir():
        raise PartSkipped(f"there is no folder jobs in {CHECKOUT}: work from a checkout")
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="\n", flush=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise PartFailed(f"{' '.join(command[1:4])} ended with {done.returncode}: {last[:300]}")
    return done.stdout


def _peak_tflops() -> float:
    import torch

    return flops.peak_tflops(torch.cuda.get_device_name()) or matmul_tflops()


# The learner's step


def run_step(folder: Path) -> Figures:
    """LoRA as the paper's recipes have it, and full fine-tuning, of a few layers of the model's shape."""
    import torch

    large = torch.cuda.get_device_properties(0).total_memory / 2**30 >= LARGE_GIB
    shape = replace(flops.QWEN3_8B if large else flops.QWEN3_1P7B, layers=LAYERS)
    figures: Figures = {"shape": "8B" if large else "1.7B", "layers": LAYERS}
    peak = _peak_tflops()
    for lora in (True, False):
        name = "LoRA" if lora else "full"
        seconds, gib, tokens = learner_step(shape, lora=lora, device="cuda")
        student, teacher = [PROMPT + RESPONSE] * ROWS, [TEACHER_PROMPT + RESPONSE] * ROWS
        work = flops.step(shape, shape, student, teacher, tokens, lora=lora)
        figures[f"{name}: MFU"] = f"{work / seconds / peak / 1e12:.0%}"
        figures[f"{name}: trained tokens/s"] = tokens / seconds
        figures[f"{name}: s a step"] = seconds
        figures[f"{name}: peak GiB"] = gib
    return figures


def learner_step(
    shape: flops.Shape,
    *,
    lora: bool,
    device: str,
    rows: int = ROWS,
    prompts: tuple[int, int] = (PROMPT, TEACHER_PROMPT),
    response: int = RESPONSE,
) -> tuple[float, float, int]:
    """(median seconds of a step, peak GiB, trained tokens a step) of one rank: OPSD with a frozen teacher."""
    import torch
    import torch.distributed as dist

    from trd_ray import config
    from trd_ray.distill.batches import Example, micro_batches, split
    from trd_ray.distill.learner import Learner

    settings: dict[str, Any] = {"dtype": "bfloat16", "tokens_per_micro_batch": 4 * (prompts[1] + response)}
    settings |= {"activation_checkpointing": True, "lora": {} if lora else None}
    with tempfile.TemporaryDirectory() as place:
        model = make_model(shape, f"{place}/model", device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        store = f"file://{place}/store"
        dist.init_process_group("nccl" if device == "cuda" else "gloo", init_method=store, rank=0, world_size=1)
        try:
            recipe = config.from_tree({"student": {"path": model}, "teacher": {"mode": "opsd"}, "learner": settings})
            learner = Learner(
                recipe, student_path=model, teacher_path=model, tokenizer_path=model, total_steps=STEPS + 1,
                device=torch.device(device),
            )  # fmt: skip
            ids = _random_ids(shape.vocabulary)
            examples = [Example(i, ids(prompts[0]), ids(prompts[1]), ids(response)) for i in range(rows)]
            budget = recipe.learner.tokens_per_micro_batch
            times = []
            for _ in range(STEPS + 1):
                updates = [micro_batches(u, budget, True)[0] for u in split(examples, 1, 1)]
                begin = time.perf_counter()
                metrics = learner.step(updates)  # ends in a number on the host, so the GPU is done
                times.append(time.perf_counter() - begin)
                if metrics["skipped_updates"]:
                    raise PartFailed("a step on random weights had a gradient that is not finite")
            peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
            del learner
        finally:
            dist.destroy_process_group()
            if device == "cuda":
                torch.cuda.empty_cache()
    return sorted(times[1:])[STEPS // 2], peak, rows * response


def make_model(shape: flops.Shape, folder: str, device: str) -> str:
    """A Hugging Face folder of random weights."""
    import torch
    from transformers import AutoModelForCausalLM

    config = make_folder(shape, folder)
    with torch.device(device):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def make_folder(shape: flops.Shape, folder: str) -> Any:
    """The same without weights: a config, which is returned, and a tokenizer of three words."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config

    config = Qwen3Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, max_position_embeddings=40_960, tie_word_embeddings=False,
        eos_token_id=1, pad_token_id=0, bos_token_id=None, architectures=["Qwen3ForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    config.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "Wait": 2}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<pad>", eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    return config


def _random_ids(vocabulary: int) -> Any:
    rng = random.Random(0)
    return lambda count: [rng.randrange(2, vocabulary) for _ in range(count)]
