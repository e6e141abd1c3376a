"""The diagnostics that are watched while a run trains: a few numbers of a step's rows.

    the table of a step, with `scored`  ->  step_metrics()  ->  {"signal/first_third": 0.5, "support/leaks": 0.0, ...}

`signal/first_third` is of what the step trained on. `signal/y_o_vanilla/kl` and its like are of the rows that were
looked at on y_o and on y_r under that view (diagnostics.rows), so that the two compare. What has no meaning in a step
is absent.

It costs the loop time, so edits are counted on a limited number of pairs (EDIT_PAIRS_OF_A_STEP). On one core those of
64 rows of 30 tokens take 1 ms, and of 128 rows of 4,096 tokens at most 0.4 s.
"""

import pyarrow as pa

from trd_ray.diagnostics.assumptions import EDIT_PAIRS_OF_A_STEP
from trd_ray.diagnostics.kept_tokens import edits
from trd_ray.diagnostics.position import first_third_share
from trd_ray.diagnostics.scored import OF_VIEWS, TRAINED, VIEWS
from trd_ray.diagnostics.step_rows import StepRows
from trd_ray.diagnostics.support import NAMES, means, support_of
from trd_ray.diagnostics.token_signal import SignalSums

_PAIRED = {"kl": "mean", "ppl_gap": "ppl_gap", "onset": "onset"}
METRICS = (
    "signal/first_third",
    *(f"signal/{kind}/{name}" for kind in OF_VIEWS for name in _PAIRED),
    *(f"support/{name}" for name in NAMES),
)


def step_metrics(table: pa.Table) -> dict[str, float]:
    """The keys are some of METRICS."""
    rows = StepRows(table)
    support, _ = support_of(rows, edits(rows, EDIT_PAIRS_OF_A_STEP))
    found: dict[str, float | None] = {f"support/{name}": value for name, value in means(support).items()}
    trained = rows.scored.kind(TRAINED)
    if len(trained):
        found["signal/first_third"] = first_third_share(trained)
    for view in VIEWS:
        if pair := rows.scored.paired(view):
            for y, its in zip(("y_o", "y_r"), pair, strict=True):
                figures = SignalSums().add(its).figures()
                found |= {f"signal/{y}_{view}/{name}": figures[figure] for name, figure in _PAIRED.items()}
    return {name: value for name, value in found.items() if value is not None}
