"""The keys of what is learned from the rows, how the learner works, and what it leaves and sends."""

from typing import Annotated, Literal

from pydantic import Field

from trd_ray.config.node import Node

Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Node):
    """Which rollouts train, and on what."""

    trajectory: Literal["y_r", "y_o"] = Field(default="y_r", description="y_o: plain on-policy distillation")
    when_refinement_fails: Literal["train", "raw_if_passed", "drop"] = "train"
    subset: Literal["all", "failed", "passed", "repaired"] = Field(
        default="all", description="by verdict of y_o; repaired: y_o failed and y_r passed"
    )


class LossConfig(Node):
    """What is minimised a token, and how tokens are weighed. The default is TRD's: full-vocabulary forward KL."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    beta: float = Field(default=0.5, ge=0, le=1, description="of jsd: weight of the teacher in the mixture")
    top_k: int | None = Field(default=None, ge=1, description="support: the teacher's k likeliest tokens; empty: all")
    rest: Literal["renormalise", "tail"] = Field(
        default="renormalise", description="of top_k: both sides renormalised over the k, or the rest as one more token"
    )
    temperature: float = Field(default=1.0, gt=0, description="of both distributions")
    token_clip: float | None = Field(default=None, gt=0, description="largest divergence of a token, in nats")
    vocab_clip: float | None = Field(
        default=None,
        gt=0,
        description="largest contribution of a vocabulary entry to a token's divergence, in nats (the rest may be < 0)",
    )
    mean: Literal["tokens", "trajectories"] = Field(
        default="tokens", description="over all of a step's tokens, or over trajectories of each one's mean"
    )


class LoRAConfig(Node):
    """Adapters on every linear layer of attention and MLP; the defaults are the paper's."""

    rank: int = Field(default=64, ge=1)
    alpha: float = Field(default=128, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: list[str] | None = Field(
        default=None, description="names of linear modules; default: all of attention and MLP"
    )


class LearnerConfig(Node):
    workers: int = Field(default=1, ge=1, description="FSDP ranks")
    cpus: float = Field(default=1.0, ge=0, description="Ray CPUs a rank reserves")
    gpus: float | None = Field(default=None, ge=0, description="a rank; default: 1 if GPUs, else 0")
    # In float16 gradients of single tokens vanish unless the loss is scaled, which nothing here does.
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    updates_per_step: int = Field(default=1, ge=1)
    tokens_per_micro_batch: int = Field(default=32768, ge=1, description="of the student's or the teacher's side")
    chunk_tokens: int = Field(default=1024, ge=1, description="response tokens whose logit gradients exist at a time")
    lora: LoRAConfig | None = Field(default=None, description="{} for rank 64, alpha 128; empty: all weights train")
    packing: bool = Field(default=True, description="sequences end to end without padding, kept apart in attention")
    compile: bool | None = Field(
        default=None, description="torch.compile of the layers and the loss; default: of the loss, on a GPU"
    )
    cpu_offload: bool = Field(default=False, description="weights, gradients and optimizer state in host memory")
    lr: float = Field(default=2e-6, gt=0)
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.005, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    grad_clip: float = Field(default=1.0, gt=0)
    activation_checkpointing: bool = False
    start_timeout_s: float = Field(default=1800, gt=0, description="to load the models, and a checkpoint")
    step_timeout_s: float = Field(default=3600, gt=0)


class SyncConfig(Node):
    backend: Literal["auto", "nccl", "ipc", "gloo"] = "auto"
    in_flight: Literal["drain", "keep"] = Field(
        default="drain", description="drain: requests finish on the old weights; keep: they go on with the new ones"
    )
    timeout_s: float = Field(default=600, gt=0)
    lora: Literal["merged", "adapter"] = Field(
        default="merged", description="what engines get of a student with learner.lora"
    )
    probe_rows: int = Field(
        default=8, ge=0, description="rollouts a step whose engine and learner log-probs are compared"
    )


class CheckpointConfig(Node):
    every_steps: int = Field(default=50, ge=1)
    keep_last: int = Field(default=2, ge=1, description="older ones are deleted")
    best: str | None = Field(
        default=None, description="a metric of metrics.jsonl, whose best checkpoint is kept too, e.g. evaluation/avg"
    )
    best_is: Literal["max", "min"] = "max"
    asynchronous: bool = Field(default=True, description="write while the next steps train")
    export: Literal["merged", "adapter"] = Field(
        default="merged", description="of the Hugging Face folder of a student with learner.lora"
    )
