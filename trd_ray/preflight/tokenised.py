"""A recipe's verifier for texts that no engine wrote: a function that asks for token ids gets those of the student.

    recipe.verify, recipe.student  ->  verifier_with_ids()  ->  the verifier; with the ids of each text, if they may be
                                                                asked for

In a run the ids are those that an engine sampled. Here the student's tokenizer makes them, with its end token.
"""

from typing import Any

from trd_ray import models
from trd_ray.config import ModelConfig, VerifyConfig
from trd_ray.layouts import PlainTokens
from trd_ray.verify import IDS, Verdict, Verifier, verifier


def verifier_with_ids(verify: VerifyConfig, student: ModelConfig) -> Verifier:
    """Raises UserError where the student's tokenizer is needed and cannot be had."""
    made = verifier(verify)
    return Tokenised(made, student) if verify.may_take_ids else made


class Tokenised:
    def __init__(self, verify: Verifier, student: ModelConfig):
        path = models.resolve(student.path, student.revision)
        tokenizer = models.tokenizer(path, student.revision, student.trust_remote_code)
        self._tokens = PlainTokens(tokenizer)
        self._end = [i for i in [tokenizer.eos_token_id] if isinstance(i, int)]
        self._verify = verify
        self.at_once = getattr(verify, "at_once", 1)

    def __call__(self, text: str | None, problem: dict[str, Any]) -> Verdict:
        ids = self._tokens.of_text((text or "").encode("utf-8", "replace").decode()) + self._end
        return self._verify(text, problem | {IDS: {text: ids}})

    def close(self) -> None:
        self._verify.close()
