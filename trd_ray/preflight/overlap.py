"""Which held-out problems are also trained on: their score could not tell reasoning from memory.

    training texts, held-out texts  ->  overlap()  ->  Overlap: how many are the same, and how many come close

- Two problems are the same if `normalised` makes the same text of them.
- A held-out problem comes close if at least half of its runs of 8 words also stand in training problems (the measure of
  Llama 3, arXiv:2407.21783, section 5.1.4). A problem of fewer words is never close.
- The same problems are looked for in all training text. Close ones are looked for in a sample where there is too much.

Pure.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa

RUN_WORDS = 8
CLOSE_SHARE = 0.5
# How much training text is looked through for close problems: more takes more than a few seconds.
CLOSE_CHARACTERS = 2**25

_LATEX_SPACE = re.compile(r"\\[,;:! ]|\\q?quad(?![a-z])|\\(?:thin|med|thick)space(?![a-z])|~")
_LATEX_DRESS = re.compile(r"\$|\\[()\[\]]|\\(?:left|right|displaystyle)(?![a-z])")
_FRACTION = re.compile(r"\\[dt]frac(?![a-z])")
_LOOSE_SPACE = re.compile(r" (?=[^\w ])|(?<=[^\w ]) ")
_WORD = re.compile(r"\w+")
_AT_ENDS = " .,;:?…\"'“”‘’`"


@dataclass(frozen=True)
class Overlap:
    """What held-out and training problems have in common."""

    held_out: int
    trained_on: int  # held-out problems that are also training problems
    close: int  # others that come close to training problems
    example: str  # a held-out problem that is trained on, "" if there is none
    trained: int  # training problems
    searched: int  # those of them in which close ones were looked for

    def __str__(self) -> str:
        are = "are" if self.trained_on > 1 else "is"
        said = f"{self.trained_on or 'none'} of {self.held_out} held-out problems {are} trained on"
        if self.close:
            shares = "share" if self.close > 1 else "shares"
            said += f", {self.close} more {shares} half of the text or more with training problems"
            if self.searched < self.trained:
                said += f" ({self.searched} of {self.trained} searched)"
        return said


def overlap(trained: Sequence[str], held_out: Sequence[str]) -> Overlap:
    """Compare the texts of the problems to train on with those of the problems to evaluate on."""
    ours, theirs = [[normalised(text) for text in texts] for texts in (trained, held_out)]
    known = set(ours)
    same = [text in known for text in theirs]
    searched = ours[:: max(1, -(-sum(map(len, ours)) // CLOSE_CHARACTERS))]
    close = come_close(searched, [text for text, is_same in zip(theirs, same, strict=True) if not is_same])
    return Overlap(
        held_out=len(held_out),
        trained_on=sum(same),
        close=sum(close),
        example=next((text for text, is_same in zip(held_out, same, strict=True) if is_same), ""),
        trained=len(trained),
        searched=len(searched),
    )


def asked_texts(problems: pa.Table) -> list[str]:
    """What each problem asks, as text to compare: what was said before it belongs to it."""
    columns = (problems[name].to_pylist() for name in ("turns", "problem"))
    return [f"{turns} {problem}" if turns else problem for turns, problem in zip(*columns, strict=True)]


def in_common(ours: Iterable[str], theirs: Iterable[str]) -> list[str]:
    """The texts of theirs that are the same problem as one of ours, each once, sorted."""
    known = {normalised(text) for text in ours}
    return sorted({text for text in theirs if normalised(text) in known})


def normalised(text: str) -> str:
    """A text without what two copies of a problem may differ in:

    - Unicode's compatible forms (NFKC) and case
    - white space between words and next to symbols
    - LaTeX's spaces, its marks of mathematics, and `dfrac` for `frac`
    - punctuation and quotes at both ends; an exclamation mark stays, since 5! is 120
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    text = text.casefold()
    if "\\" in text or "$" in text or "~" in text:
        text = _LATEX_DRESS.sub(" ", _LATEX_SPACE.sub(" ", _FRACTION.sub(r"\\frac", text)))
    return _LOOSE_SPACE.sub("", " ".join(text.split())).strip(_AT_ENDS)


def come_close(trained: Iterable[str], asked: Sequence[str]) -> list[bool]:
    """Whether half of the runs of RUN_WORDS words stand in `trained`, for each normalised text of `asked`."""
    numbers: dict[str, int] = {}
    runs, owner = _runs([[numbers.setdefault(word, len(numbers)) for word in _WORD.findall(text)] for text in asked])
    # A word that no held-out problem has breaks a run as the end of a text does.
    met, _ = _runs([[numbers.get(word, -1) for word in _WORD.findall(text)] for text in trained])
    total = np.bincount(owner, minlength=len(asked))
    found = np.bincount(owner, weights=np.isin(runs, met), minlength=len(asked))
    return ((total > 0) & (found >= CLOSE_SHARE * total)).tolist()


def _runs(texts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(hash, text that it stands in) of every run of RUN_WORDS words. A number below 0 is no word and breaks a run."""
    words = np.fromiter(chain.from_iterable((*text, -1) for text in texts), dtype=np.int64)
    owner = np.repeat(np.arange(len(texts)), [len(text) + 1 for text in texts])
    many = max(0, len(words) - RUN_WORDS + 1)
    hashes = np.zeros(many, dtype=np.uint64)
    whole = np.ones(many, dtype=bool)
    for i in range(RUN_WORDS):
        word = words[i : i + many]
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + word.astype(np.uint64)  # modulo 2^64
        whole &= word >= 0
    return hashes[whole], owner[:many][whole]
