"""Several sources of problems in one run: what they may not be together, and what each has of its own.

data.sources  ->  require_sources()      ->  ValueError, which says what to set
              ->  own_wordings()         ->  source -> the wordings that it has instead of those in `prompts`
              ->  verifiers_by_source()  ->  source -> the name of its verifier, for those that name one
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from trd_ray.config.close_words import did_you_mean
from trd_ray.config.rollout_keys import DataConfig, SourceConfig
from trd_ray.config.verify_keys import BUILT_IN, VerifyConfig


def require_sources(data: DataConfig, verify: VerifyConfig, teachers: Sequence[str] = ()) -> None:
    """`teachers` are the names of several."""
    if not data.sources:
        return
    if data.source == "corpus":
        raise ValueError("data.source=corpus trains on the rows of data.path: leave data.sources out")
    defaults = DataConfig.model_fields
    for key in [key for key in SourceConfig.model_fields if key in defaults and key != "columns"]:
        if getattr(data, key) != defaults[key].get_default(call_default_factory=True):
            raise ValueError(
                f"data.{key} is of a run with one source, but data.sources has {len(data.sources)}: set it in each of "
                "them, or leave data.sources out"
            )
    twice = [name for name, times in Counter(one.name for one in data.sources).items() if times > 1]
    if twice:
        raise ValueError(f"data.sources has the name {twice[0]!r} twice: give each source a name of its own")
    if data.difficulty and all(one.format != "taco" for one in data.sources):
        raise ValueError("data.difficulty selects problems of TACO: set format: taco in a source, or leave it out")
    without = [one.name for one in data.sources if one.weight is None]
    if without and len(without) < len(data.sources):
        raise ValueError(
            f"data.sources gives {', '.join(without)} no weight, but others one: give each a weight, or none of them"
        )
    known = [*BUILT_IN, *verify.functions]
    for one in data.sources:
        if one.verify and one.verify not in known:
            raise ValueError(
                f"data.sources names the verifier {one.verify!r} of {one.name}, which is no entry of verify.functions"
                f"{did_you_mean(one.verify, known)}"
            )
        if one.teacher and one.teacher not in teachers:
            raise ValueError(
                f"data.sources names the teacher {one.teacher!r} of {one.name}, which is no entry of teachers"
                f"{did_you_mean(one.teacher, list(teachers))}"
            )


def own_wordings(data: DataConfig) -> dict[str, dict[str, Any]]:
    """Source -> what its `prompts` set."""
    return {
        one.name: found
        for one in data.sources
        if one.prompts and (found := one.prompts.model_dump(exclude_defaults=True))
    }


def verifiers_by_source(data: DataConfig) -> dict[str, str]:
    return {one.name: one.verify for one in data.sources if one.verify}
