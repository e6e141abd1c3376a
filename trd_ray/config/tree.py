"""The whole tree of keys, and what follows from a recipe as a whole."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trd_ray.config import combinations, mixed_sources
from trd_ray.config.alarm_keys import AlarmsConfig
from trd_ray.config.diagnostic_keys import DiagnosticsConfig
from trd_ray.config.effects import (
    ANSWERS,
    COMPARISON,
    ENGINES,
    LENGTH,
    MACHINES,
    NOTHING,
    NUMBERS,
    ROWS,
    SCORES,
    TUNING,
    VERDICTS,
)
from trd_ray.config.evaluation_keys import EvaluationConfig
from trd_ray.config.judge_keys import JudgeConfig, require_judge
from trd_ray.config.node import Node, folder_name, plain_path
from trd_ray.config.own_keys import MetricsConfig
from trd_ray.config.rollout_keys import (
    GYM_PREFIX,
    DataConfig,
    EngineConfig,
    PromptsConfig,
    RefinerConfig,
    SamplerConfig,
    StreamConfig,
    StudentConfig,
    TeacherConfig,
)
from trd_ray.config.scale_keys import ScaleConfig
from trd_ray.config.teachers import (
    JUDGE_POOL,
    SAMPLER,
    NamedTeacherConfig,
    engines_by_pool,
    group_of_teacher,
    keys_of,
    pool_of,
    role_of,
    teacher_of,
)
from trd_ray.config.tracking_keys import TrackerName, TrackingConfig
from trd_ray.config.training_keys import CheckpointConfig, LearnerConfig, LossConfig, SyncConfig, TrainConfig
from trd_ray.config.verify_keys import VerifyConfig
from trd_ray.only_teacher import ONLY
from trd_ray.own_code import FORM, checked

# How the weights of an engine rest: on the GPU, nowhere (new ones come), or in host memory.
Rest = Literal["keep", "drop", "offload"]


class ClusterConfig(Node):
    address: Annotated[str | None, MACHINES] = Field(
        default=None, description="default: the cluster of a submitted job, else a local one"
    )
    local_cpus: Annotated[int | None, MACHINES] = Field(
        default=None, ge=1, description="size of the local cluster; default: all cores"
    )
    object_store_gib: Annotated[float | None, MACHINES] = Field(
        default=None,
        gt=0,
        description="size of the local cluster's object store; default: what rows and adapters take, 0.5 at least",
    )
    dashboard: Annotated[bool, MACHINES] = Field(
        default=False, description="whether the local cluster has one; a cluster of its own has one anyway"
    )
    memory_gib: Annotated[float | None, MACHINES] = Field(
        default=None, gt=0, description="host memory that the run may count on; default: what is free now"
    )
    fetch_timeout_s: Annotated[float, MACHINES] = Field(
        default=3600, gt=0, description="longest time to download the models to every node, before anything starts"
    )
    wait_for_nodes_s: Annotated[float, MACHINES] = Field(
        default=600, ge=0, description="longest wait for nodes in place of lost ones (a local cluster: 0)"
    )


class Recipe(Node):
    name: Annotated[str, NOTHING] = "run"
    seed: Annotated[int, ROWS, NUMBERS, ANSWERS] = Field(default=0, ge=0)
    run_dir: Annotated[str | None, NOTHING] = Field(default=None, description="default: runs/<name>")
    heartbeat_s: Annotated[float, NOTHING] = Field(
        default=60, gt=0, description="silence after which a process of the run counts as dead; those that compile beat"
    )
    steps: Annotated[int | None, LENGTH, COMPARISON, TUNING] = Field(
        default=None, ge=1, description="default: one pass over the problems"
    )
    rollouts_per_step: Annotated[int, ROWS, NUMBERS, COMPARISON] = Field(default=128, ge=1)
    placement: Annotated[Literal["separate", "shared", "timeshare"], ENGINES] = Field(
        default="separate",
        description="separate: sampler and refiner have engines of their own; shared: the sampler's engines also "
        "refine. That needs OPSD and either learner.lora with sync.lora=adapter and teacher.follow=frozen (they sample "
        "with the adapter and refine without it), or teacher.follow=live. timeshare: engines and ranks have the same "
        "GPUs in turn, strictly on-policy; where shared is possible, one pool does both too",
    )
    student: Annotated[StudentConfig, ROWS, NUMBERS, ANSWERS, ENGINES, COMPARISON] = Field(
        default_factory=StudentConfig
    )
    teacher: Annotated[TeacherConfig, ROWS, NUMBERS, ENGINES] = Field(default_factory=TeacherConfig)
    teachers: Annotated[dict[str, NamedTeacherConfig], ROWS, NUMBERS, ENGINES] = Field(
        default_factory=dict,
        description="several teachers by name, each with the keys of teacher and its own refiner; data.teacher_column, "
        "or the name of a row's source, says whose a row is",
    )
    data: Annotated[DataConfig, ROWS, SCORES, LENGTH, COMPARISON, TUNING] = Field(default_factory=DataConfig)
    prompts: Annotated[PromptsConfig, ROWS, NUMBERS, ANSWERS] = Field(default_factory=PromptsConfig)
    sampler: Annotated[SamplerConfig, ROWS, ANSWERS, ENGINES, MACHINES] = Field(default_factory=SamplerConfig)
    refiner: Annotated[RefinerConfig, ROWS, NUMBERS, ENGINES] = Field(default_factory=RefinerConfig)
    verify: Annotated[VerifyConfig, ROWS, NUMBERS, ANSWERS, VERDICTS, MACHINES, COMPARISON] = Field(
        default_factory=VerifyConfig
    )
    judge: Annotated[JudgeConfig, ROWS, VERDICTS, ENGINES, MACHINES, COMPARISON] = Field(default_factory=JudgeConfig)
    train: Annotated[TrainConfig, ROWS, NUMBERS] = Field(default_factory=TrainConfig)
    loss: Annotated[LossConfig, NUMBERS] = Field(default_factory=LossConfig)
    learner: Annotated[LearnerConfig, ROWS, NUMBERS, ANSWERS, ENGINES] = Field(default_factory=LearnerConfig)
    sync: Annotated[SyncConfig, ROWS, ENGINES] = Field(default_factory=SyncConfig)
    stream: Annotated[StreamConfig, ROWS] = Field(default_factory=StreamConfig)
    evaluation: Annotated[EvaluationConfig, ANSWERS, SCORES, COMPARISON, TUNING] = Field(
        default_factory=EvaluationConfig
    )
    checkpoint: Annotated[CheckpointConfig, NOTHING, TUNING] = Field(default_factory=CheckpointConfig)
    scale: Annotated[ScaleConfig, NOTHING] = Field(default_factory=ScaleConfig)
    cluster: Annotated[ClusterConfig, MACHINES, COMPARISON] = Field(default_factory=ClusterConfig)
    diagnostics: Annotated[DiagnosticsConfig, NOTHING] = Field(default_factory=DiagnosticsConfig)
    metrics: Annotated[MetricsConfig, NOTHING] = Field(default_factory=MetricsConfig)
    alarms: Annotated[AlarmsConfig, NOTHING] = Field(default_factory=AlarmsConfig)
    callbacks: Annotated[list[str], NOTHING] = Field(
        default_factory=list,
        description=f"classes of your own, each as {FORM}: train and refine call their on_step, on_evaluation, "
        "on_checkpoint and on_end",
    )
    trackers: Annotated[list[TrackerName], NOTHING] = Field(
        default_factory=lambda: list[TrackerName](["tensorboard"]),
        description="where train and refine show their metrics besides metrics.jsonl; wandb and mlflow are extras",
    )
    tracking: Annotated[TrackingConfig, NOTHING] = Field(default_factory=TrackingConfig)

    @model_validator(mode="before")
    @classmethod
    def _with_the_task_where_it_is_now(cls, tree: Any) -> Any:
        """Recipes of older versions say verify.task, which chose no verifier, only the wordings."""
        verify = tree.get("verify") if isinstance(tree, dict) else None
        if not isinstance(verify, dict) or "task" not in verify:
            return tree
        prompts = tree.get("prompts") or {}
        # Such a recipe.yaml holds every key: math was the default, and still is without a function.
        if isinstance(prompts, dict) and (verify["task"] != "math" or verify.get("function")):
            prompts = {"task": verify["task"]} | {key: value for key, value in prompts.items() if value is not None}
        return tree | {"verify": {k: v for k, v in verify.items() if k != "task"}, "prompts": prompts}

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        return folder_name(name)

    @field_validator("run_dir")
    @classmethod
    def _is_a_path(cls, run_dir: str | None) -> str | None:
        return plain_path(run_dir)

    @field_validator("callbacks")
    @classmethod
    def _name_code(cls, callbacks: list[str]) -> list[str]:
        for callback in callbacks:
            checked(callback)
        return callbacks

    @field_validator("trackers")
    @classmethod
    def _name_each_once(cls, trackers: list[TrackerName]) -> list[TrackerName]:
        return list(dict.fromkeys(trackers))

    def with_ranks(self, ranks: int) -> "Recipe":
        """The same recipe with a learner of so many ranks."""
        return self.model_copy(update={"learner": self.learner.model_copy(update={"workers": ranks})})

    @property
    def directory(self) -> Path:
        """The run directory. It is absolute, since the processes of a run have other working directories."""
        return Path(self.run_dir or f"runs/{self.name}").expanduser().absolute()

    @property
    def by_teacher(self) -> dict[str, "Recipe"]:
        """For each teacher, by its name, the recipe as it is if that is the only one."""
        if not self.teachers:
            return {ONLY: self}
        return {
            name: self.model_copy(
                update={"teacher": one.alone, "refiner": one.refiner_over(self.refiner), "teachers": {}}
            )
            for name, one in self.teachers.items()
        }

    @property
    def engines(self) -> dict[str, EngineConfig]:
        """The keys of every pool that the recipe may have, by the pool's name."""
        refiners = {name: one.refiner for name, one in self.by_teacher.items()}
        return engines_by_pool(self.sampler, refiners, self.judge if self.verify.names_judge else None)

    @property
    def following(self) -> dict[str, str]:
        """The pools that get weights after every step -> whose: the "student"'s, or the "teacher"'s moving average."""
        whose = {"live": "student", "ema": "teacher"}
        follow = {pool_of(name): one.teacher.follow for name, one in self.by_teacher.items()}
        return {SAMPLER: "student"} | {pool: whose[how] for pool, how in follow.items() if how in whose}

    def with_replicas(self, pool: str, replicas: Any) -> "Recipe":
        """The same recipe with so many engines in a pool."""
        if (teacher := teacher_of(pool)) in self.teachers:
            named = self.teachers[teacher].with_refiner(replicas=replicas)
            return self.model_copy(update={"teachers": self.teachers | {teacher: named}})
        group = role_of(pool)
        return self.model_copy(update={group: getattr(self, group).model_copy(update={"replicas": replicas})})

    @property
    def teacher_path(self) -> str:
        """The model of the only teacher: in OPSD the student's initial weights."""
        return self.teacher.path or self.student.path

    @property
    def shows_reference(self) -> bool:
        """Whether some teacher is shown the references."""
        asks = self.refines or self.loss.has_teacher
        return asks and any(one.teacher.mode == "opsd" for one in self.by_teacher.values())

    @property
    def needs_references(self) -> bool:
        """Whether a problem without a reference is of no use."""
        return self.shows_reference or self.train.trajectory == "reference"

    def view_of(self, trajectory: str) -> Literal["refine", "vanilla"]:
        """What the only teacher of a row sees that trains on this trajectory."""
        if trajectory == "reference" or (trajectory == "y_o" and self.train.trajectory != "y_o"):
            # Of a raw rollout among refinements the refine view would show the teacher the very text that it scores.
            return "vanilla"
        return self.teacher.view if trajectory == "y_o" or self.refiner.begins == "attempt" else "vanilla"

    @property
    def shows_attempts(self) -> bool:
        """Whether an attempt stands in a prompt of the only teacher's, as it refines or as it scores."""
        rewrites = self.refines and self.refiner.begins == "attempt"
        return rewrites or (self.loss.has_teacher and "refine" in map(self.view_of, self.trains_on))

    @property
    def most_refinements(self) -> int:
        """How many candidates a row that is refined has at most."""
        return max(one.refiner.n for one in self.by_teacher.values())

    @property
    def refines(self) -> bool:
        """Whether y_r is made at all: it trains, or the subset needs it."""
        return self.train.trajectory not in ("y_o", "reference") or self.train.subset == "repaired"

    @property
    def refined_share(self) -> float:
        """The share of the rows that are refined, at most: with repair it falls as the student gets better."""
        train = self.train
        if train.trajectory == "mixture" and train.subset != "repaired":
            return 1 - train.mixture_share
        return float(self.refines)

    @property
    def trains_on(self) -> tuple[str, ...]:
        """The trajectories that may train, y_r before y_o."""
        train = self.train
        if train.trajectory in ("y_o", "reference"):
            return (train.trajectory,)
        is_y_r = train.trajectory == "y_r" and train.when_refinement_fails != "raw_if_passed"
        return ("y_r",) if is_y_r else ("y_r", "y_o")

    @property
    def scores_refinements(self) -> bool:
        """Whether the sampler's engines tell how likely the student finds refinements."""
        return self.refines and self.refiner.select == "nearest"

    @property
    def task(self) -> Literal["math", "code", "plain"]:
        """Whose default wordings the rows trained on have, or most of them: `Views` chooses for each row."""
        generated = all(path.startswith(GYM_PREFIX) for path in self.data.paths) and not self.verify.chosen
        return self.prompts.task or ("plain" if generated else self.verify.usual_task)

    @property
    def takes_turns(self) -> bool:
        """Whether engines and learner have the same GPUs in turn: who does not work rests."""
        return self.placement == "timeshare"

    def rest_of(self, pool: str) -> Rest:
        """What becomes of the weights of a pool that takes turns while the learner works; its KV cache goes anyway."""
        gets_whole_ones = pool in self.following and self.sync.lora != "adapter"
        return "drop" if gets_whole_ones and self.stream.max_staleness != "never" else "keep"

    @property
    def refines_without_adapter(self) -> bool:
        """Whether one pool samples with the newest adapter, and refines with the base model below it."""
        return self.shares_engines and self.teacher.follow == "frozen"

    @property
    def shares_engines(self) -> bool:
        """Whether the sampler's engines also refine: asked for, or in turns wherever that is possible."""
        if not self.takes_turns or self.teachers:
            return self.placement == "shared"
        keys = self.teacher, self.sampler, self.refiner, self.learner, self.sync
        return combinations.unshareable(*keys) is None

    @model_validator(mode="after")
    def _possible(self) -> "Recipe":
        combinations.require_teachers(self.teacher, self.teachers, self.data, self.placement)
        for name, one in self.by_teacher.items():
            combinations.require_teacher(self.student, one.teacher, group_of_teacher(name))
            combinations.require_sendable_adapters(self.learner, self.sync, one.teacher, group_of_teacher(name))
            combinations.require_trajectory(self.train, one.refiner, keys_of(pool_of(name)))
            combinations.require_told(self.verify, one.refiner)
        if self.rollouts_per_step % self.sampler.n:
            raise ValueError(
                f"rollouts_per_step ({self.rollouts_per_step}) must be a multiple of sampler.n ({self.sampler.n})"
            )
        combinations.require_several(self.train, self.sampler)
        combinations.require_loss(self.loss)
        combinations.require_span(self.loss, self.train)
        combinations.require_scorer(self.loss, self.diagnostics)
        combinations.require_adapters(self.learner, self.sync, self.checkpoint)
        combinations.require_passes(self.data)
        combinations.require_evaluation(self.evaluation, self.stream, self.data)
        combinations.require_prose(self.verify)
        combinations.require_full_marks(self.verify)
        combinations.require_best(self.checkpoint, self.evaluation)
        mixed_sources.require_sources(self.data, self.verify, list(self.teachers))
        require_judge(self.judge, self.verify, (one.verify for one in self.data.sources))
        if self.placement == "shared":
            combinations.require_shareable(self.teacher, self.sampler, self.refiner, self.learner, self.sync)
        if self.takes_turns:
            alone = self.shares_engines or not self.refines
            pools = [SAMPLER] if alone else [pool for pool in self.engines if pool != JUDGE_POOL]
            engines = {pool: self.engines[pool] for pool in pools}
            combinations.require_turns(engines, self.judge, self.learner, self.sync, self.stream)
        if isinstance(self.stream.max_staleness, int) and self.stream.max_staleness < 0:
            raise ValueError("stream.max_staleness must be 0, a positive number of versions, or never")
        return self
