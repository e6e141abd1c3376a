r"""Units of measure, as answers write them.

    (r"\text{ square centimeters}",)  ->  Unit("cm", 2)
    (r"\text{ apples}",)              ->  Unit("apple", 1), not known

- A known unit may be left out of an answer.
- Another unit of the same dimension is converted.
- A unit of another dimension makes it another answer.
- What is not known is a noun, which the verifier checks against the problem's words.
"""

import re
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Unit:
    name: str
    power: int = 1

    @property
    def known(self) -> bool:
        return self.name in _KNOWN

    def times(self, other: "Unit") -> Fraction | None:
        """How many of `other` make one of this; None when they do not measure the same."""
        if self == other:
            return Fraction(1)
        here, there = _SCALES.get(self.name), _SCALES.get(other.name)
        if not here or not there or here[0] != there[0] or self.power != other.power:
            return None
        return (here[1] / there[1]) ** self.power


MAX_TOKENS = 12  # that a unit may have

PERCENT, DEGREE = Unit("percent"), Unit("degree")
CURRENCIES = {r"\$": Unit("dollar"), "€": Unit("euro"), "£": Unit("pound"), "¥": Unit("yen"), "₹": Unit("rupee")}

_SCALES = {
    "mm": ("length", Fraction(1, 1000)),
    "cm": ("length", Fraction(1, 100)),
    "m": ("length", Fraction(1)),
    "km": ("length", Fraction(1000)),
    "inch": ("length", Fraction(254, 10000)),
    "foot": ("length", Fraction(3048, 10000)),
    "yard": ("length", Fraction(9144, 10000)),
    "mile": ("length", Fraction(1609344, 1000)),
    "mg": ("mass", Fraction(1, 1000)),
    "g": ("mass", Fraction(1)),
    "kg": ("mass", Fraction(1000)),
    "s": ("time", Fraction(1)),
    "minute": ("time", Fraction(60)),
    "hour": ("time", Fraction(3600)),
    "day": ("time", Fraction(86400)),
    "week": ("time", Fraction(7 * 86400)),
    "ml": ("volume", Fraction(1, 1000)),
    "l": ("volume", Fraction(1)),
    "dollar": ("money", Fraction(1)),
    "cent": ("money", Fraction(1, 100)),
}
_OTHERS = (
    "percent degree radian unit month year pound ounce ton gallon quart pint mile/hour km/h m/s foot/second euro yen "
    "rupee am pm"
)
_KNOWN = frozenset(_SCALES) | frozenset(_OTHERS.split())
_NAMES = {
    "%": "percent", "°": "degree", "deg": "degree", "rad": "radian", "millimeter": "mm", "millimetre": "mm",
    "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km",
    "in": "inch", "ft": "foot", "feet": "foot", "yd": "yard", "mi": "mile", "gram": "g", "kilogram": "kg",
    "milligram": "mg", "lb": "pound", "lbs": "pound", "oz": "ounce", "sec": "s", "second": "s", "min": "minute",
    "hr": "hour", "h": "hour", "yr": "year", "liter": "l", "litre": "l", "milliliter": "ml", "gal": "gallon",
    "mph": "mile/hour", "miles per hour": "mile/hour", "mile per hour": "mile/hour", "miles/hour": "mile/hour",
    "mi/h": "mile/hour", "km/hr": "km/h", "kph": "km/h", "kmh": "km/h", "kilometers per hour": "km/h",
    "kilometres per hour": "km/h", "meters per second": "m/s", "m/sec": "m/s", "feet per second": "foot/second",
    "ft/s": "foot/second", "$": "dollar", "usd": "dollar", "inches": "inch", "a m": "am", "p m": "pm",
    "eur": "euro", "gbp": "pound", "inr": "rupee",
}  # fmt: skip
# Words after a number that make it another number, or no answer: never units.
_NOT_UNITS = (
    "or and not at most least more less than fewer greater about around approximately nearly almost if when unless to "
    "from between minus plus times over hundred thousand million billion trillion dozen half third quarter double "
    "twice squared cubed maybe perhaps possibly probably but is are was then else mod modulo only no never none each "
    "negative positive exactly up down unknown undefined infinity infinite any all some other base bits "
    "for even odd where with"
)
NOT_UNITS = frozenset(_NOT_UNITS.split())
_PART = re.compile(r"\\text\{[^{}]*\}|[a-zA-Z]+|[ ./%°]")


def split(found: tuple[str, ...]) -> tuple[int, int]:
    """Where in an answer's tokens a unit may begin, and where its power begins."""
    end = len(found)
    if found[-2:-1] == ("^",) and found[-1] in ("2", "3"):
        end -= 2
    elif found[-4:-2] == ("^", "{") and found[-2] in ("2", "3"):
        end -= 4
    start = end
    while start and end - start < MAX_TOKENS and _PART.fullmatch(found[start - 1]):
        start -= 1
    return start, end


def unit(found: tuple[str, ...], raised: tuple[str, ...], after: str) -> Unit | None:
    r"""The unit that these tokens spell, raised to a power; None when they spell none.

    Letters outside \text{} must be a known unit and no product of variables: `5x` is no quantity. `after` is the token
    before them.
    """
    wrapped = any(t.startswith(r"\text{") for t in found)
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", "".join(found))
    blank = found[0] == " " or after == " "
    words = " ".join(text.replace(".", " ").split())
    power = next((int(t) for t in raised if t.isdigit()), 1)
    for before, after_it, exponent in (("square ", " squared", 2), ("sq ", "", 2), ("cubic ", " cubed", 3)):
        if words.lower().startswith(before) and words.lower() != before.strip():
            words = words[len(before) :]
            power = exponent
        elif after_it and words.lower().endswith(after_it):
            words = words[: -len(after_it)]
            power = exponent
    name = _name(words)
    if name in _KNOWN:
        if (
            wrapped
            or words in "%°"
            or (len(words) > 1 or blank)
            and (after[-1:].isdigit() or after in (" ", ")", "}", "°", r"\pi"))
        ):
            return Unit(name, power)
        return None
    noun = re.fullmatch("[a-z]+(?: [a-z]+){0,3}", name)
    return Unit(name, power) if wrapped and noun and not NOT_UNITS & set(name.split()) else None


def asked_unit(problem: str) -> Unit | None:
    """`minute` for "... How many minutes ...?", by the last such question."""
    nouns = re.findall(r"\bhow many ([a-z]+)", problem.lower())
    unit = Unit(_name(nouns[-1])) if nouns else None
    return unit if unit and unit.known else None


def _name(words: str) -> str:
    for name in (words.lower(), words.lower().removesuffix("s"), words.lower().removesuffix("es")):
        if name in _NAMES:
            return _NAMES[name]
        if name in _KNOWN:
            return name
    return words.lower().removesuffix("s")
