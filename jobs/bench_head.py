"""`python -m jobs.bench_head`: time and peak memory of the fused head, beside what else computes the same loss.

    for every (tokens, hidden sizes): random hidden states, heads, weights  ->  loss and gradients by each method

    ours            trd_ray.distill.head.fused_divergence, with its statistics; and with torch.compile
    naive           whole logits, log_softmax, kl_div, autograd
    TRL             trl.kernels.chunked_divergence of TRL 1.16, which projects again in the backward pass
    Liger           LigerFusedLinearJSDLoss at beta 0, on a GPU
    matrix products the floor: both sides' logits and the two gradients, four products and nothing else

Every method computes forward KL over the whole vocabulary and the gradients of the student's hidden states and, but for
`--frozen-head`, of its lm_head. Methods take turns, so that what else the machine does falls on all alike; the median
of `--repeats` turns is reported. On a CPU that is the CPU time of `--threads` threads, which others on the machine
disturb less than a clock; on a GPU the clock. Peak memory is above what the inputs take, gradients included; on a CPU
every measurement has a process of its own. Needs torch alone; TRL and Liger take part where they are installed.
"""

import argparse
import ctypes
import gc
import importlib.util
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from trd_ray.distill.divergences import Divergence
from trd_ray.distill.head import fused_divergence

FLOOR = "matrix products"
NAIVE_COPIES = 5  # float32 tensors of [tokens, vocabulary] that autograd holds at its peak


@dataclass(frozen=True)
class Case:
    tokens: int
    student: int  # hidden sizes
    teacher: int
    vocabulary: int
    dtype: str
    device: str
    threads: int
    chunk_tokens: int
    frozen_head: bool


class Inputs:
    """Shapes: N tokens, H and G hidden sizes, V vocabulary."""

    def __init__(self, case: Case):
        torch.set_num_threads(case.threads)
        torch.manual_seed(0)
        make = {"device": case.device, "dtype": getattr(torch, case.dtype)}
        self.hidden_NH = torch.randn(case.tokens, case.student, **make).requires_grad_()
        self.head_VH = (torch.randn(case.vocabulary, case.student, **make) / math.sqrt(case.student)).mul_(2)
        self.head_VH.requires_grad_(not case.frozen_head)
        self.teacher_hidden_NG = torch.randn(case.tokens, case.teacher, **make)
        self.teacher_head_VG = (torch.randn(case.vocabulary, case.teacher, **make) / math.sqrt(case.teacher)).mul_(2)
        self.targets_N = torch.randint(case.vocabulary, (case.tokens,), device=case.device)
        self.weight_N = torch.full((case.tokens,), 1 / case.tokens, device=case.device)
        self.chunk_tokens = case.chunk_tokens


def ours(i: Inputs, compile: bool = False) -> torch.Tensor:
    loss, _ = fused_divergence(
        i.hidden_NH,
        i.head_VH,
        i.teacher_hidden_NG,
        i.teacher_head_VG,
        i.targets_N,
        i.weight_N,
        divergence=Divergence(),
        chunk_tokens=i.chunk_tokens,
        compile=compile,
    )
    return loss


def ours_compiled(i: Inputs) -> torch.Tensor:
    return ours(i, compile=True)


def naive(i: Inputs) -> torch.Tensor:
    student_NV = (i.hidden_NH @ i.head_VH.T).float().log_softmax(-1)
    with torch.no_grad():
        teacher_NV = (i.teacher_hidden_NG @ i.teacher_head_VG.T).float().log_softmax(-1)
    kl_NV = torch.nn.functional.kl_div(student_NV, teacher_NV, reduction="none", log_target=True)
    return (kl_NV.sum(-1) * i.weight_N).sum()


def trl(i: Inputs) -> torch.Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    kl_N, _ = ChunkedDivergenceFunction.apply(
        i.hidden_NH, i.head_VH, None, i.teacher_hidden_NG, i.teacher_head_VG, None, 0.0
    )
    return (kl_N * i.weight_N).sum()


def liger(i: Inputs) -> torch.Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # type: ignore[reportMissingImports]

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0)
    return loss(i.hidden_NH, i.head_VH, i.teacher_hidden_NG, i.teacher_head_VG, i.targets_N)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, head_VH, teacher_hidden_NG, teacher_head_VG, chunk_tokens, needs_head):
        hidden_grad_NH = torch.empty_like(hidden_NH)
        head_grad_VH = torch.zeros_like(head_VH) if needs_head else None
        for begin in range(0, len(hidden_NH), chunk_tokens):
            c = slice(begin, begin + chunk_tokens)
            logits_CV = hidden_NH[c] @ head_VH.T
            torch.mm(teacher_hidden_NG[c], teacher_head_VG.T)
            torch.mm(logits_CV, head_VH, out=hidden_grad_NH[c])
            if head_grad_VH is not None:
                torch.addmm(head_grad_VH, logits_CV.T, hidden_NH[c], out=head_grad_VH)
        ctx.save_for_backward(hidden_grad_NH, head_grad_VH)
        return hidden_NH.new_zeros(())

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        return *ctx.saved_tensors, None, None, None, None


def products(i: Inputs) -> torch.Tensor:
    """In long chunks, whatever `--chunk` is: what no choice of ours slows down."""
    sides = (i.hidden_NH, i.head_VH, i.teacher_hidden_NG, i.teacher_head_VG)
    return _Products.apply(*sides, 4096, i.head_VH.requires_grad)  # type: ignore[return-value]


METHODS: dict[str, Callable[[Inputs], torch.Tensor]] = {
    FLOOR: products,
    "ours": ours,
    "ours, compiled": ours_compiled,
    "naive": naive,
    "TRL": trl,
    "Liger": liger,
}


def step(method: str, i: Inputs) -> None:
    METHODS[method](i).backward()
    i.hidden_NH.grad = i.head_VH.grad = None


def seconds(method: str, i: Inputs) -> float:
    on_gpu = i.hidden_NH.is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    clock = time.perf_counter if on_gpu else time.process_time
    begin = clock()
    step(method, i)
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - begin


def peak_mib_on_gpu(method: str, i: Inputs) -> float:
    step(method, i)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    METHODS[method](i).backward()
    peak = torch.cuda.max_memory_allocated() - before
    i.hidden_NH.grad = i.head_VH.grad = None
    return peak / 2**20


def peak_mib_in_this_process(method: str, case: Case) -> float:
    """Highest resident memory of a step above what was resident before it; the first step loads and compiles."""
    i = Inputs(case)
    step(method, i)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten: proc(5)
    before = _status_mib("VmRSS")
    METHODS[method](i).backward()
    return _status_mib("VmHWM") - before


def _status_mib(entry: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith(f"{entry}:"))


def peak_mib(method: str, case: Case, i: Inputs) -> float:
    if case.device == "cuda":
        return peak_mib_on_gpu(method, i)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(peak_mib_in_this_process, method, case).result()


def measure(case: Case, methods: list[str], repeats: int) -> list[str]:
    """The table's rows of one case."""
    i, methods = Inputs(case), list(methods)
    for method in list(methods):
        try:
            step(method, i)  # loads, compiles
        except torch.OutOfMemoryError:
            i.hidden_NH.grad = i.head_VH.grad = None
            methods.remove(method)
            print(f"{method} runs out of memory at {case.tokens} tokens: left out there", file=sys.stderr)
    times: dict[str, list[float]] = {method: [] for method in methods}
    for turn in range(repeats):
        for method in methods[turn % len(methods) :] + methods[: turn % len(methods)]:
            times[method].append(seconds(method, i))
    peaks = {method: peak_mib(method, case, i) for method in methods}
    rows = []
    for method in methods:
        median = statistics.median(times[method])
        floor = median / statistics.median(times[FLOOR])
        less = f"{peaks['naive'] / peaks[method]:.1f}x" if "naive" in peaks else "-"
        rows.append(
            f"| {case.tokens} | {case.student}, {case.teacher} | {method} | {median:.3f} | {floor:.2f}x "
            f"| {peaks[method]:.0f} | {less} |"
        )
    return rows


def available_mib() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("MemAvailable:"))


def left_out(case: Case) -> dict[str, str]:
    """Methods that cannot take part, and why."""
    absent = {}
    for method, module, install in (("TRL", "trl", "trl==1.16.0"), ("Liger", "liger_kernel", "liger-kernel")):
        if importlib.util.find_spec(module) is None:
            absent[method] = f"is not installed: pip install {install}"
    if case.device == "cpu":
        absent["Liger"] = "is measured on a GPU only"
        needed = NAIVE_COPIES * 4 * case.tokens * case.vocabulary / 2**20
        if needed > available_mib():
            absent["naive"] = f"would need {needed / 1024:.0f} GiB, more than is free"
    return absent


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"bench_head: {message}; see --help\n")


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


def pair_of_sizes(text: str) -> tuple[int, int]:
    student, colon, teacher = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text} is not student:teacher hidden sizes such as 1024:2048")
    return positive(student), positive(teacher)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="bench_head", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=positive, nargs="+", help="default: 2048 8192 32768; on a CPU 512 1536")
    parser.add_argument(
        "--sizes",
        type=pair_of_sizes,
        nargs="+",
        metavar="STUDENT:TEACHER",
        help="hidden sizes; default: 1024:2048 2048:4096; on a CPU 512:1024 1024:2048",
    )
    parser.add_argument("--vocabulary", type=positive, help="default: 151936; on a CPU 16384")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16; on a CPU float32")
    parser.add_argument("--chunk", type=positive, default=1024, help="learner.chunk_tokens; default: 1024")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=1, help="of a CPU")
    parser.add_argument("--frozen-head", action="store_true", help="as with LoRA: no gradient of lm_head")
    parser.add_argument("--methods", nargs="+", choices=[m for m in METHODS if m != FLOOR], default=list(METHODS))
    a = parser.parse_args(argv)
    if a.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use: take --device cpu")
    on_gpu = a.device == "cuda"
    a.tokens = a.tokens or ([2048, 8192, 32768] if on_gpu else [512, 1536])
    a.sizes = a.sizes or ([(1024, 2048), (2048, 4096)] if on_gpu else [(512, 1024), (1024, 2048)])
    a.vocabulary = a.vocabulary or (151_936 if on_gpu else 16_384)
    a.dtype = a.dtype or ("bfloat16" if on_gpu else "float32")
    return a


def main() -> int:
    a = arguments()
    machine = torch.cuda.get_device_name() if a.device == "cuda" else f"CPU, threads {a.threads}"
    head = "frozen lm_head" if a.frozen_head else "trained lm_head"
    print(f"torch {torch.__version__}, {machine}, {a.dtype}, vocabulary {a.vocabulary}, {head}, chunk {a.chunk}\n")
    unit = "s" if a.device == "cuda" else "CPU s"
    print(f"| tokens | hidden sizes | method | {unit} | to products | peak MiB | less than naive |")
    print("|---:|---|---|---:|---:|---:|---:|")
    said: dict[str, str] = {}
    for student, teacher in a.sizes:
        for tokens in a.tokens:
            case = Case(tokens, student, teacher, a.vocabulary, a.dtype, a.device, a.threads, a.chunk, a.frozen_head)
            absent = left_out(case)
            said |= {method: why for method, why in absent.items() if method in a.methods}
            methods = [m for m in METHODS if m == FLOOR or (m in a.methods and m not in absent)]
            print("\n".join(measure(case, methods, a.repeats)), flush=True)
    for method, why in said.items():
        print(f"\n{method} {why}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
