"""TACO's rows become problems whose reference is a solution that passed their own tests, or are set aside by name."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trd_ray import rows
from trd_ray.config import DataConfig, VerifyConfig
from trd_ray.errors import UserError
from trd_ray.problems import taco
from trd_ray.problems.load import load_problems
from trd_ray.problems.set_aside import write_set_aside
from trd_ray.problems.taco.schema import mebibytes, seconds
from trd_ray.verify.code.tests import Tests

# As published: every column is text, and the lists and cases are text of JSON (or of Python).
COLUMNS = [
    "question", "solutions", "starter_code", "input_output", "difficulty", "raw_tags", "name", "source", "tags",
    "skill_types", "url", "Expected Auxiliary Space", "time_limit", "date", "picture_num", "memory_limit",
    "Expected Time Complexity",
]  # fmt: skip
SUM = "print(sum(map(int, input().split())))"
WRONG = "a, b = map(int, input().split())\nprint(a - b)"
SLOW = "while True: pass"
CASES = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
QUICK = VerifyConfig(time_limit_s=10, program_timeout_s=30)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def row(question: str, solutions: list[str] | str, cases: dict | str = CASES, **columns: str | None) -> dict:
    return (
        dict.fromkeys(COLUMNS)
        | {
            "question": question,
            "solutions": solutions if isinstance(solutions, str) else json.dumps(solutions),
            "starter_code": "",
            "input_output": cases if isinstance(cases, str) else json.dumps(cases),
            "difficulty": "EASY",
            "raw_tags": "[]",
            "tags": "[]",
            "skill_types": "[]",
            "source": "codeforces",
            "name": f"name of {question}",
        }
        | columns
    )


def written(path: Path, found: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(found, schema=schema), path)
    elif path.suffix == ".arrow":
        with pa.ipc.new_stream(path, schema) as out:  # as the datasets library saves it
            out.write_table(pa.Table.from_pylist(found, schema=schema))
    else:
        path.write_text("".join(json.dumps(one) + "\n" for one in found))
    return str(path)


def load(path: str, verify: VerifyConfig = QUICK, **options) -> taco.Taco:
    spec = {name: options.pop(name) for name in ("difficulty", "limit", "split") if name in options}
    return taco.load(DataConfig(path=path, format="taco", **spec), verify, **options)


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


# The reference


def test_the_first_solution_that_passes_is_the_reference(tmp_path):
    found = load(
        written(
            tmp_path / "train.parquet",
            [
                row("First right.", [SUM, WRONG]),
                row("First wrong.", [WRONG, "not python", SUM]),
                row("Right with other white space.", ["print(sum(map(int, input().split())), end='  \\n\\n')"]),
            ],
        )
    )
    assert found.set_aside == []
    assert found.problems.schema.equals(pa.schema(rows.PROBLEM))
    assert found.problems["problem"].to_pylist() == ["First right.", "First wrong.", "Right with other white space."]
    assert found.problems["reference"].to_pylist()[:2] == [fenced(SUM), fenced(SUM)]
    assert found.problems["answer"].to_pylist() == [""] * 3
    assert Tests.unpack(found.problems["tests"][0].as_py()).outputs == ["3\n", "7\n"]


def test_problems_whose_solutions_all_fail_are_set_aside_counted_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr("trd_ray.problems.taco.schema.MIN_TIME_LIMIT_S", 0.5)
    path = written(
        tmp_path / "train.jsonl",
        [row("Wrong.", [WRONG, WRONG]), row("Slow.", [SLOW], time_limit="0.1 seconds"), row("Right.", [SUM])],
    )
    found = load(path)
    assert found.problems["problem"].to_pylist() == ["Right."]
    wrong, slow = found.set_aside
    assert (wrong.name, slow.name) == ("name of Wrong.", "name of Slow.")
    assert wrong.reason.startswith("no solution passes: 2 tried, the first: wrong answer in case 1 of 2")
    assert slow.reason.startswith("no solution passes: 1 tried, the first: time limit")
    assert str(found) == "1 problems, 2 set aside (2 no solution passes)"
    write_set_aside(tmp_path / "set_aside.jsonl", found.set_aside)
    lines = [json.loads(line) for line in (tmp_path / "set_aside.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["name of Wrong.", "name of Slow."]
    assert lines[0]["problem_id"] == wrong.problem_id and lines[0]["reason"] == wrong.reason


def test_only_so_many_solutions_are_tried(tmp_path):
    path = written(tmp_path / "train.jsonl", [row("Late.", [WRONG] * 3 + [SUM]), row("Right.", [SUM])])
    assert [one.name for one in load(path, solutions_tried=3).set_aside] == ["name of Late."]
    assert load(path, solutions_tried=4).set_aside == []


def test_functions_are_called_as_published(tmp_path):
    starter = "class Solution:\n    def longest(self, words: List[str]) -> str:\n"
    method = starter + "        return max(words, key=len)"
    found = load(
        written(
            tmp_path / "train.jsonl",
            [
                row("Add.", ["def add(a, b):\n    return a + b"],
                    {"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]}),
                row("Longest.", [method], {"fn_name": "longest", "inputs": [[["a", "bcd"]]], "outputs": ["bcd"]},
                    starter_code=starter),
                row("Keys.", ["def keys(d):\n    return [k + 1 for k in d]"],
                    {"fn_name": "keys", "inputs": [[{"1": 2}]], "outputs": [[2]]}),
            ],
        )
    )  # fmt: skip
    assert found.set_aside == []
    tests = [Tests.unpack(packed) for packed in found.problems["tests"].to_pylist()]
    assert [t.entry_point for t in tests] == ["add", "Solution.longest", "keys"]
    assert tests[2].inputs == [[{1: 2}]]  # JSON had made text of the key
    assert found.problems["problem"][1].as_py() == f"Longest.\n\n```python\n{starter.strip()}\n```"


# What no solution can save


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"picture_num": "2"}, "pictures in the question"),
        ({"question": "  "}, "no question"),
        ({"input_output": "{'inputs': []}"}, "input_output is not readable JSON"),
        ({"input_output": '{"inputs": [], "outputs": []}'}, "no usable tests: input_output has no case"),
        ({"input_output": ""}, "no usable tests"),
        ({"input_output": '{"inputs": ["1"], "outputs": []}'}, "no usable tests: 1 inputs but 0 outputs"),
        ({"input_output": '{"inputs": [["a"], 1], "outputs": ["1", "2"]}'}, "no usable tests: inputs and outputs"),
        ({"input_output": f'{{"inputs": {"[" * 100_000}'}, "input_output is not readable JSON"),
        ({"solutions": "[]"}, "no solution"),
        ({"solutions": ""}, "no solution"),
        ({"solutions": "[not json"}, "solutions are not readable JSON"),
    ],
)
def test_unusable_problems_are_set_aside_without_running_anything(tmp_path, columns, reason):
    path = written(tmp_path / "train.parquet", [row("Odd.", [SUM]) | columns, row("Right.", [SUM])])
    found = load(path)
    assert found.problems["problem"].to_pylist() == ["Right."]
    [odd] = found.set_aside
    assert odd.reason.startswith(reason)
    assert odd.name == "name of Odd."


def test_nothing_left_is_refused_with_the_counts_and_the_first_reason(tmp_path):
    path = written(tmp_path / "train.jsonl", [row("Odd.", [SUM], picture_num="1")])
    with pytest.raises(UserError, match=r"0 problems, 1 set aside \(1 pictures in the question\)"):
        load(path)
    path = written(tmp_path / "wrong.jsonl", [row("Sum.", [WRONG])])
    with pytest.raises(UserError, match=r"the first is name of Sum.: no solution passes: 1 tried, .*case 1 of 2"):
        load(path)
    with pytest.raises(UserError, match=r"wrong.jsonl holds no problem of difficulty HARD: check"):
        load(path, difficulty=["HARD"])


def test_json_lines_may_hold_objects_where_the_publisher_has_their_text(tmp_path):
    found = [row("Sum.", "", "") | {"solutions": [WRONG, SUM], "input_output": CASES}]
    found.append(row("Odd.", "", "") | {"solutions": {"python": SUM}, "input_output": CASES})
    found.append(row("Pictures.", [SUM]) | {"picture_num": ["a.png"]})
    both = load(written(tmp_path / "train.jsonl", found))
    assert both.problems["reference"].to_pylist() == [fenced(SUM), fenced(SUM)]
    assert [one.reason for one in both.set_aside] == ["solutions are not readable JSON: a dict, not a list"]


# Files and selection


def test_the_same_problems_come_from_parquet_json_lines_and_arrow(tmp_path):
    found = [row("Sum.", [WRONG, SUM]), row("Sum again.", [SUM])]
    tables = [load(written(tmp_path / f"x.{form}", found)).problems for form in ("parquet", "jsonl", "arrow")]
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])
    assert load_problems(DataConfig(path=str(tmp_path / "x.parquet"), format="taco"), QUICK).table.equals(tables[0])


def test_a_split_is_taken_from_the_repository_s_folders(tmp_path):
    for split in ("train", "test"):
        written(tmp_path / "ALL" / f"{split}-00000-of-00001.parquet", [row(f"In {split}.", [SUM])])
    assert load(str(tmp_path)).problems["problem"].to_pylist() == ["In train."]
    assert load(str(tmp_path), split="test").problems["problem"].to_pylist() == ["In test."]


def test_difficulty_and_limit_select_and_max_tests_keeps_the_first_cases(tmp_path):
    found = [row(f"{level} {i}.", [SUM], difficulty=level) for i in range(2) for level in ("EASY", "VERY_HARD")]
    path = written(tmp_path / "train.jsonl", found)
    assert load(path, difficulty=["very_hard"]).problems["problem"].to_pylist() == ["VERY_HARD 0.", "VERY_HARD 1."]
    assert load(path, limit=1).problems["problem"].to_pylist() == ["EASY 0."]
    with pytest.raises(UserError, match=r"did you mean EASY\?"):
        load(path, difficulty=["EASI"])
    few = load(path, QUICK.model_copy(update={"max_tests": 1}), limit=1).problems["tests"][0].as_py()
    assert Tests.unpack(few).inputs == ["1 2\n"]


def test_limits_are_parsed_and_never_below_what_taco_s_own_grader_gives(tmp_path):
    found = [
        row("Long.", [SUM], time_limit="5.0 seconds", memory_limit="512.0 megabytes"),
        row("Short.", [SUM], time_limit="1 seconds", memory_limit="64 megabytes"),
        row("None.", [SUM]),
    ]
    packed = load(written(tmp_path / "train.jsonl", found)).problems["tests"].to_pylist()
    assert [(t.time_limit_s, t.memory_mib) for t in map(Tests.unpack, packed)] == [(5.0, 512), (4.0, 256), (None, None)]


@pytest.mark.parametrize(
    ("published", "expected"),
    [("2.0 seconds", 2.0), ("1.5 sec", 1.5), ("500 ms", 0.5), ("3", 3.0), ("", None), (None, None), ("none", None)],
)
def test_time_limits(published, expected):
    assert seconds(published) == expected


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        ("256 megabytes", 256),
        ("256.0 megabytes", 256),
        ("1 GB", 1024),
        ("262144 KB", 256),
        ("268435456 bytes", 256),
        ("", None),
        (None, None),
        ("?", None),
    ],
)
def test_memory_limits(published, expected):
    assert mebibytes(published) == expected


def test_another_schema_and_missing_files_are_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"question": "?", "tests": "{}"}) + "\n")
    with pytest.raises(UserError, match="expected the columns question, solutions.*found question, tests"):
        load(str(tmp_path / "x.jsonl"))
    with pytest.raises(UserError, match="there is no data file /data/gone.parquet"):
        load("/data/gone.parquet")


def test_a_hub_that_is_out_of_reach_is_refused_at_once_with_the_way_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    start = time.monotonic()
    with pytest.raises(UserError, match="BAAI/TACO could not be had.*hf download BAAI/TACO --repo-type dataset"):
        load("BAAI/TACO")
    assert time.monotonic() - start < 10


# The cache


def test_a_second_start_reads_the_result_and_a_change_of_content_does_not(tmp_path, monkeypatch):
    path = written(tmp_path / "train.jsonl", [row("Sum.", [WRONG, SUM])])
    first = load(path).problems
    moved = tmp_path / "moved.jsonl"
    Path(path).rename(moved)
    with monkeypatch.context() as nothing_runs:
        nothing_runs.delattr("trd_ray.verify.code.code_verifier.choose_reference")
        assert load(str(moved)).problems.equals(first)
        with pytest.raises(ImportError):  # so it would have run
            load(written(tmp_path / "other.jsonl", [row("Sum.", [WRONG, WRONG, SUM])]))


def test_choices_made_before_an_early_end_are_kept(tmp_path, monkeypatch):
    right, slow = row("Right.", [SUM]), row("Slow.", ["import time\ntime.sleep(4)\n" + SUM])
    with pytest.raises(UserError, match="start again to go on from there"):
        load(written(tmp_path / "train.jsonl", [right, slow]), timeout_s=2)
    with monkeypatch.context() as nothing_runs:
        nothing_runs.delattr("trd_ray.verify.code.code_verifier.choose_reference")
        found = load(written(tmp_path / "train.jsonl", [right]))
    assert found.problems["reference"].to_pylist() == [fenced(SUM)]


def test_ctrl_c_does_not_wait_for_the_programs_that_run(tmp_path):
    path = written(tmp_path / "train.jsonl", [row(f"Slow {i}.", [SLOW] * 8) for i in range(4)])
    code = f"""
from trd_ray.problems import taco
from trd_ray.config import DataConfig, VerifyConfig
print("began", flush=True)
taco.load(DataConfig(path={path!r}, format="taco"), VerifyConfig(time_limit_s=60, program_timeout_s=60))
"""
    # A process without a terminal may have been started with SIGINT ignored, which children inherit.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + code
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline() == b"began\n"
        me = psutil.Process(process.pid)
        while not (running := me.children(recursive=True)):
            time.sleep(0.05)
        time.sleep(0.5)
        running = me.children(recursive=True) or running
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=15) != 0
        finally:
            process.kill()
    _, left = psutil.wait_procs(running, timeout=5)
    assert not left


def test_progress_counts_what_is_done_and_set_aside(tmp_path):
    told = []
    path = written(tmp_path / "train.jsonl", [row("A.", [SUM]), row("B.", [WRONG]), row("C.", [SUM], picture_num="1")])
    load(path, progress=lambda *counts: told.append(counts))
    assert told[-1] == (3, 2, 3)


def test_references_are_chosen_as_ray_tasks_where_ray_runs(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("trd_ray.problems.taco.references._Threads", None)  # nothing falls back to threads
    found = load(written(tmp_path / "train.jsonl", [row("A.", [WRONG, SUM]), row("B.", [WRONG]), row("C.", [SUM])]))
    assert found.problems["problem"].to_pylist() == ["A.", "C."]
    assert [one.name for one in found.set_aside] == ["name of B."]
