"""Does the program in a response pass the tests of its problem?

    text -> extract -> program ==sandbox==> outcome of case 1, 2, ... -> outputs.rule, outside -> Verdict
                                 <==inputs==

The program sees inputs alone. The expected outputs never enter the sandbox. What comes back is data, and it is compared
out here. So a program gains nothing when it takes its harness over, prints what a pass prints or exits early. The first
case that fails ends the verdict.

A sandbox that somebody kills (the system, for want of memory) tells nothing about the program: the case is run again,
and if its sandbox is killed again, the verdict is UNJUDGED.

The same program on the same tests is run once: rollouts of one problem are often alike, above all those of a trained
student. Only a pass, a wrong answer and a syntax error are remembered. An exception, a limit or a death may be the
machine's doing, and what names chance, the clock or threads may do otherwise next time: those are run again.
"""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

from trd_ray.config import VerifyConfig
from trd_ray.errors import BadRow, UserError
from trd_ray.sandbox import Limits, Outcome, Sandbox
from trd_ray.verify.code.extract import INSPECTOR, defines, extract
from trd_ray.verify.code.outputs import rule
from trd_ray.verify.code.tests import Tests
from trd_ray.verify.verdict import EMPTY, UNJUDGED, Verdict, unjudged

MAX_PROGRAM_CHARS = 200_000  # several times what programming contests accept
MAX_EXTRACTED_CHARS = 8_000  # how much of the program a verdict holds
MAX_PART_CHARS = 350  # of each of input, expected, got and standard error in a feedback
MAX_DETAIL_CHARS = 120
SYNTAX_ERROR, WRONG_ANSWER = "syntax error", "wrong answer"
MOST_KNOWN = 4_096  # programs whose outcome a verifier remembers: at most some 10 MiB, with their feedback

_INSPECT_LIMITS = Limits(time_s=5.0, memory_mib=512)
_SYNTAX_ERRORS = ("SyntaxError", "IndentationError", "TabError")
_MAY_DIFFER = re.compile(r"\b(random|secrets|uuid\w*|urandom|time|datetime|threading|multiprocessing|asyncio)\b")
_CONTROL = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)], "\ufffd") | {
    0x0A: "\n",
    0x09: "\t",
}


class CodeVerifier:
    """Runs the program of a response in a sandbox on `Tests.unpack(problem["tests"])`. It passes with all cases.

    Raises what says nothing about the program: UserError where no sandbox can run, Lost where this machine starts none
    any more, BadRow where the problem's tests cannot be read.
    """

    def __init__(self, config: VerifyConfig):
        self._config = config
        self._known: dict[bytes, tuple[str, str]] = {}  # digest of tests and program -> detail, feedback
        self._lock = threading.Lock()

    def __call__(self, text: str | None, problem: dict) -> Verdict:
        start = time.monotonic()
        if not isinstance(text, str) or not text.strip():
            return Verdict(False, 0.0, "", EMPTY, 0.0, "The response is empty.")
        tests = _unpacked(problem["tests"])
        sandbox = _sandbox(self._config.sandbox)
        try:
            with _inspector(sandbox) as inspect:
                program = extract(text, tests.entry_point, inspect)
        except _Killed:
            return unjudged("the sandbox that looks for the program was killed twice", time.monotonic() - start)
        detail = "no code block"
        feedback = "The response holds no Python program in a fenced code block."
        if program:
            detail, feedback = self._tested(program, problem["tests"], tests, sandbox)
        seconds = time.monotonic() - start
        return Verdict(not detail, float(not detail), _clipped(program, MAX_EXTRACTED_CHARS), detail, seconds, feedback)

    def _tested(self, program: str, packed: bytes, tests: Tests, sandbox: Sandbox) -> tuple[str, str]:
        key = hashlib.sha256(packed + program.encode("utf-8", "surrogatepass")).digest()
        if (known := self._known.get(key)) is not None:
            return known
        found = run_tests(program, tests, sandbox, self._config)
        is_lasting = not found[0] or found[0].startswith((WRONG_ANSWER, SYNTAX_ERROR))
        if is_lasting and not _MAY_DIFFER.search(program):
            with self._lock:
                if len(self._known) >= MOST_KNOWN:
                    del self._known[next(iter(self._known))]
                self._known[key] = found
        return found

    def close(self) -> None:
        """Nothing outlives a call."""


def choose_reference(
    solutions: Sequence[str], tests: Tests, config: VerifyConfig | None = None
) -> tuple[int | None, str]:
    """The first solution (a program, without fences) that passes the tests: its index, or None and why none does."""
    config = config or VerifyConfig()
    reasons = []
    for index, program in enumerate(solutions):
        detail, _ = run_tests(program, tests, _sandbox(config.sandbox), config)
        if not detail:
            return index, ""
        if detail.startswith(UNJUDGED):  # a choice is remembered, and this one says nothing about the solution
            raise UserError(
                f"a reference was {detail}: free memory on this machine, and start again to go on from there"
            )
        reasons.append(detail)
    first = f", the first: {reasons[0]}" if reasons else ""
    return None, f"no solution passes: {len(reasons)} tried{first}"


def run_tests(program: str, tests: Tests, sandbox: Sandbox, config: VerifyConfig) -> tuple[str, str]:
    """(detail, feedback) on the first case that fails, two times "" when all pass."""
    if why := _unfit(program):
        return why, f"The program was not run: {why}."
    right = rule(tests)
    deadline = time.monotonic() + config.program_timeout_s
    for group in _groups(tests, config.max_tests):
        limits = _limits(tests, group, config)
        with _opened(program, tests, sandbox, limits) as run:
            for case in group:
                if time.monotonic() > deadline:
                    detail = f"time limit of all cases ({config.program_timeout_s:g} s) before {_name(case, tests)}"
                    return detail, f"The program was stopped: {detail}."
                outcome = run(tests.inputs[case])
                if outcome.status == "died":  # perhaps for want of memory or processes on a busy machine
                    outcome = run(tests.inputs[case])
                if outcome.killed:
                    return f"{UNJUDGED} (the sandbox was killed twice in {_name(case, tests)})", ""
                got = outcome.stdout if tests.kind == "stdio" else outcome.value
                if why := _failure(outcome, _time_limit(tests, case, limits), limits):
                    if outcome.status == "error" and not defines(program, tests.entry_point) and why != SYNTAX_ERROR:
                        why = f"{tests.entry_point} is not defined"
                elif not right(case, got):
                    why = WRONG_ANSWER
                if why:
                    where = "" if why == SYNTAX_ERROR else f" in {_name(case, tests)}"
                    stderr = _own_lines(outcome.stderr.strip(), program, tests)
                    return _short(why + where), _feedback(why, tests, case, got, stderr)
    return "", ""


def _groups(tests: Tests, max_tests: int | None) -> list[range]:
    """Groups of cases that share a process: as in evalplus, the base benchmark's cases and those added to it."""
    total = min(len(tests), max_tests or len(tests))
    base = total if tests.base is None else min(tests.base, total)
    return [group for group in (range(base), range(base, total)) if group]


def _limits(tests: Tests, group: range, config: VerifyConfig) -> Limits:
    if tests.case_time_limits_s:
        time_s = max(tests.case_time_limits_s[case] for case in group)
    else:
        time_s = tests.time_limit_s or config.time_limit_s
    largest = max(len(expected) if isinstance(expected := tests.outputs[i], str) else _size(expected) for i in group)
    memory_mib = tests.memory_mib or config.memory_mib
    return Limits(time_s=time_s, memory_mib=memory_mib, output_kib=max(Limits().output_kib, 4 * largest // 1024))


def _time_limit(tests: Tests, case: int, limits: Limits) -> float:
    return tests.case_time_limits_s[case] if tests.case_time_limits_s else limits.time_s


def _size(value: Any) -> int:
    """Roughly the bytes of a value on its way out of the sandbox."""
    if isinstance(value, dict):
        return 16 + sum(_size(key) + _size(item) for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return 16 + sum(map(_size, value))
    return 16 + (len(value) if isinstance(value, str | bytes) else value.bit_length() if isinstance(value, int) else 16)


@contextmanager
def _opened(program: str, tests: Tests, sandbox: Sandbox, limits: Limits) -> Iterator[Callable[[Any], Outcome]]:
    if tests.kind == "stdio":
        with sandbox.script(f"{_prelude(program, tests)}{program}\n", limits) as script:
            yield script.run
    else:
        with sandbox.function(
            f"{program}\n{tests.epilogue}", _entry_point(program, tests), limits, prelude=tests.prelude
        ) as function:
            yield function.call


def _prelude(program: str, tests: Tests) -> str:
    """What stands before a script; nothing before one whose own first line must be the first."""
    return tests.prelude.rstrip("\n") + "\n" if tests.prelude and "from __future__" not in program else ""


def _own_lines(stderr: str, program: str, tests: Tests) -> str:
    """Tracebacks whose line numbers count the program's own lines alone."""
    before = _prelude(program, tests).count("\n") if tests.kind == "stdio" else 0
    return re.sub(r'(File "solution\.py", line )([0-9]+)', lambda m: f"{m[1]}{int(m[2]) - before}", stderr)


def _entry_point(program: str, tests: Tests) -> str:
    """The name to call. TACO and LiveCodeBench look in class Solution if the program has one, else at its top."""
    if tests.compare not in ("equal", "livecodebench"):
        return tests.entry_point
    name = tests.entry_point.rpartition(".")[2]
    return f"Solution.{name}" if re.search(r"^class[ \t]+Solution\b", program, re.MULTILINE) else name


def _unfit(program: str) -> str:
    if len(program) > MAX_PROGRAM_CHARS:
        return f"program of more than {MAX_PROGRAM_CHARS} characters"
    return f"{SYNTAX_ERROR} (not text)" if re.search("[\0\ud800-\udfff]", program) else ""


def _failure(outcome: Outcome, time_limit_s: float, limits: Limits) -> str:
    """Why there is nothing to compare, "" when there is."""
    if outcome.status == "ok":
        # A limit that the sandbox itself kept is not measured again: it knows what a busy machine let a program wait.
        late = time_limit_s < limits.time_s and outcome.seconds > time_limit_s
        return f"time limit ({time_limit_s:g} s)" if late else ""
    if outcome.status == "error":
        last = outcome.stderr.strip().rpartition("\n")[2].strip() or outcome.detail
        return SYNTAX_ERROR if last.startswith(_SYNTAX_ERRORS) else f"error ({_clipped(last, 60)})"
    return {
        "time": f"time limit ({time_limit_s:g} s)",
        "memory": f"memory limit ({limits.memory_mib} MiB)",
        "output": f"output limit ({limits.output_kib} KiB)",
        "died": "ended before it answered",
    }[outcome.status]


def _name(case: int, tests: Tests) -> str:
    group = "" if tests.base is None else " (base)" if case < tests.base else " (plus)"
    return f"case {case + 1} of {len(tests)}{group}"


def _feedback(why: str, tests: Tests, case: int, got: Any, stderr: str) -> str:
    """What a refiner may be told: this case alone, and nothing about the other hidden cases."""
    stdio = tests.kind == "stdio"
    expected = tests.outputs[case]
    given = tests.inputs[case] if stdio else f"{tests.entry_point}({', '.join(map(_repr, tests.inputs[case]))})"
    if why == SYNTAX_ERROR:
        parts = ["The program has a syntax error."]
    else:
        parts = [f"Test {_name(case, tests)} failed: {_clipped(why, MAX_DETAIL_CHARS)}."]
        parts.append(f"{'Input' if stdio else 'Call'}:\n{_clipped(given)}")
        parts.append(f"Expected:\n{_clipped(expected if stdio else _repr(expected))}")
    if why == WRONG_ANSWER:
        parts.append(f"Got:\n{_clipped(got if stdio else _repr(got))}")
    if stderr:
        parts.append(f"Standard error ends with:\n{_clipped(stderr, tail=True)}")
    return "\n".join(parts)


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # a whole number of more digits than Python prints
        return f"({type(value).__name__}, too large to show)"


def _clipped(text: str, most: int = MAX_PART_CHARS, tail: bool = False) -> str:
    """A bounded text for Arrow and a terminal: control characters and lone surrogates become U+FFFD."""
    text = text.replace("\r\n", "\n").rstrip("\n") if len(text) <= most else text
    if len(text) > most:
        text = "…" + text[-most:] if tail else text[: most * 2 // 3] + " … " + text[-(most // 3) :]
    return text.translate(_CONTROL)


def _short(detail: str) -> str:
    return detail if len(detail) <= MAX_DETAIL_CHARS else detail[: MAX_DETAIL_CHARS - 1] + "…"


class _Killed(Exception):
    """Somebody outside has killed the sandbox, and then the one that took its place."""


@contextmanager
def _inspector(sandbox: Sandbox) -> Iterator[Callable[[str], int]]:
    """`extract.INSPECTOR` in a sandbox that its first question starts. A text that breaks the parser is no program."""
    with ExitStack() as stack:
        running = None

        def inspect(source: str) -> int:
            nonlocal running
            if _unfit(source):
                return 0
            if running is None:
                running = stack.enter_context(sandbox.function(INSPECTOR, "inspect", _INSPECT_LIMITS))
            outcome = running.call([source])
            if outcome.killed:
                outcome = running.call([source])
            if outcome.killed:
                raise _Killed
            if outcome.status == "ok":
                return outcome.value
            stack.close()
            running = None
            return 0

        yield inspect


@lru_cache(maxsize=4)
def _sandbox(backend: str) -> Sandbox:
    """The sandbox that this process keeps."""
    return Sandbox(backend)


@lru_cache(maxsize=2)
def _unpacked(packed: bytes) -> Tests:
    """The tests, kept because the rollouts of one problem follow each other."""
    try:
        return Tests.unpack(packed)
    except Exception as e:
        raise BadRow(f"the tests of its problem cannot be read ({type(e).__name__}: {e})") from e
