"""Of a problem's rollouts in a step, the one that trains: train.subset=best.

    a step's table with its example columns  ->  one_of_each()  ->  the same, in which one row of each problem trains

The rollouts of a problem are made one by one, so the choice comes when the step is whole. It takes the shortest attempt
that passes, or the first one where none does, of those rows that would train.

Pure.
"""

import pyarrow as pa

from trd_ray.rows import ROW, dicts, part

NOT_BEST = "not the best of its problem"  # why a row does not train


def one_of_each(table: pa.Table) -> pa.Table:
    rows = dicts(table, ["epoch", "problem_id", "train", "dropped_because", "y_o.passed", "y_o.ids"])
    siblings: dict[tuple[int, str], list[dict]] = {}
    for row in rows:
        if row["train"]:
            siblings.setdefault((row["epoch"], row["problem_id"]), []).append(row)
    for its in siblings.values():
        passed = [row for row in its if part(row, "y_o", "passed")]
        best = min(passed, key=lambda row: len(row["y_o"]["ids"]), default=its[0])
        for row in its:
            if row is not best:
                row |= {"train": False, "dropped_because": NOT_BEST}
    for name in ("train", "dropped_because"):
        field = ROW.field(name)
        made = pa.array([row[name] for row in rows], field.type)
        table = table.set_column(table.schema.get_field_index(name), field, made)
    return table
