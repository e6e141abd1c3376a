"""A word-level tokenizer for the world of code: a token is a piece of a line, with the spaces that belong to it.

    "xs = [x + 3 for x in xs]\\n"  ->  xs = [x + 3 | ␣for x in xs] | \\n  ->  the same text

Pieces join without anything between them. So decode(encode(text)) == text for every text that the task makes, and what
a model writes is executed exactly as it was sampled.
"""

import re

from tokenizers import Regex, decoders, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trd_ray.miniature.code_world import statements
from trd_ray.miniature.code_world.code_task import WORDS
from trd_ray.miniature.tokenizer import word_level

# A statement is cut after its last constant, so that a model chooses what it does with one token.
_SPLIT = re.compile(r"(?<=\d)(?=\D*$)")

TALK = ("Hmm", "Then", "Check", "Wait")
INSTRUCTIONS = ("read", "; ", "2 times ", "3 times ", *statements.STATEMENTS, *WORDS, *statements.OUTPUTS)
PYTHON = (
    *("```", "python", "\n", "    ", "# ", "for _ in range(", "2", "3", "):"),
    *(statements.READ, *statements.OUTPUTS.values()),
    *(piece for statement in statements.EFFECTS for piece in _SPLIT.split(statement) if piece),
)
ALPHABET = tuple(dict.fromkeys((*TALK, *INSTRUCTIONS, *PYTHON)))


def build() -> PreTrainedTokenizerFast:
    longest_first = sorted(ALPHABET, key=len, reverse=True)
    split = pre_tokenizers.Split(Regex("|".join(re.escape(piece) for piece in longest_first)), "isolated")
    return word_level(ALPHABET, split, decoders.Fuse())
