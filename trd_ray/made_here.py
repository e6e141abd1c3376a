"""Names of models, problems and recipes that come with a package instead of from a disk or a hub.

    "miniature:student", "smollm2"  ->  MODELS    ->  the folder of a Hugging Face model, made on the first call
    "miniature:test"                ->  PROBLEMS  ->  rows as a data file would hold them
    "miniature:code_student"        ->  RECIPES   ->  the recipe whose prompts that model was made for

`trd_ray.miniature` makes what they stand for and fills the tables. So all other code can look a name up without knowing
who makes what it stands for.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

MODELS: dict[str, Callable[[], Path]] = {}
PROBLEMS: dict[str, Callable[[], list[dict[str, Any]]]] = {}
RECIPES: dict[str, str] = {}


def like(name: str, table: dict[str, Any]) -> list[str]:
    """The names of a table that are the same as `name` before the colon. None where `name` is of another kind."""
    kind = name.partition(":")[0]
    return [known for known in table if known.partition(":")[0] == kind]
