"""The keys of rollouts: models, problems, engines, the words around a problem, the stream."""

from typing import Annotated, Any, Literal

from pydantic import Field, create_model, field_validator, model_validator

from trd_ray.config.effects import ANSWERS, ENGINES, LENGTH, MACHINES, NOTHING, NUMBERS, ROWS, SCORES, VERDICTS
from trd_ray.config.engine_counts import EngineCount, EngineRange
from trd_ray.config.node import Node, source_name

GYM_PREFIX = "reasoning_gym:"  # how a path begins that names one of its families
DType = Literal["float32", "bfloat16", "float16"]


def resolved_length(tokens: int | None) -> int:
    """A length that `trd_ray.preflight.lengths.resolve` gave a number. Raises ValueError where it has not yet."""
    if tokens is None:
        raise ValueError("this recipe's lengths are not resolved: take the recipe of trd_ray.session.inputs's Inputs")
    return tokens


class ModelConfig(Node):
    path: Annotated[str, ROWS, NUMBERS, ANSWERS, VERDICTS, ENGINES] = Field(
        description="Hugging Face folder or hub name; `miniature:student` and `smollm2` are made here"
    )
    revision: Annotated[str | None, ROWS, NUMBERS, ANSWERS, VERDICTS, ENGINES] = None
    trust_remote_code: Annotated[bool, ROWS, NUMBERS, ANSWERS, VERDICTS, ENGINES] = False
    chat_template_kwargs: Annotated[dict[str, Any], ROWS, NUMBERS, ANSWERS, VERDICTS] = Field(
        default_factory=dict, description="e.g. {enable_thinking: false}"
    )


class StudentConfig(ModelConfig):
    path: Annotated[str, ROWS, NUMBERS, ANSWERS, ENGINES] = "miniature:student"


class TeacherConfig(ModelConfig):
    path: Annotated[str | None, ROWS, NUMBERS, ENGINES] = Field(
        default=None, description="OPD: the stronger model. OPSD: leave empty, it is the student"
    )
    mode: Annotated[Literal["opsd", "opd"], ROWS, NUMBERS, ENGINES] = "opsd"
    follow: Annotated[Literal["frozen", "ema", "live"], ROWS, NUMBERS, ENGINES] = Field(
        default="frozen", description="OPSD: the initial student, a moving average of it, or the newest one"
    )
    ema_decay: Annotated[float, ROWS, NUMBERS] = Field(
        default=0.99, gt=0, lt=1, description="teacher.follow=ema: decay of the average at each optimizer update"
    )
    view: Annotated[Literal["refine", "vanilla"], NUMBERS] = Field(
        default="refine", description="what the teacher sees when it scores the response for the KL"
    )
    dtype: Annotated[DType | None, NUMBERS] = Field(
        default=None, description="the teacher's weights in the learner; default: learner.dtype"
    )


class DataConfig(Node):
    source: Annotated[Literal["problems", "corpus"], ROWS] = "problems"
    path: Annotated[str, ROWS] = Field(
        default="miniature:train",
        description="JSONL, Parquet, CSV, Hugging Face data set, reasoning_gym:FAMILY, or a corpus folder",
    )
    sources: Annotated[list["SourceConfig"], ROWS] = Field(
        default_factory=list, description="several sources in place of data.path, mixed by weight; each has a name"
    )
    split: Annotated[str, ROWS] = "train"
    format: Annotated[Literal["auto", "jsonl", "parquet", "hub", "taco"], ROWS] = Field(
        default="auto", description="taco: programming problems in TACO's schema, from any of these"
    )
    difficulty: Annotated[list[str] | None, ROWS] = Field(
        default=None, description="taco: only these, e.g. [EASY, MEDIUM]"
    )
    columns: Annotated[dict[str, str], ROWS, SCORES] = Field(
        default_factory=dict,
        description="our name -> column name, for problem_id, problem, answer, reference, tests; a dot names a field "
        "of a column. With data.sources for every source that has these columns",
    )
    teacher_column: Annotated[str | None, ROWS] = Field(
        default=None, description="the column that names one of teachers for each row; default: by the row's source"
    )
    limit: Annotated[int | None, ROWS] = Field(default=None, ge=1)
    arguments: Annotated[dict[str, Any], ROWS, SCORES] = Field(
        default_factory=dict,
        description="reasoning_gym: size (items to train on), test (items held out), seed, and the family's own",
    )
    without_reference: Annotated[Literal["keep", "drop"], ROWS] = Field(
        default="keep", description="problems without a reference, which OPSD needs"
    )
    too_long: Annotated[Literal["refuse", "drop"], ROWS] = Field(
        default="refuse", description="problems whose prompts leave a context no room; drop: set_aside.jsonl names them"
    )
    passes: Annotated[int, LENGTH] = Field(
        default=1, ge=1, description="data.source=corpus: how often its rows are met, unless steps ends it before"
    )
    shuffle: Annotated[bool, ROWS] = True
    max_bad_rows: Annotated[int, NOTHING] = Field(
        default=100,
        ge=0,
        description="rows of a run that an engine refuses or nothing can judge, which do not train; more end the run",
    )

    @property
    def paths(self) -> list[str]:
        """Of all sources."""
        return [one.path for one in self.sources] or [self.path]


class SamplingConfig(Node):
    """The defaults are the paper's: temperature 0.6, top-p 0.95, top-k 20."""

    temperature: Annotated[float, ROWS] = Field(default=0.6, ge=0, le=2)  # vLLM's own bounds
    top_p: Annotated[float, ROWS] = Field(default=0.95, gt=0, le=1)
    top_k: Annotated[int, ROWS] = Field(default=20, ge=0, description="0: no limit")
    max_response_tokens: Annotated[int | None, ROWS] = Field(
        default=None, ge=1, description="default: the paper's 16384 where the context holds it, else what it leaves"
    )
    n: Annotated[int, ROWS] = Field(
        default=1, ge=1, description="rollouts a problem (sampler), refinements a rollout (refiner)"
    )

    @property
    def response_tokens(self) -> int:
        return resolved_length(self.max_response_tokens)


class EngineConfig(Node):
    """One pool of vLLM engines."""

    replicas: Annotated[EngineCount, ENGINES, MACHINES] = Field(
        default=1,
        description="engines: a number, or {min: 1, max: 4}, between which the run moves them to where steps wait "
        "(see scale); start says with how many it begins, by default min. `trd scale` changes it while a run goes on",
    )
    tensor_parallel: Annotated[int, ENGINES, MACHINES] = Field(default=1, ge=1)
    cpus: Annotated[float, ENGINES, MACHINES] = Field(
        default=1.0, ge=0, description="Ray CPUs an engine actor reserves"
    )
    gpus: Annotated[float | None, ENGINES, MACHINES] = Field(
        default=None, ge=0, description="a replica; default: tensor_parallel if GPUs, else 0"
    )
    dtype: Annotated[DType | None, ROWS, ANSWERS, VERDICTS, ENGINES] = Field(
        default=None, description="default: learner.dtype"
    )
    max_model_len: Annotated[int | None, ROWS, VERDICTS, ENGINES] = Field(default=None, ge=16)
    memory_utilization: Annotated[float, ENGINES, MACHINES] = Field(
        default=0.85,
        gt=0,
        le=1,
        description="share of a GPU the engine may use; with placement=timeshare the default leaves it to the plan",
    )
    cpu_kv_cache_gib: Annotated[float, ENGINES, MACHINES] = Field(
        default=1.0, gt=0, description="KV cache of a CPU engine"
    )
    max_concurrent: Annotated[int, ENGINES, MACHINES] = Field(
        default=256, ge=1, description="sequences decoded at once in one engine"
    )
    start_timeout_s: Annotated[float, ENGINES, MACHINES] = Field(default=600, gt=0)
    request_timeout_s: Annotated[float, ENGINES, MACHINES] = Field(
        default=3600, gt=0, description="longest one request may take, queueing included"
    )
    extra: Annotated[dict[str, Any], ROWS, ANSWERS, VERDICTS, ENGINES] = Field(
        default_factory=dict, description="passed to vLLM's engine arguments as they are"
    )

    @property
    def bounds(self) -> EngineRange:
        """The fewest engines, the most, and how many there are at the start."""
        asked = self.replicas
        return EngineRange(min=asked, max=asked, start=asked) if isinstance(asked, int) else asked


class SamplerConfig(EngineConfig, SamplingConfig):
    pass


# `from` is a word of Python's, so this key is made by hand; `RefinerConfig.begins` reads it.
_FROM: Any = (
    Annotated[Literal["attempt", "problem", "relay"], ROWS, NUMBERS],
    Field(
        default="attempt",
        description="what y_r is made from: the attempt, which is rewritten; the problem alone, under the teacher's "
        "vanilla view, as if there were no attempt; relay: the attempt's beginning, from which the teacher goes on "
        "where it would go another way (refiner.relay_logprob)",
    ),
)
RefinesFrom: Any = create_model("RefinesFrom", __base__=Node, **{"from": _FROM})


class RefinerConfig(EngineConfig, SamplingConfig, RefinesFrom):
    """Where one pool samples and refines (`Recipe.shares_engines`), its keys of engines mean nothing."""

    select: Annotated[Literal["first", "first_passed", "shortest_passed", "best_score", "nearest"], ROWS] = Field(
        default="first",
        description="which of refiner.n refinements becomes y_r; nearest: of those that pass, the one that the student "
        "finds most likely, by its mean log-probability a token",
    )
    relay_logprob: Annotated[float, ROWS] = Field(
        default=-4.6,
        lt=0,
        description="refiner.from=relay: the attempt is kept up to the first token whose log-probability under the "
        "teacher is below this; the default is a probability of 1%",
    )
    max_edited_share: Annotated[float | None, ROWS, NUMBERS] = Field(
        default=None,
        gt=0,
        le=1,
        description="a refinement further from y_o is not trained on: edit distance in tokens, divided by the longer "
        "one's length; 1 only measures it",
    )
    max_prompt_tokens: Annotated[int | None, ROWS, NUMBERS] = Field(
        default=None,
        ge=16,
        description="longer: the tail of y_o is cut, then of y*; default: 18432 (OPSD: 22528) or what is left",
    )
    feedback: Annotated[Literal["none", "verdict", "details"], ROWS, NUMBERS] = Field(
        default="none",
        description="tell the refiner whether the attempt passed, or also what failed (code: the case, stderr's tail)",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_what_older_versions_wrote(cls, tree: Any) -> Any:
        """The recipe.yaml of an older run holds every key of its version, this one with its default."""
        if isinstance(tree, dict) and tree.get("share_sampler") is False:
            return {key: value for key, value in tree.items() if key != "share_sampler"}
        return tree

    @property
    def begins(self) -> Literal["attempt", "problem", "relay"]:
        """The key `from`."""
        return getattr(self, "from")

    @property
    def prompt_tokens(self) -> int:
        return resolved_length(self.max_prompt_tokens)


class PromptsConfig(Node):
    """The words around a problem. Their placeholders are {problem}, {reference}, {attempt} and {feedback}.

    A wording that is not set here has its default in trd_ray/wordings.py; trd_ray/views.py says how placeholders are
    read. A wording of the form @prompts/solve.md is read from that file, beside the recipe.
    """

    task: Annotated[Literal["math", "code", "plain"] | None, ROWS, NUMBERS, ANSWERS] = Field(
        default=None,
        description="whose default wordings: math asks for \\boxed{}, code for a Python block, plain for no form; "
        "default: for each row those of what judges it, plain for a function of your own",
    )
    system: Annotated[str | None, ROWS, NUMBERS, ANSWERS] = None
    solve: Annotated[str | None, ROWS, NUMBERS, ANSWERS] = None
    solve_with_reference: Annotated[str | None, ROWS, NUMBERS] = None
    refine: Annotated[str | None, ROWS, NUMBERS] = None
    refine_with_reference: Annotated[str | None, ROWS, NUMBERS] = None


class StreamConfig(Node):
    max_staleness: Annotated[int | Literal["never"], ROWS] = Field(
        default=0, description="0: strictly on-policy; never: offline"
    )
    rows_per_block: Annotated[int | None, NOTHING] = Field(
        default=None,
        ge=1,
        description="rows that may go to an engine in one call; default: 1, or 32 for answers up to 512 tokens",
    )
    stall_timeout_s: Annotated[float, NOTHING] = Field(
        default=7200, gt=0, description="no row for so long: the run ends"
    )


class SourceConfig(Node):
    """One of several sources of problems. What it leaves out, it has of `data`, `prompts` and `verify`."""

    name: Annotated[str, ROWS] = Field(description="stands in the rows, and in the metrics as source/NAME/...")
    path: Annotated[str, ROWS] = Field(description="like data.path")
    split: Annotated[str, ROWS] = Field(default="train", description="like data.split")
    format: Annotated[Literal["auto", "jsonl", "parquet", "hub", "taco"], ROWS] = Field(
        default="auto", description="like data.format"
    )
    columns: Annotated[dict[str, str], ROWS] = Field(
        default_factory=dict, description="like data.columns, which fill in what is left out here and is in the source"
    )
    weight: Annotated[float | None, ROWS] = Field(
        default=None,
        gt=0,
        description="its share of the rows is its part of all weights; without any, every pass meets each problem once",
    )
    limit: Annotated[int | None, ROWS] = Field(default=None, ge=1, description="only its first problems")
    arguments: Annotated[dict[str, Any], ROWS, SCORES] = Field(default_factory=dict, description="like data.arguments")
    verify: Annotated[str | None, ROWS, VERDICTS] = Field(
        default=None, description="the name of its verifier, one of verify.functions; default: as verify says"
    )
    prompts: Annotated[PromptsConfig | None, ROWS, NUMBERS] = Field(
        default=None, description="its own wordings, in place of those of the same names in prompts"
    )
    teacher: Annotated[str | None, ROWS] = Field(
        default=None, description="the name of the teacher of its rows; default: the only one"
    )

    @field_validator("name")
    @classmethod
    def _is_a_word(cls, name: str) -> str:
        return source_name(name)


DataConfig.model_rebuild()
