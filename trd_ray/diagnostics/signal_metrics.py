"""The diagnostics that are watched while a run trains: a few numbers of a step's rows.

    the table of a step, with `scored`  ->  step_metrics()  ->  {"signal/kl_p95": 1.1, "support/kept_share": 0.6, ...}

`signal/kl_*`, `signal/first_third` and `signal/ppl_gap` are of what the step trained on. `signal/y_o_vanilla/kl` and
its like are of the rows that were scored on y_o and on y_r under that view (diagnostics.rows), so that the two compare.
What has no meaning in a step is absent.

It costs the loop time, so edits are counted on a limited number of pairs (EDIT_PAIRS_OF_A_STEP). On one core 64 rows of
30 tokens take 4 ms, and 128 rows of 4,096 tokens 0.2 s.
"""

import pyarrow as pa

from trd_ray.diagnostics.assumptions import EDIT_PAIRS_OF_A_STEP
from trd_ray.diagnostics.kept_tokens import edits
from trd_ray.diagnostics.position import first_third_share
from trd_ray.diagnostics.scored import OF_VIEWS, TRAINED, VIEWS, ScoredTokens
from trd_ray.diagnostics.step_rows import StepRows
from trd_ray.diagnostics.support import NAMES, means, support_of
from trd_ray.diagnostics.token_signal import SignalSums

_TRAINED = {"kl_p50": "p50", "kl_p95": "p95", "kl_p99": "p99", "ppl_gap": "ppl_gap"}
_PAIRED = {"kl": "mean", "ppl_gap": "ppl_gap", "onset": "onset"}
METRICS = (
    *(f"signal/{name}" for name in (*_TRAINED, "first_third")),
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
        found |= _named("signal", trained, _TRAINED) | {"signal/first_third": first_third_share(trained)}
    for view in VIEWS:
        if pair := rows.scored.paired(view):
            for y, its in zip(("y_o", "y_r"), pair, strict=True):
                found |= _named(f"signal/{y}_{view}", its, _PAIRED)
    return {name: value for name, value in found.items() if value is not None}


def _named(where: str, scored: ScoredTokens, names: dict[str, str]) -> dict[str, float | None]:
    figures = SignalSums().add(scored).figures()
    return {f"{where}/{name}": figures[figure] for name, figure in names.items()}
