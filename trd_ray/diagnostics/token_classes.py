"""Which class a token is of, by its text and what stands before it.

    token ids, the tokenizer  ->  TokenClasses.of()  ->  a number a token, the place of its class in CLASSES

| class | tokens |
|---|---|
| end | special tokens: the end of the turn, and any other that the tokenizer has |
| whitespace | spaces and newlines alone: the layout |
| number | a digit and no letter: the arithmetic |
| operator | `+ - * / = < > ^ %`, mathematical symbols, and nothing else but space: how values are combined |
| latex | a command such as `\\frac`, and the piece of its name after a token that ends with a backslash |
| onset | a word that begins a doubt (trd_ray.distill.onset): Wait, Hmm, However |
| connective | a word with which a step of reasoning begins or is joined (CONNECTIVES): So, Thus, Since, Let |
| code keyword | inside a fence of ``` a keyword of Python: control flow |
| code name | inside a fence any other word: identifiers |
| word | any other token with a letter: prose, also a part of a word |
| punctuation | what is left of the visible: brackets, quotes, stops, $, the fences themselves |
| other | half a character of UTF-8, an emoji, an empty token |

A class is decided from above, with one exception: a fence before a token makes words of it code. Where a token holds
several things, letters count before digits, digits before operators, and operators before punctuation.

Pure: the tokenizer is only asked for texts.
"""

import keyword
import re
import unicodedata
from typing import Any

import numpy as np

CLASSES = ("end", "whitespace", "number", "operator", "latex", "onset", "connective", "code keyword", "code name")
CLASSES += ("word", "punctuation", "other")
_CODE = {name: number for number, name in enumerate(CLASSES)}

CONNECTIVES = {
    "so", "then", "thus", "therefore", "hence", "since", "because", "but", "and", "or", "if", "else", "when", "while",
    "where", "as", "also", "now", "first", "second", "third", "next", "finally", "last", "let", "suppose", "assume",
    "consider", "given", "note", "recall", "check", "similarly", "otherwise", "instead", "thereby", "consequently",
    "which", "that", "for",
}  # fmt: skip
_OPERATORS = frozenset("+-*/=<>^%&|~@÷×·−∕√∞∂∇")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_AROUND = "_*#\"'`.,:;!?()[]{}$ "  # what may stand around a word without making another of it
_FENCE = "```"
KEYWORDS = frozenset(keyword.kwlist)


class TokenClasses:
    def __init__(self, tokenizer: Any):
        from trd_ray.distill.onset import ONSETS

        self.tokenizer = tokenizer
        self.special = {int(i) for i in tokenizer.all_special_ids}
        self.special |= {int(i) for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
        self.onsets = {word.lower() for word in ONSETS}
        self._known: dict[int, tuple[int, int, int, bool]] = {}  # id -> class, class in a fence, fences, backslash

    def of(self, ids_N: np.ndarray, first_N: np.ndarray) -> np.ndarray:
        """`first_N` marks the first token of each response: no fence or backslash reaches beyond it."""
        if not len(ids_N):
            return np.zeros(0, dtype=np.int64)
        different, where_N = np.unique(ids_N, return_inverse=True)
        if new := [int(i) for i in different if int(i) not in self._known]:
            self._learn(new)
        plain, fenced, fences, backslash = np.array([self._known[int(i)] for i in different]).T
        before_N = np.cumsum(fences[where_N]) - fences[where_N]
        response_N = np.cumsum(first_N) - 1
        inside_N = (before_N - before_N[np.flatnonzero(first_N)][response_N]) % 2 == 1
        class_N = np.where(inside_N, fenced[where_N], plain[where_N])
        command_N = np.zeros(len(ids_N), dtype=bool)
        command_N[1:] = (backslash[where_N][:-1] == 1) & ~first_N[1:]
        lettered_N = np.isin(plain[where_N], [_CODE[name] for name in ("word", "connective", "onset")])
        class_N[command_N & lettered_N & ~inside_N] = _CODE["latex"]
        return class_N

    def _learn(self, ids: list[int]) -> None:
        for i, text in zip(ids, self.tokenizer.batch_decode([[i] for i in ids]), strict=True):
            special = i in self.special
            plain = "end" if special else self.class_of(text)
            fenced = "end" if special else self.class_of(text, fenced=True)
            self._known[i] = (_CODE[plain], _CODE[fenced], text.count(_FENCE), text.endswith("\\") and not special)

    def class_of(self, text: str, fenced: bool = False) -> str:
        """The class of a token's text that is no special token."""
        bare = text.strip()
        if not bare:
            return "whitespace" if text else "other"
        if "\ufffd" in bare:
            return "other"
        if not fenced and bare.startswith("\\") and (len(bare) == 1 or bare[1].isalpha()):
            return "latex"
        if word := next((one[0] for one in _WORD.finditer(bare) if one[0][0].isalpha()), None):
            return self._class_of_word(word, bare.strip(_AROUND) == word, fenced)
        if any(c.isnumeric() for c in bare):
            return "number"
        if any(c in _OPERATORS or unicodedata.category(c) == "Sm" for c in bare):
            return "operator"
        return "punctuation" if all(unicodedata.category(c)[0] in "PS" and not _emoji(c) for c in bare) else "other"

    def _class_of_word(self, word: str, alone: bool, fenced: bool) -> str:
        if fenced:
            return "code keyword" if word in KEYWORDS else "code name"
        if alone and word.lower() in self.onsets:
            return "onset"
        return "connective" if alone and word.lower() in CONNECTIVES else "word"


def _emoji(c: str) -> bool:
    return unicodedata.category(c) == "So" and ord(c) > 0x2600
