"""One typed tree for all that a run can be told, read from a recipe and dotted overrides.

    recipe.yaml + key.sub=value ...  ->  load()  ->  Recipe (validated, defaults filled in)

Unknown keys, wrong types and combinations that cannot work are refused here, with a sentence that says what to set.
Lengths are tokens, times are seconds, memory is GiB. The unit stands in the name where the type does not say it.
"""

from trd_ray.config.close_words import close_to, did_you_mean
from trd_ray.config.engine_counts import EngineRange
from trd_ray.config.evaluation_keys import EVALUATED, EvaluationConfig, EvaluationSet, evaluated, lost
from trd_ray.config.mixed_sources import own_wordings, verifiers_by_source
from trd_ray.config.node import Node, folder_name, plain_path
from trd_ray.config.own_keys import MetricsConfig
from trd_ray.config.recipe_files import (
    apply_override,
    dump,
    dump_differences,
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
from trd_ray.config.training_keys import (
    Beta,
    CheckpointConfig,
    LearnerConfig,
    LoRAConfig,
    LossConfig,
    SyncConfig,
    TrainConfig,
)
from trd_ray.config.tree import ClusterConfig, Recipe
from trd_ray.config.verify_keys import BUILT_IN, NamedFunction, VerifyConfig, is_own, own_parts

__all__ = [
    "BUILT_IN",
    "EVALUATED",
    "Beta",
    "CheckpointConfig",
    "ClusterConfig",
    "DType",
    "DataConfig",
    "GYM_PREFIX",
    "EngineConfig",
    "EngineRange",
    "EvaluationConfig",
    "EvaluationSet",
    "LearnerConfig",
    "LoRAConfig",
    "LossConfig",
    "MetricsConfig",
    "ModelConfig",
    "NamedFunction",
    "Node",
    "PromptsConfig",
    "Recipe",
    "RefinerConfig",
    "SamplerConfig",
    "SamplingConfig",
    "ScaleConfig",
    "SourceConfig",
    "StreamConfig",
    "StudentConfig",
    "SyncConfig",
    "TeacherConfig",
    "TrainConfig",
    "VerifyConfig",
    "apply_override",
    "close_to",
    "did_you_mean",
    "dump",
    "dump_differences",
    "evaluated",
    "folder_name",
    "from_tree",
    "is_own",
    "load",
    "lost",
    "own_wordings",
    "own_parts",
    "plain_path",
    "read_tree",
    "recipe_path",
    "recipe_tree",
    "stored",
    "such_as_in",
    "verifiers_by_source",
]
