"""A refinement that goes on from the attempt: y_r is y_o up to where the teacher would go another way, and a new tail.

    y_o's log-probabilities under the teacher  ->  kept_tokens()  ->  how many tokens of y_o begin y_r
    those tokens, a tail from the refiner      ->  continued()    ->  y_r as a generation

The teacher reads y_o in its vanilla view, in one forward pass, and generates the tail alone in that view.

What is kept:

- All before the first token whose log-probability is below refiner.relay_logprob: there y_o breaks with the teacher.
- An attempt that passes and never breaks is y_r as it is: nothing is generated.
- One that fails and never breaks is cut before the token that the teacher finds least likely.
- refiner.max_response_tokens bounds y_r, so what is kept leaves it a token at least.

Pure.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trd_ray.engine.actor import Generation

Ids = Sequence[int] | np.ndarray


def kept_tokens(logprobs: np.ndarray, least: float, passed: bool, most: int) -> int:
    """`logprobs` are those of the attempt's tokens, `most` is how many may be kept of one that is not kept whole."""
    breaks = np.flatnonzero(np.asarray(logprobs) < least)
    if not len(breaks) and passed:
        return len(logprobs)
    cut = int(breaks[0]) if len(breaks) else int(np.argmin(logprobs)) if len(logprobs) else 0
    return min(cut, most)


def continued(kept: Ids, logprobs: np.ndarray, tail: Generation, text: str) -> Generation:
    """y_r from its two parts; `logprobs` are the teacher's of the kept tokens, `text` is that of the whole."""
    ids = np.concatenate([np.asarray(kept, np.int32), np.asarray(tail.ids, np.int32)])
    both = np.concatenate([np.asarray(logprobs, np.float32), np.asarray(tail.logprobs, np.float32)])
    return replace(tail, ids=ids, logprobs=both, text=text)


def unchanged(attempt: Ids, logprobs: np.ndarray, finish: str, text: str, read: Generation) -> Generation:
    """The attempt as its own refinement; `read` is the answer that told the `logprobs`."""
    ids = np.asarray(attempt, np.int32)
    none = np.empty(0, np.float32)
    return replace(read, ids=ids, logprobs=logprobs, finish=finish, text=text, prompt_logprobs=none)
