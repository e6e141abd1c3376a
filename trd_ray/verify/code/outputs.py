"""Is what a program gave for a case right? The rule of each data set's own grader, on data alone.

    tests  ->  rule(tests)  ->  right(case, got) -> bool

| rule | grader | right means |
|---|---|---|
| tokens | TACO, APPS: output | the same tokens on the same non-blank lines; decimals within rtol 1e-5, atol 1e-8 |
| livecodebench | LiveCodeBench | output: lines equal as text or as exact decimals; value: ==, a tuple is a list |
| equal | TACO, APPS: value | == with tuples as lists, JSON's text keys as numbers, and [x] for x |
| humaneval_plus, mbpp_plus | evalplus 0.3.1 | ==, else same type and within atol, rtol 1e-7; special oracles |

Where a grader is lax by accident, we are strict. APPS accepts three things that are wrong here:

- the lines, and the tokens of a line, in any order;
- whole numbers that differ by a hundred-thousandth;
- the first element of an expected list in place of the list.

`got` is what the sandbox decoded: plain Python data, or `Opaque`, which equals nothing.
"""

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np

from trd_ray.verify.code.tests import Tests

Right = Callable[[int, Any], bool]

_MAX_BROADCAST = 10_000_000  # elements that one tolerant comparison may build
# No digit can match in two places: a megabyte of digits and a letter would otherwise take quadratic time.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"[+-]?[0-9]+")


def rule(tests: Tests) -> Right:
    """`right(case, got)`, which never raises: what cannot be compared is not right."""
    judge = _RULES[tests.compare, tests.kind](tests)

    def right(case: int, got: Any) -> bool:
        try:
            return bool(judge(case, got))
        except Exception:  # unhashable, unordered, too large or too deep: whatever a hostile value does to ==
            return False

    return right


def same_tokens(got: str, expected: str) -> bool:
    if got.strip() == expected.strip():
        return True
    got_lines, expected_lines = (
        [line.split() for line in text.split("\n") if line.strip()] for text in (got, expected)
    )
    return len(got_lines) == len(expected_lines) and all(
        len(a) == len(b) and all(map(_same_token, a, b)) for a, b in zip(got_lines, expected_lines, strict=True)
    )


def _same_token(got: str, expected: str) -> bool:
    if got == expected:
        return True
    if not (_NUMBER.fullmatch(got) and _NUMBER.fullmatch(expected)):
        return False
    if _WHOLE.fullmatch(expected):
        return not _WHOLE.fullmatch(got) and Decimal(got) == Decimal(expected)
    return math.isfinite(float(got)) and abs(float(got) - float(expected)) <= 1e-8 + 1e-5 * abs(float(expected))


def same_lines(got: str, expected: str) -> bool:
    got_lines, expected_lines = ([line.strip() for line in text.strip().split("\n")] for text in (got, expected))
    return len(got_lines) == len(expected_lines) and all(
        a == b or [Decimal(token) for token in a.split()] == [Decimal(token) for token in b.split()]
        for a, b in zip(got_lines, expected_lines, strict=True)
    )


def same_value(got: Any, expected: Any) -> bool:
    got = _as_json(got)
    forms = [expected, expected[0]] if isinstance(expected, list) and len(expected) == 1 else [expected]
    return any(got == form or got == _numeric_keys(form) for form in forms)


def _as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return value


def _numeric_keys(value: Any) -> Any:
    if isinstance(value, dict) and value and all(isinstance(key, str) and _WHOLE.fullmatch(key) for key in value):
        return {int(key): item for key, item in value.items()}
    return value


def _livecodebench_value(got: Any, expected: Any) -> bool:
    return (list(got) if isinstance(got, tuple) else got) == expected


def _humaneval_plus(tests: Tests) -> Right:
    from evalplus.eval._special_oracle import _poly

    plain = _evalplus(tests, lambda case, got: got == tests.outputs[case])

    def find_zero(case: int, got: Any) -> bool:  # HumanEval/32: any root will do; 0.3.1 fails them all (PR 201)
        return abs(_poly(tests.inputs[case][0], got)) <= tests.atol

    return find_zero if tests.entry_point == "find_zero" else plain


def _mbpp_plus(tests: Tests) -> Right:
    from evalplus.eval import _special_oracle as oracle

    name = tests.entry_point

    def exact(case: int, got: Any) -> bool:
        args = tests.inputs[case]
        expected = tests.outputs[case]
        if name in oracle.MBPP_OUTPUT_SET_EQ_TASKS:
            wanted = set(expected)  # got is looked up in it first: a set of hostile keys takes quadratic time to build
            return all(item in wanted for item in got) and set(got) == wanted
        if name in oracle.MBPP_OUTPUT_NOT_NONE_TASKS:  # expected: whether the solution's output is not None
            return expected == (got if isinstance(got, bool) else got is not None)
        if name == "are_equivalent":  # Mbpp/164: not checked
            return True
        return (
            got == expected
            or (name == "sum_div" and got == 0)  # Mbpp/295
            or (name == "surface_Area" and abs(got - oracle._surface_Area(*args)) <= tests.atol)  # Mbpp/581
            or (name == "digit_distance_nums" and got == oracle._digit_distance_nums(*args))  # Mbpp/558
        )

    return _evalplus(tests, exact)


def _evalplus(tests: Tests, exact: Right) -> Right:
    atol = _tolerances(tests)

    def right(case: int, got: Any) -> bool:
        if exact(case, got):
            return True
        expected = tests.outputs[case]
        if not atol[case] or type(got) is not type(expected):
            return False
        if isinstance(expected, list | tuple) and len(got) != len(expected):
            return False
        if _holds_text(got):
            return False
        if math.prod(np.broadcast_shapes(np.shape(got), np.shape(expected))) > _MAX_BROADCAST:
            return False
        if 0 in np.shape(got) and 0 not in np.shape(expected):  # np.allclose of nothing is true, as evalplus has it
            return False
        with np.errstate(all="ignore"):
            return np.allclose(got, expected, rtol=1e-7, atol=atol[case])

    return right


def _holds_text(value: Any) -> bool:
    """Whether a value holds text, which is close to nothing, but which NumPy would first pad to the longest."""
    if isinstance(value, list | tuple):
        return any(map(_holds_text, value))
    return isinstance(value, str | bytes)


def _tolerances(tests: Tests) -> list[float]:
    """The atol of each case. As in evalplus, a float output sets 1e-6 for itself and all that follow in its group."""
    found = []
    atol = tests.atol
    for case, expected in enumerate(tests.outputs):
        if case == tests.base:
            atol = tests.atol
        if atol == 0 and _is_float(expected):
            atol = 1e-6
        found.append(atol)
    return found


def _is_float(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _against_outputs(same: Callable[[Any, Any], bool]) -> Callable[[Tests], Right]:
    return lambda tests: lambda case, got: same(got, tests.outputs[case])


_RULES: dict[tuple[str, str], Callable[[Tests], Right]] = {
    ("tokens", "stdio"): _against_outputs(same_tokens),
    ("livecodebench", "stdio"): _against_outputs(same_lines),
    ("livecodebench", "function"): _against_outputs(_livecodebench_value),
    ("equal", "function"): _against_outputs(same_value),
    ("humaneval_plus", "function"): _humaneval_plus,
    ("mbpp_plus", "function"): _mbpp_plus,
}
