r"""Do two answers say the same? Their forms are compared part by part. Only formulas go to math-verify.

    equal(read("x=1 \text{ or } x=2"), read("\{2, 1\}"), ask, problem="Solve for x.")  ->  True

The rules are those of a strict grader of competition answers:

- Order matters in tuples, and not in lists and sets.
- An open end of an interval is not a closed one.
- Another unit is another answer.
- A rounded decimal is not the exact number, unless it shows at least `EXACT_DIGITS` right digits.
- What cannot be read is unequal.

In doubt the answer is rejected. A false accept teaches a student something wrong; a false reject only loses a sample.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from trd_ray.verify.math.chains import MIN_MEMBERS, leads, result
from trd_ray.verify.math.forms import (
    Based,
    Choice,
    Form,
    Formula,
    Group,
    Matrix,
    Number,
    Odd,
    Quantity,
    Relation,
    Words,
    is_set,
    read,
)
from trd_ray.verify.math.named_values import (
    is_labelled,
    names_a_value,
    ratio_names,
    same_named,
    same_ratio,
    solutions,
)
from trd_ray.verify.math.relations import (
    as_intervals,
    as_less,
    interval_of,
    is_label,
    latex_of,
    member_of,
    met,
    sides,
)
from trd_ray.verify.math.units import DEGREE, PERCENT, Unit, asked_unit

EXACT_DIGITS = 6  # that a decimal for 1/3 or \sqrt{2} needs: significant ones, and after the point

Ask = Callable[..., bool]  # ask("value" | "equation" | "inequality" | "set", gold, answer, decimal=""): math-verify


_INTERVAL = re.compile(r"\b(?:interval|inequalit)", re.IGNORECASE)  # a problem whose (1,3) is no pair
_SUM_OF_LETTERS = re.compile(r"[a-zA-Z](?:[+]?[a-zA-Z])*")


class Equality:
    """One answer against one expected answer."""

    def __init__(self, ask: Ask, problem: str = ""):
        self._ask = ask
        self._problem = problem

    def equal(self, gold: Form, answer: Form) -> bool:
        if gold == answer:
            return True
        if isinstance(gold, Choice) or isinstance(answer, Choice):
            return self._choices(gold, answer)
        if isinstance(gold, Relation) or isinstance(answer, Relation):
            return self._relations(gold, answer)
        if isinstance(gold, Quantity) or isinstance(answer, Quantity):
            return self._quantities(gold, answer)
        if isinstance(gold, Matrix) or isinstance(answer, Matrix):
            return self._matrices(gold, answer)
        if is_set(gold) or is_set(answer):
            return self._sets_in_words(gold, answer)
        if {gold, answer} == {Group("set", ()), Words("no solution")}:
            return True
        if isinstance(gold, Group) or isinstance(answer, Group):
            return self._groups(gold, answer)
        if isinstance(gold, Based):  # the base may be left out, as the problem asks for it
            return isinstance(answer, Number) and answer.places is None and str(answer.value) == gold.digits
        if isinstance(answer, Based) and isinstance(gold, Number):
            return str(gold.value) == answer.digits and f"base {answer.base}" in re.sub("[-$ ]+", " ", self._problem)
        if isinstance(gold, Words) and isinstance(answer, Formula):
            return gold.words == answer.latex.lower()
        if isinstance(gold, Formula) and isinstance(answer, Words):
            return gold.latex.lower() == answer.words
        if isinstance(gold, (Number, Formula)) and isinstance(answer, (Number, Formula)):
            return self._values(gold, answer)
        return False

    def _values(self, gold: Number | Formula, answer: Number | Formula) -> bool:
        if isinstance(gold, Number) and isinstance(answer, Number):
            if gold.value == answer.value:
                return True
            if (gold.places is None) == (answer.places is None):
                return False
            decimal, exact = (answer, gold) if gold.places is None else (gold, answer)
            return is_long_decimal(decimal) and shows(exact.value, decimal)
        if self._ask("value", latex(gold), latex(answer)):
            return True
        for decimal, exact in ((gold, answer), (answer, gold)):
            if isinstance(decimal, Number) and is_long_decimal(decimal):
                return self._ask("decimal", latex(exact), _written(decimal))
        return False

    def _choices(self, gold: Form, answer: Form) -> bool:
        if not isinstance(gold, Choice):
            return isinstance(answer, Choice) and answer.content is not None and self.equal(gold, answer.content)
        if not isinstance(answer, Choice):
            return gold.content is not None and self.equal(gold.content, answer)
        if gold.letter != answer.letter:
            return False
        return gold.content is None or answer.content is None or self.equal(gold.content, answer.content)

    # Units

    def _quantities(self, gold: Form, answer: Form) -> bool:
        if not isinstance(answer, Quantity):
            assert isinstance(gold, Quantity)
            if self.equal(gold.value, answer) and not (gold.unit == DEGREE and _has_pi(answer)):
                return True  # 50 for 50\%, 12 for 12 cm
            return self._scaled(gold, answer)
        if not isinstance(gold, Quantity):
            if answer.unit == PERCENT:
                in_percent = "percent" in self._problem.lower() or "%" in self._problem
                return self._scaled(answer, gold, swapped=True) or in_percent and self.equal(gold, answer.value)
            if answer.unit == DEGREE and _has_pi(gold):
                return self._scaled(answer, gold, swapped=True)
            asked = asked_unit(self._problem)
            if asked and answer.unit.times(asked) is not None:  # 2 hours for 120 where minutes are asked for
                return self._quantities(Quantity(gold, asked), answer)
            return self._belongs(answer.unit) and self.equal(gold, answer.value)
        times = answer.unit.times(gold.unit)
        if times is None:
            return False
        if times == 1:
            return self.equal(gold.value, answer.value)
        if isinstance(gold.value, Number) and isinstance(answer.value, Number):
            return gold.value.value == answer.value.value * times
        return False

    def _scaled(self, quantity: Quantity, bare: Form, swapped: bool = False) -> bool:
        r"""50\% is 1/2, 90 degrees are \pi/2."""
        if not isinstance(quantity.value, (Number, Formula)) or not isinstance(bare, (Number, Formula)):
            return False
        value: Form
        if quantity.unit == PERCENT and isinstance(quantity.value, Number):
            value = Number(quantity.value.value / 100, 0 if quantity.value.places is not None else None)
        elif quantity.unit == PERCENT:
            value = Formula(rf"\frac{{{latex(quantity.value)}}}{{100}}")
        elif quantity.unit == DEGREE and _has_pi(bare):
            value = Formula(rf"\frac{{({latex(quantity.value)})\pi}}{{180}}")
        else:
            return False
        return self.equal(bare, value) if swapped else self.equal(value, bare)

    def _belongs(self, unit: Unit) -> bool:
        """Whether an answer may have a unit that the expected one lacks: a measure, or a noun of the problem."""
        if unit.known:
            return True
        words = re.findall("[a-z]+", self._problem.lower())
        return all(any(w in (part, part + "s", part + "es") for w in words) for part in unit.name.split())

    # Relations

    def _relations(self, gold: Form, answer: Form) -> bool:
        gold, answer = member_of(gold), member_of(answer)
        if not isinstance(gold, Relation) and not isinstance(answer, Relation):
            return self.equal(gold, answer)
        if isinstance(gold, Group) or isinstance(answer, Group):
            gold, answer = self._unlabelled_group(gold), self._unlabelled_group(answer)
            if not isinstance(gold, Relation) and not isinstance(answer, Relation):
                return self.equal(gold, answer)
        if isinstance(gold, Relation) and isinstance(answer, Relation):
            return self._same_relation(gold, answer)
        if isinstance(answer, Relation):
            return self._states(answer, gold)
        assert isinstance(gold, Relation)
        if (interval := interval_of(gold)) is not None:
            return (isinstance(answer, Group) or is_set(answer)) and self.equal(interval[1], answer)
        value = result(gold)
        return value is not None and self.equal(value, answer)

    def _states(self, answer: Relation, gold: Form) -> bool:
        r"""`m+n=34`, `x = \frac{10}{4} = 2.5` and `x \approx ...` against the value alone."""
        if (interval := interval_of(answer)) is not None:
            return (isinstance(gold, Group) or is_set(gold)) and self.equal(gold, interval[1])
        signs = answer.signs
        if not set(signs) <= {"=", r"\approx"}:
            return False
        exact = signs.index(r"\approx") + 1 if r"\approx" in signs else len(answer.parts)
        parts = list(answer.parts)
        while (
            len(parts) > 1
            and (names_a_value(parts[0]) or self._is_asked_for(parts[0]))
            and latex_of(parts[0]) != latex(gold)
        ):
            parts = parts[1:]
        parts = parts[: max(1, exact - len(answer.parts) + len(parts))]
        chain = exact >= MIN_MEMBERS and isinstance(gold, (Number, Formula))
        return self.equal(gold, read(parts[-1])) and all(
            chain and leads(part, gold) or self.equal(gold, read(part)) for part in parts[:-1]
        )

    def _is_asked_for(self, part: str) -> bool:
        """`m+n`, or a formula that the problem has between its dollar signs."""
        bare = latex_of(part)
        if _SUM_OF_LETTERS.fullmatch(bare):
            return True
        formulas = re.findall(r"\$([^$]{1,200})\$|\\\((.{1,200}?)\\\)", self._problem)
        return any(c.isalpha() for c in bare) and any(bare == latex_of(a or b) for a, b in formulas)

    def _same_relation(self, gold: Relation, answer: Relation) -> bool:
        here, there = interval_of(gold), interval_of(answer)
        if here and there:
            return here[0] == there[0] and self.equal(here[1], there[1])
        if len(gold.parts) == len(answer.parts) == 2:
            equation = gold.signs == answer.signs == ("=",)
            if equation and latex_of(gold.parts[0]) == latex_of(answer.parts[0]):
                return self.equal(read(gold.parts[1]), read(answer.parts[1]))
            if equation and ratio_names(gold.parts[0]) and ratio_names(answer.parts[0]):
                return same_ratio(gold, answer, self.equal)
            if equation:
                return self._ask("equation", sides(gold), sides(answer))
            left, right = as_less(gold), as_less(answer)
            return (
                left is not None
                and right is not None
                and left[0] == right[0]
                and self._ask("inequality", left[1], right[1])
            )
        if set(gold.signs) | set(answer.signs) == {"="} and is_label(gold.parts[0]):
            if latex_of(gold.parts[0]) == latex_of(answer.parts[0]):
                return self._states(answer, read(gold.parts[-1]))
            return False
        return gold.signs == answer.signs and all(
            self.equal(read(g), read(a)) for g, a in zip(gold.parts, answer.parts, strict=True)
        )

    def _unlabelled_group(self, form: Form) -> Form:
        """`(x,y)=(3,4)` as its tuple."""
        if isinstance(form, Relation) and form.signs == ("=",) and is_label(form.parts[0]):
            value = read(form.parts[1])
            return value if isinstance(value, Group) else form
        return form

    # Lists, sets, tuples, intervals

    def _groups(self, gold: Form, answer: Form) -> bool:
        gold, answer = met(solutions(gold)), met(solutions(answer))
        if is_labelled(gold) or is_labelled(answer):
            return same_named(gold, answer, self.equal, self._problem)
        if not isinstance(gold, Group):
            assert isinstance(answer, Group)
            if answer.kind == "ratio":
                return self._as_fraction(answer, gold)
            return answer.kind == "set" and len(answer.items) == 1 and self.equal(gold, answer.items[0])
        if not isinstance(answer, Group):
            if gold.kind == "ratio":
                return self._as_fraction(gold, answer)
            return gold.kind == "set" and len(gold.items) == 1 and self.equal(gold.items[0], answer)
        kinds = {gold.kind, answer.kind}
        if kinds <= {"list", "set"} and "set" in kinds:
            return self._covers(gold.items, answer.items) and self._covers(answer.items, gold.items)
        if kinds == {"list"}:
            return self._matched(gold.items, answer.items)
        if kinds == {"union"}:
            return self._matched(as_intervals(gold), as_intervals(answer))
        if "union" in kinds:
            return self._sets_in_words(gold, answer)
        if len(kinds) == 1 or kinds <= {"list", "()"} and not _INTERVAL.search(self._problem):
            return self._in_order(gold.items, answer.items)
        return False

    def _as_fraction(self, ratio: Group, value: Form) -> bool:
        if len(ratio.items) != 2 or not isinstance(value, (Number, Formula)):
            return False
        first, second = ratio.items
        if isinstance(first, Number) and isinstance(second, Number):
            return isinstance(value, Number) and second.value != 0 and first.value / second.value == value.value
        quotient = Formula(rf"\frac{{{latex(first)}}}{{{latex(second)}}}")
        return bool(latex(first) and latex(second)) and self.equal(value, quotient)

    def _in_order(self, gold: Sequence[Form], answer: Sequence[Form]) -> bool:
        return len(gold) == len(answer) and all(self.equal(g, a) for g, a in zip(gold, answer, strict=True))

    def _covers(self, some: Sequence[Form], others: Sequence[Form]) -> bool:
        return all(any(self.equal(one, other) for other in others) for one in some)

    def _matched(self, gold: Sequence[Form], answer: Sequence[Form]) -> bool:
        """Whether each has its partner, in any order. Equality is transitive enough that the first partner will do."""
        left = list(answer)
        for one in gold if len(gold) == len(answer) else []:
            partner = next((i for i, other in enumerate(left) if self.equal(one, other)), None)
            if partner is None:
                return False
            del left[partner]
        return len(gold) == len(answer)

    def _sets_in_words(self, gold: Form, answer: Form) -> bool:
        if not all(isinstance(f, (Formula, Group)) for f in (gold, answer)):
            return False
        return self._ask("set", latex(met(gold)), latex(met(answer)))

    def _matrices(self, gold: Form, answer: Form) -> bool:
        if isinstance(gold, Matrix) and isinstance(answer, Matrix):
            return len(gold.rows) == len(answer.rows) and all(
                self._in_order(g, a) for g, a in zip(gold.rows, answer.rows, strict=True)
            )
        vector, other = (gold, answer) if isinstance(gold, Matrix) else (answer, gold)
        if not isinstance(vector, Matrix) or not isinstance(other, Group) or other.kind != "()":
            return False
        if min(len(vector.rows), len(vector.rows[0])) != 1:
            return False
        entries = [cell for row in vector.rows for cell in row]
        return self._in_order(entries, other.items) if vector is gold else self._in_order(other.items, entries)


def latex(form: Form) -> str:
    """The LaTeX that math-verify is given for a form."""
    match form:
        case Number(value):
            sign = "-" if value < 0 else ""
            top, bottom = abs(value.numerator), value.denominator
            return f"{sign}{top}" if bottom == 1 else rf"{sign}\frac{{{top}}}{{{bottom}}}"
        case Formula(text) | Odd(text):
            return text
        case Group("set", items):
            return r"\{" + ",".join(map(latex, items)) + r"\}"
        case Group("union"):
            return r"\cup".join(map(latex, as_intervals(form)))
        case Group(kind, items) if kind[0] in "([":
            return kind[0] + ",".join(map(latex, items)) + kind[1]
        case _:
            return ""


def is_long_decimal(number: Number) -> bool:
    if number.places is None or number.places < EXACT_DIGITS:
        return False
    return len(str(abs(number.value * 10**number.places).numerator)) >= EXACT_DIGITS


def shows(exact: Fraction, decimal: Number) -> bool:
    """Whether a number rounds, or is cut, to the digits of a decimal."""
    assert decimal.places is not None
    scaled = abs(exact) * 10**decimal.places
    written = abs(decimal.value) * 10**decimal.places
    same_sign = (exact < 0) == (decimal.value < 0)
    return same_sign and written in (scaled.numerator // scaled.denominator, int(scaled + Fraction(1, 2)))


def _written(decimal: Number) -> str:
    assert decimal.places is not None
    digits = f"{abs(decimal.value * 10**decimal.places).numerator:0{decimal.places + 1}d}"
    sign = "-" if decimal.value < 0 else ""
    return f"{sign}{digits[: -decimal.places]}.{digits[-decimal.places :]}"


def _has_pi(form: Form) -> bool:
    return isinstance(form, Formula) and r"\pi" in form.latex
