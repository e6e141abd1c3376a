"""`trd review` as a person uses it: in a terminal, through a pipe, interrupted, beside somebody else."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from trd_ray.review.review_page import BAR, lines_of
from trd_ray.verify.review.given_verdicts import PersonsVerdict, append_given, read_given
from trd_ray.verify.review.review_queue import Asker, Queued, append_queue, given_place, write_queue

REPO = Path(__file__).parents[2]
HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202egnp\r-- RESPONSE \n== attempt, row 9; 0 left ==\n\x9b31mred \u200b\ud800"


def response(key: str, text: str = "a response", row: int = 0, unless: tuple[str, ...] = ()) -> Queued:
    asker = Asker(row, "y_r", 1, 2, unless) if unless else Asker(row, "y_o")
    return Queued(key, "p", "1+1", [], "", "", text, 1.0, [asker])


@pytest.fixture
def corpus(tmp_path) -> Path:
    write_queue(tmp_path, [response("a", row=0), response("b", row=1), response("c", row=2, unless=("b",))])
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "trd_ray.cli", "review", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPO), "PYTHONIOENCODING": "utf-8"}


def piped(corpus: Path, text: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(str(corpus), *arguments), input=text, capture_output=True, text=True, env=environment(), timeout=60
    )


def said(corpus: Path) -> dict[str, PersonsVerdict]:
    return read_given(given_place(corpus)).by_key


def test_keys_through_a_pipe_are_verdicts_and_what_they_spare_is_not_asked(corpus):
    done = piped(corpus, "f the sign is wrong\np\n", "--reviewer", "ann")
    assert done.returncode == 0, done.stderr
    assert said(corpus) == {
        "a": PersonsVerdict(False, None, "the sign is wrong", "ann"),
        "b": PersonsVerdict(True, None, "", "ann"),
    }
    assert "attempt, row 0, problem p; 3 left" in done.stdout and "everything is judged" in done.stdout
    assert "refinement" not in done.stdout  # the first one passed


def test_a_review_that_ends_early_goes_on_with_what_is_left(corpus):
    first = piped(corpus, "s 0.5 half of it\nq\n")
    assert first.returncode == 0 and "2 left" in first.stdout
    assert said(corpus)["a"].score == 0.5 and said(corpus)["a"].feedback == "half of it"
    second = piped(corpus, "f\n")  # the pipe ends
    assert second.returncode == 0 and "row 0" not in second.stdout and "1 left" in second.stdout
    third = piped(corpus, "n\n")  # skipped: it is left
    assert "refinement 1 of 2, row 2" in third.stdout and "1 left" in third.stdout and len(said(corpus)) == 2


def test_a_comment_goes_with_the_verdict_and_a_verdict_can_be_taken_back(corpus):
    done = piped(corpus, "c it is rude\nx\ns much\nf\nb\np\nb\nb\nq\n", "--reviewer", "bob")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in given_place(corpus).read_text().splitlines()]
    assert [(line["key"], line["passed"]) for line in lines] == [("a", False), ("a", None), ("a", True), ("a", None)]
    assert lines[0]["feedback"] == "it is rude" and lines[0]["reviewer"] == "bob" and lines[0]["at"]
    assert "a score is a number" in done.stdout and "nothing was said yet" in done.stdout
    assert "3 left" in done.stdout.splitlines()[-1]


def test_nothing_that_a_model_wrote_reaches_the_terminal_as_a_command_or_as_a_line_of_ours(tmp_path):
    turns = [{"role": HOSTILE, "content": HOSTILE}]
    one = Queued("a", HOSTILE, HOSTILE, turns, HOSTILE, HOSTILE, HOSTILE, 1.0, [Asker(0, "y_o")])
    write_queue(tmp_path, [one])
    done = piped(tmp_path, "q\n", "--reviewer", HOSTILE.replace("\ud800", ""))
    assert done.returncode == 0, done.stderr
    assert not re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202e]", done.stdout)
    ours = [line for line in done.stdout.splitlines() if line and not line.startswith(BAR)]
    assert sum(line.startswith("== ") for line in ours) == 1
    assert [line for line in ours if line.startswith("-- RESPONSE")] == ["-- RESPONSE "]
    shown = "\n".join(lines_of(one, 40))
    assert not re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown) and all(len(x) <= 100 for x in shown.splitlines())


def test_a_long_response_is_shown_a_page_at_a_time_and_all_of_it_can_be_seen(tmp_path):
    text = "\n".join(f"line {i}" for i in range(200)) + "x" * 10_000 + "\u0301" * 10_000
    write_queue(tmp_path, [response("a", text)])
    first = piped(tmp_path, "q\n").stdout
    assert "line 40" in first and "line 199" not in first and "page 1 of" in first
    pages = int(re.findall(r"page 1 of (\d+)", first)[0])
    whole = piped(tmp_path, "m\n" * (pages - 1) + "q\n").stdout
    assert all(f"line {i}" in whole for i in range(200)) and whole.count("x") >= 10_000
    assert max(len(line) for line in whole.splitlines() if line.startswith(BAR)) <= 80


def test_lines_of_the_file_that_are_no_verdict_are_named_and_a_second_reviewer_is_refused(corpus):
    given_place(corpus).write_text("what?\n")
    with subprocess.Popen(
        command(str(corpus), "--reviewer", "ann"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environment(),
    ) as first:  # fmt: skip
        assert first.stdin and first.stdout and first.stderr
        while "left ==" not in first.stdout.readline():
            pass
        second = piped(corpus, "p\n")
        assert second.returncode == 2 and "is under review by" in second.stderr and str(first.pid) in second.stderr
        append_given(given_place(corpus), "b", PersonsVerdict(True))  # another program may, meanwhile
        first.stdin.write("p\n")
        first.stdin.close()
        rest = first.stdout.read()
        assert first.wait(60) == 0 and "everything is judged" in rest  # b has passed, so c is spared
        assert "line 1 of" in first.stderr.read()
    assert said(corpus).keys() == {"a", "b"}
    assert piped(corpus, "").returncode == 0  # the lock went with its process


def test_what_is_queued_during_a_review_is_shown_too(corpus):
    with subprocess.Popen(
        command(str(corpus)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as review:
        assert review.stdin and review.stdout
        while "left ==" not in review.stdout.readline():
            pass
        append_queue(corpus, [response("d", "the late one", row=7)])
        review.stdin.write("p\np\np\n")
        review.stdin.close()
        assert "the late one" in review.stdout.read()
    assert said(corpus).keys() == {"a", "b", "d"}


def test_what_is_no_corpus_to_review_is_refused_with_a_sentence(tmp_path):
    done = piped(tmp_path, "")
    assert done.returncode == 2 and "has no responses to review" in done.stderr and "Traceback" not in done.stderr


class Terminal:
    """The command in a pseudo-terminal of 60 columns and 20 lines."""

    def __init__(self, corpus: Path):
        self.pid, self.file = pty.fork()
        if not self.pid:
            os.execve(sys.executable, command(str(corpus)), environment())
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 60, 0, 0))
        self.shown = ""
        self.read = 0  # characters of it that a test has waited for

    def until(self, text: str) -> str:
        deadline = time.monotonic() + 60
        start = self.read
        while (at := self.shown.find(text, start)) < 0:
            assert time.monotonic() < deadline, self.shown[-2000:]
            if select.select([self.file], [], [], 0.2)[0]:
                self.shown += os.read(self.file, 65536).decode(errors="replace")
        self.read = at + len(text)
        return self.shown[start : self.read]

    def type(self, keys: str) -> None:
        time.sleep(0.1)  # it reads a key at a time
        os.write(self.file, keys.encode())

    def end(self) -> int:
        with contextlib.suppress(OSError):  # the other side has closed
            while chunk := os.read(self.file, 65536):
                self.shown += chunk.decode(errors="replace")
        _, status = os.waitpid(self.pid, 0)
        os.close(self.file)
        return os.waitstatus_to_exitcode(status)


def test_in_a_terminal_a_key_is_a_verdict_and_ctrl_c_ends_it_with_what_was_said(corpus):
    terminal = Terminal(corpus)
    terminal.until("q quit")
    terminal.type("c")
    terminal.until("comment: ")
    terminal.type("the sign\r")
    terminal.until("goes with the verdict")
    terminal.type("f")
    terminal.until("kept: fails")
    terminal.until("q quit")
    terminal.type("pp")  # a paste, or a key that sticks, is no verdict
    terminal.until("q quit")
    terminal.type("\x1b[A")
    terminal.until("q quit")
    terminal.type("s")
    terminal.until("score: ")
    terminal.type("0.25\r")
    terminal.until("kept: score 0.25")
    terminal.until("q quit")
    terminal.type("\x03")
    assert terminal.end() == 0 and "1 left" in terminal.shown
    found = said(corpus)
    assert found["a"].passed is False and found["a"].feedback == "the sign"
    assert found["b"].score == 0.25 and "c" not in found


def test_a_review_that_is_killed_keeps_what_was_said_and_leaves_the_run_free(corpus):
    terminal = Terminal(corpus)
    terminal.until("q quit")
    terminal.type("p")
    terminal.until("kept: passes")
    os.kill(terminal.pid, signal.SIGKILL)
    assert terminal.end() == -signal.SIGKILL
    assert said(corpus)["a"].passed
    assert "2 left" in piped(corpus, "q\n").stdout
