"""Which of a row's trajectories is to train, as the recipe says before anything of the row is refined.

    recipe, number of the row, verdict of y_o  ->  wanted()            ->  "y_r" | "y_o" | "reference"
                                               ->  needs_refinement()  ->  whether y_r is made for it at all

A refinement that fails or strays may still be replaced or dropped; examples.py says when.

Pure.
"""

import hashlib

from trd_ray.config import Recipe


def wanted(recipe: Recipe, row: int, y_o_passed: bool) -> str:
    train = recipe.train
    if train.trajectory == "repair":
        return "y_o" if y_o_passed else "y_r"
    if train.trajectory == "mixture":
        return "y_o" if _drawn(recipe.seed, row) < train.mixture_share else "y_r"
    return train.trajectory


def needs_refinement(recipe: Recipe, row: int, y_o_passed: bool) -> bool:
    """False saves the refinement: y_o trains, and no subset asks for the verdict of y_r."""
    if wanted(recipe, row, y_o_passed) == "y_r":
        return True
    # With repair y_o has passed here, and no such row is in the subset.
    return recipe.train.subset == "repaired" and recipe.train.trajectory != "repair"


def _drawn(seed: int, row: int) -> float:
    """A number in [0, 1) of its own for each row, so a run and its corpus draw alike, and a larger share adds rows."""
    digest = hashlib.blake2b(f"mixture:{seed}:{row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
