"""Each benchmark comes out of its published schema as it was written, and nothing but text comes out of a pickle."""

import base64
import gzip
import json
import pickle
import pickletools
import shutil
import socket
import threading
import time
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trd_ray import rows
from trd_ray.errors import UserError
from trd_ray.problems import benchmarks
from trd_ray.problems.benchmarks.catalogue import ENTRIES
from trd_ray.problems.benchmarks.humaneval_mbpp import download
from trd_ray.problems.benchmarks.livecodebench import pickled_text
from trd_ray.verify.code.tests import Tests

FILES = Path(__file__).parent / "benchmark_files"
BELLS = "A bell rings every $7$ minutes, another every $9$. How many minutes pass between two common rings?"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads what an earlier one kept, the hub's cache or evalplus's, or the network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("HUMANEVAL_OVERRIDE_PATH", "MBPP_OVERRIDE_PATH"):
        monkeypatch.delenv(name, raising=False)


def parquet(path: Path, schema: dict[str, pa.DataType], found: list[tuple]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    named = [dict(zip(schema, values, strict=True)) for values in found]
    pq.write_table(pa.Table.from_pylist(named, schema=pa.schema(schema)), path)
    return path


def jsonl(path: Path, found: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def answers(spec: str, **options) -> dict[str, tuple[str, str]]:
    """problem_id -> (problem, answer), after what holds of every benchmark of mathematics."""
    b = benchmarks.load(spec, **options)
    assert b.problems.schema.equals(pa.schema(rows.PROBLEM))
    assert b.problems["tests"].null_count == b.problems.num_rows
    assert (b.task, b.max_response_tokens, b.samples, b.temperature, b.top_p) == ("math", 38_912, 16, 0.6, 0.95)
    return {r["problem_id"]: (r["problem"], r["answer"]) for r in b.problems.to_pylist()}


def refusal(spec: str, **options) -> str:
    with pytest.raises(UserError) as refused:
        benchmarks.load(spec, **options)
    return str(refused.value)


# Mathematics


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            "math_ai_aime24.jsonl",  # the answer is boxed at the end of the solution
            {
                "aime24/60": (BELLS, "63"),
                "aime24/61": ("Find the sum of the digits of $2^{10}$.", "007"),
            },
        ),
        ("h4_aime_2024.jsonl", {"aime24/60": (BELLS, "063")}),  # the answer's column, whatever the solution boxes
        ("maxwell_jia_aime_2024.jsonl", {"aime24/2024-I-1": (BELLS, "63")}),
    ],
)
def test_aime24_in_the_schemas_of_three_publishers(file, expected):
    assert answers(f"aime24:{FILES / file}") == expected


def test_aime25_from_one_file_and_from_the_folder_of_a_publisher_with_two():
    one = answers(f"aime25:{FILES / 'math_ai_aime25.jsonl'}")
    assert one == {
        "aime25/0": ("How many two-digit numbers are multiples of $12$?", "8"),
        "aime25/1": ("Find the remainder of $3^{100}$ modulo $10$.", "1"),
    }
    two = answers(f"aime25:{FILES / 'opencompass_AIME2025'}")  # which gives no ids
    assert list(two.values()) == list(one.values())
    assert all(len(own) == len("aime25/") + 16 for own in two)


def test_hmmt25_as_matharena_publishes_it(tmp_path):
    schema = {
        "problem_idx": pa.int64(),
        "problem": pa.string(),
        "answer": pa.string(),
        "problem_type": pa.list_(pa.string()),
    }
    found = [(1, "Compute $1+2+4$.", "7", ["Algebra"]), (2, "Compute $\\tan 45^\\circ/2$.", "\\frac{1}{2}", [])]
    file = parquet(tmp_path / "data" / "train-00000-of-00001.parquet", schema, found)
    expected = {"hmmt25/1": ("Compute $1+2+4$.", "7"), "hmmt25/2": ("Compute $\\tan 45^\\circ/2$.", "\\frac{1}{2}")}
    assert answers(f"hmmt25:{file}") == expected
    assert answers(f"hmmt25:{tmp_path}") == expected


def test_beyondaime_whose_answers_may_be_numbers(tmp_path):
    file = parquet(
        tmp_path / "b.parquet", {"problem": pa.string(), "answer": pa.int64()}, [("Compute $2^{40}$.", 2**40)]
    )
    assert list(answers(f"beyondaime:{file}").values()) == [("Compute $2^{40}$.", "1099511627776")]


def test_amobench_keeps_what_a_rule_can_grade_and_says_what_it_leaves_out(tmp_path):
    schema = {"question_id": pa.int64()} | dict.fromkeys(["prompt", "solution", "answer", "answer_type"], pa.string())
    found = [
        (1, "How many?", "Count.", "\\boxed{12}", "number"),
        (2, "Which?", "Search.", "\\boxed{\\{1,2\\}}", "set"),
        (5, "In terms of n?", "Induct.", "\\boxed{2^n}", "variable"),
        (7, "Describe all functions.", "Hard.", "All linear functions.", "description"),
    ]
    spec = f"amobench:{parquet(tmp_path / 'test-00000-of-00001.parquet', schema, found)}"
    assert answers(spec) == {
        "amobench/1": ("How many?", "12"),
        "amobench/2": ("Which?", "\\{1,2\\}"),
        "amobench/5": ("In terms of n?", "2^n"),
    }
    notes = benchmarks.load(spec).notes
    assert notes[0] == "1 problems that no rule can grade are left out"
    assert "3 problems, where" in notes[1] and "has 39" in notes[1]
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    parquet(tmp_path / "a.parquet", schema, [(1, "How?", "", "x", "proof")])
    assert "answer_type is 'proof'" in refusal(f"amobench:{tmp_path}")


def test_math500():
    assert answers(f"math500:{FILES / 'math500.jsonl'}") == {
        "math500/test/prealgebra/1.json": ("Write $0.75$ as a fraction.", "\\frac{3}{4}"),
        "math500/test/algebra/2.json": ("Solve $x^2=9$ for $x>0$.", "3"),
    }


def test_gsm8k_takes_the_test_file_of_its_main_part_and_the_number_after_the_mark(tmp_path):
    schema = {"question": pa.string(), "answer": pa.string()}
    for part in ("main", "socratic"):
        for split in ("train", "test"):
            solution = "There are 3 * 500 = <<3*500=1500>>1500 pens.\n#### 1,500"
            parquet(tmp_path / part / f"{split}-00000-of-00001.parquet", schema, [(f"{part} {split}?", solution)])
    assert list(answers(f"gsm8k:{tmp_path}").values()) == [("main test?", "1500")]
    bad = jsonl(tmp_path / "bad.jsonl", [{"question": "?", "answer": "1500"}])
    assert "bad.jsonl line 1: the answer has no ####" in refusal(f"gsm8k:{bad}")


def test_ids_that_stand_twice_give_way_to_hashes_of_the_text(tmp_path):
    shutil.copy(FILES / "math_ai_aime25.jsonl", tmp_path / "I.jsonl")
    jsonl(tmp_path / "II.jsonl", [{"problem": "Compute $1+1$.", "answer": "2", "id": "0"}])
    found = answers(f"aime25:{tmp_path}")
    assert len(found) == 3 and "aime25/0" not in found


# Wrong and missing data


@pytest.mark.parametrize("entry", ENTRIES, ids=[e.name for e in ENTRIES])
def test_data_that_is_nowhere_is_refused_at_once_with_the_way_to_get_it(entry):
    start = time.monotonic()
    told = refusal(entry.name)
    gone = refusal(f"{entry.name}:/data/gone")
    assert time.monotonic() - start < 30
    assert "/data/gone" in gone
    for message in (told, gone):
        assert entry.repository in message
        assert f"name {entry.name}:" in message


@pytest.fixture
def silent_server():
    """The address of a server that takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:  # the backlog takes them
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_network_that_swallows_everything_is_refused_in_seconds(silent_server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("trd_ray.problems.sources.HUB_TIMEOUT_S", 0.3)
    monkeypatch.setattr("trd_ray.problems.benchmarks.humaneval_mbpp.DOWNLOAD_TIMEOUT_S", 0.3)
    monkeypatch.setenv("https_proxy", silent_server)
    start = time.monotonic()
    assert "math-ai/aime24 could not be had" in refusal("aime24")
    with pytest.raises(OSError, match="timed out"):
        download(f"{silent_server}/HumanEvalPlus.jsonl.gz", Path("/nowhere"))
    assert time.monotonic() - start < 20


def test_a_download_of_evalplus_is_there_whole_or_not_at_all(tmp_path):
    published = tmp_path / "published"
    published.mkdir()
    packed = gzip.compress((FILES / "humaneval_plus.jsonl").read_bytes())
    (published / "whole.gz").write_bytes(packed)
    (published / "cut.gz").write_bytes(packed[: len(packed) // 2])
    handler = partial(QuietHandler, directory=str(published))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        place = tmp_path / "evalplus" / "HumanEvalPlus.jsonl"
        for name in ("cut.gz", "gone.gz"):
            with pytest.raises((OSError, EOFError)):
                download(f"{address}/{name}", place)
            assert not place.exists()
        download(f"{address}/whole.gz", place)
        server.shutdown()
    assert place.read_bytes() == (FILES / "humaneval_plus.jsonl").read_bytes()
    assert list(place.parent.iterdir()) == [place]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_another_repository_is_asked_for_by_its_name():
    assert "some-org/some-data@abc could not be had from the Hugging Face hub" in refusal(
        "aime24:some-org/some-data@abc"
    )


def test_a_snapshot_in_the_hubs_cache_is_read_without_a_network(tmp_path):
    cached = tmp_path / "hub" / "datasets--math-ai--aime24"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots" / ("0" * 40)).mkdir(parents=True)
    shutil.copy(FILES / "math_ai_aime24.jsonl", cached / "snapshots" / ("0" * 40) / "test.jsonl")
    assert answers("aime24") == answers(f"aime24:{FILES / 'math_ai_aime24.jsonl'}")


@pytest.mark.parametrize(
    ("name", "row", "told"),
    [
        (
            "aime24",
            {"text": "?", "answer": 1},
            "expected a column problem or Problem or question or prompt, found text",
        ),
        ("aime24", {"problem": "?", "level": 1}, "expected a column answer or Answer, found problem, level"),
        ("aime24", {"problem": "?", "solution": "It is 3."}, "holds no \\boxed{answer}"),
        ("aime25", {"problem": "?", "answer": None}, "answer is None"),
        ("aime25", {"problem": "?", "answer": True}, "answer is True"),
        ("amobench", {"prompt": "?", "answer": "1"}, "expected a column answer_type, found prompt, answer"),
        ("gsm8k", {"problem": "?", "answer": "#### 1"}, "expected a column question, found problem, answer"),
        (
            "livecodebench_v6",
            {"question_content": "?", "tests": "[]"},
            "found no public_test_cases in question_content",
        ),
    ],
)
def test_another_schema_is_refused_with_the_columns_expected_and_found(tmp_path, name, row, told):
    message = refusal(f"{name}:{jsonl(tmp_path / 'x.jsonl', [row])}")
    assert told in message
    assert "x.jsonl line 1" in message


def test_an_unknown_name_is_answered_with_the_table():
    told = refusal("aime42")
    assert "did you mean aime2" in told
    assert all(entry.name in told and entry.repository in told for entry in ENTRIES)


def test_the_readme_s_table_has_a_line_for_each():
    lines = benchmarks.markdown().splitlines()
    assert len(lines) == 2 + len(ENTRIES)
    assert all(
        f"`{e.name}`" in line and f"| {e.problems} |" in line for e, line in zip(ENTRIES, lines[2:], strict=True)
    )


def test_a_part_of_a_benchmark_is_no_wrong_count():
    whole = benchmarks.load(f"aime25:{FILES / 'math_ai_aime25.jsonl'}")
    assert whole.expected == 30 and whole.notes == ("2 problems, where AIME 2025 (I and II) has 30",)
    part = benchmarks.load(f"aime25:{FILES / 'math_ai_aime25.jsonl'}", limit=1)
    assert part.problems.num_rows == 1 and part.expected is None and part.notes == ()


# LiveCodeBench


def hidden(cases: list[dict]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def contest(number: int, day: str, **columns) -> dict:
    return {
        "question_title": f"T{number}",
        "question_content": f"Statement {number}.\n",
        "platform": "atcoder",
        "question_id": f"abc{number}",
        "contest_id": "abc",
        "contest_date": f"{day}T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps([{"input": "1\n", "output": "2\n", "testtype": "stdin"}]),
        "private_test_cases": hidden([{"input": "5\n", "output": "10\n", "testtype": "stdin"}]),
        "metadata": "{}",
    } | columns


METHOD = {
    "platform": "leetcode",
    "starter_code": "class Solution:\n    def add(self, xs: List[int], y: int) -> int:\n        ",
    "public_test_cases": json.dumps([{"input": "[1, 2]\n3", "output": "6", "testtype": "functional"}]),
    "private_test_cases": json.dumps([{"input": '[]\n"a\\nb"', "output": "[0.5, null]", "testtype": "functional"}]),
    "metadata": json.dumps({"func_name": "add"}),
}


@pytest.fixture
def lcb(tmp_path) -> Path:
    folder = tmp_path / "lcb"
    folder.mkdir()
    jsonl(folder / "test.jsonl", [contest(1, "2023-05-07"), contest(2, "2024-12-31")])
    jsonl(folder / "test6.jsonl", [contest(3, "2025-01-04", **METHOD)])
    return folder


def test_livecodebench_has_public_and_private_cases_of_both_kinds(lcb):
    b = benchmarks.load(f"livecodebench_v6:{lcb}")
    assert (b.task, b.max_response_tokens, b.samples) == ("code", 16_384, 16)
    first, _, method = b.problems.to_pylist()
    assert first["problem"] == "Statement 1." and first["problem_id"] == "livecodebench_v6/abc1"
    assert first["answer"] == first["reference"] == ""
    stdio = Tests.unpack(first["tests"])
    assert (stdio.kind, stdio.compare, stdio.time_limit_s) == ("stdio", "livecodebench", 6.0)
    assert (stdio.inputs, stdio.outputs) == (["1\n", "5\n"], ["2\n", "10\n"])
    assert method["problem"] == (
        "Statement 3.\n\n```python\nclass Solution:\n    def add(self, xs: List[int], y: int) -> int:\n        \n```"
    )
    calls = Tests.unpack(method["tests"])
    assert (calls.kind, calls.entry_point) == ("function", "Solution.add")
    assert (calls.inputs, calls.outputs) == ([[[1, 2], 3], [[], "a\nb"]], [6, [0.5, None]])


@pytest.mark.parametrize(
    ("window", "kept"),
    [
        ("", ["abc1", "abc2", "abc3"]),
        ("@2025-01-04..", ["abc3"]),
        ("@..2024-12-31", ["abc1", "abc2"]),
        ("@2024-12-31..2025-01-03", ["abc2"]),
    ],
)
def test_a_window_of_contest_dates_is_inclusive(lcb, window, kept):
    b = benchmarks.load(f"livecodebench_v6{window}:{lcb}")
    assert b.problems["problem_id"].to_pylist() == [f"livecodebench_v6/{own}" for own in kept]
    assert b.name == f"livecodebench_v6{window}"
    assert (b.expected is None) == bool(window)


def test_windows_that_mean_nothing_are_refused(lcb):
    assert "write it as @2024-08-01..2025-05-01" in refusal(f"livecodebench_v6@2025:{lcb}")
    assert "check the file and the dates" in refusal(f"livecodebench_v6@2026-01-01..:{lcb}")
    assert "is no window of dates" in refusal(f"livecodebench_v6@2025-05-01..2025-01-01:{lcb}")
    assert "only livecodebench_v6 has" in refusal("aime24@2024-01-01..")


class Hostile:
    """Unpickled by pickle.loads, it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path):
    path = tmp_path / "touched"
    pickled = pickle.dumps(Hostile(path))
    pickle.loads(pickled)
    assert path.exists()  # so it is hostile
    path.unlink()
    with pytest.raises(ValueError, match="a pickled text alone is read"):
        pickled_text(pickled)
    cases = base64.b64encode(zlib.compress(pickled)).decode()
    spec = f"livecodebench_v6:{jsonl(tmp_path / 'test.jsonl', [contest(1, '2025-01-01', private_test_cases=cases)])}"
    assert "the test cases cannot be read" in refusal(spec)
    assert not path.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_text_is_read_whatever_the_protocol(protocol):
    text = "naïve \u2028 𝒙 \n" * 1000
    assert pickled_text(pickle.dumps(text, protocol)) == text


@pytest.mark.parametrize("value", [b"x", 1, ["x"], {"x": "y"}, ("x", "x"), None, 2**80])
def test_pickles_of_anything_but_a_text_are_refused(value):
    with pytest.raises(ValueError):
        pickled_text(pickle.dumps(value))
    with pytest.raises(ValueError):
        pickled_text(pickletools.optimize(pickle.dumps("cut off" * 9))[:20])


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"private_test_cases": "no base64"}, "cannot be read"),
        ({"private_test_cases": base64.b64encode(b"no zlib").decode()}, "cannot be read"),
        ({"metadata": "no json"}, "cannot be read"),
        (METHOD | {"metadata": "{}"}, "metadata has no func_name"),
        ({"public_test_cases": "[]", "private_test_cases": "[]"}, "testtype is of no case"),
        ({"public_test_cases": json.dumps([{"input": "", "output": "", "testtype": "x"}])}, "testtype is stdin and x"),
    ],
)
def test_broken_livecodebench_cases_are_refused_with_their_place(tmp_path, columns, told):
    message = refusal(f"livecodebench_v6:{jsonl(tmp_path / 't.jsonl', [contest(1, '2025-01-01', **columns)])}")
    assert told in message and "t.jsonl line 1" in message


# One's own problems


def test_a_file_of_ones_own_is_mathematics_or_code_by_what_it_holds(tmp_path):
    maths = benchmarks.load(str(jsonl(tmp_path / "mine.jsonl", [{"question": "1+1?", "answer": 2}])))
    assert (maths.name, maths.task, maths.expected, maths.max_response_tokens) == ("mine", "math", None, 38_912)
    assert maths.problems.select(["problem", "answer"]).to_pylist() == [{"problem": "1+1?", "answer": "2"}]
    doubled = {"problem": "Double it.", "tests": {"inputs": ["1\n"], "outputs": ["2\n"]}}
    code = benchmarks.load(str(jsonl(tmp_path / "code.jsonl", [doubled])))
    assert (code.task, code.max_response_tokens) == ("code", 16_384)
    assert Tests.unpack(code.problems["tests"][0].as_py()).inputs == ["1\n"]
    assert benchmarks.load("word_problems:test").problems.num_rows == 8
    assert "there is no file /data/gone.parquet" in refusal("/data/gone.parquet")


def test_a_file_of_ones_own_is_read_by_the_columns_that_a_recipe_names(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"task": "1+1?", "final": "2"}))
    columns = {"problem": "task", "answer": "final", "reference": "solution"}  # of which the file lacks one
    problems = benchmarks.load(str(file), columns=columns).problems
    assert (problems["problem"].to_pylist(), problems["answer"].to_pylist()) == (["1+1?"], ["2"])


def test_a_file_of_ones_own_without_answers_and_tests_is_refused(tmp_path):
    path = jsonl(tmp_path / "mine.jsonl", [{"problem": "1+1?"}])
    assert "has no column 'answer', only problem" in refusal(str(path))


# HumanEval+ and MBPP+


def test_humaneval_plus_runs_its_canonical_solution_for_what_is_expected(tmp_path):
    file = FILES / "humaneval_plus.jsonl"
    b = benchmarks.load(f"humaneval_plus:{file}")
    assert (b.task, b.expected, b.problems.num_rows) == ("code", 164, 2)
    twice, halves = b.problems.to_pylist()
    assert twice["problem_id"] == "humaneval_plus/HumanEval/900"
    assert twice["problem"].startswith("def twice(n: int) -> int:") and "return 2 * n" not in twice["problem"]
    tests = Tests.unpack(twice["tests"])
    assert (tests.compare, tests.entry_point, tests.base) == ("humaneval_plus", "twice", 2)
    assert (tests.inputs, tests.outputs) == ([[1], [2], [0], [-5], [100000]], [2, 4, 0, -10, 200000])
    assert Tests.unpack(halves["tests"]).outputs == [(0.5, 1.0), ()]
    packed = tmp_path / "HumanEvalPlus.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    again = benchmarks.load(f"humaneval_plus:{packed}").problems.to_pylist()
    assert [Tests.unpack(row["tests"]).outputs for row in again] == [tests.outputs, [(0.5, 1.0), ()]]


def test_the_override_variables_of_evalplus_name_the_files(monkeypatch):
    monkeypatch.setenv("HUMANEVAL_OVERRIDE_PATH", str(FILES / "humaneval_plus.jsonl"))
    monkeypatch.setenv("MBPP_OVERRIDE_PATH", str(FILES / "mbpp_plus.jsonl"))
    assert benchmarks.load("humaneval_plus").source == str(FILES / "humaneval_plus.jsonl")
    [both] = benchmarks.load("mbpp_plus").problems.to_pylist()
    tests = Tests.unpack(both["tests"])
    assert tests.inputs == [[(1, 2), (3,)], [(), (4,)]]  # tuples again, as the task expects them
    assert tests.outputs == [6, 4]
    assert both["problem_id"] == "mbpp_plus/Mbpp/2" and "gives the sum" in both["problem"]


def test_a_second_load_of_the_same_file_runs_nothing(monkeypatch):
    spec = f"humaneval_plus:{FILES / 'humaneval_plus.jsonl'}"
    first = benchmarks.load(spec).problems
    monkeypatch.delattr("trd_ray.verify.code.evalplus.evalplus_tests")
    assert benchmarks.load(spec).problems.equals(first)


def test_the_hubs_copy_of_humaneval_plus_is_refused_with_the_columns_that_are_missing(tmp_path):
    row = {"task_id": "HumanEval/0", "prompt": "def f(): ...", "canonical_solution": "", "entry_point": "f", "test": ""}
    told = refusal(f"humaneval_plus:{jsonl(tmp_path / 'hub.jsonl', [row])}")
    assert "base_input, plus_input" in told and "found task_id, prompt, canonical_solution, entry_point, test" in told
