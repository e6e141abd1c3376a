r"""What kind of thing an answer is: its tokens enter, a tree of small values leaves.

    "x = 3 \text{ or } x = 4"  ->  Group("list", (Relation(("x", "3"), ("=",)), Relation(("x", "4"), ("=",))))
    "12 \text{ cm}^2"          ->  Quantity(Number(12), Unit("cm", 2))
    "(0, \sqrt2]"              ->  Group("(]", (Number(0), Formula("\sqrt{2}")))

Nothing is evaluated, and nothing raises but TooDeep. A `Formula` is left to math-verify. `Words` are equal only to the
same words. `Odd` is what mixes words and formulas, or uses a notation that is not read here: it is equal only to the
same spelling.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from trd_ray.verify.math import units as units
from trd_ray.verify.math.latex import CLOSING, OPENING, ROW_END, depth_after, join, tokens, unread

MAX_DEPTH = 40  # of brackets within brackets; no real answer comes near


class TooDeep(ValueError):
    pass


@dataclass(frozen=True)
class Number:
    value: Fraction
    places: int | None = None  # decimals written after the point; None when it was not written as a decimal


@dataclass(frozen=True)
class Formula:
    latex: str


@dataclass(frozen=True)
class Words:
    words: str


@dataclass(frozen=True)
class Odd:
    latex: str


@dataclass(frozen=True)
class Choice:
    letter: str
    content: "Form | None" = None


@dataclass(frozen=True)
class Quantity:
    value: "Form"
    unit: units.Unit


@dataclass(frozen=True)
class Based:
    digits: str
    base: str


@dataclass(frozen=True)
class Relation:
    """`a < x <= b` has three parts and two signs."""

    parts: tuple[str, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """kind: "list" | "set" | "union" | "both" (ranges without "or") | "ratio" | the brackets of a tuple, as "(]"."""

    kind: str
    items: tuple["Form", ...]


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple["Form", ...], ...]


Form = Number | Formula | Words | Odd | Choice | Quantity | Based | Relation | Group | Matrix

SIGNS = frozenset({"=", "<", ">", r"\le", r"\ge", r"\ne", r"\approx", r"\in"})
_UNREAD_SIGNS = frozenset({r"\sim", r"\equiv", r"\to", r"\Rightarrow", r"\implies", r"\cong", r"\propto", r"\simeq"})
_EITHER = frozenset({"or", r"\text{or}"})
_SEPARATORS = frozenset({",", ";", "and", r"\text{and}"}) | _EITHER
_ANGLE_OF = frozenset({r"\sin", r"\cos", r"\tan", r"\cot", r"\sec", r"\csc"})
_ENDLESS = frozenset({r"\ldots", r"\dots", r"\cdots", "…"})
_SETS = frozenset({r"\cap", r"\setminus", r"\R", r"\mathbb", r"\cup", r"\emptyset", r"\backslash"})

_DECIMAL = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_PLAIN = re.compile(rf"([+-]?)({_DECIMAL})")
_FRACTION = re.compile(rf"([+-]?)([0-9]+)?\\frac\{{([+-]?{_DECIMAL})\}}\{{([+-]?{_DECIMAL})\}}")
_SLASHED = re.compile(rf"([+-]?)({_DECIMAL})/({_DECIMAL})")
_MIXED = re.compile(r"([+-]?)([0-9]+) ([0-9]+)/([0-9]+)")
_REPEATING = re.compile(r"([+-]?)([0-9]*)\.([0-9]*)\\overline\{([0-9]+)\}")
_SCIENTIFIC = re.compile(rf"([+-]?)({_DECIMAL})(?:\\times|\\cdot)10\^(?:\{{([+-]?[0-9]{{1,3}})\}}|([0-9]))")
_BASED = re.compile(r"(\(|\\text\{)?(?P<digits>[0-9A-F]+)(?(1)[)}])_(?:\{([0-9]+)\}|([0-9]+))")
_GROUPED = re.compile(r"(\D{0,8})([1-9][0-9]{0,2}(?:[, ][0-9]{3})+)(?![0-9/])([^,;]*)", re.DOTALL)
_LETTERED = re.compile(r"(?:\(([A-J])\)|([A-J])[.):])\s*(.*)", re.DOTALL)
_SET_BUILDER = re.compile(r"([a-zA-Z])(?:\s*\\in\s*\\R)?\s*[|:]\s*(.*)", re.DOTALL)


@lru_cache(maxsize=4096)
def read(answer: str) -> Form:
    """The form of an answer. Raises TooDeep for brackets within more than MAX_DEPTH brackets."""
    found = tokens(whole_thousands(answer))
    depth = deepest = 0
    for token in found:
        depth = depth_after(token, depth)
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise TooDeep
    return _choice(found) or _listed(found)


def spelling(answer: str) -> str:
    """One text for all answers that differ only in blanks, braces and the like."""
    return join(tokens(whole_thousands(answer)))


def whole_thousands(answer: str) -> str:
    """`1,234` and `1 234 567` as one number, unless the answer is a list or in brackets."""
    match = _GROUPED.fullmatch(answer.strip())
    if not match or "(" in match[1] or "[" in match[1] or "{" in match[1]:
        return answer
    separators = set(re.findall(r"[, ]", match[2]))
    return f"{match[1]}{re.sub('[, ]', '', match[2])}{match[3]}" if len(separators) == 1 else answer


def _choice(found: tuple[str, ...]) -> Form | None:
    r"""`B`, `(B)`, `\text{B.}`, `\textbf{(B)}\ 12`; None for anything else."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r"\1 ", "".join(found)).strip()
    if re.fullmatch("[A-J]", plain):
        return Choice(plain)
    match = _LETTERED.fullmatch(plain)
    if not match:
        return None
    letter = match[1] or match[2]
    content = match[3].strip()
    if not content:
        return Choice(letter)
    rest = tokens(content)
    if rest and (rest[0] in _SEPARATORS or rest[0] in ("/", "&") or _LETTERED.search(content) or _hedged(content)):
        return Odd(join(found))
    return Choice(letter, _listed(rest))


def _hedged(content: str) -> bool:
    return any(word in units.NOT_UNITS for word in re.findall("[a-z]+", content.lower()))


def _listed(found: tuple[str, ...]) -> Form:
    found = _unwrapped(found)
    pieces = _split(found, _SEPARATORS)
    if len(pieces) > 1:
        if not all(pieces) or any(t in _ENDLESS for t in found):
            return Odd(join(found))
        items = tuple(i for piece in pieces for i in _both_signs(piece))
        if all(_is_range(item) for item in items):
            return Group("union" if _EITHER.intersection(found) else "both", items)
        if _EITHER.intersection(found) and _are_alternatives(items):
            return Odd(join(found))
        return Group("list", items)
    items = _both_signs(found)
    return items[0] if len(items) == 1 else Group("list", items)


def _are_alternatives(items: tuple[Form, ...]) -> bool:
    """`x = 3 or y = 5`, of which each is half an answer; `x = 3 or x = 5` is a list."""
    named = [item.parts[0] for item in items if isinstance(item, Relation) and item.signs == ("=",)]
    return len(named) == len(items) == len(set(named)) == len({name.partition("_")[0] for name in named})


def _both_signs(found: tuple[str, ...]) -> tuple[Form, ...]:
    r"""One `\pm` is two answers. Several are left unread: which signs go together is not written."""
    if found.count(r"\pm") != 1 or r"\mp" in found:
        return (_single(found),)
    i = found.index(r"\pm")
    return tuple(_single(found[:i] + (sign,) + found[i + 1 :]) for sign in ("+", "-"))


def _single(found: tuple[str, ...]) -> Form:
    found = _unwrapped(found)
    text = join(found)
    if not found or "?" in found or any(t in _ENDLESS for t in found) or len(_split(found, _UNREAD_SIGNS)) > 1:
        return Odd(text)
    if words := _words(found):
        return words
    relation = _relation(found)
    if relation:
        return relation
    if text in (r"\emptyset", r"\{\}"):
        return Group("set", ())
    if text == r"\R":
        return Group("()", (Formula(r"-\infty"), Formula(r"\infty")))
    pieces = _split(found, frozenset({r"\cup"}))
    if len(pieces) > 1 and all(pieces):
        return Group("union", tuple(_single(piece) for piece in pieces))
    return _quantity(found) or _ratio(found) or _value(found)


def _value(found: tuple[str, ...]) -> Form:
    """The form of a value without a unit. `$5 million` is no number of dollars that is read here."""
    return (_bracketed(found) or _matrix(found) or _number(found) if found else None) or _formula(found)


def _ratio(found: tuple[str, ...]) -> Form | None:
    pieces = _split(found, frozenset({":"})) if ":" in found else []
    return Group("ratio", tuple(map(_value, pieces))) if len(pieces) > 1 and all(pieces) else None


def _relation(found: tuple[str, ...]) -> Form | None:
    pieces = _split(found, SIGNS)
    if len(pieces) == 1:
        return None
    signs = []
    depth = 0
    for token in found:
        depth = depth_after(token, depth)
        if depth == 0 and token in SIGNS:
            signs.append(token)
    if not all(pieces):
        return Odd(join(found))
    return Relation(tuple(map(unread, pieces)), tuple(signs))


def _bracketed(found: tuple[str, ...]) -> Form | None:
    first, last = found[0], found[-1]
    if not (first in OPENING and last in CLOSING and _encloses(found)):
        return None
    inside = found[1:-1]
    if first == r"\{" and last == r"\}":
        if match := _SET_BUILDER.fullmatch("".join(inside).strip()):
            return _listed(tokens(match[2]))
        items = _listed(inside)
        return Group("set", items.items if isinstance(items, Group) and items.kind == "list" else (items,))
    if first not in "([" or last not in ")]":
        return None
    pieces = _split(inside, frozenset({",", ";"}))
    if len(pieces) < 2:
        return None
    if not all(pieces) or any(t in _ENDLESS or t == r"\pm" for t in inside):
        return Odd(join(found))
    return Group(first + last, tuple(_single(piece) for piece in pieces))


def _matrix(found: tuple[str, ...]) -> Form | None:
    if found[0] == "[" and found[-1] == "]" or found[0] == "(" and found[-1] == ")":
        found = _stripped(found[1:-1])
    kind = re.fullmatch(r"\\begin\{([pbB]?matrix|smallmatrix|array)\}(\{.*\})?", found[0]) if found else None
    if not kind or not _encloses(found):
        return None
    rows = [row for row in _split(found[1:-1], frozenset({ROW_END})) if row]
    cells = tuple(tuple(_single(cell) for cell in _split(row, frozenset({"&"}))) for row in rows)
    return Matrix(cells) if cells and len({len(row) for row in cells}) == 1 else Odd(join(found))


def _number(found: tuple[str, ...]) -> Form | None:
    text = join(found)
    if match := _PLAIN.fullmatch(text):
        whole, _, decimals = match[2].partition(".")
        value = Fraction(int(whole + decimals), 10 ** len(decimals))
        return Number(-value if match[1] == "-" else value, len(decimals) if "." in match[2] else None)
    if match := _FRACTION.fullmatch(text):
        sign, whole, top, bottom = match.groups()
        if Fraction(bottom) == 0 or whole and not ((top + bottom).isdigit() and int(top) < int(bottom)):
            return Odd(text)  # 3\frac{5}{2}: a sum or a product?
        value = int(whole or 0) + Fraction(top) / Fraction(bottom)
    elif match := _SLASHED.fullmatch(text):
        sign, top, bottom = match.groups()
        if Fraction(bottom) == 0:
            return Odd(text)
        value = Fraction(top) / Fraction(bottom)
    elif match := _MIXED.fullmatch(text):
        sign, whole, top, bottom = match.groups()
        if int(bottom) == 0:
            return Odd(text)
        value = int(whole) + Fraction(int(top), int(bottom))
    elif match := _REPEATING.fullmatch(text):
        sign, whole, fixed, period = match.groups()
        tail = Fraction(int(period), 10 ** len(period) - 1)
        value = Fraction(int(whole or 0)) + (int(fixed or 0) + tail) / 10 ** len(fixed)
    elif match := _SCIENTIFIC.fullmatch(text):
        sign, digits, braced, bare = match.groups()
        value = Fraction(digits) * Fraction(10) ** int(braced or bare)
    elif re.fullmatch(r"[0-9]+:[0-9]+(?::[0-9]+)*", text):
        return Group("ratio", tuple(Number(Fraction(int(part))) for part in text.split(":")))
    elif match := _BASED.fullmatch(text):
        return Based(match["digits"].lstrip("0"), match[3] or match[4])
    else:
        return None
    return Number(-value if sign == "-" else value)


def _quantity(found: tuple[str, ...]) -> Form | None:
    """A value and the unit after it, or the currency before it."""
    if found[0] in units.CURRENCIES:
        return Quantity(_value(_unwrapped(found[1:])), units.CURRENCIES[found[0]]) if len(found) > 1 else None
    start, power = units.split(found)
    for i in range(start, power):
        value = _stripped(found[:i])
        unit = units.unit(found[i:power], found[power:], after=found[i - 1] if i else "")
        if value and unit and not (unit == units.DEGREE and _ANGLE_OF.intersection(value)):
            return Quantity(_value(_unwrapped(value)), unit)
    return None


def _words(found: tuple[str, ...]) -> Form | None:
    r"""Plain text: nothing but \text{...}, words, blanks and hyphens, with one word that is no product of letters."""
    wrapped = any(t.startswith(r"\text{") for t in found)
    plain = all(t.isalpha() or t in (" ", "-", "'", ".") or t.startswith(r"\text{") for t in found)
    if not plain or not (wrapped or any(t.isalpha() and (len(t) > 2 or t.lower() == "no") for t in found)):
        return None
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", "".join(found))
    if wrapped and not re.fullmatch(r"[^\\{}_^=<>]*", text):
        return Odd(join(found))
    if re.fullmatch(r"\s*[a-zA-Z]\s*", text):
        return Formula(text.strip())
    return Words(_plain_words(text))


_SYNONYMS = {
    "dne": "does not exist",
    "doesn't exist": "does not exist",
    "no solutions": "no solution",
    "empty set": "no solution",
}


def _plain_words(text: str) -> str:
    text = " ".join(text.lower().split()).strip(" .")
    text = re.sub(r"^(?:the|an|a) (?=\S)", "", re.sub(r" ?- ?", "-", text))
    return _SYNONYMS.get(text, text)


def _formula(found: tuple[str, ...]) -> Form:
    text = join(found)
    readable = not any(t.startswith(r"\text") or t in ("\\$", "'", '"', "&", ROW_END, "#", "@") for t in found)
    if not readable or any(token in _SEPARATORS for token in found if token.isalpha()):
        return Odd(text)
    return Formula(text)


def is_set(form: Form) -> bool:
    """Whether math-verify may read it as a set in some notation that is not read here."""
    return isinstance(form, Formula) and any(sign in form.latex for sign in _SETS)


def _is_range(form: Form) -> bool:
    return isinstance(form, Relation) and set(form.signs) <= {"<", ">", r"\le", r"\ge"}


def _split(found: tuple[str, ...], separators: frozenset[str]) -> list[tuple[str, ...]]:
    pieces: list[tuple[str, ...]] = []
    depth = begin = 0
    for i, token in enumerate(found):
        depth = depth_after(token, depth)
        if depth == 0 and token in separators:
            pieces.append(_stripped(found[begin:i]))
            begin = i + 1
    return [*pieces, _stripped(found[begin:])]


def _stripped(found: tuple[str, ...]) -> tuple[str, ...]:
    begin, end = 0, len(found)
    while begin < end and found[begin] == " ":
        begin += 1
    while end > begin and found[end - 1] == " ":
        end -= 1
    return found[begin:end]


def _encloses(found: tuple[str, ...]) -> bool:
    """Whether the first token's bracket is closed by the last token."""
    depth = 0
    for i, token in enumerate(found):
        depth = depth_after(token, depth)
        if depth == 0:
            return i == len(found) - 1
    return False


def _unwrapped(found: tuple[str, ...]) -> tuple[str, ...]:
    """The tokens without braces around the whole, and without parentheses around what is no tuple."""
    while True:
        found = _stripped(found)
        if len(found) < 3 or (found[0], found[-1]) not in (("{", "}"), ("(", ")")) or not _encloses(found):
            return found
        if found[0] == "(" and len(_split(found[1:-1], frozenset({",", ";"}))) > 1:
            return found
        found = found[1:-1]
