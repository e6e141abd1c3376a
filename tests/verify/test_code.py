"""Verdicts on programs: the rules of each data set, limits, feedback, and what a hostile response cannot do."""

import contextlib
import json
import lzma
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import replace

import numpy as np
import psutil
import pyarrow as pa
import pytest

from trd_ray.config import VerifyConfig
from trd_ray.errors import BadRow, UserError
from trd_ray.sandbox.process import Process
from trd_ray.verify import Verdict, verifier
from trd_ray.verify.code import code_verifier
from trd_ray.verify.code.code_verifier import MAX_PROGRAM_CHARS, CodeVerifier, choose_reference, run_tests
from trd_ray.verify.code.outputs import rule, same_tokens
from trd_ray.verify.code.tests import IMPORTS, Tests

verify = CodeVerifier(VerifyConfig(time_limit_s=2.0, memory_mib=512))


def stdio(*cases: tuple[str, str], compare="tokens", **kwargs) -> Tests:
    return Tests("stdio", [given for given, _ in cases], [expected for _, expected in cases], compare, **kwargs)


def calls(name: str, *cases: tuple[list, object], compare="equal", **kwargs) -> Tests:
    return Tests("function", [args for args, _ in cases], [out for _, out in cases], compare, name, **kwargs)


def judged(program: str, tests: Tests, by: CodeVerifier = verify) -> Verdict:
    return by(f"Here it is.\n\n```python\n{program}\n```\n", {"tests": tests.pack()})


ADD_ONE = stdio(("1\n", "2\n"), ("41\n", "42\n"), ("-1\n", "0\n"))
ADD = calls("add", ([1, 2], 3), ([0, 0], 0), (["a", "b"], "ab"))


# The same program on the same tests is run once.


def test_a_program_that_was_judged_is_not_run_again_on_the_same_tests(monkeypatch):
    runs = []
    monkeypatch.setattr(
        code_verifier, "run_tests", lambda program, *rest: runs.append(program) or run_tests(program, *rest)
    )
    by = CodeVerifier(VerifyConfig(time_limit_s=1.0))
    right, wrong, broken = "print(int(input()) + 1)", "print(int(input()))", "print(1 +"
    for program in (right, wrong, broken):
        first, again = (judged(program, ADD_ONE, by) for _ in range(2))
        assert replace(first, seconds=0) == replace(again, seconds=0) and first.passed == (program == right)
    assert runs == [right, wrong, broken]
    assert not judged(right, stdio(("1\n", "3\n")), by).passed, "other tests are another question"


@pytest.mark.parametrize(
    "program",
    [
        "import time\ntime.sleep(3)",
        "x = bytearray(1 << 30)",
        "raise OSError(12, 'Cannot allocate memory')",
        "import os\nos.kill(os.getpid(), 9)",
        "import random\nprint(int(input()) + 1)",
        "import time\nprint(int(input()))",
    ],
)
def test_what_the_machine_or_chance_has_a_part_in_is_run_again(monkeypatch, program):
    runs = []
    monkeypatch.setattr(code_verifier, "run_tests", lambda *a: runs.append(a) or run_tests(*a))
    by = CodeVerifier(VerifyConfig(time_limit_s=0.5, memory_mib=512))
    assert all(judged(program, ADD_ONE, by).judged for _ in range(2)) and len(runs) == 2


def test_what_is_remembered_has_a_bound(monkeypatch):
    monkeypatch.setattr(code_verifier, "MOST_KNOWN", 2)
    runs = []
    monkeypatch.setattr(code_verifier, "run_tests", lambda program, *_: runs.append(program) or ("", ""))
    by = CodeVerifier(VerifyConfig())
    for program in ("a = 1", "b = 1", "c = 1", "b = 1", "a = 1"):
        judged(program, ADD_ONE, by)
    assert runs == ["a = 1", "b = 1", "c = 1", "a = 1"]


# Tests travel as bytes.


def test_tests_survive_the_journey():
    for tests in (
        ADD_ONE,
        stdio(("", "ü\n"), ("\ud800", "\0"), time_limit_s=1.5, memory_mib=64, prelude=IMPORTS, task_id="x/1"),
        calls(
            "Solution.f", ([(1, 2), {3}, {4: 5}, None, 2**4000, 1.5, b"x", 1j], frozenset({(1,)})), atol=1e-6, base=1
        ),
    ):
        again = Tests.unpack(tests.pack())
        assert again == tests and repr(again) == repr(tests)
        assert again.pack() == tests.pack()
    large = stdio(*[("1", "0123456789" * 100_000)] * 8)
    assert Tests.unpack(large.pack()) == large and len(large.pack()) < 100_000


def test_packed_tests_are_never_unpickled():
    for packed in (
        pickle.dumps(ADD),
        b"",
        zlib.compress(b"[]"),
        zlib.compress(b'{"format": 99}'),
        ADD.pack()[:-9],
        lzma.compress(b"x")[:-3],
        pa.Codec("zstd").compress(b"[]", asbytes=True),
    ):
        with pytest.raises(ValueError, match="packed tests"):
            Tests.unpack(packed)


def test_tests_that_judge_nothing_are_refused():
    with pytest.raises(ValueError, match="without a case"):
        stdio()
    with pytest.raises(ValueError, match="1 inputs but 2 outputs"):
        Tests("stdio", ["a"], ["b", "c"], "tokens")
    with pytest.raises(ValueError, match="entry_point"):
        calls("", ([1], 1))


# Each data set's rule.


@pytest.mark.parametrize(
    "got, expected",
    [
        ("1 2 3", "1 2 3\n"),
        ("1   2\t3  \n\n\n", "1 2 3"),
        ("a\n\nb\n", "a\nb"),
        ("a\r\nb\r\n", "a\nb"),
        ("0.5", "0.500000"),
        ("3.14159265", "3.14159"),
        ("3.0", "3"),
        ("1e5", "100000.0"),
        ("x 0.333333 y", "x 0.3333333333 y"),
        (".5", "0.5"),
        ("-0.0", "0"),
        ("", ""),
        ("", "\n"),
    ],
)
def test_tokens_takes_the_same_output(got, expected):
    assert rule(stdio(("", expected)))(0, got)


@pytest.mark.parametrize(
    "got, expected",
    [
        ("2 1", "1 2"),  # the order counts, of tokens
        ("b\na", "a\nb"),  # and of lines
        ("1 2\n3", "1\n2 3"),  # and so do lines
        ("1000001", "1000000"),  # whole numbers are exact
        ("011", "11"),
        ("3.0001", "3"),
        ("0.51", "0.5"),
        ("nan", "0.5"),
        ("inf", "1e400"),
        ("1_0.0", "10.0"),
        ("１.5", "1.5"),
        ("yes", "YES"),
        ("1", "1 1"),
        ("", "0"),
        ("0.5 x", "0.5"),
    ],
)
def test_tokens_refuses_another_output(got, expected):
    assert not rule(stdio(("", expected)))(0, got)


def test_decimals_are_as_close_as_numpy_allclose():
    rng = np.random.default_rng(0)
    for expected in rng.normal(size=300) * 10.0 ** rng.integers(-9, 9, size=300):
        for error in (1e-6, 0.9e-5, 1.1e-5, 1e-3):
            got = expected * (1 + error)
            if abs(abs(got - expected) / (1e-8 + 1e-5 * abs(expected)) - 1) > 1e-6:
                assert same_tokens(f"{got:.17e}", f"{expected:.17e}") == np.allclose(got, expected)


@pytest.mark.parametrize(
    "got, expected, right",
    [
        ("1 2\n3\n", "1 2\n3", True),
        (" 1 2 \n 3", "1 2\n3", True),
        ("1.0 2.50", "1 2.5", True),
        ("1e2", "100", True),
        ("50000000000000001", "50000000000000000", False),
        ("0.3333333", "0.33333333", False),  # exact decimals: no tolerance
        ("1  2 x", "1 2 x", False),  # not numbers, so text
        ("1\n\n2", "1\n2", False),  # a blank line is a line
        ("Yes", "yes", False),
        ("nan", "1", False),
        ("snan", "1", False),
        ("1e999999999999999999999", "1", False),
    ],
)
def test_livecodebench_output(got, expected, right):
    assert rule(stdio(("", expected), compare="livecodebench"))(0, got) is right


@pytest.mark.parametrize(
    "compare, got, expected, right",
    [
        ("livecodebench", (1, 2), [1, 2], True),
        ("livecodebench", [(1, 2)], [[1, 2]], False),  # the outermost tuple alone is forgiven
        ("livecodebench", 1.0, 1, True),
        ("livecodebench", 0.1 + 0.2, 0.3, False),
        ("livecodebench", None, "null", False),
        ("equal", (1, 2), [1, 2], True),
        ("equal", [(1, 2)], [[1, 2]], True),
        ("equal", 5, [5], True),  # TACO wraps some expected values
        ("equal", [(1, 2)], [[[1, 2]]], True),
        ("equal", 1, [1, 2], False),  # but the first element is not the list
        ("equal", {1: "a"}, {"1": "a"}, True),  # JSON has no other keys
        ("equal", {1: "a"}, [{"1": "a"}], True),
        ("equal", {"x": (1,)}, {"x": [1]}, True),
        ("equal", {1, 2}, [1, 2], False),
        ("equal", "12", 12, False),
        ("equal", None, [None], True),
    ],
)
def test_returned_values(compare, got, expected, right):
    assert rule(calls("f", ([], expected), compare=compare))(0, got) is right


def test_a_value_that_breaks_comparison_is_not_right():
    tests = calls("find_char_long", ([], ["a"]), compare="mbpp_plus")
    for got in ([["unhashable"]], 5, None, {1: [2]}):
        assert rule(tests)(0, got) is False
    column = [[x] for x in range(20_000)]  # against a row of as many it broadcasts to a matrix of 3 GB
    tests = calls("f", ([], [float(x) for x in range(20_000)]), compare="humaneval_plus")
    assert rule(tests)(0, column) is False


# Programs.


@pytest.mark.parametrize(
    "program, passed, detail",
    [
        ("print(int(input()) + 1)", True, ""),
        ("import sys\nprint(int(sys.stdin.read()) + 1)\nsys.exit(0)", True, ""),
        ("def main():\n    print(int(input()) + 1)\nif __name__ == '__main__':\n    main()", True, ""),
        ("import sys\nfor line in sys.stdin:\n    sys.stdout.write(f'{int(line) + 1}\\n')", True, ""),
        ("print(2)", False, "wrong answer in case 2 of 3"),
        ("print(abs(int(input())) + 1)", False, "wrong answer in case 3 of 3"),
        ("print(int(input()) + 1", False, "syntax error"),
        ("print(1 // 0)", False, "error (ZeroDivisionError: integer division or modulo by zero) in case 1 of 3"),
        ("print(int(input()) + 1)\nraise SystemExit(3)", False, None),
        ("while True: pass", False, "time limit (2 s) in case 1 of 3"),
        ("import os\nos._exit(0)", False, "wrong answer in case 1 of 3"),
        ("", False, "no code block"),
        ("# nothing", False, "wrong answer in case 1 of 3"),
        ("print(int(input()) + 1)\nprint('passed')", False, "wrong answer in case 1 of 3"),
    ],
)
def test_stdio_programs(program, passed, detail):
    verdict = judged(program, ADD_ONE)
    assert (verdict.passed, verdict.score) == (passed, float(passed))
    assert detail is None or verdict.detail == detail
    assert verdict.extracted == program and verdict.seconds < 10
    assert (verdict.feedback == "") is passed


@pytest.mark.parametrize(
    "program, passed, detail",
    [
        ("def add(a, b):\n    return a + b", True, ""),
        ("class Solution:\n    def add(self, a, b):\n        return a + b", True, ""),
        ("add = lambda a, b: a + b", True, ""),
        ("def add(a, b):\n    return 3", False, "wrong answer in case 2 of 3"),
        ("def add(a, b):\n    print(a + b)", False, "wrong answer in case 1 of 3"),
        ("def plus(a, b):\n    return a + b", False, "add is not defined in case 1 of 3"),
        ("def add(a):\n    return a", False, None),
        ("def add(a, b):\n    return a +", False, "syntax error"),
        ("def add(a, b):\n    import os\n    os._exit(0)", False, "ended before it answered in case 1 of 3"),
        ("def add(a, b):\n    raise SystemExit", False, None),
        ("def add(a, b):\n    return add(a, b)", False, None),
        ("def add(a, b):\n    while True: pass", False, "time limit (2 s) in case 1 of 3"),
        ("def add(a, b):\n    return [0] * 10**10", False, None),
    ],
)
def test_function_programs(program, passed, detail):
    verdict = judged(program, ADD)
    assert verdict.passed is passed and verdict.seconds < 10
    assert detail is None or verdict.detail == detail


def test_a_value_that_claims_to_be_equal_is_not():
    forged = "class Right:\n    def __eq__(self, other): return True\ndef add(a, b): return Right()"
    assert judged(forged, ADD).detail == "wrong answer in case 1 of 3"
    forged = "class Right(int):\n    def __eq__(self, other): return True\ndef add(a, b): return Right()"
    assert judged(forged, ADD).detail == "wrong answer in case 1 of 3"


def test_a_program_that_changes_its_arguments_changes_only_its_own():
    tests = calls("f", ([[1, 2, 3]], 6), ([[1, 2, 3]], 6))
    assert judged("def f(xs):\n    s = 0\n    while xs: s += xs.pop()\n    return s", tests).passed
    assert tests.inputs == [[[1, 2, 3]]] * 2


def test_the_imports_of_the_official_graders_are_there():
    tests = calls("Solution.f", ([[3, 1, 2]], 1), compare="livecodebench", prelude=IMPORTS)
    program = "class Solution:\n    def f(self, xs: List[int]) -> int:\n        heapify(xs)\n        return heappop(xs)"
    assert judged(program, tests).passed
    bare = Tests("function", tests.inputs, tests.outputs, "livecodebench", "Solution.f")
    assert "NameError" in judged(program, bare).detail
    out = stdio(("9\n", "3\n"), compare="livecodebench", prelude=IMPORTS)
    assert judged("print(isqrt(int(input())))", out).passed
    assert judged("from __future__ import annotations\nprint(int(input()) // 3)", out).passed
    assert judged("print(pow(int(input()), 1, 6))", out).passed  # the built-in pow, not math's
    error = judged("x = 1\n\nprint(x / 0)", out)
    assert "line 3" in error.feedback


def test_limits_of_the_data_come_before_those_of_the_configuration():
    patient = CodeVerifier(VerifyConfig(time_limit_s=60.0, program_timeout_s=120.0))  # on a busy machine too
    sleepy = "import time\ntime.sleep(1)\nprint(int(input()) + 1)"
    assert judged(sleepy, stdio(("1", "2")), patient).passed
    assert judged(sleepy, stdio(("1", "2"), time_limit_s=0.5)).detail == "time limit (0.5 s) in case 1 of 1"
    hungry = "x = bytearray(300 << 20)\nprint(int(input()) + 1)"
    assert judged(hungry, stdio(("1", "2")), patient).passed
    assert not judged(hungry, stdio(("1", "2"), memory_mib=128), patient).passed


def test_all_cases_together_have_a_limit():
    strict = CodeVerifier(VerifyConfig(time_limit_s=5.0, program_timeout_s=1.0))
    verdict = judged("import time\ntime.sleep(0.6)\nprint(input())", stdio(*[("1", "1")] * 20), strict)
    # A busy machine takes the whole second to start the program.
    assert re.fullmatch(r"time limit of all cases \(1 s\) before case [123] of 20", verdict.detail)


def test_only_the_first_tests_run_where_the_configuration_says_so():
    few = CodeVerifier(VerifyConfig(max_tests=1))
    assert judged("print(2)", ADD_ONE, few).passed and not judged("print(2)", ADD_ONE).passed


def test_nothing_runs_after_the_first_failing_case():
    tests = stdio(("1", "2"), ("1", "wrong on purpose"), *[("1", "2")] * 50)
    start = time.monotonic()
    assert judged("import time\ntime.sleep(0.2)\nprint(2)", tests).detail == "wrong answer in case 2 of 52"
    assert time.monotonic() - start < 5


# Feedback.


def test_feedback_shows_the_failing_case_and_no_other():
    tests = stdio(("11\n", "11\n"), ("22\n", "twenty-two\n"), ("33\n", "thirty-three\n"))
    feedback = judged("print(input())", tests).feedback
    for part in ("case 2 of 3", "wrong answer", "Input:\n22", "Expected:\ntwenty-two", "Got:\n22"):
        assert part in feedback
    assert "11" not in feedback and "33" not in feedback and "thirty" not in feedback


def test_feedback_on_a_call_shows_the_call():
    feedback = judged("def add(a, b):\n    return [a, b]", ADD).feedback
    assert "add(1, 2)" in feedback and "Expected:\n3" in feedback and "Got:\n[1, 2]" in feedback


def test_feedback_on_an_error_ends_with_the_traceback():
    feedback = judged("def f(x):\n    return {}[x]\nprint(f('key'))", ADD_ONE).feedback
    assert "KeyError: 'key'" in feedback and "line 2" in feedback and "Got" not in feedback


def test_feedback_is_bounded_and_printable():
    huge = stdio(("x" * 500_000, "y" * 500_000))
    program = "import sys\nsys.stderr.write('e\\x1b[2J' * 9999)\nsys.stdout.write('\\0\\x1b[31mz' * 9999)"
    verdict = judged(program, huge)
    assert 500 < len(verdict.feedback) < 1700 and not set("\0\x1b") & set(verdict.feedback)
    digits = judged("def add(a, b):\n    return 10 ** 100_000", ADD)
    assert digits.detail == "wrong answer in case 1 of 3" and len(digits.feedback) < 1700


# Whatever a model writes is a verdict.

HOSTILE = {
    "nothing": None,
    "blank": " \n\t",
    "prose": "I am sorry, I cannot solve this.",
    "another language": "```cpp\nint main() {}\n```",
    "nul": "```python\nprint('\0')\n```",
    "surrogate": "```python\nprint('\ud800')\n```",
    "nul outside": "\0\0 prose \ud800",
    "a program of megabytes": "```python\n" + "x = 1\n" * 600_000 + "```",
    "prose of megabytes": "word " * 600_000,
    "a line of megabytes": "x = " + "1 + " * 600_000 + "1",
    "deep": "```python\nx = " + "(" * 5000 + ")" * 5000 + "\n```",
    "deep, of several": "```python\nx = " + "-" * 90_000 + "1\n```\nor\n```python\nx = " + "[" * 5000 + "\n```",
    "deep, without a fence": "x = " + "-" * 90_000 + "1",
    "deep calls": "```python\n" + "f(" * 3000 + ")" * 3000 + "\n```\n```python\n" + "a." * 30_000 + "b\n```",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_response_is_a_verdict(name):
    for tests in (ADD_ONE, ADD):
        verdict = verify(HOSTILE[name], {"tests": tests.pack()})
        assert not verdict.passed and verdict.detail and verdict.feedback and verdict.seconds < 20
        pa.array([verdict.extracted, verdict.detail, verdict.feedback], pa.string())
        assert len(verdict.extracted) < 10_000 and len(verdict.feedback) < 1700 and len(verdict.detail) < 200


def test_details_of_hostile_responses():
    tests = {"tests": ADD_ONE.pack()}
    assert verify(None, tests).detail == verify(" \n", tests).detail == "empty"
    assert (
        verify(HOSTILE["prose"], tests).detail == verify(HOSTILE["another language"], tests).detail == "no code block"
    )
    assert "not text" in verify(HOSTILE["nul"], tests).detail
    assert str(MAX_PROGRAM_CHARS) in verify(HOSTILE["a program of megabytes"], tests).detail


def test_the_wrapper_and_threads_get_the_same_verdicts():
    judge = verifier(VerifyConfig(time_limit_s=5.0))
    found: dict[int, bool] = {}

    def one(i: int) -> None:
        text = f"```python\nprint(int(input()) + {1 if i % 2 else 2})\n```"
        found[i] = judge(text, {"tests": ADD_ONE.pack(), "answer": ""}).passed

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {i: bool(i % 2) for i in range(8)}


def test_a_sandbox_that_cannot_start_is_no_verdict():
    code = (
        "from trd_ray.config import VerifyConfig\n"
        "from trd_ray.errors import UserError\n"
        "from trd_ray.verify.code.code_verifier import CodeVerifier\n"
        "try:\n"
        f"    print(CodeVerifier(VerifyConfig())('```python\\nprint(2)\\n```', {{'tests': {ADD_ONE.pack()!r}}}))\n"
        "except UserError as e:\n"
        "    print('UserError:', e)\n"
    )
    env = {"PATH": "/nonexistent", "HOME": os.environ.get("HOME", "/")}  # neither bwrap nor unshare is found
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("UserError: verify.sandbox=auto cannot"), done.stdout + done.stderr


# References.


def test_the_reference_is_the_first_solution_that_passes():
    right, other = "print(int(input()) + 1)", "print(-~int(input()))"
    assert choose_reference(["print(2)", "print(", right, other], ADD_ONE) == (2, "")
    chosen, why = choose_reference(["print(2)", "while 1: pass"], stdio(("5", "6"), time_limit_s=0.5))
    assert chosen is None and why == "no solution passes: 2 tried, the first: wrong answer in case 1 of 1"
    assert choose_reference([], ADD_ONE)[0] is None


def test_tests_are_plain_json_inside():
    inside = pa.CompressedInputStream(pa.BufferReader(ADD.pack()), "zstd").read()
    assert json.loads(inside)["entry_point"] == "add"
    # As earlier versions packed them, which caches still hold.
    assert Tests.unpack(zlib.compress(inside)) == Tests.unpack(lzma.compress(inside)) == ADD


def test_a_sandbox_that_ends_for_no_fault_of_the_program_is_started_again():
    def kill_all(deadline: float) -> None:
        known = set(psutil.Process().children(recursive=True))
        while time.monotonic() < deadline:
            for process in set(psutil.Process().children(recursive=True)) - known:
                time.sleep(0.3)  # the program sleeps
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
                    return

    killer = threading.Thread(target=kill_all, args=(time.monotonic() + 20,))
    killer.start()
    assert judged("import time\nn = int(input())\ntime.sleep(1)\nprint(n + 1)", stdio(("1", "2"))).passed
    killer.join()


@pytest.mark.parametrize(
    ("blocks", "kills", "told"),
    [
        (1, {1}, ""),
        (1, {1, 3, 5}, ""),
        (1, {1, 2}, "not judged (the sandbox was killed twice in case 1 of 3)"),
        (1, {2, 3}, "not judged (the sandbox was killed twice in case 2 of 3)"),
        (2, {1}, ""),  # of two blocks, the first questions are which one is the program
        (2, {1, 2}, "not judged (the sandbox that looks for the program was killed twice)"),
    ],
)
def test_a_program_whose_sandbox_is_killed_is_run_again_and_is_not_judged_when_that_is_killed_too(
    monkeypatch, blocks, kills, told
):
    """The question of each of these numbers finds its sandbox killed."""
    asked = 0

    def ask(process, header, *rest):
        nonlocal asked
        asked += not header  # what starts the sandbox has a header
        if not header and asked in kills:
            signal.pidfd_send_signal(process._pidfd, signal.SIGKILL)
        return real_ask(process, header, *rest)

    real_ask = Process.ask
    monkeypatch.setattr(Process, "ask", ask)
    if blocks == 1 and told:  # a choice of references is remembered, so it must be none
        with pytest.raises(UserError, match="a reference was not judged .*start again to go on from there"):
            choose_reference(["print(int(input()) + 1)"], ADD_ONE)
        asked = 0
    text = "```python\nprint(int(input()) + 1)\n```\n" + "```python\nnot a program\n```\n" * (blocks - 1)
    verdict = CodeVerifier(VerifyConfig())(text, {"tests": ADD_ONE.pack()})
    assert (verdict.passed, verdict.detail, verdict.judged) == (not told, told, not told)


def test_a_function_that_ends_its_own_process_is_wrong_and_tests_that_cannot_be_read_are_no_verdict():
    verdict = judged("import os\ndef add(a, b):\n    os._exit(3)", ADD)
    assert not verdict.passed and verdict.judged and "ended before it answered" in verdict.detail
    with pytest.raises(BadRow, match="the tests of its problem cannot be read"):
        CodeVerifier(VerifyConfig())("```python\nprint(1)\n```", {"tests": b"torn"})
