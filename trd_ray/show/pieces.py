"""Token ids as the pieces of text that they make, and where a tokenizer for that is found.

    recipe, the newest checkpoint  ->  decoder_of()  ->  Decoder, or why there is none
    Decoder, ids                   ->  pieces()      ->  Piece(first token, behind the last, text, is special)

The ids are the truth. A piece is one token wherever a token is text by itself. Tokens that only together make a
character, as half of an emoji, are one piece. Where no character comes of them, it is U+FFFD.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trd_ray import made_here
from trd_ray.errors import UserError

BROKEN = "\ufffd"
MOST_TOKENS = 8  # of a character; what is longer is none
FILE = "tokenizer.json"


@dataclass(frozen=True)
class Decoder:
    decode: Callable[[Sequence[int]], str]
    special: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Piece:
    first: int
    end: int
    text: str
    special: bool = False


def pieces(decoder: Decoder, ids: Sequence[int]) -> list[Piece]:
    """All of the ids, in order. A special token is in « »."""
    return list(_pieces(decoder, [int(i) for i in ids]))


def _pieces(decoder: Decoder, ids: list[int]) -> Iterator[Piece]:
    before = first = 0  # the piece before gives the context in which a tokenizer writes its spaces
    for end, token in enumerate(ids, 1):
        if token in decoder.special:
            if first < end - 1:
                yield Piece(first, end - 1, _told(decoder, ids, before, first, end - 1))
            yield Piece(end - 1, end, f"«{decoder.decode([token])}»", special=True)
            before = first = end
            continue
        text = _told(decoder, ids, before, first, end)
        if text.endswith(BROKEN) and end < len(ids) and end - first < MOST_TOKENS:
            continue
        yield Piece(first, end, text)
        before, first = first, end
    if first < len(ids):
        yield Piece(first, len(ids), _told(decoder, ids, before, first, len(ids)))


def _told(decoder: Decoder, ids: list[int], before: int, first: int, end: int) -> str:
    """What the tokens from `first` to `end` add to the text of those from `before`."""
    context = decoder.decode(ids[before:first]) if before < first else ""
    text = decoder.decode(ids[before:end])
    return text[len(context) :] if text.startswith(context) else decoder.decode(ids[first:end])


def written(decoder: Decoder, ids: Sequence[int]) -> str:
    """The text of these tokens, each special one in « »."""
    return "".join(piece.text for piece in pieces(decoder, ids))


def decoder_of(path: str, revision: str | None, trust_remote_code: bool, near: Path | None = None) -> Decoder:
    """The tokenizer of a model as a recipe names it, or of the model folder `near` where that one is gone.

    Raises UserError where there is none.
    """
    try:
        return _decoder(path, revision, trust_remote_code)
    except UserError:
        if near is None or not (near / FILE).is_file():
            raise
        return _of_file(near / FILE)


def _decoder(path: str, revision: str | None, trust_remote_code: bool) -> Decoder:
    from trd_ray import models

    if made_here.like(path, made_here.MODELS) and not Path(path).exists():
        path = models.resolve(path)
    file = Path(path).expanduser() / FILE
    if not file.is_file() and not Path(path).expanduser().exists():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(path, FILE, revision=revision)
        except HFValidationError as e:
            raise UserError(f"there is no model {path} any more") from e
        file = Path(cached) if isinstance(cached, str) else file
    if file.is_file():  # without transformers, which takes seconds to import
        return _of_file(file)
    return _of_transformers(models.tokenizer(path, revision, trust_remote_code))


def _of_file(file: Path) -> Decoder:
    from tokenizers import Tokenizer

    try:
        read = Tokenizer.from_file(str(file))
    except Exception as e:  # the library raises no class of its own
        raise UserError(f"{file} cannot be read ({' '.join(str(e).split())[:200]})") from e
    special = frozenset(i for i, token in read.get_added_tokens_decoder().items() if token.special)
    return Decoder(lambda ids: read.decode(list(ids), skip_special_tokens=False), special)


def _of_transformers(tokenizer: Any) -> Decoder:
    added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    special = frozenset([*tokenizer.all_special_ids, *added])
    return Decoder(
        lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False), special
    )
