"""What the learner finds at each token of a response, on its way from a rank's loss to the column `scored` of a row.

    statistics of a forward -> TokenValues of a rank -> together() -> of the step -> column() -> rows/

The numbers are float16: they are for looking at, and 16,384 tokens of 128 rows take 17 MB. In nats, half of a step of
float16 is at most 0.05% of a value. No token becomes a Python object.

- What is beyond float16's range becomes the largest number in it, 65,504 nats. An infinity would do harm in every mean.
- NaN stays NaN: an update that was skipped shows which of its rows was at fault.

Shapes: B responses, N tokens of all of them, F the fields in the order of FIELDS.

Pure.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from trd_ray.rows import DIAGNOSED, SCORED

FIELDS = ("kl", "student_nll", "teacher_nll", "onset")  # those of SCORED that have a number for each token
LARGEST = float(np.finfo(np.float16).max)  # what is larger becomes this
PERCENTILES = (50, 95, 99)
METRICS = tuple(f"kl/p{percent}" for percent in PERCENTILES)


class TokenValues(NamedTuple):
    """Of several responses, end to end: three arrays, however many responses there are."""

    keys_B: np.ndarray  # int64, whose each response is: the number of its row
    lengths_B: np.ndarray  # int64, tokens of each
    values_FN: np.ndarray  # float16

    def by_key(self) -> dict[int, np.ndarray]:
        """[F, n] of each response, as views."""
        ends = np.cumsum(self.lengths_B)
        spans = zip(self.keys_B.tolist(), (ends - self.lengths_B).tolist(), ends.tolist(), strict=True)
        return {key: self.values_FN[:, begin:end] for key, begin, end in spans}


NONE = TokenValues(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((len(FIELDS), 0), np.float16))


class ScoredTrajectory(NamedTuple):
    """One element of a row's `scored`."""

    trajectory: str  # "y_o" | "y_r" | "reference"
    view: str  # the teacher's, as in teacher.view
    trained: bool
    values_FN: np.ndarray


def together(parts: Iterable[TokenValues]) -> TokenValues:
    """What several micro-batches, or several ranks, found."""
    found = [NONE, *parts]
    return TokenValues(
        np.concatenate([one.keys_B for one in found]),
        np.concatenate([one.lengths_B for one in found]),
        np.concatenate([one.values_FN for one in found], axis=1),
    )


def perplexity(nll: float) -> float:
    """exp of a mean negative log-likelihood; infinite where that is beyond a float."""
    return math.inf if nll > math.log(sys.float_info.max) else math.exp(nll)


def token_metrics(values_FN: np.ndarray) -> dict[str, float]:
    """Percentiles of the KL over tokens, each token alike. Nothing without tokens, NaN where one of them is."""
    if not values_FN.shape[1]:
        return {}
    found = np.percentile(values_FN[FIELDS.index("kl")].astype(np.float32), PERCENTILES)
    return dict(zip(METRICS, map(float, found), strict=True))


def column(of_rows: Sequence[Sequence[ScoredTrajectory]]) -> pa.Array:
    """The column `scored` for rows with these elements. A row without any has null."""
    flat = [one for row in of_rows for one in row]
    offsets = _offsets([one.values_FN.shape[1] for one in flat])
    values_FN = np.concatenate([NONE.values_FN, *(one.values_FN for one in flat)], axis=1)
    fields: list[Any] = [
        pa.array([one.trajectory for one in flat], pa.string()),
        pa.array([one.view for one in flat], pa.string()),
        pa.array([one.trained for one in flat], pa.bool_()),
        *(pa.ListArray.from_arrays(offsets, pa.array(values_N, pa.float16())) for values_N in values_FN),
    ]
    return pa.ListArray.from_arrays(
        _offsets([len(row) for row in of_rows]),
        pa.StructArray.from_arrays(fields, fields=list(SCORED)),
        type=DIAGNOSED[0].type,
        mask=pa.array([not row for row in of_rows], pa.bool_()),
    )


def _offsets(lengths: Sequence[int]) -> pa.Array:
    return pa.array(np.cumsum([0, *lengths]), pa.int32())


def with_column(table: pa.Table, of_rows: Sequence[Sequence[ScoredTrajectory]]) -> pa.Table:
    """The table with this column, whatever stood there: a corpus may hold what another run has found."""
    [field] = DIAGNOSED
    return table.set_column(table.schema.get_field_index(field.name), field, column(of_rows))
