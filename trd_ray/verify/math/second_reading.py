r"""A second way to read an answer, for the spellings that seldom occur; it is tried when the first finds no equality.

    "0,25"                        ->  "0.25"            a decimal comma, where it cannot be a list
    "\text{USD } 5"               ->  "5 \text{ USD}"   a currency in letters before the amount
    "25\,\mathrm{m^2}"            ->  "25 \text{m}^2"   a unit whose power stands in the text
    "\text{twenty-five percent}"  ->  25 percent        whole numbers below 100
    "\frac{1}{2}\begin{pmatrix}"  ->  the matrix that the number multiplies
    "[[1, 2], [3, 4]]"            ->  a matrix
    "(1,2)\quad(3,4)"             ->  a list of tuples

Every pattern takes linear time, and the verifier bounds the length.
"""

import re
from fractions import Fraction
from functools import lru_cache

from trd_ray.verify.math.forms import Form, Formula, Group, Matrix, Number, Relation, read
from trd_ray.verify.math.latex import ROW_END, depth_after, join, tokens, unread
from trd_ray.verify.math.relations import is_label

_TEXT = r"\\(?:text|textrm|mathrm|mbox|rm)\s*"
_MONEY = {"us$": "USD", "usd": "USD", "eur": "EUR", "gbp": "GBP", "inr": "INR", "rs": "INR", "rs.": "INR"}
_CODE = r"US\\?\$|USD|EUR|GBP|INR|Rs\.?"
_RULES = [
    (re.compile(rf"^\s*(?:{_TEXT}\{{\s*({_CODE})\s*\}}|({_CODE}))[\s~]*(?=[0-9])(.*)$", re.DOTALL), "money"),
    (re.compile(r"^\s*([0-9][0-9.,{}]*)\s*([€£¥₹])\s*$"), r"\2\1"),
    (re.compile(rf"{_TEXT}\{{([^{{}}^]*)\^\s*\{{?([23])\}}?\s*\}}"), r"\\text{\1}^\2"),
    (re.compile(r"\bper cent\b"), "percent"),
    (re.compile(r"\\text\s*\{\s*([0-9]+ [0-9]+/[0-9]+|[0-9.]+)\s*(?:percent|pct\.?)\s*\}"), r"\1\\%"),
    (re.compile(r"^\s*\\text\s*\{([^{}\\]*[<>=][^{}\\]*)\}\s*$"), r"\1"),
    (re.compile(r"<>"), r"\\ne "),
    (re.compile(rf"^\s*([0-9]+)\s*(?:{_TEXT}\{{\s*to\s*\}}|\bto\b)\s*([0-9]+)\s*$"), r"\1:\2"),
]
_GAP = r"(?:\s|\\\\|\\q?quad|\\[;, ])+"
_TUPLES = re.compile(rf"(?:\([^(),]*,[^()]*\){_GAP})+\([^(),]*,[^()]*\)")

# Decimal commas
_COMMA = re.compile(
    r"(?<![0-9.,])([0-9]+)(\{,\}|,)([0-9]+)(?!\.?[0-9]|\{?,\}?[0-9])"
    r"(\s*(?:\\?[%°€]|\^\{?\\circ|\\(?:text|mathrm)\s*\{(?!\s*(?:and\b|or\b|[,;])))?)"
)
_GROUPED = re.compile(r"(?<![0-9.,])([1-9][0-9]{0,2}(?:\.[0-9]{3})+),(?=[0-9]+(?![0-9.,]))")
_IN_PROBLEM = re.compile(
    r"(?<![0-9.,])(?:0\{?,\}?[0-9]+|[0-9]+\{?,\}?[0-9]{1,2}\s?(?:%|€|[cmk]?m|[kc]?g|[cm]?l|h|s)\b)"
)

# What a second reading may help; anything else is not looked at
_RARE = re.compile(
    r"[0-9]\{?,\}?[0-9]|<>|[€£¥₹²³]|\\(?:text|mathrm|rm|mbox)|US|EUR|GBP|INR|Rs|per cent|\[\s*\[|matrix|array"
    r"|\)[\s\\][^(]*\(|\bto\b|^\s*[a-zA-Z]+(?:-[a-z]+)?(?:\s|$)"
)

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_ONES = f"{_ONES} seventeen eighteen nineteen".split(" ")
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_IN_WORDS = re.compile(r"^\s*(?:\\text\s*\{\s*)?([a-zA-Z]+(?:-[a-zA-Z]+)?)((?:\s[a-zA-Z. ]+)?)\}?\s*(\\?%)?\s*$")
_NUMBERS = {word: n for n, word in enumerate(_ONES)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_NUMBERS |= {f"{ten}-{one}": _NUMBERS[ten] + _NUMBERS[one] for ten in _TENS for one in _ONES[1:10]}


@lru_cache(maxsize=4096)
def second_reading(answer: str, commas: bool = False) -> Form:
    """Another form of an answer; the first one where there is no other. `commas`: the problem has decimal commas."""
    first = read(answer)
    if not _RARE.search(answer):
        return first
    if isinstance(first, Relation) and first.signs == ("=",) and is_label(first.parts[0]):
        if scaled := _scaled_matrix(first.parts[1]):
            return Relation((first.parts[0], _matrix_latex(scaled)), first.signs)
    elif (words := _IN_WORDS.match(answer)) and (number := _NUMBERS.get(words[1].lower())) is not None:
        unit = words[2].strip()
        return read(rf"{number} \text{{{unit}}}") if unit else read(f"{number}{words[3] or ''}")
    elif isinstance(first, Group):
        if rows := _rows(first):
            return rows
    elif scaled := _scaled_matrix(answer):
        return scaled
    return read(_with_points(_respelled(answer), commas))


def has_decimal_commas(problem: str) -> bool:
    """Whether a problem writes `0,5` or `2,5 m`."""
    return bool(_IN_PROBLEM.search(problem))


def _respelled(answer: str) -> str:
    answer = answer.translate(_POWERS)
    for pattern, written in _RULES:
        if written == "money":
            answer = pattern.sub(
                lambda m: rf"{m[3]} \text{{{_MONEY[(m[1] or m[2]).replace(chr(92), '').lower()]}}}", answer
            )
        else:
            answer = pattern.sub(written, answer)
    return re.sub(_GAP + r"(?=\()", ",", answer.strip()) if _TUPLES.fullmatch(answer.strip()) else answer


_POWERS = {ord("²"): "^2", ord("³"): "^3"}


def _with_points(answer: str, commas: bool) -> str:
    r"""`0,25` as `0.25`.

    A comma between digits also parts the members of a list, `1,5`, and thousands, `1,234`. It is a decimal comma where
    TeX's braces say so, after 0, before two decimals or more, after two digits or more, before a unit, and where the
    problem has some itself. Within brackets it is one only beside semicolons.
    """
    answer = _GROUPED.sub(lambda m: m[1].replace(".", "") + "{,}", answer)
    if re.search(r"[(\[]|\\\{", answer) and ";" not in answer:
        return answer

    def pointed(match: re.Match) -> str:
        whole, comma, decimals, after = match.groups()
        if len(decimals) == 3 and whole[0] != "0" and len(whole) <= 3:
            return match[0]
        sure = commas or comma != "," or whole == "0" or max(len(whole), len(decimals)) > 1 or after.strip()
        return f"{whole}.{decimals}{after}" if sure else match[0]

    return _COMMA.sub(pointed, answer)


def _rows(form: Group) -> Matrix | None:
    rows = [row.items for row in form.items if isinstance(row, Group) and row.kind == "[]"]
    whole = form.kind == "[]" and len(rows) == len(form.items) and len({len(row) for row in rows}) == 1
    return Matrix(tuple(rows)) if whole else None


def _scaled_matrix(answer: str) -> Matrix | None:
    r"""`\frac{1}{2} \begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}`"""
    found = tokens(answer)
    start = next((i for i, token in enumerate(found) if token.startswith(r"\begin{")), 0)
    if start and found[start - 1] in ("(", "["):
        start -= 1
    depth = 0
    for token in found[:start]:
        depth = depth_after(token, depth)
    factor = join(found[:start]).removesuffix(r"\cdot").removesuffix(r"\times")
    matrix = read(unread(found[start:])) if start and depth == 0 else None
    if not factor or not isinstance(matrix, Matrix):
        return None
    by = read(factor)
    if not isinstance(by, (Number, Formula)) or by == Formula("-"):
        by = Number(Fraction(-1)) if factor == "-" else None
    cells = [cell for row in matrix.rows for cell in row]
    if by is None or not all(isinstance(cell, (Number, Formula)) for cell in cells):
        return None
    return Matrix(tuple(tuple(_product(by, cell) for cell in row) for row in matrix.rows))


def _product(by: Form, cell: Form) -> Form:
    if isinstance(by, Number) and isinstance(cell, Number):
        return Number(by.value * cell.value)
    return Formula(rf"({_latex(by)})\cdot({_latex(cell)})")


def _matrix_latex(matrix: Matrix) -> str:
    rows = ROW_END.join("&".join(map(_latex, row)) for row in matrix.rows)
    return rf"\begin{{pmatrix}}{rows}\end{{pmatrix}}"


def _latex(form: Form) -> str:
    if isinstance(form, Number):
        return rf"\frac{{{form.value.numerator}}}{{{form.value.denominator}}}"
    return form.latex if isinstance(form, Formula) else ""
