"""One typed tree for everything a run can be told, read from a recipe and dotted overrides.

    recipe.yaml + key.sub=value ...  ->  load()  ->  Recipe (validated, defaults filled in)

Unknown keys, wrong types and combinations that cannot work are refused here, with a sentence that says what to set.
Lengths are tokens, times are seconds, memory is GiB; the unit stands in the name where the type does not say it.
"""

import difflib
import re
import types
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trd_ray.config import unique_yaml
from trd_ray.errors import UserError

DType = Literal["float32", "bfloat16", "float16"]
EVALUATED = ("evaluation/avg", "evaluation/pass")  # metrics of a step after which the student was evaluated
Beta = Annotated[float, Field(ge=0, lt=1)]


def folder_name(name: str) -> str:
    """Raises ValueError for what cannot be the name of a folder within another, on any file system."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(
            "names a folder, so it must begin with a letter or a digit and hold nothing but letters, digits, _, . and "
            f"-, but found {name!r}: another place is for run_dir (of a comparison: directory) to say"
        )
    return name


def plain_path(path: str | None) -> str | None:
    """Raises ValueError for a path with a newline, a null or another control character in it."""
    if path and not path.isprintable():
        raise ValueError(f"must be a path without control characters, but found {path!r}")
    return path


def _takes_bool(annotation: Any) -> bool:
    return annotation is bool or bool in get_args(annotation)


def _resolved(tokens: int | None) -> int:
    """A length of a recipe that `trd_ray.preflight.lengths.resolve` gave its numbers, which every run's recipe is."""
    if tokens is None:
        raise ValueError("this recipe's lengths are not resolved: take the recipe of trd_ray.session.inputs's Inputs")
    return tokens


class Node(BaseModel):
    # Not strict: YAML reads 2e-6 as text, and pydantic then makes the number of it.
    model_config = ConfigDict(
        extra="forbid", strict=False, protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _a_switch_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and not _takes_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("must not be true or false")
        return value


class ModelConfig(Node):
    path: str = Field(description="Hugging Face folder or hub name; `miniature:student` and `smollm2` are made here")
    revision: str | None = None
    trust_remote_code: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="e.g. {enable_thinking: false}")


class StudentConfig(ModelConfig):
    path: str = "miniature:student"


class TeacherConfig(ModelConfig):
    path: str | None = Field(default=None, description="OPD: the stronger model. OPSD: leave empty, it is the student")
    mode: Literal["opsd", "opd"] = "opsd"
    follow: Literal["frozen", "ema", "live"] = Field(
        default="frozen", description="OPSD: the initial student, a moving average of it, or the newest one"
    )
    ema_decay: float = Field(default=0.99, gt=0, lt=1, description="of teacher.follow=ema, an optimizer update")
    view: Literal["refine", "vanilla"] = Field(
        default="refine", description="what the teacher sees when it scores the response for the KL"
    )
    dtype: DType | None = Field(default=None, description="of the teacher in the learner; default: learner.dtype")


class DataConfig(Node):
    source: Literal["problems", "corpus"] = "problems"
    path: str = Field(
        default="miniature:train", description="JSONL, Parquet, CSV, Hugging Face data set, or a corpus folder"
    )
    split: str = "train"
    format: Literal["auto", "jsonl", "parquet", "hub", "taco"] = Field(
        default="auto", description="taco: programming problems in TACO's schema, from any of these"
    )
    difficulty: list[str] | None = Field(default=None, description="taco: only these, e.g. [EASY, MEDIUM]")
    columns: dict[str, str] = Field(
        default_factory=dict, description="our name -> column name, for problem_id, problem, answer, reference"
    )
    limit: int | None = Field(default=None, ge=1)
    without_reference: Literal["keep", "drop"] = Field(
        default="keep", description="problems without one; OPSD needs it"
    )
    too_long: Literal["refuse", "drop"] = Field(
        default="refuse", description="problems whose prompts leave a context no room; drop: set_aside.jsonl names them"
    )
    shuffle: bool = True


class SamplingConfig(Node):
    """Defaults are the paper's: temperature 0.6, top-p 0.95, top-k 20."""

    temperature: float = Field(default=0.6, ge=0, le=2)  # vLLM's own bounds
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int = Field(default=20, ge=0, description="0: no limit")
    max_response_tokens: int | None = Field(
        default=None, ge=1, description="default: the paper's 16384 where the context holds it, else what it leaves"
    )
    n: int = Field(default=1, ge=1, description="rollouts a problem (sampler), refinements a rollout (refiner)")

    @property
    def response_tokens(self) -> int:
        return _resolved(self.max_response_tokens)


class EngineConfig(Node):
    """One pool of vLLM engines."""

    replicas: int = Field(default=1, ge=1)
    tensor_parallel: int = Field(default=1, ge=1)
    cpus: float = Field(default=1.0, ge=0, description="Ray CPUs an engine actor reserves")
    gpus: float | None = Field(default=None, ge=0, description="a replica; default: tensor_parallel if GPUs, else 0")
    dtype: DType | None = Field(default=None, description="default: learner.dtype")
    max_model_len: int | None = Field(default=None, ge=16)
    memory_utilization: float = Field(default=0.85, gt=0, le=1, description="share of a GPU the engine may use")
    cpu_kv_cache_gib: float = Field(default=1.0, gt=0, description="KV cache of a CPU engine")
    max_concurrent: int = Field(default=256, ge=1, description="sequences decoded at once in one engine")
    start_timeout_s: float = Field(default=600, gt=0)
    request_timeout_s: float = Field(default=3600, gt=0, description="longest one request may take, queueing included")
    extra: dict[str, Any] = Field(default_factory=dict, description="passed to vLLM's engine arguments as they are")


class SamplerConfig(EngineConfig, SamplingConfig):
    pass


class RefinerConfig(EngineConfig, SamplingConfig):
    share_sampler: bool = Field(
        default=False, description="refine on the sampler's engines (OPSD, teacher.follow live)"
    )
    select: Literal["first", "first_passed", "shortest_passed"] = "first"
    max_prompt_tokens: int | None = Field(
        default=None,
        ge=16,
        description="longer: the tail of y_o is cut, then of y*; default: 18432 (OPSD: 22528) or what is left",
    )
    feedback: Literal["none", "verdict", "details"] = Field(
        default="none",
        description="tell the refiner whether the attempt passed, or also what failed (code: the case, stderr's tail)",
    )

    @property
    def prompt_tokens(self) -> int:
        return _resolved(self.max_prompt_tokens)


class PromptsConfig(Node):
    """The words around a problem; placeholders are {problem}, {reference}, {attempt} and {feedback}.

    A wording that is not set here has its default in trd_ray/views.py, which also says how placeholders are read.
    """

    system: str | None = None
    solve: str | None = None
    solve_with_reference: str | None = None
    refine: str | None = None
    refine_with_reference: str | None = None


class VerifyConfig(Node):
    """A problem with tests is code and runs in the sandbox, any other is mathematics."""

    task: Literal["math", "code"] = Field(default="math", description="which default wordings the prompts have")
    timeout_s: float = Field(default=5.0, gt=0, description="math: a single answer")
    answer_in_prose: bool = Field(default=False, description="math: accept a stated answer where no \\boxed{} is")
    sandbox: Literal["auto", "bubblewrap", "unshare", "unsafe_no_sandbox"] = Field(
        default="auto", description="code: auto takes bubblewrap, else util-linux's unshare, and refuses without them"
    )
    time_limit_s: float = Field(default=10.0, gt=0, description="code: a test case whose data names no limit")
    memory_mib: int = Field(default=1024, ge=64, description="code: a program whose data names no limit")
    program_timeout_s: float = Field(default=120.0, gt=0, description="code: all test cases of a program")
    max_tests: int | None = Field(default=None, ge=1, description="code: only a problem's first test cases")
    cpus: float = Field(default=1.0, gt=0, description="Ray CPUs a verifier task reserves")
    max_tasks: int = Field(default=8, ge=1)


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


class StreamConfig(Node):
    max_staleness: int | Literal["never"] = Field(default=0, description="0: strictly on-policy; never: offline")
    rows_per_block: int | None = Field(default=None, ge=1, description="default: a quarter of a step")
    stall_timeout_s: float = Field(default=7200, gt=0, description="no row for so long: the run ends")


class EvaluationConfig(Node):
    path: str | None = Field(
        default="miniature:test",
        description="held-out problems: as data.path, or a benchmark such as aime24; empty: no evaluation",
    )
    split: str = "test"
    format: Literal["auto", "jsonl", "parquet", "hub"] = "auto"
    columns: dict[str, str] = Field(
        default_factory=dict, description="as data.columns, which stand in for those left out where the file has them"
    )
    limit: int | None = Field(default=None, ge=1)
    allow_overlap: bool = Field(
        default=False,
        description="held-out problems may also be trained on; the score then says nothing about new ones",
    )
    samples: int = Field(default=16, ge=1)
    temperature: float = Field(default=0.6, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int = Field(default=20, ge=0)
    max_response_tokens: int | None = Field(
        default=None, ge=1, description="default: 16384 where the context holds it, else what it leaves"
    )
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="empty: the student's")
    before: bool = True
    after: bool = True
    every_steps: int | None = Field(default=None, ge=1, description="also during training")
    bootstrap: int = Field(default=10000, ge=100, description="resamples of problems")

    @property
    def response_tokens(self) -> int:
        return _resolved(self.max_response_tokens)

    @property
    def in_training(self) -> bool:
        return bool(self.path and (self.before or self.after or self.every_steps))


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


class ClusterConfig(Node):
    address: str | None = Field(default=None, description="default: the cluster of a submitted job, else a local one")
    local_cpus: int | None = Field(default=None, ge=1, description="size of the local cluster; default: all cores")
    object_store_gib: float = Field(default=0.5, gt=0, description="of the local cluster")
    dashboard: bool = Field(default=False, description="of the local cluster; a cluster of its own has one anyway")
    memory_gib: float | None = Field(
        default=None, gt=0, description="host memory that the run may count on; default: what is free now"
    )


class Recipe(Node):
    name: str = "run"
    seed: int = Field(default=0, ge=0)
    run_dir: str | None = Field(default=None, description="default: runs/<name>")
    steps: int | None = Field(default=None, ge=1, description="default: one pass over the problems")
    rollouts_per_step: int = Field(default=128, ge=1)
    student: StudentConfig = Field(default_factory=StudentConfig)
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    prompts: PromptsConfig = Field(default_factory=PromptsConfig)
    sampler: SamplerConfig = Field(default_factory=SamplerConfig)
    refiner: RefinerConfig = Field(default_factory=RefinerConfig)
    verify: VerifyConfig = Field(default_factory=VerifyConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    learner: LearnerConfig = Field(default_factory=LearnerConfig)
    sync: SyncConfig = Field(default_factory=SyncConfig)
    stream: StreamConfig = Field(default_factory=StreamConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        return folder_name(name)

    @field_validator("run_dir")
    @classmethod
    def _is_a_path(cls, run_dir: str | None) -> str | None:
        return plain_path(run_dir)

    @property
    def directory(self) -> Path:
        """Absolute: the processes of a run have other working directories."""
        return Path(self.run_dir or f"runs/{self.name}").expanduser().absolute()

    @property
    def teacher_path(self) -> str:
        """The model that refines and teaches: in OPSD the student's initial weights."""
        return self.teacher.path or self.student.path

    @property
    def refines(self) -> bool:
        """Whether y_r is made at all: it trains, or the teacher view or the subset needs it."""
        return self.train.trajectory == "y_r" or self.train.subset == "repaired"

    @model_validator(mode="after")
    def _possible(self) -> "Recipe":
        t, r = self.teacher, self.refiner
        if t.mode == "opd" and not t.path:
            raise ValueError("teacher.mode is opd but teacher.path is empty: set teacher.path, or teacher.mode=opsd")
        if t.mode == "opsd" and t.path and t.path != self.student.path:
            raise ValueError(
                "teacher.mode is opsd, where the teacher is the student itself, but teacher.path names another model: "
                "leave teacher.path empty, or set teacher.mode=opd"
            )
        if t.mode == "opd" and t.follow != "frozen":
            raise ValueError(
                f"teacher.follow={t.follow} has no meaning in OPD, whose teacher is another model: "
                "set teacher.follow=frozen"
            )
        if r.share_sampler and not (t.mode == "opsd" and t.follow == "live"):
            raise ValueError(
                "refiner.share_sampler=true refines on the sampler's engines, which hold the newest student: "
                "set teacher.mode=opsd and teacher.follow=live, or refiner.share_sampler=false"
            )
        if self.rollouts_per_step % self.sampler.n:
            raise ValueError(
                f"rollouts_per_step ({self.rollouts_per_step}) must be a multiple of sampler.n ({self.sampler.n})"
            )
        if self.loss.divergence != "jsd" and "beta" in self.loss.model_fields_set and self.loss.beta != 0.5:
            raise ValueError(
                f"loss.beta is of jsd, but loss.divergence is {self.loss.divergence}: leave one of them out"
            )
        if self.loss.rest == "tail" and not self.loss.top_k:
            raise ValueError("loss.rest=tail has no meaning without loss.top_k: set loss.top_k=32, or leave it out")
        for key, value in (("sync.lora", self.sync.lora), ("checkpoint.export", self.checkpoint.export)):
            if value == "adapter" and not self.learner.lora:
                raise ValueError(f"{key}=adapter needs adapters: set learner.lora={{}}, or {key}=merged")
        e = self.evaluation
        if e.every_steps and self.stream.max_staleness == "never" and self.data.source == "problems":
            raise ValueError(
                "evaluation.every_steps gives the engines the newest weights, but with stream.max_staleness=never they "
                "sample with the initial ones: leave it out, or set stream.max_staleness to a number"
            )
        if (self.checkpoint.best or "").startswith("evaluation/"):
            if self.checkpoint.best not in EVALUATED:
                raise ValueError(
                    f"checkpoint.best names no metric{did_you_mean(str(self.checkpoint.best), list(EVALUATED))}"
                )
            meets = e.path and (e.after or (e.every_steps and not self.checkpoint.every_steps % e.every_steps))
            if not meets:
                raise ValueError(
                    f"checkpoint.best is {self.checkpoint.best}, but no evaluation falls on a checkpoint: set "
                    "evaluation.path, and checkpoint.every_steps to a multiple of evaluation.every_steps"
                )
        if self.sync.lora == "adapter":
            if self.sync.in_flight == "keep":
                raise ValueError(
                    "sync.in_flight=keep cannot give running requests another adapter: set sync.in_flight=drain, or "
                    "sync.lora=merged"
                )
            if self.learner.lora and self.learner.lora.rank > 512:
                raise ValueError(
                    f"vLLM takes adapters of rank 512 at most, but learner.lora.rank is {self.learner.lora.rank}: "
                    "lower it, or set sync.lora=merged"
                )
            if t.follow == "ema":
                raise ValueError(
                    "teacher.follow=ema has the refiner follow an average of the adapters, but sync.lora=adapter sends "
                    "the newest ones: set sync.lora=merged"
                )
        if isinstance(self.stream.max_staleness, int) and self.stream.max_staleness < 0:
            raise ValueError("stream.max_staleness must be 0, a positive number of versions, or never")
        return self


def recipe_path(name: str) -> Path:
    """A recipe file, or the name of one that ships with the package (`miniature_opsd`)."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = resources.files("trd_ray") / "recipes"
    names = sorted(p.name.removesuffix(".yaml") for p in shipped.iterdir() if p.name.endswith(".yaml"))
    stem = path.name.removesuffix(".yaml")
    if stem in names and path.parent == Path("."):
        return Path(str(shipped / f"{stem}.yaml"))
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a recipe: name a YAML file{such_as_in(path)}")
    if name in {p.name.removesuffix(".yaml") for p in (shipped / "compare").iterdir()}:
        raise UserError(_is_a_comparison(name))
    raise UserError(
        f"there is no recipe {name!r}: give a YAML file or one of {', '.join(names)}{close_to(stem, names)}"
    )


def such_as_in(folder: Path) -> str:
    """The end of a sentence about a folder that was named in place of a YAML file: a file that may be meant."""
    inside = sorted(folder.glob("*.y*ml"))
    return f", such as {inside[0]}" if inside else ""


def recipe_tree(name: str) -> dict:
    """The keys of a recipe, or of a shipped one by its name, as they are written; raises UserError."""
    path = recipe_path(name)
    tree = read_tree(path, f"recipe {path}")
    if {"modes", "methods"} <= tree.keys():
        raise UserError(_is_a_comparison(name))
    return tree


def _is_a_comparison(name: str) -> str:
    return f"{name} is a comparison of recipes, not a recipe: run it with `trd compare {name}`"


def load(recipe: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply `key.sub=value` overrides, whose values are read as YAML.

    Raises UserError for anything that is not a valid recipe.
    """
    tree = recipe_tree(recipe)
    for override in overrides:
        apply_override(tree, override)
    return from_tree(tree)


def read_tree(path: Path, name: str) -> dict:
    """A YAML file as a plain nested dict; raises UserError, in which the file is called `name`."""
    try:
        tree = unique_yaml.read(path.read_text())
    except unique_yaml.RepeatedKey as e:
        raise UserError(f"{name}: {e}") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{name} is not valid YAML: {' '.join(str(e).split())}") from e
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(f"{name} must be a mapping of keys to values, but holds a {type(tree).__name__}")
    return tree


def from_tree(tree: dict) -> Recipe:
    """A Recipe from a plain nested dict; raises UserError with one line a fault."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as e:
        raise UserError("; ".join(_sentences(e.errors()))) from e


def stored(place: Path) -> Recipe:
    """The recipe.yaml of a run; raises UserError, which names the file."""
    remedy = "put it back as it was, or set run_dir to a new place"
    try:
        tree = read_tree(place, str(place))
    except UserError as e:
        raise UserError(f"{e}: {remedy}") from e
    if not tree:
        raise UserError(f"{place} is empty, and a run's recipe.yaml never is: {remedy}")
    try:
        return from_tree(tree)
    except UserError as e:
        raise UserError(f"{place} is no recipe of this version of the program ({e}): {remedy}") from e


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every key, defaults included; `load` reads it back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def apply_override(tree: dict, override: str) -> None:
    """Set `key.sub=value` in a plain nested dict; raises UserError."""
    key, sep, value = override.partition("=")
    if not sep or not key:
        raise UserError(f"override {override!r} must have the form key.sub=value")
    node = tree
    *parents, leaf = key.split(".")
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise UserError(f"override {override!r}: {parent} holds a value, not a group of keys")
    try:
        node[leaf] = unique_yaml.read(value)
    except unique_yaml.RepeatedKey as e:
        raise UserError(f"override {override!r}: {e}") from e
    except yaml.YAMLError as e:
        raise UserError(f"override {override!r}: the value is not valid YAML") from e


# What pydantic's error types ask for, completed with the error's own context.
_WANTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text (quote it if it looks like a number)",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "model_type": "a group of keys",
    "dict_type": "a group of keys",
    "tuple_type": "a list",
}


def _sentences(errors: list[Any]) -> list[str]:
    """One sentence a key: the branches of a union (a number, or the word never) are told as one."""
    wanted: dict[str, list[str]] = {}
    found: dict[str, Any] = {}
    sentences = []
    for error in errors:
        where = ".".join(map(str, _in_tree(error["loc"])))
        if error["type"] == "extra_forbidden":
            known = list(_node(error["loc"][:-1]).model_fields)
            sentences.append(_unknown(where, str(error["loc"][-1]), error["input"], known))
        elif error["type"] == "value_error":
            sentences.append(f"{where} {error['ctx']['error']}".strip())
        elif error["type"] == "missing":
            sentences.append(f"{where} is missing")
        elif error["type"] in _WANTED:
            wanted.setdefault(where, []).append(_WANTED[error["type"]].format(**error.get("ctx", {})))
            found[where] = error["input"]
        else:
            sentences.append(f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, but found {error['input']!r}")
    return [*sentences, *(f"{key} must be {' or '.join(wanted[key])}, but found {found[key]!r}" for key in wanted)]


def _unknown(where: str, key: str, value: Any, known: list[str]) -> str:
    group, dot, rest = key.partition(".")
    if dot and group in known:
        for name in reversed(rest.split(".")):
            value = {name: value}
        written = yaml.safe_dump({group: value}, default_flow_style=True, width=1000).strip()[1:-1]
        return f"unknown key {where}: in a file write it as {written[:200]}"
    return f"unknown key {where}{did_you_mean(key, known)}"


def _in_tree(loc: tuple) -> tuple:
    """The keys of an error's location, without the branch of a union that pydantic appends."""
    node: Any = Recipe
    for depth, part in enumerate(loc):
        if get_origin(node) in (Union, types.UnionType):
            return loc[:depth]
        if not (isinstance(node, type) and issubclass(node, Node) and part in node.model_fields):
            return loc
        node = _present(node.model_fields[part].annotation)
    return loc


def _node(keys: tuple) -> type[Node]:
    node: Any = Recipe
    for key in keys:
        node = _present(node.model_fields[key].annotation)
    return node


def _present(annotation: Any) -> Any:
    """The group of keys in `Group | None`; anything else as it is."""
    groups = [a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, Node)]
    return groups[0] if groups else annotation


def did_you_mean(word: str, known: list[str]) -> str:
    """The end of a sentence about an unknown word: what is close to it, or all that is known."""
    return close_to(word, known) or f" (known here: {', '.join(known)})"


def close_to(word: str, known: list[str]) -> str:
    """The same where all that is known stands in the sentence already: what is close to the word, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
