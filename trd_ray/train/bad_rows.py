"""Rows that could not be made or judged, by the fault of their own data: named, counted, and a run ends at too many.

    a step's table -> BadRows.checked() -> the same table, whose rows with a `fault` never train
                                       '-> events.jsonl, a warning, or RunFailed once data.max_bad_rows are exceeded

Few such rows are the world; many are a fault of the data, the verifier or a machine, and a run that goes on trains on
what is left. Rows that an earlier start has recorded count too. Those of a corpus were counted when it was made.
"""

import pyarrow as pa
import pyarrow.compute as pc

from trd_ray.errors import RunFailed
from trd_ray.record.ledger import DROPPED
from trd_ray.session.session import Session
from trd_ray.stream.examples import BAD_ROW


class BadRows:
    def __init__(self, session: Session, done: int):
        """`done` steps are recorded, and are not done again."""
        self.session = session
        self.most = session.recipe.data.max_bad_rows
        self.counts = session.inputs.problems is not None
        recorded = session.directory.read_metrics() if self.counts else []
        self.count = sum(int(one.get(DROPPED + BAD_ROW) or 0) for one in recorded if one["step"] <= done)

    def checked(self, table: pa.Table) -> pa.Table:
        """The table as it is. Raises RunFailed if the run has had too many bad rows by now."""
        bad = table.filter(pc.is_valid(table["fault"])).select(["row", "problem_id", "fault"]).to_pylist()  # pyright: ignore
        if not bad or not self.counts:
            return table
        self.count += len(bad)
        for row in bad:
            said = f"row {row['row']} (problem {row['problem_id']}) does not train: {row['fault']}"
            self.session.directory.event("bad_row", said=said, **row)
        first = bad[0]
        example = f"such as row {first['row']} of problem {first['problem_id']}: {first['fault']}"
        if self.count > self.most:
            raise RunFailed(
                f"{self.count} rows of this run could not be made or judged, more than data.max_bad_rows={self.most}, "
                f"{example}. events.jsonl names them all: repair what they say, or raise data.max_bad_rows"
            )
        self.session.warn(
            {"bad rows": f"a row that cannot be made or judged does not train, {example}. events.jsonl names each."}
        )
        return table
