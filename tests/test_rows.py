"""Rows of every version read as rows of this one, whatever columns a file has or lacks."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from trd_ray.errors import UserError
from trd_ray.rows import METADATA, ROW, TRAJECTORY, RowFiles, dicts, light, part, to_table, upgrade

Y_O = {
    "ids": [5, 6, 7], "logprobs": [-0.5, -0.25, -1.0], "text": "so 5", "finish": "stop", "version": 3,
    "engine": "sampler-0", "start_s": 100.0, "seconds": 4.0, "passed": True, "score": 1.0, "extracted": "5",
    "detail": "", "feedback": "", "verify_start_s": 104.0, "verify_seconds": 0.5,
    "parts": [{"name": "right", "score": 1.0}, {"name": "form", "score": 0.5}],
}  # fmt: skip
Y_R = Y_O | {"ids": [], "text": "", "passed": False, "detail": "empty", "parts": None}


def row(number: int, **columns) -> dict:
    plain = {"problem_id": f"p{number}", "problem": "?", "answer": "5", "reference": "", "row": number, "step": 1}
    order = {"epoch": 0, "sample_index": 0, "seed": number, "student_prompt_ids": [1, 2], "train": True}
    return plain | order | columns


NEW = [row(0, y_o=Y_O, y_r=Y_R), row(1, y_o=Y_R, y_r=None), row(2, y_o=Y_O | {"logprobs": None}, y_r=Y_O)]


def flat(rows: list[dict], version: int) -> pa.Table:
    """The rows as version 2 or 3 stored them: a column for each field of y_o and of y_r, and in 2 steps from 0."""
    of_ys = [pa.field(f"{y}_{field.name}", field.type) for y in ("y_o", "y_r") for field in TRAJECTORY]
    schema = pa.schema([*(f for f in ROW if f.name not in ("y_o", "y_r")), *of_ys])
    made = [
        {f.name: r.get(f.name) for f in schema if f not in of_ys}
        | {f"{y}_{field.name}": part(r, y, field.name) for y in ("y_o", "y_r") for field in TRAJECTORY}
        | {"step": r["step"] - (version < 3)}
        for r in rows
    ]
    return pa.Table.from_pylist(made, schema=schema.with_metadata({"trd_ray.rows": str(version)}))


def test_a_trajectory_is_one_type_wherever_there_is_one():
    assert ROW.field("y_o").type == ROW.field("y_r").type == TRAJECTORY


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("cut", [slice(None), slice(1, None), slice(0, 0)])
def test_flat_columns_of_an_older_version_become_structs(version, cut):
    old = upgrade(flat(NEW, version)[cut])
    assert old.schema.equals(ROW, check_metadata=True)
    assert old == to_table(NEW)[cut]


def test_rows_of_this_version_stay_as_they_are():
    assert upgrade(to_table(NEW)) == to_table(NEW)


def test_what_lies_in_a_table_as_several_chunks_or_a_slice_is_the_same():
    for table in (flat(NEW, 3), to_table(NEW)):
        assert upgrade(pa.concat_tables([table[:1], table[1:], table[1:2]])) == to_table([*NEW, NEW[1]])


@pytest.mark.parametrize("version", [2, 3, 4])
def test_what_a_file_lacks_is_null_and_what_it_has_beyond_is_left_out(version):
    table = to_table(NEW) if version == 4 else flat(NEW, version)
    table = table.drop_columns(["train", "student_prompt_ids", "reference"]).append_column("mood", pa.array(["?"] * 3))
    if version == 4:
        y_o = [{"passed": r["y_o"]["passed"], "mood": 1} for r in NEW]  # a struct with a field more, and most not there
        table = table.drop_columns("y_r").set_column(table.column_names.index("y_o"), "y_o", pa.array(y_o))
    else:
        table = table.select([n for n in table.column_names if not n.startswith(("y_o_", "y_r_")) or n == "y_o_passed"])
    expected = [{"y_o": {"passed": r["y_o"]["passed"]}, "y_r": None} for r in NEW]
    gone = dict.fromkeys(("train", "student_prompt_ids", "reference"))
    assert (
        upgrade(table).to_pylist() == to_table([r | gone | y for r, y in zip(NEW, expected, strict=True)]).to_pylist()
    )


@pytest.mark.parametrize("version", [2, 3, 4])
def test_rows_of_before_the_scores_of_several_verifiers_were_kept_have_none(version, tmp_path):
    without = [r | {y: r[y] and {k: v for k, v in r[y].items() if k != "parts"} for y in ("y_o", "y_r")} for r in NEW]
    older = pa.struct([field for field in TRAJECTORY if field.name != "parts"])
    schema = pa.schema([pa.field(f.name, older) if f.type == TRAJECTORY else f for f in ROW], metadata=METADATA)
    flattened = flat(NEW, version).drop_columns(["y_o_parts", "y_r_parts"]) if version < 4 else None
    pq.write_table(flattened or pa.Table.from_pylist(without, schema=schema), tmp_path / "old.parquet")
    pq.write_table(to_table(NEW), tmp_path / "new.parquet")
    stored = RowFiles([tmp_path / "old.parquet", tmp_path / "new.parquet"])
    assert stored.to_table().to_pylist() == to_table([*without, *NEW]).to_pylist()
    of_new = [Y_O["parts"], None, Y_O["parts"]]
    assert stored.to_table(["y_o.parts"])["y_o.parts"].to_pylist() == [None] * 3 + of_new
    assert [row["y_o"]["parts"] for row in light(upgrade(to_table(NEW)))] == of_new


def test_the_scores_of_several_verifiers_are_columns_of_arrow_and_of_a_data_set(tmp_path):
    import datasets

    pq.write_table(to_table(NEW), tmp_path / "new.parquet")
    parts = pc.list_flatten(pc.struct_field(RowFiles([tmp_path / "new.parquet"]).to_table()["y_o"], "parts"))
    assert pc.struct_field(parts, "score").to_pylist() == [1.0, 0.5, 1.0, 0.5]
    found = datasets.Dataset.from_parquet(str(tmp_path / "new.parquet"), cache_dir=str(tmp_path))
    assert found[0]["y_o"]["parts"] == Y_O["parts"] and found[1]["y_o"]["parts"] is None


def test_rows_that_another_tool_wrote_again_without_the_version_are_read_by_their_columns():
    other = flat(NEW, 3).replace_schema_metadata(None)
    wide = pa.schema([pa.field(f.name, {pa.string(): pa.large_string()}.get(f.type, f.type)) for f in other.schema])
    assert upgrade(other.cast(wide)) == to_table(NEW)


def test_rows_of_a_newer_version_are_told_with_the_file(tmp_path):
    pq.write_table(to_table(NEW).replace_schema_metadata({"trd_ray.rows": "5"}), tmp_path / "step-000001.parquet")
    with pytest.raises(UserError, match=r"step-000001.parquet: .* version 5.* up to 4: read them with the version"):
        RowFiles([tmp_path / "step-000001.parquet"])


@pytest.fixture
def mixed(tmp_path) -> RowFiles:
    """Files of versions 2, 4, 3, 4 and 4, three rows each."""
    files = []
    for i, version in enumerate([2, 4, 3, 4, 4]):
        rows = [r | {"row": 3 * i + r["row"], "step": i + 1} for r in NEW]
        files.append(tmp_path / f"step-{i:06d}.parquet")
        pq.write_table(to_table(rows) if version == 4 else flat(rows, version), files[-1])
    return RowFiles(files)


def test_files_of_several_versions_read_as_one_in_their_order(mixed):
    whole = mixed.to_table()
    assert whole.schema.equals(ROW, check_metadata=True)
    assert whole["row"].to_pylist() == list(range(15)) and mixed.count_rows() == 15
    assert whole["step"].to_pylist() == [step for step in range(1, 6) for _ in range(3)]
    assert whole["y_o"].to_pylist() == to_table(NEW)["y_o"].to_pylist() * 5
    assert whole["y_r"].to_pylist() == to_table(NEW)["y_r"].to_pylist() * 5


def test_single_fields_of_trajectories_are_read_and_rows_by_their_number(mixed):
    columns = ["y_r.text", "step", "y_o.ids", "train"]
    table = mixed.to_table(columns, pc.field("row").isin([2, 3, 4, 6]))
    assert table.to_pylist() == [
        {"y_r.text": "so 5", "step": 1, "y_o.ids": [5, 6, 7], "train": True},
        {"y_r.text": "", "step": 2, "y_o.ids": [5, 6, 7], "train": True},
        {"y_r.text": None, "step": 2, "y_o.ids": [], "train": True},
        {"y_r.text": "", "step": 3, "y_o.ids": [5, 6, 7], "train": True},
    ]


def test_a_field_that_no_file_has_is_null(tmp_path):
    place = tmp_path / "step-000001.parquet"
    pq.write_table(pa.table({"row": [0, 1]}), place)
    read = RowFiles([place]).to_table(["y_o.score", "y_r", "step"])
    assert read.to_pylist() == [{"y_o.score": None, "y_r": None, "step": None}] * 2


def test_no_files_are_no_rows():
    none = RowFiles([])
    assert (none.count_rows(), none.to_table().num_rows, none.to_table(["y_o.ids"]).column_names) == (0, 0, ["y_o.ids"])
    assert none.to_table().schema.metadata == {name.encode(): value.encode() for name, value in METADATA.items()}


def test_a_part_of_no_trajectory_is_none():
    assert [part(r, "y_r", "finish") for r in ({}, {"y_r": None}, {"y_r": {}}, {"y_r": Y_R})] == [None] * 3 + ["stop"]


# Rows in the driver


PARCELS = pytest.mark.parametrize(
    "cut",
    [
        lambda table: table,
        lambda table: table[1:],
        lambda table: table[:0],
        lambda table: pa.concat_tables([table[2:], table[:1], table[1:2]]),
    ],
    ids=["whole", "slice", "empty", "parcels"],
)


@PARCELS
def test_light_rows_hold_the_numbers_of_the_rows_and_the_counts_of_their_tokens(cut):
    table = cut(to_table(NEW))
    for row, whole in zip(light(table), table.to_pylist(), strict=True):
        for y in ("y_o", "y_r"):
            given = row.pop(y)
            assert (given is None) == (whole[y] is None)
            if given is not None:
                assert given.pop("tokens") == len(whole[y]["ids"])
                assert given == {name: whole[y][name] for name in given}
                assert not {"ids", "logprobs", "text"} & given.keys()
        assert row == {name: whole[name] for name in row}
        assert not {"problem", "reference", "student_ids", "teacher_ids", "response_ids"} & row.keys()


@PARCELS
def test_lists_come_out_of_a_table_as_slices_of_its_buffers(cut):
    table = cut(to_table(NEW))
    found = dicts(
        table, ["row", "student_prompt_ids", "teacher_ids", "y_o.ids", "y_o.logprobs", "y_o.passed", "y_r.ids"]
    )
    buffers = [chunk.values.to_numpy() for chunk in table["student_prompt_ids"].chunks]
    for row, whole in zip(found, table.to_pylist(), strict=True):
        assert row["y_o"]["ids"].dtype == np.int32 and row["y_o"]["ids"].tolist() == whole["y_o"]["ids"]
        logprobs = row["y_o"]["logprobs"]
        assert (None if logprobs is None else logprobs.tolist()) == whole["y_o"]["logprobs"]
        assert (row["row"], row["teacher_ids"], row["y_o"]["passed"]) == (whole["row"], None, whole["y_o"]["passed"])
        assert (row["y_r"] is None) == (whole["y_r"] is None)
        assert any(np.shares_memory(row["student_prompt_ids"], buffer) for buffer in buffers)


def test_arrays_and_lists_make_the_same_table():
    def arrays(trajectory: dict | None) -> dict | None:
        if trajectory is None:
            return None
        logprobs = trajectory["logprobs"]
        as_array = None if logprobs is None else np.array(logprobs, np.float32)
        return trajectory | {"ids": np.array(trajectory["ids"], np.int32), "logprobs": as_array}

    made = [r | {"y_o": arrays(r["y_o"]), "y_r": arrays(r["y_r"])} for r in NEW]
    assert to_table(made) == to_table(NEW)


def test_a_lone_surrogate_becomes_a_question_mark_wherever_it_stands():
    ids = np.array([1], np.int32)
    table = to_table(
        [row(0, problem="\ud800?", y_o=Y_O | {"ids": ids, "text": "a\udfff\x00", "detail": "\ud801"}), NEW[1]]
    )
    [first, second] = table.to_pylist()
    assert (first["problem"], first["y_o"]["text"], first["y_o"]["detail"]) == ("??", "a?\x00", "?")
    assert first["y_o"]["ids"] == [1] and second == to_table([NEW[1]]).to_pylist()[0]
