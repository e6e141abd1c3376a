r"""Do two formulas mean the same? LaTeX enters, math-verify's grammar reads it, SymPy compares.

    value("2\sqrt{2}", "\sqrt{8}")  ->  parsed  ->  the difference is 0 at points()  ->  True

Formulas with unknowns are compared at a few points, because SymPy's own simplification can miss an identity or take for
ever. What has no number at any point is left to math-verify.

This code runs in the process of answer_process.py, which loads it by its path. It must not import trd_ray. It raises
whatever SymPy makes of hostile input, and it may take all time and memory: answer_process bounds both.

Formulas are read by math-verify's LaTeX grammar alone. Its extraction of plain expressions hands text to Python's eval.
"""

import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import math_verify
import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy, latex2sympy

DIGITS = 50  # to which two values must agree
_TINY = sympy.Float(10) ** -DIGITS

# What the free symbols of a formula are set to, in turn. Where they are always in one order, or whole ones always
# neighbours, always coprime or always odd, |a-b| is b-a and gcd(m, n) is 1.
POINTS = (  # the first two positive, as most problems' unknowns are; the third whole, for floors
    ("1237/769", "1847/613", "2311/1009", "947/1213", "1531/677"),
    ("3001/877", "613/1021", "2203/941", "1171/523", "431/1103"),
    ("-5", "7", "-2", "3", "-11"),
    ("-1087/641", "-709/1129", "-1693/919", "-2017/1151", "-1289/827"),
)
POSITIVE_POINTS = 2  # the first ones
# Unknowns that are whole numbers in almost every formula that has them. The unknowns of a gcd take the rows that are
# left.
WHOLE = {
    "n": (12, 9, 25, 16, 14, 23),  # all residues modulo 6, and squares for the floor of a root
    "k": (3, 4, 5, 6, 21, 2),
    "m": (8, 15, 10, 24, 7, 29),
    "N": (20, 18, 50, 32, 9, 26),
}
FLOOR_RANGE = range(3, 28)  # the values of a single whole unknown in a formula with floors

_CASED = ConversionConfig(lowercase_symbols=False)
_UNDEFINED = (sympy.zoo, sympy.nan)
_COUNTS = (sympy.binomial, sympy.factorial, sympy.factorial2)
_AS_PRODUCT = re.compile(r"(?<![_^0-9.}])([0-9]+(?:\.[0-9]+)?)\(|\)\(")


class Undecided(Exception):
    """Neither side is a number at the points tried."""


def _of_integers(name: str) -> Any:
    """A SymPy function that has a value where all its arguments are integers."""
    of_numbers = getattr(math, name)

    def evaluated(cls, *args):
        return sympy.Integer(of_numbers(*map(int, args))) if all(a.is_Integer for a in args) else None

    return type(name, (sympy.Function,), {"eval": classmethod(evaluated)})


# The grammar's own gcd and lcm are those of polynomials, where \gcd(m, n) is 1.
_DIVISORS = {"gcd": _of_integers("gcd"), "lcm": _of_integers("lcm")}
_Latex2Sympy.handle_gcd_lcm = lambda self, f, args: _DIVISORS[f](*args)


# Questions


def value(gold: str, answer: str) -> bool:
    """Whether two formulas have the same value, whatever their unknowns are."""
    g = parsed(gold)
    a = parsed(answer)
    if g == a:
        return True
    if not (isinstance(g, sympy.Expr) and isinstance(a, sympy.Expr)):
        return math_verify.verify(g, a, timeout_seconds=None)
    if g.is_Rational and a.is_Rational or g.has(sympy.oo, -sympy.oo) or a.has(sympy.oo, -sympy.oo):
        return False
    try:
        return all(is_zero((g - a).xreplace(values)) for values in points(g, a))
    except Undecided:
        same = g.free_symbols == a.free_symbols
        return same and math_verify.verify(g, a, timeout_seconds=None)


def decimal(exact: str, written: str) -> bool:
    """Whether a value rounds, or is cut, to the digits of a decimal."""
    expr = parsed(exact)
    if not isinstance(expr, sympy.Expr) or expr.free_symbols:
        return False
    places = len(written.partition(".")[2])
    shown = sympy.Rational(written)
    found = expr.evalf(places + DIGITS)
    if not found.is_Float or bool(found < 0) != bool(shown < 0):
        return False
    scaled = abs(found) * 10**places
    return abs(shown) * 10**places in (sympy.floor(scaled), sympy.floor(scaled + sympy.Rational(1, 2)))


def equation(gold: list, answer: list) -> bool:
    return _proportional(gold, answer, same_sign=False)


def inequality(gold: list, answer: list) -> bool:
    return _proportional(gold, answer, same_sign=True)


def sets(gold: str, answer: str) -> bool:
    g = parsed(gold)
    a = parsed(answer)
    return isinstance(g, sympy.Set) and isinstance(a, sympy.Set) and math_verify.verify(g, a, timeout_seconds=None)


def _proportional(gold: list, answer: list, same_sign: bool) -> bool:
    """Whether left minus right of both is the same but for a constant factor."""
    all_sides = [parsed(side) for side in (*gold, *answer)]
    if not all(isinstance(side, sympy.Expr) and not side.has(sympy.oo, -sympy.oo) for side in all_sides):
        return False
    g = all_sides[0] - all_sides[1]
    a = all_sides[2] - all_sides[3]
    if g.free_symbols != a.free_symbols or not g.free_symbols:
        return False
    first, *others = points(g, a)
    g0 = g.xreplace(first)
    a0 = a.xreplace(first)
    if is_zero(g0) or is_zero(a0) or same_sign and not (g0 / a0).evalf(15).is_positive:
        return False
    return all(is_zero(g.xreplace(p) * a0 - a.xreplace(p) * g0) for p in others)


ASKS: dict[str, Callable[..., bool]] = {
    "value": value,
    "decimal": decimal,
    "equation": equation,
    "inequality": inequality,
    "set": sets,
}


# Reading


@lru_cache(maxsize=2048)  # one problem's answer is compared with many responses
def parsed(latex: str) -> Any:
    """The formula, or the set or relation, that this LaTeX spells. ValueError where it is undefined."""
    # The grammar reads 3(4) as the mixed number 3 + 4.
    latex = _AS_PRODUCT.sub(lambda m: rf"{m[1]}\cdot(" if m[1] else r")\cdot(", latex)
    latex = latex.replace("°", r"^{\circ}").replace("%", r"\%").replace(r"\R", r"\mathbb{R}")
    expr: Any = latex2sympy(latex, convert_degrees=True, normalization_config=None, conversion_config=_CASED)
    if not isinstance(expr, sympy.Expr):
        return expr
    if "!!" in latex:  # which the grammar reads as the factorial of a factorial
        twice = [f for f in expr.atoms(sympy.factorial) if isinstance(f.args[0], sympy.factorial)]
        expr = expr.xreplace({f: sympy.factorial2(f.args[0].args[0]) for f in twice})
    exact: dict[Any, Any] = {f: sympy.Rational(str(f)) for f in expr.atoms(sympy.Float)}
    if sympy.Symbol("i") in expr.free_symbols:  # not the index of a sum
        exact[sympy.Symbol("i")] = sympy.I
    expr = expr.xreplace(exact).doit(integrals=False)
    if expr.has(*_UNDEFINED):
        raise ValueError("undefined")
    return expr


# Points


def points(*exprs: Any) -> list[dict]:
    """Values for all free symbols, at least two of them in the domain of the formulas."""
    symbols = sorted(set().union(*(e.free_symbols for e in exprs)), key=lambda s: s.name)
    if not symbols:
        return [{}]
    numbers_of = _whole_numbers(symbols, exprs)
    found = []
    for turn in range(max(map(len, numbers_of.values()), default=len(POINTS))):
        which = turn % len(POINTS)
        numbers = POINTS[which]
        values = {
            s: sympy.Integer(numbers_of[s][turn]) if s in numbers_of else sympy.Rational(numbers[i % 5]) + i // 5
            for i, s in enumerate(symbols)
        }
        if all(_defined(e, values, positive=which < POSITIVE_POINTS) for e in exprs):
            found.append(values)
    if len(found) < 2:
        raise Undecided
    return found


def _whole_numbers(symbols: list, exprs: tuple) -> dict[Any, Any]:
    """The values, one a turn, of those symbols that stand for whole numbers."""
    divided = set().union(*(f.free_symbols for e in exprs for f in e.atoms(*_DIVISORS.values())))
    whole = [s for s in symbols if s.name in WHOLE or s in divided]
    if len(whole) > len(WHOLE):
        raise Undecided
    names = {s.name for s in symbols}
    spare = [numbers for name, numbers in WHOLE.items() if name not in names]
    numbers_of: dict[Any, Any] = {s: WHOLE[s.name] if s.name in WHOLE else spare.pop() for s in whole}
    if symbols == whole[:1] and any(e.has(sympy.floor, sympy.ceiling) for e in exprs):
        numbers_of[symbols[0]] = FLOOR_RANGE
    return numbers_of


def _defined(expr: Any, values: dict, positive: bool) -> bool:
    """Whether a formula has a value that all conventions agree on.

    It has none at a pole and none where it counts something negative (a factorial, a binomial). Where the values are
    not all positive, it has none where the argument of a root or logarithm is negative either.
    """
    node: Any
    for node in sympy.preorder_traversal(expr):
        if isinstance(node, _COUNTS):
            if any(inner.xreplace(values).is_negative for inner in node.args):
                return False
        elif not positive and (isinstance(node, sympy.Pow) and not node.exp.is_integer or isinstance(node, sympy.log)):
            inner: Any = node.args[0]
            real = inner.free_symbols and not node.has(sympy.I)
            if real and inner.xreplace(values).evalf(15).is_negative:
                return False
    return not expr.xreplace(values).has(*_UNDEFINED)


def is_zero(expr: Any) -> bool:
    """Whether a number is 0 to DIGITS digits.

    SymPy raises its precision until a difference has that many, or until it is none.
    """
    largest = max((t.evalf(5) for t in sympy.Add.make_args(expr)), key=lambda t: abs(t) if t.is_Float else 0)
    # 10^{200} hides the value of \sqrt{10^{400}+1} - 10^{200}: so many more digits are needed to see it.
    hidden = int(sympy.log(abs(largest), 10).evalf(5)) if largest.is_Float and largest else 0
    value = expr.evalf(DIGITS, maxn=2 * DIGITS + 3 * max(0, hidden))
    parts = value.as_real_imag()
    if not all(part.is_Float or part == 0 for part in parts):
        raise Undecided
    # Without one right digit, and small next to what it is the difference of: not merely a poor quadrature.
    return all(part == 0 or part._prec < 8 and abs(part) < abs(largest) * _TINY for part in parts)
