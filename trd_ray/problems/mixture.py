"""Several sources of problems as one table, and what part of a run's rows each gets.

    (source, its problems) ...  ->  joined()    ->  one table and one spool; rows carry the name of their source
    a recipe, that table        ->  order_of()  ->  the order in which a run meets it
                                ->  shares()    ->  a sentence: problems, part of the rows and passes of each source

A problem's id begins with the name of its source, so ids of two sources cannot collide, and a source that is added
renames no other. The table holds the sources one after another; the order mixes them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from trd_ray.config import DataConfig, Recipe, SourceConfig
from trd_ray.errors import UserError
from trd_ray.problems.order import Order
from trd_ray.problems.spool import Spool, spooled

_ROWS_AT_ONCE = 64  # of a source, whose tests come into memory while they go to the common spool


def joined(found: Sequence[tuple[SourceConfig, pa.Table]], schema: pa.Schema) -> tuple[pa.Table, Spool]:
    """The problems of all sources. Their own spools must live until this returns."""
    return spooled((row for source, table in found for row in _named(source, table)), schema)


def name_in(source: SourceConfig, problem_id: str) -> str:
    return f"{source.name}/{problem_id}"


def _named(source: SourceConfig, table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            own = {"problem_id": name_in(source, row["problem_id"]), "source": source.name}
            yield row | own | {"teacher": row["teacher"] or source.teacher}


def order_of(recipe: Recipe, problems: pa.Table) -> Order:
    """Raises UserError where a source has no problem left."""
    sizes = _sizes(recipe.data, problems)
    if empty := [name for name, size in sizes.items() if not size]:
        raise UserError(
            f"no problem of the source {empty[0]} is left: look into its data, or take it out of data.sources"
        )
    weights = tuple(one.weight for one in recipe.data.sources if one.weight is not None)
    return Order(
        problems.num_rows, seed=recipe.seed, rollouts_per_step=recipe.rollouts_per_step,
        samples_per_problem=recipe.sampler.n, shuffle=recipe.data.shuffle, steps=recipe.steps,
        sources=tuple(sizes.values()) if weights else (), weights=weights,
    )  # fmt: skip


def shares(recipe: Recipe, problems: pa.Table) -> str:
    """What each of several sources gives to the run. Raises UserError as `order_of` does."""
    order = order_of(recipe, problems)
    sizes = _sizes(recipe.data, problems)
    rows = order.length.rows
    of_rows = order.rows_of_sources() or [rows * size / problems.num_rows for size in sizes.values()]
    told = [
        f"{name} {size} problems, {count / rows:.1%} of the rows ({_passes(count / order.samples_per_problem / size)})"
        for (name, size), count in zip(sizes.items(), of_rows, strict=True)
    ]
    return f"sources: {'; '.join(told)}"


def _passes(times: float) -> str:
    return "1 pass" if f"{times:.2g}" == "1" else f"{times:.2g} passes"


def _sizes(data: DataConfig, problems: pa.Table) -> dict[str, int]:
    counted = {one["values"]: one["counts"] for one in problems["source"].value_counts().to_pylist()}
    return {one.name: counted.get(one.name, 0) for one in data.sources}
