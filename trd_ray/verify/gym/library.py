"""reasoning_gym in a process of its own: what families there are, their items, and the scores of answers.

    family, config, indices           ->  ReasoningGym.items()  ==pipe==>  gym_process  ->  entries that travel as JSON
    family, config, an entry, answer  ->  ReasoningGym.score()  ==pipe==>  gym_process  ->  Scored

The library is an extra of this package: it is looked for when it is first needed. Raises UserError where it is missing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trd_ray.errors import UserError
from trd_ray.verify.child_process import Asking

INSTALL = "run `pip install reasoning-gym` (0.1.25 is what has been tried; its pycosat needs a C compiler)"
ITEMS_TIMEOUT_S = 300.0  # for a chunk of items, of which a busy machine may make few a second
CHUNK = 16


@dataclass(frozen=True)
class Scored:
    score: float | None  # None where there is none
    why: str = ""  # then


class ReasoningGym(Asking):
    """Any thread may call it. Items and scores are asked of one process, which loads the library once."""

    def __init__(self) -> None:
        super().__init__(Path(__file__).with_name("gym_process.py"), "scores", "scored", "reasoning-gym")

    def families(self) -> list[str]:
        with self._lock:
            return self._library().hello["families"]

    def items(self, family: str, config: dict[str, Any], indices: range) -> list[dict[str, Any]]:
        """The entries with these indices, each {"question", "answer", "metadata"}, or {"error"} where there is none.

        Raises UserError where the family cannot be had with this config.
        """
        asked = {"ask": "items", "family": family, "config": config}
        with self._lock:
            self._library()
            found = []
            for first in range(indices.start, indices.stop, CHUNK):
                chunk = list(range(first, min(first + CHUNK, indices.stop)))
                reply = self._ask(asked | {"indices": chunk}, ITEMS_TIMEOUT_S)
                if why := reply.get("error"):
                    raise UserError(f"reasoning_gym does not make {family} with these arguments ({why})")
                if why := reply.get("given_up"):  # to leave them out would be to train on what the clock chooses
                    raise UserError(
                        f"reasoning_gym does not make the items {chunk[0]} to {chunk[-1]} of {family} within "
                        f"{ITEMS_TIMEOUT_S:.0f} s ({why}): take easier arguments, or fewer items"
                    )
                found += reply["items"]
            return found

    def score(
        self, family: str, config: dict[str, Any], entry: dict[str, Any], answer: str, timeout_s: float
    ) -> Scored:
        """What the family's own scorer says. Raises UserError where this machine's library has no such family."""
        asked = {"ask": "score", "family": family, "config": config, "entry": entry, "answer": answer}
        with self._lock:
            self._library()
            reply = self._ask(asked, timeout_s)
        if why := reply.get("given_up"):
            return Scored(None, why)
        if why := reply.get("error"):
            if reply.get("of") == "library":
                raise UserError(f"reasoning_gym cannot score {family} on this machine ({why}): {INSTALL}")
            return Scored(None, f"cannot be scored ({why})")
        return Scored(reply["score"])

    def _library(self) -> Any:
        """The child, with the lock held."""
        try:
            return self._started()
        except RuntimeError as e:
            raise UserError(f"reasoning_gym cannot be loaded on this machine ({e}): {INSTALL}") from None
