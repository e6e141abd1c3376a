import base64
import json
import math
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from browsed import HOSTILE, ROWS, STEPS, a_run
from trd_ray.record.directory import RunDirectory
from trd_ray.report import samples
from trd_ray.report.samples.packed_row import LETTERS, MAX_TOKENS, SCALE, quantised
from trd_ray.rows import to_table

PLENTY = 10_000_000


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    return a_run(tmp_path_factory.mktemp("run") / "r")


@pytest.fixture(scope="module")
def data(run):
    panel = samples.panel(run, PLENTY)
    assert panel
    return json.loads(json.dumps(panel.data, allow_nan=False))


def stored(run: RunDirectory) -> list[dict]:
    return [row for file in sorted(run.path.glob("rows/*.parquet")) for row in pq.read_table(file).to_pylist()]


def number(letter: str) -> float:
    level = LETTERS.index(letter)
    return 0.0 if level == 0 else SCALE["lowest"] * SCALE["ratio"] ** (level - 1)


def test_a_number_is_rounded_to_within_6_percent():
    values = np.exp(np.linspace(math.log(0.001), math.log(30), 5000))
    found = np.array([number(letter) for letter in quantised(values)])
    assert np.abs(found / values - 1).max() < 0.0608


def test_numbers_outside_the_scale_are_at_its_ends():
    lowest, highest, not_finite = LETTERS[0], LETTERS[-1], " "
    assert quantised(np.array([0, -1e-7, 5e-4, 1e4, np.nan, np.inf])) == lowest * 3 + highest + not_finite * 2


def test_every_row_and_its_numbers_are_those_of_the_files(run, data):
    rows = stored(run)
    assert data["rule"] == f"All {STEPS * ROWS} rows are shown." and data["of"] == len(rows) == len(data["rows"]["all"])
    for packed, row in zip(data["rows"]["all"], rows, strict=True):
        assert data["rows"]["problems"][packed["problem"]]["problem"] == row["problem"]
        for y in ("y_o", "y_r"):
            assert packed[y]["text"] == row[y]["text"] + "<|end|>"
            assert len(packed[y]["lengths"]) == packed[y]["tokens"] == len(row[y]["ids"])
            assert packed[y]["special"] == [len(row[y]["ids"]) - 1]
            assert packed[y]["passed"] == row[y]["passed"]
        assert [(one["y"], one["view"], one["trained"]) for one in packed["scored"]] == [
            (one["trajectory"], one["view"], one["trained"]) for one in row["scored"]
        ]
        for one, of in zip(packed["scored"], row["scored"], strict=True):
            kl = np.array(of["kl"], np.float64)
            assert one["means"]["kl"] == pytest.approx(kl.mean(), rel=1e-3)
            assert one["highest"] == pytest.approx(kl.max(), rel=1e-3)
            told = np.array([number(letter) for letter in one["kl"]])
            inside = (kl > 0.001) & (kl < 30)
            assert inside.any() and np.abs(told[inside] / kl[inside] - 1).max() < 0.061


def test_a_prompt_is_that_of_the_ids_with_its_repeated_texts_put_back(run, data):
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(run.checkpoints()[-1][1] / "model")
    for packed, row in zip(data["rows"]["all"], stored(run), strict=True):
        known = data["rows"]["problems"][packed["problem"]] | {y: row[y]["text"] for y in ("y_o", "y_r")}
        views = packed["views"]
        assert views["teacher"] == "refine" and views["trained"] == "student"
        for view, column in (("student", "student_prompt_ids"), ("refine", "refine_prompt_ids")):
            parts = [part for run in views[view] for part in ([run] if isinstance(run, str) else run)]
            text = "".join(part if isinstance(part, str) else utf16(known[part[0]], part[1]) for part in parts)
            assert text == words.decode(row[column])
    assert any(isinstance(part, list) for part in data["rows"]["all"][2]["views"]["refine"][2])


def utf16(text: str, units: int) -> str:
    return text.encode("utf-16-le")[: 2 * units].decode("utf-16-le")


def test_of_each_problem_an_evaluation_shows_a_pass_and_a_failure(run, data):
    assert data["evaluations"] == {"base": 12, "trained": 12}
    seen = {}
    for name in ("base", "trained"):
        for place, row in enumerate(pq.read_table(run.path / "evaluation" / f"{name}.parquet").to_pylist()):
            seen.setdefault((name, row["problem_id"], row["y_o"]["passed"]), place)
    shown = data["samples"]["all"]
    ids = [problem["id"] for problem in data["samples"]["problems"]]
    found = {(one["evaluation"], ids[one["problem"]], one["y_o"]["passed"]): one["row"] for one in shown}
    assert found == seen and len(found) == len(shown)
    assert data["rule_of_samples"].startswith(f"{len(shown)} of 24 samples of evaluations are shown")


@pytest.mark.parametrize("budget", [3_000, 6_000])
def test_what_is_shown_fits_and_the_sentence_counts_it(run, budget):
    data = samples.panel(run, budget).data
    assert len(packed := base64.b64encode(gzipped(data))) <= budget and len(packed) > budget / 2
    shown = len(data["rows"]["all"])
    assert 0 < shown < STEPS * ROWS and data["rule"].startswith(f"{shown} of {STEPS * ROWS} rows are shown")
    numbers = [row["row"] for row in data["rows"]["all"]]
    assert numbers == sorted(numbers)
    assert data == samples.panel(run, budget).data


def test_rows_are_measured_in_the_order_of_the_page():
    texts = [random.Random(n).randbytes(4_000).hex() for n in range(8)]
    page_order = range(64)  # alike rows are further apart than a compressor sees
    alike_together = sorted(page_order, key=lambda n: n % 8)

    def read(some, packing):
        return ((n, packing.row({"problem_id": str(n), "problem": texts[n % 8]}, [])) for n in some)

    shown = samples.Shown(None, read)
    shown.fill(alike_together, [8_000] * 64, page_order, 100_000)
    assert 50_000 < samples.size(shown.packed(page_order)) <= 100_000


def gzipped(data) -> bytes:
    import gzip

    return gzip.compress(json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode(), 9)


def test_a_run_without_numbers_says_which_key_gives_them(tmp_path):
    data = samples.panel(a_run(tmp_path / "r", with_numbers=False, steps=1), PLENTY).data
    assert [note for note in data["notes"] if "diagnostics.tokens=true" in note] and "scored" not in data["rows"][
        "all"
    ][0]


def test_without_the_tokenizer_texts_are_shown_whole_and_uncoloured(tmp_path):
    run = a_run(tmp_path / "r", steps=1)
    for file in (run.path / "checkpoints").glob("*/model/*"):
        file.unlink()
    recipe = run.path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("miniature:student", str(tmp_path / "gone")))
    data = samples.panel(run, PLENTY).data
    assert "gone cannot be read" in data["notes"][0]
    row = data["rows"]["all"][2]
    assert row["y_o"]["text"] == f"{HOSTILE} 1" and "lengths" not in row["y_o"] and "views" not in row


def test_a_run_without_samples_has_no_panel(tmp_path):
    run = a_run(tmp_path / "r", steps=0)
    for file in (run.path / "evaluation").iterdir():
        file.unlink()
    assert samples.panel(run, PLENTY) is None


def test_a_file_that_is_damaged_is_left_out_and_named(tmp_path):
    run = a_run(tmp_path / "r", steps=2)
    (run.path / "rows" / "step-000002.parquet").write_bytes(b"PAR1 of no use")
    data = samples.panel(run, PLENTY).data
    assert len(data["rows"]["all"]) == ROWS
    assert any(note.startswith("rows/step-000002.parquet is left out") for note in data["notes"])


def test_huge_texts_lose_their_middle_and_say_how_much(tmp_path):
    run = a_run(tmp_path / "r", steps=1)
    [row] = pq.read_table(run.path / "rows" / "step-000001.parquet").slice(0, 1).to_pylist()
    row["problem"] = "p" * 1_000_000
    row["y_o"]["ids"] = row["y_o"]["ids"][:1] * (MAX_TOKENS + 500) + row["y_o"]["ids"][-1:]
    row["scored"][1]["kl"] = [0.5] * (MAX_TOKENS + 501)
    run.write_rows(1, to_table([row]))
    data = samples.panel(run, PLENTY).data
    [packed] = data["rows"]["all"]
    assert packed["y_o"]["gap"] == {"at": MAX_TOKENS // 2, "tokens": 501}
    assert packed["y_o"]["tokens"] == MAX_TOKENS + 501 and len(packed["y_o"]["lengths"]) == MAX_TOKENS
    assert packed["y_o"]["text"].endswith("<|end|>") and len(packed["scored"][1]["kl"]) == MAX_TOKENS
    assert "[... 800,000 characters left out ...]" in data["rows"]["problems"][0]["problem"]


def test_samples_of_trd_evaluate_which_hold_no_problems_are_shown(tmp_path):
    from trd_ray.evaluate.samples import SCHEMA

    run = a_run(tmp_path / "r", steps=0)
    rows = pq.read_table(run.path / "evaluation" / "base.parquet").to_pylist()
    import pyarrow as pa

    plain = [
        {"problem_id": one["problem_id"], "sample": 3, "seed": 0, "prompt_sha256": "", "tokens": 1} for one in rows
    ]
    table = pa.Table.from_pylist([p | {"y_o": r["y_o"]} for p, r in zip(plain, rows, strict=True)], schema=SCHEMA)
    (run.path / "evaluation" / "set").mkdir()
    pq.write_table(table, run.path / "evaluation" / "set" / "aime.parquet")
    data = samples.panel(run, PLENTY).data
    shown = [one for one in data["samples"]["all"] if one["evaluation"] == "set/aime"]
    assert shown and all(one["sample_index"] == 3 and one["y_o"]["text"] for one in shown)
    assert data["evaluations"] == {"base": 12, "trained": 12, "set/aime": 12}
