"""One typed tree for all that a run can be told, read from a recipe and dotted overrides.

    recipe.yaml + key.sub=value ...  ->  load()  ->  Recipe (validated, defaults filled in)

Unknown keys, wrong types and combinations that cannot work are refused here, with a sentence that says what to set.
Lengths are tokens, times are seconds, memory is GiB. The unit stands in the name where the type does not say it.
"""

from trd_ray.config.alarm_keys import ALARMS, AlarmsConfig
from trd_ray.config.close_words import close_to, did_you_mean
from trd_ray.config.diagnostic_keys import DiagnosticsConfig
from trd_ray.config.engine_counts import EngineRange
from trd_ray.config.evaluation_keys import EVALUATED, EvaluationConfig, EvaluationSet, evaluated, is_lost_guard, lost
from trd_ray.config.function_files import sources_beside
from trd_ray.config.judge_keys import JudgeConfig
from trd_ray.config.mixed_sources import own_wordings, verifiers_by_source
from trd_ray.config.node import Node, folder_name, plain_path
from trd_ray.config.own_keys import MetricsConfig
from trd_ray.config.recipe_files import (
    apply_override,
    dump,
    dump_differences,
    flat,
    from_tree,
    load,
    read_tree,
    recipe_path,
    recipe_tree,
    stored,
    such_as_in,
)
from trd_ray.config.rollout_keys import (
    GYM_PREFIX,
    DataConfig,
    DType,
    EngineConfig,
    ModelConfig,
    PromptsConfig,
    RefinerConfig,
    SamplerConfig,
    SamplingConfig,
    SourceConfig,
    StreamConfig,
    StudentConfig,
    TeacherConfig,
)
from trd_ray.config.scale_keys import ScaleConfig
from trd_ray.config.teachers import (
    JUDGE_POOL,
    REFINER,
    SAMPLER,
    Each,
    NamedTeacherConfig,
    as_of_the_only,
    group_of_teacher,
    keys_of,
    of_each,
    pool_of,
    role_of,
    teacher_of,
)
from trd_ray.config.tracking_keys import TrackingConfig
from trd_ray.config.training_keys import (
    Beta,
    CheckpointConfig,
    LearnerConfig,
    LoRAConfig,
    LossConfig,
    SyncConfig,
    TrainConfig,
)
from trd_ray.config.tree import ClusterConfig, Recipe, Rest
from trd_ray.config.verify_keys import BUILT_IN, JUDGE, REVIEW, NamedFunction, VerifyConfig, is_own, own_parts
from trd_ray.only_teacher import ONLY

__all__ = [
    "ALARMS",
    "AlarmsConfig",
    "BUILT_IN",
    "EVALUATED",
    "JUDGE",
    "JUDGE_POOL",
    "ONLY",
    "REFINER",
    "REVIEW",
    "SAMPLER",
    "Beta",
    "CheckpointConfig",
    "ClusterConfig",
    "DType",
    "DataConfig",
    "DiagnosticsConfig",
    "GYM_PREFIX",
    "Each",
    "EngineConfig",
    "EngineRange",
    "EvaluationConfig",
    "EvaluationSet",
    "JudgeConfig",
    "LearnerConfig",
    "LoRAConfig",
    "LossConfig",
    "MetricsConfig",
    "ModelConfig",
    "NamedFunction",
    "NamedTeacherConfig",
    "Node",
    "PromptsConfig",
    "Recipe",
    "Rest",
    "RefinerConfig",
    "SamplerConfig",
    "SamplingConfig",
    "ScaleConfig",
    "SourceConfig",
    "StreamConfig",
    "StudentConfig",
    "SyncConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainConfig",
    "VerifyConfig",
    "apply_override",
    "as_of_the_only",
    "close_to",
    "did_you_mean",
    "dump",
    "dump_differences",
    "flat",
    "evaluated",
    "folder_name",
    "from_tree",
    "group_of_teacher",
    "is_lost_guard",
    "is_own",
    "keys_of",
    "load",
    "lost",
    "of_each",
    "own_parts",
    "own_wordings",
    "plain_path",
    "pool_of",
    "read_tree",
    "recipe_path",
    "recipe_tree",
    "role_of",
    "sources_beside",
    "stored",
    "such_as_in",
    "teacher_of",
    "verifiers_by_source",
]
