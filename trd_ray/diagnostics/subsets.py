"""What each value of train.subset would keep of the rows, and what it would train on.

    RowFacts  ->  subsets_of()  ->  a dict for each of all, failed, repaired, passed

The paper keeps the whole corpus: filtering cost Pass@16 (AMOBench: all 61.5, failed 51.3, repaired 51.3, passed 46.2).
This says how much of a run's signal each filter would throw away. A row without a verdict of y_o is in `all` alone.
"""

from typing import Any

import numpy as np

from trd_ray.diagnostics.row_facts import RowFacts, kl_of, mean_of, median_of


def subsets_of(facts: RowFacts) -> list[dict[str, Any]] | None:
    """None without rows. `tokens` are those of y_r, or of y_o where nothing was refined."""
    if not len(facts):
        return None
    o, r = facts["y_o_passed"], facts["y_r_passed"]
    kept = {"all": np.ones(len(facts), bool), "failed": o == 0, "repaired": (o == 0) & (r == 1), "passed": o == 1}
    trained = np.where(np.isnan(facts["y_r_tokens"]), facts["y_o_tokens"], facts["y_r_tokens"])
    return [
        {
            "subset": name,
            "rows": int(chosen.sum()),
            "share": float(chosen.mean()),
            "y_o_passed": mean_of(o[chosen]),
            "y_r_passed": mean_of(r[chosen]),
            "tokens": int(np.nansum(trained[chosen])),
            "raw": median_of(facts["y_o_tokens"][chosen]),
            "refined": median_of(facts["y_r_tokens"][chosen]),
            "kl": kl_of(facts, chosen),
            "edited_share": mean_of(facts["edited_share"][chosen]),
        }
        for name, chosen in kept.items()
    ]
