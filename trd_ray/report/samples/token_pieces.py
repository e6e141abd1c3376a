"""The text of each token, so that a page can colour the tokens of a text.

    tokenizer, ids  ->  TokenPieces.of  ->  a text a token; joined they are the text of the ids, special tokens included

A token of a byte-level vocabulary may hold a part of a character. The character stands at the token that completes it,
and the tokens before have the empty text. Bytes that no token completes become U+FFFD.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a byte that a SentencePiece vocabulary has no piece for
_WINDOW = 6  # tokens before one on which its text may depend, where nothing is known of the tokenizer


class TokenPieces:
    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self._tokenizer = tokenizer
        added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        self.special_ids = frozenset([*tokenizer.all_special_ids, *added])
        self._added = {i: str(token.content) for i, token in tokenizer.added_tokens_decoder.items()}
        kinds = set(_decoders(tokenizer))
        self._bytes_of: Callable[[int], bytes] | None = None
        if "ByteLevel" in kinds:
            table = _byte_of_letter()
            self._bytes_of = lambda i: b"".join(table.get(c) or c.encode("utf-8", "replace") for c in self._name(i))
        elif "ByteFallback" in kinds:
            self._bytes_of = lambda i: _of_sentence_piece(self._name(i))
        elif kinds and kinds <= {"Sequence", "Replace", "Fuse"}:  # each token has a text of its own
            self._bytes_of = lambda i: str(tokenizer.decode([i])).encode("utf-8", "replace")
        self._known: dict[int, tuple[bytes, str | None]] = {}  # the bytes, and their text where they are whole

    def of(self, ids: Sequence[int]) -> list[str]:
        """A text for each id. An id past the vocabulary's end, which pads the embedding, stands for no text."""
        if self._bytes_of is None:
            return list(self._by_window(ids))
        pending = codecs.getincrementaldecoder("utf-8")("replace")
        texts = []
        waits = False  # whether a character has begun and is not complete
        for i in ids:
            raw, text = self._known.get(i) or self._learn(i)
            if waits or text is None:
                text = pending.decode(raw)
                waits = bool(pending.getstate()[0])
            texts.append(text)
        if waits:
            texts[-1] += pending.decode(b"", final=True)
        return texts

    def runs(self, ids: Sequence[int]) -> list[str]:
        """Text and special tokens in turn, beginning and ending with text: what a person sees of a prompt."""
        found = [""]
        ids = list(ids)
        begin = 0
        for at, i in enumerate(ids):
            if i in self.special_ids:
                found[-1] = "".join(self.of(ids[begin:at]))
                found += ["".join(self.of([i])), ""]
                begin = at + 1
        found[-1] = "".join(self.of(ids[begin:]))
        return found

    def _name(self, i: int) -> str:
        """The vocabulary's own spelling of a token; "" past its end."""
        found: Any = self._tokenizer.convert_ids_to_tokens(i)
        return found or ""

    def _learn(self, i: int) -> tuple[bytes, str | None]:
        assert self._bytes_of
        raw = self._added[i].encode("utf-8", "replace") if i in self._added else self._bytes_of(i)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = None
        self._known[i] = raw, text
        return self._known[i]

    def _by_window(self, ids: Sequence[int]) -> Iterator[str]:
        """What each token adds to the text of those before it, for a tokenizer of another kind. Slow."""
        given = 0  # tokens whose text is given
        ids = list(ids)
        for end in range(1, len(ids) + 1):
            begin = max(0, given - _WINDOW)
            before, text = (str(self._tokenizer.decode(ids[begin:until])) for until in (given, end))
            if end < len(ids) and text.endswith("\ufffd"):
                yield ""
                continue
            given = end
            yield text[len(before) :]


def _of_sentence_piece(name: str) -> bytes:
    if byte := _BYTE.fullmatch(name):
        return bytes([int(byte[1], 16)])
    return name.replace("\u2581", " ").encode("utf-8", "replace")


def _byte_of_letter() -> dict[str, bytes]:
    """The letter of a byte-level vocabulary for each byte: itself where it can be seen, else one from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): bytes([byte]) for byte in seen} | {chr(256 + n): bytes([b]) for n, b in enumerate(hidden)}


def _decoders(tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    """The kinds of decoders that the tokenizer's file names; none where it is not one of the `tokenizers` library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)  # a tokenizer that is Python code has none
    tree = json.loads(backend.to_str())["decoder"] if backend is not None else None
    waiting = [tree] if tree else []
    while waiting:
        one = waiting.pop()
        waiting += one.get("decoders", [])
        yield one["type"]
