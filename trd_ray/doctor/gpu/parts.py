"""What `trd doctor --gpu` tries, in order: first what needs the least, so that an early failure tells the most.

Each part says what it needs and by when it must be done. Its work is a function of a folder, named by module and name,
so that this list imports none of them: `head` runs where vLLM is not installed.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trd_ray.doctor.gpu.outcome import Figures

TORCH = ("torch",)
LEARNER = ("torch", "transformers", "peft", "pydantic", "yaml")
ENGINES = ("torch", "ray", "vllm")

# The module to import -> the package to install, where they differ.
PACKAGES = {"yaml": "pyyaml"}


@dataclass(frozen=True)
class Part:
    name: str
    says: str
    work: str  # module:function; the module is one of this folder, or has a dot
    needs: tuple[str, ...]
    gpus: int = 1
    deadline_s: float = 460.0  # under 8 minutes, the end of its processes included

    def lacking(self, gpus: int) -> str:
        """Why it is skipped on a machine with so many GPUs, "" where it is not."""
        if gpus == 0:
            return "no GPU"
        if gpus < self.gpus:
            return (
                f"needs {self.gpus} GPUs, here is {gpus}" if gpus == 1 else f"needs {self.gpus} GPUs, here are {gpus}"
            )
        missing = [PACKAGES.get(name, name) for name in self.needs if importlib.util.find_spec(name) is None]
        return f"{', '.join(missing)} is not installed" if missing else ""


def function(work: str) -> Callable[[Path], Figures]:
    module, _, name = work.partition(":")
    return getattr(importlib.import_module(module if "." in module else f"trd_ray.doctor.gpu.{module}"), name)


PARTS = (
    Part("card", "what the cards are, and what a matrix product and a copy reach", "gpu_card:run", TORCH, 1, 120),
    Part("tests", "the tests marked gpu", "gpu_tests:run", ("torch", "transformers", "pytest")),
    Part("head", "bench_head: MFU and memory of the fused head", "speed:run_head", TORCH),
    Part("step", "the learner's step with Qwen3's shapes: MFU", "speed:run_step", LEARNER),
    Part("adapter", "a run on one GPU, adapters to the engines", "short_runs:adapter", ENGINES),
    Part("gloo", "a run on one GPU, weights over gloo", "short_runs:gloo", ENGINES),
    Part("ipc", "a run on one GPU, weights by CUDA IPC", "short_runs:ipc", ENGINES),
    Part("ipc-large", "a push by CUDA IPC of Qwen3-8B's embedding", "pushes:run_large_ipc", ENGINES),
    Part("shared", "a run on one GPU, one pool for both roles", "short_runs:one_pool", ENGINES),
    Part("turns", "a run on one GPU, which engine and learner have in turn", "short_runs:turns", ENGINES),
    Part("turns-ipc", "the same with two engines and weights by CUDA IPC", "short_runs:turns_by_ipc", ENGINES),
    Part("kill", "an engine killed inside a gloo transfer", "pushes:run_gloo", ENGINES),
    Part("recipe", "the recipe for one card of 24 GB", "short_runs:one_card", ENGINES),
    Part("engine", "vLLM alone at a context of 8k", "lone_engine:run", ENGINES),
    Part("engine-fp8", "the same with an fp8 cache", "lone_engine:run_fp8", ENGINES),
    Part("step-trl", "bench_step: our step beside TRL's", "speed:run_step_beside_trl", (*LEARNER, "trl")),
    Part("nccl", "a run on two GPUs, weights over NCCL", "short_runs:nccl", ENGINES, 2),
    Part("kill-nccl", "an engine killed inside an NCCL transfer", "pushes:run_nccl", ENGINES, 2),
    Part("ranks-2", "two FSDP ranks and an engine over NCCL", "short_runs:two_ranks", ENGINES, 3),
    Part("tensor-parallel", "an engine on two GPUs over NCCL", "short_runs:tensor_parallel", ENGINES, 3),
    Part("ranks-4", "four FSDP ranks and two engines over NCCL", "short_runs:four_ranks", ENGINES, 6),
    Part("paper", "two short steps of paper_opsd_8b", "short_runs:paper", ENGINES, 8),
    Part("paper-turns", "two short steps of paper_opsd_8b_onpolicy", "short_runs:paper_in_turn", ENGINES, 8),
)  # fmt: skip

BY_NAME = {part.name: part for part in PARTS}
