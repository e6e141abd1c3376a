"""Several teachers by name: their keys, the names of their pools, and what belongs to each.

    teacher: {...}                                ->  one teacher, called ONLY;   its pool is refiner
    teachers: {maths: {..., refiner: {...}}, ...} ->  a teacher for each name;    their pools are refiner.maths, ...

Code that works for either asks `Recipe.by_teacher` for a recipe of each teacher, in which it is the only one.
What there is for each teacher (a path, facts, a view) is given as one thing, or by name: see `of_each`.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, Union

from pydantic import Field, create_model

from trd_ray.config.effects import ENGINES, MACHINES, NUMBERS, ROWS, Effect
from trd_ray.config.node import Node
from trd_ray.config.rollout_keys import EngineConfig, RefinerConfig, TeacherConfig
from trd_ray.only_teacher import ONLY

SAMPLER = "sampler"
REFINER = "refiner"
JUDGE_POOL = "judge"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")  # stands in names of pools, of log files and on command lines

T = TypeVar("T")
Each = Union[T, Mapping[str, T]]  # noqa: UP007 - an alias with a type variable


def of_each(value: Each[T]) -> Mapping[str, T]:
    """What there is for each teacher, by its name: something that is not given by name is the only teacher's."""
    return value if isinstance(value, Mapping) else {ONLY: value}


def pool_of(teacher: str) -> str:
    return f"{REFINER}.{teacher}" if teacher else REFINER


def role_of(pool: str) -> str:
    """ "sampler", "refiner" or "judge"."""
    return pool.partition(".")[0]


def teacher_of(pool: str) -> str:
    return pool.partition(".")[2]


def keys_of(pool: str) -> str:
    """The group of the recipe with the keys of a pool."""
    teacher = teacher_of(pool)
    return f"teachers.{teacher}.refiner" if teacher else pool


def group_of_teacher(teacher: str) -> str:
    """The group of the recipe with the keys of a teacher."""
    return f"teachers.{teacher}" if teacher else "teacher"


def as_of_the_only(key: str) -> str:
    """The key that means for a run with one teacher what this one does for a named teacher."""
    match = re.fullmatch(r"teachers\.[^.]+\.(refiner\.)?(.+)", key)
    return f"{match[1] or 'teacher.'}{match[2]}" if match else key


def _or_the_refiner_s(name: str) -> Any:
    field = RefinerConfig.model_fields[name]
    effects = tuple(one for one in field.metadata if isinstance(one, Effect))
    rules = tuple(one for one in field.metadata if not isinstance(one, Effect))
    kind: Any = Annotated[(field.annotation, *rules)] if rules else field.annotation
    return Annotated[(kind | None, *effects)], Field(default=None, description=f"default: refiner.{name}")


# The keys of `refiner`, each of which may be left out.
TeacherRefinerConfig: Any = create_model(
    "TeacherRefinerConfig", __base__=Node, **{name: _or_the_refiner_s(name) for name in RefinerConfig.model_fields}
)


class NamedTeacherConfig(TeacherConfig):
    """One of several teachers: the keys of `teacher`, and the keys of `refiner` that are its own."""

    refiner: Annotated[TeacherRefinerConfig, ROWS, NUMBERS, ENGINES, MACHINES] = Field(  # pyright: ignore[reportInvalidTypeForm]
        default_factory=TeacherRefinerConfig,
        description="its pool, e.g. {replicas: 2}; what is left out here is as in refiner",
    )

    @property
    def alone(self) -> TeacherConfig:
        """As the only teacher."""
        return TeacherConfig.model_validate(self.model_dump(exclude={"refiner"}))

    def refiner_over(self, refiner: RefinerConfig) -> RefinerConfig:
        """The refiner of this teacher: its own keys, and those of `refiner`."""
        own = {key: value for key, value in self.refiner.model_dump().items() if value is not None}
        return RefinerConfig.model_validate(refiner.model_dump() | own)

    def with_refiner(self, **keys: Any) -> "NamedTeacherConfig":
        own = TeacherRefinerConfig.model_validate(self.refiner.model_dump() | keys)
        return self.model_copy(update={"refiner": own})


def engines_by_pool(
    sampler: EngineConfig, refiners: Mapping[str, RefinerConfig], judge: EngineConfig | None = None
) -> dict[str, EngineConfig]:
    """The keys of every pool, by its name; `refiners` are by teacher."""
    found = {SAMPLER: sampler} | {pool_of(teacher): refiner for teacher, refiner in refiners.items()}
    return found | ({JUDGE_POOL: judge} if judge else {})
