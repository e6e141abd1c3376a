r"""One spelling for one formula: an answer as a model or a data set wrote it enters, tokens leave.

    r"\left( \dfrac12,\, 2√3 \right)"  ->  ["(", r"\frac", "{", "1", "}", "{", "2", "}", ",", "2", r"\sqrt", ...]

Only the spelling changes here, never the value: size commands, thin spaces, Unicode signs, braces that TeX does not
need. Every pattern takes linear time, and callers bound the length.
"""

import re

_UNICODE = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
    "÷": r"\div ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ",
    "∞": r"\infty ", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "φ": r"\phi ",
    "ω": r"\omega ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "√": r"\sqrt ",
    "∖": r"\setminus ", "º": "°", "′": "'", "’": "'", "“": "", "”": "", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
    "％": "%", "⟨": "(", "⟩": ")", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}", "⅙": r"\frac{1}{6}", "⅛": r"\frac{1}{8}",
}  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ₀₁₂₃₄₅₆₇₈₉", "0123456789+-n0123456789")
_TEXT = r"\\(?:text|textbf|textit|textrm|textnormal|textsf|emph|mbox|hbox|mathrm|rm|operatorname\*?)(?![a-zA-Z])"
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|exp|gcd|lcm|max"
_THOUSANDS = r"(?:\{,\}|,\\!|\\[,;:!]|\\ |~)"

_RULES: list[tuple[re.Pattern, str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?", ""),
        (r"\\(?:displaystyle|textstyle|limits|nolimits|rm|bf|it|large|Large|LARGE|huge|Huge)(?![a-zA-Z])\s*(?!\{)", ""),
        (rf"(?<=[0-9]){_THOUSANDS}\s*(?=[0-9]{{3}}(?![0-9]))", ""),
        (r"\{([,:])\}", r"\1"),
        (r"\\!", ""),
        (r"\\(?:[,;:> \n]|q?quad(?![a-zA-Z])|enspace(?![a-zA-Z])|thinspace(?![a-zA-Z]))|~", " "),
        (r"\\(?:h|v)space\*?\s*\{[^{}]*\}", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
        (r"\\(?:leq|leqslant|leqq)(?![a-zA-Z])", r"\\le"),
        (r"\\(?:geq|geqslant|geqq)(?![a-zA-Z])", r"\\ge"),
        (r"\\(?:neq|not\s*=)", r"\\ne"),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\ast(?![a-zA-Z])", r"\\cdot "),
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset"),
        (r"\\(max|min|gcd)\s*\\\{([^{}\\]*)\\\}", r"\\\1(\2)"),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\lbrack(?![a-zA-Z])", "["),
        (r"\\rbrack(?![a-zA-Z])", "]"),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"\\(?:[lr]?vert|mid)(?![a-zA-Z])", "|"),
        (r"\^\s*\{?\s*\\circ(?![a-zA-Z])\s*\}?|\\(?:text)?degree(?![a-zA-Z])", "°"),
        (r"\\%", "%"),
        (r"\\(?:mathbb|Bbb|mathbf)\s*\{?\s*R\s*\}?", r"\\R "),
        (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
        (r"\\(?:mathbf|mathit|boldsymbol|bm|mathsf|mathnormal|underline)\s*\{([^{}]*)\}", r"\1"),
        (r"\\(?:mathrm|text|operatorname)\s*\{\s*([ei])\s*\}", r"\1"),
        (rf"\\(?:operatorname\*?|mathrm|text)\s*\{{\s*({_FUNCTIONS})\s*\}}", r"\\\1 "),
        (rf"{_TEXT}\s*\{{", r"\\text{"),
        (r"\\log_(?:\{e\}|e(?![a-zA-Z]))", r"\\ln "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=", r"\\ne "),
        (r"\+/?-", r"\\pm "),
        (r"(?<!\*)\*(?!\*)", r"\\cdot "),
        (r"\\text\{\s*([-+0-9.,/:]+)\s*\}", r"\1"),
        (r"\\text\{\s*([0-9.,/:]+)\s*([^{}0-9.,/:][^{}]*)\}", r"\1 \\text{\2}"),
        (r"\\text\{\s*(?:infinity|Infinity)\s*\}|(?<![\\a-zA-Z])[iI]nfinity(?![a-zA-Z])", r"\\infty "),
        (r"(?<=[0-9\s])(?:percent|pct)(?![a-zA-Z])|\\text\{\s*percent\s*\}", "%"),
        (r"(?<![\\a-zA-Z{])(sqrt|pi|infty|sin|cos|tan|ln|log)(?![a-zA-Z])", r"\\\1 "),
        (r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}", r"\\frac{\1}{\2}"),
    ]
]
ROW_END = "\ue000"  # for TeX's two backslashes, which would be taken for an escaped blank or bracket
_JOINED = re.compile(r"(?:(?<=^)|(?<=[^,])|(?<=\s))\s*(?:,|;|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z]))\s*")
_OR = re.compile(r"(?<![a-zA-Z])or(?![a-zA-Z])")
_WORDS = re.compile(r"\\text\{([^{}]*)\}")
_TOKEN = re.compile(
    r"\\text\{[^{}]*\}|\\(?:begin|end)\{[^{}]*\}(?:\{[^{}]*\})?|\\[a-zA-Z]+|\\.|[a-zA-Z]+|[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
    r"|\s+|.",
    re.DOTALL,
)
OPENING = frozenset({"(", "[", "{", r"\{", r"\lfloor", r"\lceil"})
CLOSING = frozenset({")", "]", "}", r"\}", r"\rfloor", r"\rceil"})


def tokens(answer: str) -> tuple[str, ...]:
    r"""The tokens of an answer in its one spelling. Blanks are single, and stay where they may separate something."""
    text = re.sub(r"√\s*([0-9]+)", r"\\sqrt{\1}", answer).translate(_FOLDED)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: "^{" + m.group().translate(_RAISED) + "}", text)
    text = re.sub(r"[₀-₉]+", lambda m: "_{" + m.group().translate(_RAISED) + "}", text)
    text = _without_delimiters(_without_double_slashes(text))
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _WORDS.sub(_separated, text)
    found = [" " if t.isspace() else t for t in _TOKEN.findall(text.strip())]
    return tuple(_braced(found))


def join(parts) -> str:
    """Tokens as LaTeX, with a blank only where two would run together, or where it separates two numbers."""
    out: list[str] = []
    before = ""
    for token in parts:
        if token == " ":
            continue
        letters = before.startswith("\\") and before[-1:].isalpha() and token[0].isalpha()
        numbers = before[-1:].isdigit() and token[0].isdigit()
        out.append(" " + token if out and (letters or numbers) else token)
        before = token
    return "".join(out)


def unread(parts) -> str:
    """Tokens as LaTeX that is read as the same tokens again, with their blanks."""
    out = "".join(parts)
    if not any(one[0] == "\\" and other[0].isalpha() for one, other in zip(parts, parts[1:], strict=False)):
        return out
    spaced = [f"{one} " if one[0] == "\\" and one[-1].isalpha() else one for one in parts]
    return "".join(spaced)


def depth_after(token: str, depth: int) -> int:
    if token in OPENING or token.startswith(r"\begin{"):
        return depth + 1
    return depth - 1 if token in CLOSING or token.startswith(r"\end{") else depth


_FOLDED = str.maketrans(_UNICODE)


def _without_double_slashes(text: str) -> str:
    r"""`\\\\frac` as `\\frac`, the end of a matrix's row as ROW_END."""
    if r"\begin" in text:
        return re.sub(r"\\\\(?:\s*\[[^\]]*\])?", ROW_END, text)
    return re.sub(r"\\\\(?=[a-zA-Z{}%$])", r"\\", text)


def _without_delimiters(text: str) -> str:
    """The answer without Markdown's asterisks and TeX's math delimiters around it, and the full stop after it."""
    before = None
    while text != before:
        before = text
        text = text.strip()
        for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]"), ("**", "**")):
            if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening + closing):
                text = text[len(opening) : -len(closing)]
        text = re.sub(r"(?<![.\\])[.,;:]$", "", re.sub(r"^(?<!\\)\$+|(?<!\\)\$+$", "", text))
    return re.sub(r"(?<!\\)\$", "", text)


def _separated(match: re.Match) -> str:
    r"""`\text{3 or 4}` lists as `3 or 4` does, `\text{ or }` as "or", `\text{ and }` as a comma does."""
    parts = _JOINED.split(match.group(1))
    joint = r" or " if len(parts) > 1 and _OR.search(match.group(1)) else r" , "
    return joint.join(rf"\text{{{part.strip()}}}" if part.strip() else "" for part in parts)


def _braced(found: list[str]) -> list[str]:
    r"""`\frac12`, `\sqrt2` and `\sqrt(x+1)` with the braces that TeX, or their writer, means."""
    out: list[str] = []
    todo = [t for i, t in enumerate(found) if not (t == " " and found[i - 1 : i] and found[i - 1][0] == "\\")]
    todo.reverse()
    wanted = 0  # arguments that the last \frac or \sqrt still waits for
    stack: list[int] = []  # for every open brace, the arguments that wait after it closes
    while todo:
        token = todo.pop()
        if token == "{":
            stack.append(wanted - 1 if wanted else 0)
            wanted = 0
        elif token == "}":
            wanted = stack.pop() if stack else 0
        elif wanted and token == " ":
            continue
        elif wanted and len(token) > 1 and (token.isdigit() or token.isalpha()):
            todo.append(token[1:])
            todo.extend(reversed(["{", token[0], "}"]))
            continue
        elif wanted and token not in OPENING and token not in CLOSING and token not in ("^", "_", r"\frac", r"\sqrt"):
            todo.extend(reversed(["{", token, "}"]))
            continue
        elif wanted and token == "(" and out and out[-1] == r"\sqrt" and (end := _closing(todo)) is not None:
            todo.insert(end, "}")
            todo.append("(")
            todo.append("{")
            continue
        elif token == "[" and out and out[-1] == r"\sqrt":
            while todo and token != "]":
                out.append(token)
                token = todo.pop()
        elif token in (r"\frac", r"\binom"):
            wanted = 2
        elif token in (r"\sqrt", r"\pmod"):
            wanted = 1
        else:
            wanted = 0
        out.append(token)
    return out


def _closing(todo: list[str]) -> int | None:
    """Where in the reversed rest the bracket that was just opened closes."""
    depth = 1
    for i in range(len(todo) - 1, -1, -1):
        depth = depth_after(todo[i], depth)
        if depth == 0:
            return i
    return None
