"""The tokenizer of a run's student, for texts of tokens and for the lengths of references.

    run directory  ->  run_tokenizer()  ->  a tokenizer, or UserError

A checkpoint holds it, so a run can be looked at where its model is not.
"""

from pathlib import Path
from typing import Any

from trd_ray.config import Recipe
from trd_ray.errors import UserError


def run_tokenizer(directory: Path, recipe: Recipe | None) -> Any:
    from trd_ray import models

    kept = sorted(directory.glob("checkpoints/step-*/model/tokenizer.json"), reverse=True)
    student = recipe.student if recipe else None
    trusts = student.trust_remote_code if student else False
    for folder in [file.parent for file in kept[:1]]:
        try:
            return models.tokenizer(str(folder), trust_remote_code=trusts)
        except UserError:  # a folder that is being deleted, or half of one
            pass
    if student is None:
        raise UserError(f"{directory} has no recipe.yaml that says which model's tokens these are: put it back")
    return models.tokenizer(models.resolve(student.path, student.revision), student.revision, trusts)
