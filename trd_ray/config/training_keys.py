"""The keys of training: what is learned from rows, how the learner works, what it saves and sends."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from trd_ray.config.effects import ANSWERS, ENGINES, NOTHING, NUMBERS, ROWS
from trd_ray.config.node import Node, place_elsewhere
from trd_ray.config.rank_counts import RankCount, RankRange

Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Node):
    """Which rollouts train, and on what."""

    trajectory: Annotated[Literal["y_r", "y_o", "repair", "mixture", "reference"], ROWS, NUMBERS] = Field(
        default="y_r",
        description="y_o: plain on-policy distillation; repair: y_r where y_o failed, else y_o, which is not refined; "
        "mixture: y_o for a share of the rows (train.mixture_share), y_r for the others; reference: y* itself",
    )
    mixture_share: Annotated[float, ROWS, NUMBERS] = Field(
        default=0.5, gt=0, lt=1, description="train.trajectory=mixture: share of the rows that train on y_o"
    )
    when_refinement_fails: Annotated[Literal["train", "raw_if_passed", "drop"], NUMBERS] = "train"
    subset: Annotated[Literal["all", "failed", "passed", "repaired", "best"], ROWS, NUMBERS] = Field(
        default="all",
        description="rollouts by the verdict of y_o; repaired: y_o failed and y_r passed; best: one of a problem's "
        "sampler.n rollouts, the shortest that passes, or the first where none does",
    )

    @field_validator("trajectory", mode="before")
    @classmethod
    def _is_no_rule_of_selection(cls, trajectory: Any) -> Any:
        if trajectory in ("nearest", "best_score"):
            raise ValueError(
                f"is {trajectory}, which chooses among several refinements: set refiner.select={trajectory} and "
                "refiner.n=4, and train.trajectory=y_r"
            )
        return trajectory


class LossConfig(Node):
    """What is minimised for a token, and how tokens are weighed. The default is TRD's: full-vocabulary forward KL."""

    divergence: Annotated[Literal["forward_kl", "reverse_kl", "jsd", "cross_entropy"], NUMBERS] = Field(
        default="forward_kl",
        description="cross_entropy: the tokens of the trajectory are the labels (SFT), and no teacher scores them",
    )
    beta: Annotated[float, NUMBERS] = Field(
        default=0.5, ge=0, le=1, description="jsd: weight of the teacher in the mixture"
    )
    top_k: Annotated[int | None, NUMBERS] = Field(
        default=None, ge=1, description="support: the teacher's k likeliest tokens; empty: all"
    )
    rest: Annotated[Literal["renormalise", "tail"], NUMBERS] = Field(
        default="renormalise", description="top_k: both sides renormalised over the k, or the rest as one more token"
    )
    temperature: Annotated[float, NUMBERS] = Field(default=1.0, gt=0, description="temperature of both distributions")
    token_clip: Annotated[float | None, NUMBERS] = Field(
        default=None, gt=0, description="largest divergence of a token, in nats"
    )
    vocab_clip: Annotated[float | None, NUMBERS] = Field(
        default=None,
        gt=0,
        description="largest contribution of a vocabulary entry to a token's divergence, in nats (the rest may be < 0)",
    )
    mean: Annotated[Literal["tokens", "trajectories"], NUMBERS] = Field(
        default="tokens", description="over all of a step's tokens, or over trajectories of each one's mean"
    )
    first_share: Annotated[float, NUMBERS] = Field(
        default=1.0, gt=0, le=1, description="only this share of a trajectory has loss, from its first token on"
    )
    span: Annotated[Literal["all", "edited"], NUMBERS] = Field(
        default="all",
        description="edited: of a refinement only the tokens have loss at which it goes another way than the attempt",
    )

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher's distribution is part of the loss, else the learner has no teacher."""
        return self.divergence != "cross_entropy"


class LoRAConfig(Node):
    """Adapters on every linear layer of attention and MLP. The defaults are the paper's."""

    rank: Annotated[int, NUMBERS, ENGINES] = Field(default=64, ge=1)
    alpha: Annotated[float, NUMBERS] = Field(default=128, gt=0)
    dropout: Annotated[float, NUMBERS] = Field(default=0.0, ge=0, lt=1)
    targets: Annotated[list[str] | None, NUMBERS] = Field(
        default=None, description="names of linear modules; default: all of attention and MLP"
    )


class LearnerConfig(Node):
    workers: Annotated[RankCount, ENGINES] = Field(
        default=1,
        description="FSDP ranks: a number, or {min: 1, max: 8} for as many as the nodes hold. Those are counted at the "
        "start, where ranks are lost, and at a step's end where nodes have come or are about to go",
    )
    cpus: Annotated[float, NOTHING] = Field(default=1.0, ge=0, description="Ray CPUs a rank reserves")
    gpus: Annotated[float | None, ENGINES] = Field(default=None, ge=0, description="a rank; default: 1 if GPUs, else 0")
    # float16 is left out: gradients of single tokens vanish in it unless the loss is scaled, which nothing here does.
    dtype: Annotated[Literal["float32", "bfloat16"], ROWS, NUMBERS, ANSWERS, ENGINES] = "bfloat16"
    updates_per_step: Annotated[int, NUMBERS] = Field(default=1, ge=1)
    tokens_per_micro_batch: Annotated[int, NOTHING] = Field(
        default=32768, ge=1, description="most tokens of the student's and of the teacher's side"
    )
    chunk_tokens: Annotated[int, NOTHING] = Field(
        default=1024, ge=1, description="response tokens whose logit gradients exist at a time"
    )
    lora: Annotated[LoRAConfig | None, NUMBERS, ENGINES] = Field(
        default=None, description="{} for rank 64, alpha 128; empty: all weights train"
    )
    packing: Annotated[bool, NOTHING] = Field(
        default=True, description="sequences end to end without padding, kept apart in attention"
    )
    compile: Annotated[bool | None, NOTHING] = Field(
        default=None, description="torch.compile of the layers and the loss; default: of the loss, on a GPU"
    )
    cpu_offload: Annotated[bool, NOTHING] = Field(
        default=False, description="weights, gradients and optimizer state in host memory"
    )
    lr: Annotated[float, NUMBERS] = Field(default=2e-6, gt=0)
    min_lr_ratio: Annotated[float, NUMBERS] = Field(default=0.1, ge=0, le=1)
    warmup_ratio: Annotated[float, NUMBERS] = Field(default=0.1, ge=0, le=1)
    weight_decay: Annotated[float, NUMBERS] = Field(default=0.005, ge=0)
    betas: Annotated[tuple[Beta, Beta], NUMBERS] = (0.9, 0.95)
    grad_clip: Annotated[float, NUMBERS] = Field(default=1.0, gt=0)
    activation_checkpointing: Annotated[bool, NOTHING] = False
    start_timeout_s: Annotated[float, NOTHING] = Field(
        default=1800, gt=0, description="longest time to load the models and a checkpoint"
    )
    step_timeout_s: Annotated[float, NOTHING] = Field(default=3600, gt=0)
    max_restarts: Annotated[int, NOTHING] = Field(
        default=3,
        ge=0,
        description="how often the ranks start again, from the newest checkpoint, if some of them die or hang before "
        "another step is finished",
    )

    @property
    def bounds(self) -> RankRange:
        asked = self.workers
        return RankRange(min=asked, max=asked) if isinstance(asked, int) else asked

    @property
    def ranks(self) -> int:
        """How many there are at least."""
        return self.bounds.min


class SyncConfig(Node):
    backend: Annotated[Literal["auto", "nccl", "ipc", "gloo"], ENGINES] = "auto"
    in_flight: Annotated[Literal["drain", "keep"], ROWS, ENGINES] = Field(
        default="drain",
        description="drain: requests finish on the old weights; keep: they go on with the new ones. With "
        "sync.lora=adapter they finish on the old adapter, and nothing waits for them",
    )
    timeout_s: Annotated[float, NOTHING] = Field(
        default=600, gt=0, description="longest wait for the engines in a phase of a sync; a drain comes before it"
    )
    lora: Annotated[Literal["merged", "adapter"], ENGINES] = Field(
        default="merged", description="what engines get of a student with learner.lora"
    )
    probe_rows: Annotated[int, NOTHING] = Field(
        default=8, ge=0, description="rollouts a step whose engine and learner log-probs are compared"
    )


class CheckpointConfig(Node):
    every_steps: Annotated[int, NOTHING] = Field(default=50, ge=1)
    every_s: Annotated[float | None, NOTHING] = Field(
        default=None, gt=0, description="also after the first step that ends so long after the last checkpoint began"
    )
    keep_last: Annotated[int, NOTHING] = Field(default=2, ge=1, description="older ones are deleted")
    best: Annotated[str | None, NOTHING] = Field(
        default=None, description="a metric of metrics.jsonl, whose best checkpoint is kept too, e.g. evaluation/avg"
    )
    best_is: Annotated[Literal["max", "min"], NOTHING] = "max"
    asynchronous: Annotated[bool, NOTHING] = Field(default=True, description="write while the next steps train")
    mirror: Annotated[str | None, NOTHING] = Field(
        default=None,
        description="s3://bucket/runs, gs://..., any file system of pyarrow: checkpoints, rows and metrics are copied "
        "there after each checkpoint, into a folder named as run_dir, and a fresh machine goes on from them",
    )
    export: Annotated[Literal["merged", "adapter"], NOTHING] = Field(
        default="merged", description="what the Hugging Face folder holds of a student with learner.lora"
    )

    @field_validator("mirror")
    @classmethod
    def _is_a_place(cls, mirror: str | None) -> str | None:
        return place_elsewhere(mirror)
