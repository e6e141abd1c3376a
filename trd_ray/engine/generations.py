"""What an engine is asked, and what it answers; plain data that any process can read.

Request -> Engine -> [Generation, ...], on the way in parts (`in_parts`, `whole`)
"""

from dataclasses import dataclass, field, replace

import numpy as np


@dataclass
class Request:
    """One prompt to continue. `prompt_logprobs` scores the prompt itself and samples a single token."""

    prompt_ids: list[int] | np.ndarray  # int32
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 16
    n: int = 1
    prompt_logprobs: bool = False
    adapter: bool = True  # False: the base model answers, whatever adapters the engine has been sent
    prefix: int | None = None  # requests of one number begin alike, and prefer the engine that has met it


@dataclass
class Generation:
    """What an engine made of a request; `logprobs` are of the sampled tokens under the model itself (temperature 1)."""

    ids: np.ndarray  # int32; the arrays may lie in Ray's object store, which nobody may write to
    text: str
    finish: str
    logprobs: np.ndarray  # float32
    version: int
    engine: str
    start_s: float
    seconds: float
    prompt_logprobs: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))  # from the second token on
    refused: str = ""  # why the engine takes no such request; then there is no token

    @classmethod
    def refusal(cls, why: str, version: int, engine: str, start_s: float) -> "Generation":
        """The answer to a request that no engine of its kind takes, such as one that is too long for the model."""
        none = np.empty(0, np.float32)
        return cls(none.astype(np.int32), "", "refused", none, version, engine, start_s, 0.0, refused=why)


Arrays = list[list[np.ndarray]]
Parts = tuple[Arrays, Arrays, list[list[Generation]]]
_NONE = np.empty(0)


def in_parts(answers: list[list[Generation]]) -> Parts:
    """(ids, log-probs, the rest) of the generations of each request."""
    ids = [[g.ids for g in generations] for generations in answers]
    logprobs = [[g.logprobs for g in generations] for generations in answers]
    return ids, logprobs, [[replace(g, ids=_NONE, logprobs=_NONE) for g in generations] for generations in answers]


def whole(ids: Arrays, logprobs: Arrays, rest: list[list[Generation]]) -> list[list[Generation]]:
    """What `in_parts` took apart."""
    return [
        [replace(g, ids=i, logprobs=p) for g, i, p in zip(*of_request, strict=True)]
        for of_request in zip(rest, ids, logprobs, strict=True)
    ]
