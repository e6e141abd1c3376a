"""The end of a sentence about a word that nobody knows: what may have been meant."""

import difflib


def did_you_mean(word: str, known: list[str]) -> str:
    """The end of a sentence about an unknown word: what is close to it, or all that is known."""
    return close_to(word, known) or f" (known here: {', '.join(known)})"


def close_to(word: str, known: list[str]) -> str:
    """The end of a sentence that already says all that is known: what is close to the word, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
