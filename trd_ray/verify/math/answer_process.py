"""The child of MathVerifier: one JSON line in, one JSON line out, until the pipe closes.

    {"ask": "value", "gold": ..., "answer": ..., "timeout_s": ...}
        ->  math-verify  ->  {"passed": ..., "detail": ..., "seconds": ...}

Run as a script, so that it imports math-verify and nothing else. It forks the process that compares, and a new one in
milliseconds when that one dies: by its own alarm, which the kernel delivers as death at the deadline even while the
interpreter is deep inside one multiplication, for want of memory, or by a stack overflow. The closed pipe ends both;
a comparison under way when the parent dies is still bounded by its alarm.

Formulas are read by math-verify's LaTeX grammar alone: its extraction of plain expressions hands text to Python's eval.
"""

import json
import math
import mmap
import os
import resource
import signal
import sys
import time
from functools import lru_cache
from typing import Any

MEMORY_BYTES = 2 << 30  # of address space, of which the libraries reserve under 1 GiB
DIGITS = 50  # to which two values must agree
# What the free symbols of a formula are set to, in turn. Where they are always in one order, or whole ones always
# neighbours, always coprime or always odd, |a-b| is b-a and gcd(m, n) is 1.
POINTS = (  # the first two positive, as most problems' unknowns are; the third whole, for floors
    ("1237/769", "1847/613", "2311/1009", "947/1213", "1531/677"),
    ("3001/877", "613/1021", "2203/941", "1171/523", "431/1103"),
    ("-5", "7", "-2", "3", "-11"),
    ("-1087/641", "-709/1129", "-1693/919", "-2017/1151", "-1289/827"),
)
# Unknowns that are whole numbers in almost every formula that has them; those of a gcd take what the others leave.
WHOLE = {
    "n": (12, 9, 25, 16, 14, 23),  # all residues modulo 6, and squares for the floor of a root
    "k": (3, 4, 5, 6, 21, 2),
    "m": (8, 15, 10, 24, 7, 29),
    "N": (20, 18, 50, 32, 9, 26),
}
FLOOR_RANGE = range(3, 28)  # of the one whole unknown of a formula with floors


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not mix with the replies
    try:
        asks = comparisons()
    except Exception as e:
        hello = {"error": f"{type(e).__name__}: {e}"}
    else:
        hello = {}
    print(json.dumps(hello), file=replies, flush=True)
    if hello:
        return
    busy = mmap.mmap(-1, 1)  # shared: whether a question is being answered
    while (pid := os.fork()) != 0:
        status = os.waitpid(pid, 0)[1]
        if status == 0:  # the pipe is closed
            return
        if not busy[0]:  # nobody waits, and a reply now would be taken for the next question's
            continue
        busy[0] = 0
        late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
        why = "deadline passed" if late else "verifier process died"
        print(json.dumps({"given_up": why}), file=replies, flush=True)
    serve(asks, replies, busy)


def serve(asks, replies, busy) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        busy[0] = 1
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, request["timeout_s"])
        try:
            passed = asks[request["ask"]](request["gold"], request["answer"])
            reply = {"passed": bool(passed), "detail": ""}
        except Exception as e:  # RecursionError, MemoryError and whatever SymPy makes of hostile input
            reply = {"passed": False, "detail": f"cannot be compared ({type(e).__name__})"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply["seconds"] = time.monotonic() - start
        busy[0] = 0
        print(json.dumps(reply), file=replies, flush=True)


# The grammar's tables fill as it reads: without these, a worker's first answers take ten times as long.
WARM_UP = (
    (r"\frac{\sqrt{3}}{2}", r"-3\sqrt{2}+\frac{1}{\sqrt[3]{5}}"),
    ("x^2+2x+1", "(x-1)(x+2)^{3}"),
    (r"\frac{x}{2}-3y", r"\frac{n(n+1)}{2}"),
    (r"2\pi r^2", r"\frac{4}{3}\pi-e^{2}"),
    (r"\sin^2x+2\cos 3x", r"\frac{\tan(x)}{\ln 2}"),
    (r"\log_2 8", r"5!\cdot\binom{5}{2}"),
    ("1+2i", r"2^{n+1}-3\times 10^{4}"),
    (r"|x|", r"\sqrt{5-2\sqrt{6}}/4"),
)


class Undecided(Exception):
    """Neither side is a number at the points tried."""


def comparisons() -> dict:
    """What can be asked, by name; warmed up."""
    import re

    import math_verify
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy, latex2sympy

    def of_integers(name: str) -> Any:
        def evaluated(cls, *args):
            return sympy.Integer(getattr(math, name)(*map(int, args))) if all(a.is_Integer for a in args) else None

        return type(name, (sympy.Function,), {"eval": classmethod(evaluated)})

    # The grammar takes those of polynomials: 1 for \gcd(m, n).
    divisors = {"gcd": of_integers("gcd"), "lcm": of_integers("lcm")}
    _Latex2Sympy.handle_gcd_lcm = lambda self, f, args: divisors[f](*args)

    cased = ConversionConfig(lowercase_symbols=False)
    tiny = sympy.Float(10) ** -DIGITS
    unbounded = (sympy.zoo, sympy.nan)
    counts = (sympy.binomial, sympy.factorial, sympy.factorial2)
    as_product = re.compile(r"(?<![_^0-9.}])([0-9]+(?:\.[0-9]+)?)\(|\)\(")

    @lru_cache(maxsize=2048)  # one problem's answer is compared with many responses
    def parsed(latex: str) -> Any:
        # The grammar reads 3(4) as the mixed number 3 + 4.
        latex = as_product.sub(lambda m: rf"{m[1]}\cdot(" if m[1] else r")\cdot(", latex)
        latex = latex.replace("°", r"^{\circ}").replace("%", r"\%").replace(r"\R", r"\mathbb{R}")
        expr: Any = latex2sympy(latex, convert_degrees=True, normalization_config=None, conversion_config=cased)
        if not isinstance(expr, sympy.Expr):
            return expr
        if "!!" in latex:  # which the grammar reads as the factorial of a factorial
            twice = [f for f in expr.atoms(sympy.factorial) if isinstance(f.args[0], sympy.factorial)]
            expr = expr.xreplace({f: sympy.factorial2(f.args[0].args[0]) for f in twice})
        exact: dict[Any, Any] = {f: sympy.Rational(str(f)) for f in expr.atoms(sympy.Float)}
        if sympy.Symbol("i") in expr.free_symbols:  # not the index of a sum
            exact[sympy.Symbol("i")] = sympy.I
        expr = expr.xreplace(exact).doit(integrals=False)
        if expr.has(*unbounded):
            raise ValueError("undefined")
        return expr

    def defined(expr: Any, values: dict, positive: bool) -> bool:
        """No pole, no factorial of a negative number and, where values are negative, no root or logarithm of one."""
        node: Any
        for node in sympy.preorder_traversal(expr):
            if isinstance(node, counts):
                if any(inner.xreplace(values).is_negative for inner in node.args):
                    return False
            elif not positive and (
                isinstance(node, sympy.Pow) and not node.exp.is_integer or isinstance(node, sympy.log)
            ):
                inner: Any = node.args[0]
                real = inner.free_symbols and not node.has(sympy.I)
                if real and inner.xreplace(values).evalf(15).is_negative:
                    return False
        return not expr.xreplace(values).has(*unbounded)

    def is_zero(expr: Any) -> bool:
        """To DIGITS digits; SymPy raises its precision until a difference has that many, or is none."""
        largest = max((t.evalf(5) for t in sympy.Add.make_args(expr)), key=lambda t: abs(t) if t.is_Float else 0)
        hidden = int(sympy.log(abs(largest), 10).evalf(5)) if largest.is_Float and largest else 0
        value = expr.evalf(DIGITS, maxn=2 * DIGITS + 3 * max(0, hidden))  # 10^{200} hides \sqrt{10^{400}+1} - 10^{200}
        parts = value.as_real_imag()
        if not all(part.is_Float or part == 0 for part in parts):
            raise Undecided
        # Without one right digit, and small beside what it is the difference of: not merely a poor quadrature.
        return all(part == 0 or part._prec < 8 and abs(part) < abs(largest) * tiny for part in parts)

    def points(*exprs: Any) -> list[dict]:
        """Values for all free symbols, at least two of them in the domain of the formulas."""
        symbols = sorted(set().union(*(e.free_symbols for e in exprs)), key=lambda s: s.name)
        if not symbols:
            return [{}]
        divided = set().union(*(f.free_symbols for e in exprs for f in e.atoms(*divisors.values())))
        whole = [s for s in symbols if s.name in WHOLE or s in divided]
        spare = [numbers for name, numbers in WHOLE.items() if name not in {s.name for s in symbols}]
        if len(whole) > len(WHOLE):
            raise Undecided
        numbers_of: dict[Any, Any] = {s: WHOLE[s.name] if s.name in WHOLE else spare.pop() for s in whole}
        if symbols == whole[:1] and any(e.has(sympy.floor, sympy.ceiling) for e in exprs):
            numbers_of[symbols[0]] = FLOOR_RANGE
        found = []
        for turn in range(max(map(len, numbers_of.values()), default=len(POINTS))):
            numbers = POINTS[turn % len(POINTS)]
            values = {
                s: sympy.Integer(numbers_of[s][turn]) if s in whole else sympy.Rational(numbers[i % 5]) + i // 5
                for i, s in enumerate(symbols)
            }
            if all(defined(e, values, positive=turn % len(POINTS) < 2) for e in exprs):
                found.append(values)
        if len(found) < 2:
            raise Undecided
        return found

    def value(gold: str, answer: str) -> bool:
        g, a = parsed(gold), parsed(answer)
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

    def proportional(gold: list, answer: list, same_sign: bool) -> bool:
        """Whether left minus right of both is the same but for a constant factor."""
        sides = [parsed(side) for side in (*gold, *answer)]
        if not all(isinstance(side, sympy.Expr) and not side.has(sympy.oo, -sympy.oo) for side in sides):
            return False
        g, a = sides[0] - sides[1], sides[2] - sides[3]
        if g.free_symbols != a.free_symbols or not g.free_symbols:
            return False
        first, *others = points(g, a)
        g0, a0 = g.xreplace(first), a.xreplace(first)
        if is_zero(g0) or is_zero(a0) or same_sign and not (g0 / a0).evalf(15).is_positive:
            return False
        return all(is_zero(g.xreplace(p) * a0 - a.xreplace(p) * g0) for p in others)

    def sets(gold: str, answer: str) -> bool:
        g, a = parsed(gold), parsed(answer)
        return isinstance(g, sympy.Set) and isinstance(a, sympy.Set) and math_verify.verify(g, a, timeout_seconds=None)

    for gold, answer in WARM_UP:
        value(gold, answer)
    return {
        "value": value,
        "decimal": decimal,
        "equation": lambda gold, answer: proportional(gold, answer, same_sign=False),
        "inequality": lambda gold, answer: proportional(gold, answer, same_sign=True),
        "set": sets,
    }


if __name__ == "__main__":
    main()
