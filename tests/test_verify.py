import os
import subprocess
import sys
import threading
import time

import psutil
import pyarrow as pa
import pytest

from trd_ray.config import Verify
from trd_ray.verify import Verdict, verifier
from trd_ray.verify.math import MathVerifier, last_boxed

EQUAL = [
    ("42", "42"),
    ("7", "007"),
    ("5", " 5 "),
    ("5", "5."),
    ("$5$", "5"),
    ("5", "$5$"),
    (r"\boxed{5}", "5"),
    ("1000", "1,000"),
    ("1000000", "1{,}000{,}000"),
    ("3", "3.0"),
    ("-5", "−5"),
    (r"\frac{1}{2}", "0.5"),
    ("1/2", r"\dfrac12"),
    ("1.5", r"1\frac{1}{2}"),
    ("0.333333", "1/3"),
    (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2"),
    ("1024", "2^{10}"),
    ("3628800", "10!"),
    ("3", r"\log_2 8"),
    ("x^2+2x+1", "(x+1)^2"),
    ("2i+1", "1+2i"),
    (r"90^\circ", "90"),
    (r"12 \text{ cm}", "12"),
    (r"\$5", "5"),
    ("0.5", r"50\%"),
    (r"\text{even}", "even"),
    ("B", r"\text{(B)}"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("(1,2)", "(1, 2)"),
    (r"x \in (1,2)", "(1,2)"),
    ("x=3", "3"),
    ("3", "x=3"),
    ("y=2x+1", "y=1+2x"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("not a formula at all", "not a formula at all"),
]
UNEQUAL = [
    ("42", "24"),
    ("42", "-42"),
    ("1/3", "0.333"),
    (r"\frac{1}{2}", r"\frac{2}{1}"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(2,1)"),
    (r"\infty", r"-\infty"),
    (r"\pi", "3.14"),
    ("even", "odd"),
    ("A", "B"),
    ("3", "3, 4"),
    ("5", "5 or 6"),
    ("x^2", "x^3"),
    ("5", r"\frac{5}{0}"),
    ("5", "<|im_end|>"),
    ("5", "5<|im_end|>"),
    ("1" * 400, "1" * 399 + "2"),
]


@pytest.fixture(scope="module")
def verify():
    made = MathVerifier(timeout_s=20)
    yield made
    made.close()


@pytest.fixture
def hasty():
    made = MathVerifier(timeout_s=1)
    made(r"\boxed{x}", {"answer": "y"})  # the child is started, so that only the comparison is timed
    yield made
    made.close()


def children(pid: int) -> list[psutil.Process]:
    """The processes below one, as the operating system counts them."""
    return psutil.Process(pid).children(recursive=True)


@pytest.mark.parametrize(("expected", "written"), EQUAL)
def test_equal_answers_pass(verify, expected, written):
    verdict = verify(f"So the answer is \\boxed{{{written}}}.", {"answer": expected})
    assert (verdict.passed, verdict.score, verdict.detail) == (True, 1.0, "")


@pytest.mark.parametrize(("expected", "written"), UNEQUAL)
def test_unequal_answers_fail(verify, expected, written):
    verdict = verify(f"So the answer is \\boxed{{{written}}}.", {"answer": expected})
    assert (verdict.passed, verdict.score) == (False, 0.0)
    assert verdict.detail


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1\}}", r"\{1\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed {7}", "7"),
        (r"\\boxed{7}", "7"),
        (r"\boxed{3} and, cut off, \boxed{4", "3"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"{{{ \boxed{6}", "6"),
        (r"}}} \boxed{6}", "6"),
        ("the answer is 5", None),
        ("$5$ boxed{5}", None),
        (r"\boxed 5", None),
        (r"\boxed{5", None),
        (r"\fbox{5}", None),
    ],
)
def test_the_last_closed_box_is_the_answer_and_nothing_else_is(text, answer):
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (None, "empty"),
        ("", "empty"),
        (" \n\t", "empty"),
        ("I do not know", r"no \boxed{} answer"),
        (r"\boxed{}", r"empty \boxed{}"),
        (r"\boxed{ $$ }", r"empty \boxed{}"),
        ("\\boxed{5\x00}", "answer is not text"),
        ("\\boxed{\x1b[2J5}", "answer is not text"),
        ("\\boxed{5\ud800}", "answer is not text"),
        ("\ud800\x00 no box", r"no \boxed{} answer"),
        ("<|im_end|><|endoftext|>", r"no \boxed{} answer"),
        ("\\boxed{" + "9" * 5_000_000 + "}", "answer of more than 2000 characters"),
    ],
)
def test_output_without_a_usable_answer_is_told_why(verify, text, detail):
    verdict = verify(text, {"answer": "5"})
    assert (verdict.passed, verdict.detail) == (False, detail)
    pa.array([verdict.extracted, verdict.detail])  # what is kept of it fits into a row


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 300_000, "\\" * 2_000_000 + "boxed", "{}" * 1_000_000 + "\\boxed{1}", "\\boxed" + " " * 10**6]
)
def test_megabytes_of_braces_are_read_in_one_pass(verify, text):
    assert verify(text, {"answer": "2"}).seconds < 5


@pytest.mark.parametrize(
    "written", ["10^{10^{10}}", "9^{9^{9^{9}}}", "100000000!", r"\int_0^1 e^{\sin(x^{x^x})}\cos(e^{x^2})dx"]
)
def test_an_endless_comparison_ends_at_its_deadline_and_the_next_one_is_unharmed(hasty, written):
    start = time.monotonic()
    verdict = hasty(f"\\boxed{{{written}}}", {"answer": "5"})
    assert (verdict.passed, verdict.detail) == (False, "deadline passed")
    assert 0.9 < time.monotonic() - start < 4
    assert hasty(r"\boxed{0.5}", {"answer": "1/2"}).passed


@pytest.mark.parametrize(
    "written",
    ["(" * 500 + "5" + ")" * 500, "{" * 900 + "5" + "}" * 900, "\\frac{1}{" * 200 + "5" + "}" * 200, "x" * 1999],
)
def test_deep_or_long_expressions_end_in_a_verdict_in_time(hasty, written):
    start = time.monotonic()
    assert not hasty(f"\\boxed{{{written}}}", {"answer": "5"}).passed
    assert time.monotonic() - start < 4


def test_a_child_that_is_killed_is_replaced(hasty):
    for process in children(os.getpid()):
        if any("answer_process.py" in word for word in process.cmdline()):
            process.kill()
    verdicts = [hasty(r"\boxed{0.5}", {"answer": "1/2"}) for _ in range(2)]
    assert verdicts[1].passed


def test_no_process_is_left_after_close():
    before = children(os.getpid())
    made = MathVerifier(timeout_s=5)
    made(r"\boxed{x}", {"answer": "y"})
    mine = [p for p in children(os.getpid()) if p not in before]
    assert len(mine) == 2
    made.close()
    assert psutil.wait_procs(mine, timeout=5)[1] == []


@pytest.mark.parametrize("busy", [False, True])
def test_no_process_outlives_a_parent_that_is_killed(busy):
    code = (
        "from trd_ray.verify.math import MathVerifier; import time, threading; v = MathVerifier(2);"
        "v(r'\\boxed{x}', {'answer': 'y'});"
        f"{busy} and threading.Thread(target=v, args=(r'\\boxed{{10^{{10^{{10}}}}}}', {{'answer': '5'}})).start();"
        "time.sleep(0.2); print('ready', flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout.readline() == "ready\n"
        mine = children(parent.pid)
        assert len(mine) == 2
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert psutil.wait_procs(mine, timeout=10)[1] == []


def test_it_works_from_threads_that_are_not_the_main_one(verify):
    verdicts: list[Verdict] = []
    threads = [
        threading.Thread(target=lambda: verdicts.append(verify(r"\boxed{0.5}", {"answer": r"\frac12"})))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [v.passed for v in verdicts] == [True] * 4


def test_a_process_keeps_one_verifier_for_a_recipe():
    assert verifier(Verify()) is verifier(Verify())
    assert verifier(Verify(timeout_s=1)) is not verifier(Verify())
