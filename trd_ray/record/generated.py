"""What rows cost in tokens, whatever became of them: each method of choosing what trains pays in these.

    facts of rows (see record.ledger)  ->  generated()  ->  {"sampled": ..., "refined": ..., "scored": ...}

Prompts are not counted, and rows of a corpus have cost what they say when it was made. A kind is there only where there
is any of it.
"""

from collections.abc import Iterable

KINDS = {
    "sampled": "attempts (y_o), by the sampler",
    "refined": "refinements, all candidates, by the refiner",
    "scored": "attempts read by the refiner (refiner.from=relay), and refinements read for their likelihood "
    "(refiner.select=nearest), by the sampler",
}


def generated(facts: Iterable[dict]) -> dict[str, int]:
    facts = list(facts)
    found = {
        "sampled": [f["y_o_tokens"] for f in facts],
        "refined": [f["y_r_tokens"] if f["refine_tokens"] is None else f["refine_tokens"] for f in facts],
        "scored": [f["refine_scored_tokens"] for f in facts],
    }
    return {
        kind: sum(n for n in tokens if n is not None)
        for kind, tokens in found.items()
        if any(n is not None for n in tokens)
    }
