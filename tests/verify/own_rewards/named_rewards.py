"""As people write them for verifiers and by hand: any parameters, by their names."""

import json
from dataclasses import dataclass, field

import numpy as np

from trd_ray.verify import Verdict


def exact(completion, answer) -> bool:
    return completion.strip() == answer


async def told(prompt, completion, answer, info, state=None):
    got = completion.strip().split()[-1:] or [""]
    right = got[0] == answer
    feedback = "" if right else f"The last word is {got[0]!r}; the answer has {len(answer)} characters."
    return {"score": float(right) * info["weight"], "feedback": feedback}


def similarity(response, reference):
    ours, theirs = set(response.split()), set(reference.split())
    return np.float32(len(ours & theirs) / max(1, len(ours | theirs)))


def partial(text, problem):
    """Half for the right form, half for the right answer."""
    return 0.5 * ("<answer>" in text) + 0.5 * (problem["answer"] in text)


@dataclass
class JsonKeys:
    """Whether a response is JSON with these keys; the schema is compiled once."""

    keys: list
    calls: int = field(default=0, init=False)

    def __call__(self, text, problem):
        self.calls += 1
        try:
            tree = json.loads(text)
        except ValueError as e:
            return Verdict(False, 0.0, "", f"no JSON: {e}", 0.0, feedback="The response is no JSON.")
        missing = [key for key in self.keys if not isinstance(tree, dict) or key not in tree]
        return Verdict(not missing, 1 - len(missing) / len(self.keys), text, ", ".join(missing), 0.0)
