r"""The boxes of a response that says its answer in several.

    "$x = \boxed{3}$ and $y = \boxed{4}$"            ->  Boxes(("x=3", "y=4"), joined=True)
    "The first is \boxed{2}. The second, \boxed{3}"  ->  Boxes(("2", "3"), joined=False)
    "So a = \boxed{3}. Hence a + b = \boxed{7}"      ->  None: the last box alone is the answer

- Joined: nothing but commas, "and", "or" and names stands between the boxes. They are one answer together, and none of
  them is the answer alone.
- Not joined: a few words stand between them, none of which concludes or takes back. They are one answer where the
  expected one has several parts.

Only the end of a text is read, in one pass.
"""

import re
from dataclasses import dataclass

from trd_ray.verify.math.answer import DOUBT, RETRACTION, last_boxed, opened_boxes
from trd_ray.verify.math.forms import whole_thousands

READ_CHARS = 20_000  # the end of a text, where its last boxes are looked for
MAX_BOXES = 12  # of one answer
MAX_GAP_CHARS = 120  # between two of them

_NAME = r"(?:\\?[a-zA-Z]+'*(?:_(?:\{\w{1,20}\}|\w))?(?:\(\w{1,9}\))?|\\text\{[\w ]{1,40}\})"
_NAMED = re.compile(rf"(?:^|(?<=[\s$,;(\[{{:&]))({_NAME})\s*(?:=|&=)\s*$")
_BLANK = re.compile(r"\\(?:q?quad|[,;:! ()\[\]]|\\)|[$&*~\s]+")
_WORDS = re.compile(r"\\(?:text|mbox|textrm|mathrm)\{([^{}]{0,40})\}")
_JOINED = re.compile(r"[\s,;.]*(?:[,;]|\band\b|\bor\b)[\s,;]*(?:and|or)?\s*")
_CONCLUDES = re.compile(
    r"\b(?:so|thus|hence|therefore|then|that is|i\.e|adding|sum\w*|total\w*|product|give\w*|get\w*|yield\w*|impl\w+"
    r"|mean\w*|substitut\w*|plug\w*|using|final\w*|answer\w*|because|since|which|simplif\w*|equal\w*|becomes?|with|where"
    r"|if|for|when)\b"
    r"|\\(?:implies|Rightarrow|to|iff)(?![a-zA-Z])|=>|\n\s*\n",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Boxes:
    answers: tuple[str, ...]
    joined: bool
    either: bool = False  # an "or" stands between them

    @property
    def together(self) -> str:
        """All of them as one answer, as it would stand in one box."""
        return (" or " if self.either else " ; ").join(map(whole_thousands, self.answers))


def boxes(text: str) -> Boxes | None:
    """The boxes that end a text as one answer; None where its last box stands alone."""
    if text.count("boxed") < 2:
        return None
    text = text[-READ_CHARS:]
    found = opened_boxes(text)
    if len(found) < 2:
        return None
    end = len(found) - 1
    run = _run(text, found, end, _joins)
    if len(run) > 1:
        return _boxes(text, run, joined=True)
    run = _run(text, found, end, _goes_on)
    if len(run) > 1 and not DOUBT.search(re.split(r"[.\n]", text[max(0, run[0][0] - 100) : run[0][0]])[-1]):
        return _boxes(text, run, joined=False)
    return None


def _run(text: str, found: list[tuple[int, int, int]], end: int, belong) -> list[tuple[int, int, int]]:
    """The last boxes of which each is followed by what lets the next one belong to it; none if they are too many."""
    begin = end
    while begin and belong(text[found[begin - 1][2] + 1 : found[begin][0]]):
        begin -= 1
        if end - begin >= MAX_BOXES:
            return []
    return found[begin : end + 1]


def _joins(gap: str) -> bool:
    return len(gap) <= MAX_GAP_CHARS and bool(_JOINED.fullmatch(_NAMED.sub("", _plain(gap))))


def _goes_on(gap: str) -> bool:
    words = _plain(gap).strip()
    if not words:
        return True
    if len(gap) > MAX_GAP_CHARS or words[0] in "=-/" and not gap.lstrip(" $.,;").startswith("\n"):
        return False  # \boxed{5} - \boxed{3}; on a new line the sign begins an item
    if DOUBT.search(gap) or RETRACTION.search(gap) or _CONCLUDES.search(gap):
        return False
    return not re.search(r"[0-9+<>]|\\frac|\\sqrt", words)  # a calculation that leads to the next box


def _plain(gap: str) -> str:
    return _BLANK.sub(" ", _WORDS.sub(r" \1 ", gap))


def _boxes(text: str, run: list[tuple[int, int, int]], joined: bool) -> Boxes | None:
    answers, names = [], []
    for opened, begin, end in run:
        content = text[begin:end]
        inner = last_boxed(content)
        answers.append((content if inner is None else inner).strip())
        name = _NAMED.search(_plain(text[max(0, opened - 60) : opened]).rstrip() + " ")
        names.append(name[1] if name else "")
    if not all(a.strip("$ ") for a in answers):
        return None
    if all(names) and not any("=" in a for a in answers):
        answers = [f"{name}={answer}" for name, answer in zip(names, answers, strict=True)]
    if len(set(answers)) == 1:
        return None
    gaps = [_plain(text[one[2] + 1 : other[0]]) for one, other in zip(run, run[1:], strict=False)]
    return Boxes(tuple(answers), joined, any(re.search(r"\bor\b", gap) for gap in gaps))
