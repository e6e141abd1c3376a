"""The learner's seconds for a step: both models' forward passes, the student's backward pass, updates, FSDP's gathers.

    lengths of the rows, ModelCosts of both, how it trains  ->  work()        ->  LearnerWork: FLOPs, gathered bytes
    LearnerWork, LearnerSpeed                               ->  training_s()  ->  seconds

FLOPs that are counted, for a token: two a parameter in a forward pass, as many for the gradients that flow back, again
where weights train and not only adapters on them, and again where activations are computed anew. Logits are counted for
responses alone, and attention by the square of each sequence, since packed sequences do not see one another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from trd_ray.economics import constants as c
from trd_ray.economics.model_costs import ModelCosts


@dataclass(frozen=True)
class Trained:
    """A row as the learner meets it, in tokens."""

    student_prompt: int
    teacher_prompt: int
    response: int


@dataclass(frozen=True)
class HowItTrains:
    adapters: bool
    checkpointing: bool
    updates: int
    micro_batch_tokens: int
    trained_numbers: int  # of weights or adapters
    ranks: int


@dataclass(frozen=True)
class LearnerWork:
    flops: float
    again: float  # of these, activations that are computed anew: an MFU leaves them out
    gathered_bytes: float  # that every rank receives and sends
    optimizer_bytes: float  # of each rank
    updates: int


@dataclass(frozen=True)
class LearnerSpeed:
    flops: float  # that a rank reaches
    link_bytes_s: float
    memory_bytes_s: float
    update_s: float
    step_s: float = 0.0  # a step's command and its answer


def on_gpu_speed(gpu: c.Gpu, several_nodes: bool = False) -> LearnerSpeed:
    link = min(gpu.link_bytes_s, c.NETWORK_BYTES_S) if several_nodes else gpu.link_bytes_s
    return LearnerSpeed(
        gpu.flops * c.TRAINING_SHARE, link * c.LINK_SHARE, gpu.memory_bytes_s * c.MEMORY_SHARE, c.UPDATE_S
    )


def on_cpu_speed(threads: float) -> LearnerSpeed:
    """A rank on so many threads; below 1 where ranks share cores."""
    return LearnerSpeed(c.CPU_RANK_FLOPS * threads, c.CPU_BYTES_S, c.CPU_BYTES_S, c.CPU_UPDATE_S)


def work(rows: Sequence[Trained], student: ModelCosts, teacher: ModelCosts | None, how: HowItTrains) -> LearnerWork:
    """`teacher` is None where the loss has none."""
    passes = 2 + how.checkpointing + (not how.adapters)  # forward, back to the inputs, again, to the weights
    flops = again = 0.0
    for row in rows:
        seen, taught = row.student_prompt + row.response, row.teacher_prompt + row.response
        flops += 2.0 * student.body * passes * seen
        flops += student.attention * (1 + how.checkpointing + c.ATTENTION_BACKWARD) * seen * seen
        if how.checkpointing:
            again += 2.0 * student.body * seen + student.attention * seen * seen
        flops += row.response * student.head * (2 + (not how.adapters))
        if teacher:
            flops += 2.0 * teacher.body * taught + teacher.attention * taught * taught + row.response * teacher.head
    gathered = 0.0
    if how.ranks > 1 and rows:
        tokens = sum(row.teacher_prompt + row.response for row in rows)
        batches = max(how.updates, -(-tokens // (how.ranks * how.micro_batch_tokens)))
        sides = 2 * student.parameters * student.width + (teacher.parameters * teacher.width if teacher else 0)
        gathered = batches * sides * (how.ranks - 1) / how.ranks
        if not how.adapters:  # the gradients, in float32, after each micro-batch
            gathered += batches * 4.0 * student.parameters * (how.ranks - 1) / how.ranks
    return LearnerWork(flops, again, gathered, c.OPTIMIZER_BYTES * how.trained_numbers / max(1, how.ranks), how.updates)


def training_s(found: LearnerWork, speed: LearnerSpeed, ranks: int) -> float:
    """Gathers run beside the products, so the longer of the two binds."""
    if not found.flops:
        return 0.0
    products = found.flops / (ranks * speed.flops)
    moved = found.gathered_bytes / speed.link_bytes_s
    updates = found.updates * (speed.update_s + found.optimizer_bytes / speed.memory_bytes_s)
    return speed.step_s + max(products, moved) + updates


def probe_flops(tokens: float, rows: int, student: ModelCosts) -> float:
    """The forward pass over `rows` rollouts of so many tokens, which every rank makes (sync.probe_rows)."""
    return rows * (2.0 * student.body * tokens + student.attention * tokens * tokens + student.head * tokens)
