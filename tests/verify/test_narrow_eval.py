"""The eval of a process that scores reads literals and formulas, and calls nothing that a text names."""

import subprocess
import sys
from pathlib import Path

import pytest

from trd_ray.verify.gym.narrow_eval import narrow_eval

PLAIN = {
    "[1, 2, 3]": [1, 2, 3],
    "[['Q', '_'], ['_', 'Q']]": [["Q", "_"], ["_", "Q"]],
    "{'a': (1, None), 'b': {2}}": {"a": (1, None), "b": {2}},
    "(0x1f << 2) + -3": 121,
    "  3 * (4 + 5)": 27,
}
HOSTILE = [
    "__import__('os').system('true')",
    "open('/etc/passwd')",
    "().__class__",
    "(lambda: 1)()",
    "[x for x in range(9)]",
    "print('x')",
    "f'{1}'",
    "x := 3",
    "exit()",
    "__builtins__",
    "breakpoint()",
    "Symbol('x', commutative=False)",
    "'a'.join(['b'])",
    "(1)(2)",
    "exec('1')",
    "getattr(1, 'real')",
    "[1][0]",
    "await x",
]


@pytest.mark.parametrize("text", PLAIN)
def test_literals_and_arithmetic_have_their_value(text):
    assert narrow_eval(text) == PLAIN[text]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_does_more_is_refused(text):
    with pytest.raises((ValueError, SyntaxError)):
        narrow_eval(text)
    with pytest.raises((ValueError, SyntaxError)):
        narrow_eval(text, {"open": open, "print": print, "exit": exit, "getattr": getattr})


# In a process of its own: it replaces what is in builtins.
SYMPY = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("narrow_eval", sys.argv[1])
narrow = importlib.util.module_from_spec(spec)
spec.loader.exec_module(narrow)
import sympy
narrow.narrow()
x = sympy.Symbol("x")
value = x**2 + sympy.sin(x) * sympy.E + sympy.Rational(3, 4) - 120
assert sympy.simplify(sympy.parse_expr("2*x**2/2 + sin(x)*exp(1) + 3/4 - 5!") - value) == 0
assert sympy.sympify("[1, x]") == [1, x]
for text in sys.argv[2:]:
    for read in (sympy.parse_expr, sympy.sympify, sympy.S, eval):
        try:
            value = read(text)
        except Exception:
            continue
        assert isinstance(value, sympy.Basic), (text, value)
import collections, dataclasses, xmlrpc.client  # modules that load, and what is made in them, are as ever
assert collections.namedtuple("P", "a b")(1, 2).b == 2
assert dataclasses.make_dataclass("D", ["a"])(1).a == 1
"""


def test_sympy_reads_formulas_through_it_and_nothing_else(tmp_path):
    touched = tmp_path / "touched"
    module = Path(sys.modules[narrow_eval.__module__].__file__ or "")
    attacks = [f"__import__('os').system('touch {touched}')", f"open('{touched}', 'w')", *HOSTILE]
    subprocess.run([sys.executable, "-c", SYMPY, str(module), *attacks], check=True, timeout=120)
    assert not touched.exists()
