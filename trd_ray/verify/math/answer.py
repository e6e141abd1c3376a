r"""Where in a response is its answer?

    text  ->  last_boxed    the last \boxed{...}
          |-> stated        the last sentence that says what the answer is, for models that do not box
          `-> last_formula  the last formula, for models that do not say so either

All take one pass, however long the text is. `stated` and `last_formula` look at its end alone.
"""

import re

TAIL_CHARS = 2000  # the end of a response, where an answer in prose is looked for

_BRACES = re.compile(r"\\{1,3}boxed\s*\{|\\.|[{}]", re.DOTALL)  # `\\.` skips \{ and \}, which balance nothing in TeX

_BOLD = r"(?:\*\*|__)?"
_SENTENCE_END = re.compile(r"(?<!\bRs)(?<!\bsq)[.!](?=[\s*]|$)|\?|\n")
_STATEMENTS = [
    re.compile(r"^####\s*(?P<rest>)", re.MULTILINE),  # GSM8K
    # "The answer is 4", "**Final answer:** 4", "### Answer" above it, "The correct choice is (B)"
    re.compile(
        rf"\b(?:answers?|(?:correct|right|best)\s+(?:choice|option)){_BOLD}(?:\s(?:to|of|for)\s[^.\n]{{1,60}}?)?\s*"
        rf"(?:\b(?:is|are)\b(?:\s+(?:therefore|thus|then|simply))?\s*:?|:|\n)\s*{_BOLD}\s*:?\s*(?P<rest>)",
        re.IGNORECASE,
    ),
]
_NAMED_AFTER = re.compile(
    r"(?P<answer>[^.\n]{1,200}?)\s+is\s+(?:the|our)\s+(?:final\s+|correct\s+)*answer\b", re.IGNORECASE
)
_DISPLAYED_LAST = re.compile(r"\$\$([^$]{1,400})\$\$\s*$|\\\[((?:(?!\\\[).){1,400}?)\\\]\s*$", re.DOTALL)
_FORMULA = re.compile(
    r"\$\$([^$]{1,400})\$\$|\\\[(.{1,400}?)\\\]|(?<![\\$])\$([^$\n]{1,400})\$|\\\((.{1,400}?)\\\)", re.DOTALL
)
_BETWEEN = re.compile(r"[\s,]*(?:\bor\b|\band\b)?[\s,]*", re.IGNORECASE)
_ASIDE = re.compile(r"\b(?:where|for|with|since|because|as|if|when|any|all|every|some|integers?)\W*$", re.IGNORECASE)
_LAST_LINE = re.compile(r"\$([^$]{1,400})\$|(\([A-J]\))")
DOUBT = re.compile(
    r"\b(?:not|never|no|if|unless|whether|suppose|assum\w*|wrong|maybe|perhaps|might|could|cannot|guess\w*|would|either)\b|n't\b|\?",
    re.IGNORECASE,
)
RETRACTION = re.compile(
    r"\b(?:wait|actually|however|but|wrong|mistake\w*|incorrect|hmm+|no|correction|oops|error|instead|sorry|not)\b|n't\b|\?",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"^(?:so|thus|hence|therefore|and|then|finally|we (?:get|have|find|conclude)|that|this (?:is|gives)|it is|[,:\s])+"
    r"\b\s*",
    re.IGNORECASE,
)


def last_boxed(text: str) -> str | None:
    r"""The content of the `\boxed{...}` that opens last and is closed, in one pass over the text; None without one."""
    found = None
    opened_at = -1
    stack = []
    first = text.find("boxed")
    if first < 0:
        return None
    for token in _BRACES.finditer(text, max(0, first - 3)):
        word = token.group()
        if "boxed" in word:
            stack.append(token.end())
        elif word == "{":
            stack.append(-1)
        elif word == "}" and stack:
            start = stack.pop()
            if start > opened_at:
                found = text[start : token.start()]
                opened_at = start
    return found


def opened_boxes(text: str) -> list[tuple[int, int, int]]:
    r"""Where each `\boxed` that is closed begins, and where its content begins and ends; not those within another."""
    found: list[tuple[int, int, int]] = []
    stack: list[tuple[int, int]] = []
    for token in _BRACES.finditer(text):
        word = token.group()
        if "boxed" in word:
            stack.append((token.start(), token.end()))
        elif word == "{":
            stack.append((-1, -1))
        elif word == "}" and stack:
            opened, begin = stack.pop()
            if opened >= 0:
                while found and found[-1][0] > opened:
                    found.pop()
                found.append((opened, begin, token.start()))
    return found


def stated(text: str) -> str | None:
    """The answer that the end of a text states as such, None when it states none.

    None of these is an answer:

    - a number in passing;
    - a number that its own sentence doubts or denies;
    - a number that what follows takes back.
    """
    tail = _tail(text)
    found: list[tuple[int, int, str]] = []  # where the statement begins, where it ends, what it states
    for pattern in _STATEMENTS:
        for match in pattern.finditer(tail):
            end = _SENTENCE_END.search(tail, match.end())
            stop = end.start() if end else len(tail)
            if not (end and end.group() == "?"):
                found.append((match.start(), stop, tail[match.end() : stop]))
    for match in _NAMED_AFTER.finditer(tail):
        found.append((match.start(), match.end(), _LEAD.sub("", match["answer"])))
    if found:
        start, stop, answer = max(found, key=lambda f: f[1])
        if (
            re.match(r"\W*not\b", answer)
            or DOUBT.search(_sentence_before(tail, start))
            or RETRACTION.search(tail, stop)
        ):
            return None
    else:
        line = _last_line(tail)
        if line is None:
            return None
        answer = line
    return _without_dollars(answer).strip().strip("*_").strip() or None


def last_formula(text: str) -> str | None:
    """The last formula of a text. None where its sentence doubts it or what follows takes it back.

    None also where it is one of several that are joined: `$4$ or $5$` is a guess at both.
    """
    tail = _tail(text)
    found = [m for m in _FORMULA.finditer(tail) if not _ASIDE.search(tail[max(0, m.start() - 40) : m.start()])]
    if not found:
        return None
    last = found[-1]
    if len(found) > 1 and _BETWEEN.fullmatch(tail, found[-2].end(), last.start()):
        return None
    if DOUBT.search(_sentence_before(tail, last.start())) or RETRACTION.search(tail, last.end()):
        return None
    return next(g for g in last.groups() if g is not None).strip() or None


def _without_dollars(answer: str) -> str:
    r"""The answer without TeX's `$...$`. A single sign before a number is a currency."""
    if len(re.findall(r"(?<!\\)\$", answer)) == 1 and (match := re.match(r"\W{0,4}?\$(?=[0-9])", answer)):
        return answer[: match.end() - 1] + "\\$" + answer[match.end() :]
    return re.sub(r"(?<!\\)\$", "", answer)


def _tail(text: str) -> str:
    return text.rstrip()[-TAIL_CHARS:].rpartition("</think>")[2].strip()


def _last_line(tail: str) -> str | None:
    """A displayed formula at the end, or a formula or a letter in parentheses that is all of the last line."""
    ending = tail.rstrip(" .*")
    match = _DISPLAYED_LAST.search(ending) or _LAST_LINE.fullmatch(ending[ending.rfind("\n") + 1 :].strip(" *"))
    return next(g for g in match.groups() if g) if match else None


def _sentence_before(tail: str, start: int) -> str:
    sentence = tail[max(0, start - 300) : start]
    ends = [m.end() for m in _SENTENCE_END.finditer(sentence)]
    return sentence[ends[-1] :] if ends else sentence
