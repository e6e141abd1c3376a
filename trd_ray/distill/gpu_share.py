"""What a rank holds of its GPU while the engines there have their turn (placement=timeshare).

    give() -> the engines wake -> sample, refine, get weights -> the engines rest -> take() -> the rank works

With LoRA the rank gives what torch keeps of freed memory: adapters, optimizer and the sharded frozen weights stay. With
full fine-tuning the weights, the optimizer and the moving average go into host memory; a teacher of its own stays.
Weights are sent and checkpoints written from there, so neither needs `take`. What cpu_offload has there already stays.

On a CPU both do nothing. A rank that dies in between has lost nothing that its successor would not make again.
"""

from typing import Any

import torch

CPU = torch.device("cpu")


class GpuShare:
    def __init__(self, learner: Any):
        """`learner` is a Learner."""
        self.learner = learner
        opt = learner.recipe.learner
        self.moves = not opt.lora and not opt.cpu_offload
        self.away = False

    def give(self) -> None:
        if self.learner.device.type == "cpu":
            return
        for teacher in self.learner.teachers.values():
            if teacher is not None:  # labels alone have none
                teacher.reshard()
        if self.moves and not self.away:
            move(self.learner, CPU)
            self.away = True
        torch.cuda.empty_cache()

    def take(self) -> None:
        if self.away:
            move(self.learner, self.learner.device)
            self.away = False


def move(learner: Any, device: torch.device) -> None:
    """Whatever of a Learner an update changes. The parameters stay the same objects."""
    learner.student.reshard()  # what is gathered would stay where it is
    learner.student.to(device)
    for state in learner.optimizer.state.values():
        # A count of steps has no dimension: AdamW keeps it on the CPU.
        state |= {name: v.to(device) for name, v in state.items() if isinstance(v, torch.Tensor) and v.dim()}
    if learner.average:
        learner.average.average = {name: value.to(device) for name, value in learner.average.average.items()}
