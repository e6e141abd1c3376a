"""What makes the numbers of an evaluation worth little: a sentence for each kind of fault, with the key to set.

    Score, how it was sampled                        ->  of_score()        ->  {kind: sentence}
    facts of a step's rows (see record.ledger)       ->  common_details()  ->  the end of an alarm's sentence

What is wrong with the rows of a run is said by its alarms (trd_ray.alarms).

A kind is said once in a run, before the numbers. Each sentence is plain text and Markdown at once: what it quotes from
the data is inline code.
"""

import re
from collections.abc import Iterable

from trd_ray.alarms.around import ask_for_answers
from trd_ray.config import Recipe
from trd_ray.record.markdown import code
from trd_ray.score.stats import Score
from trd_ray.verify import UNJUDGED

FEW_PROBLEMS = 10  # fewer give such a wide interval that hardly any training shows
ENOUGH = 8  # if at least so many verdicts all fail, that means something
NUMBER = re.compile(r"\d+(\.\d+)?")
MAX_DETAIL_CHARS = 80


def common_details(facts: list[dict]) -> dict[str, str]:
    """The end of the sentence of an alarm none_passed_*: what all verdicts of a step say, if that is the same."""
    found = {}
    for y in ("y_o", "y_r"):
        judged = [f for f in facts if not f.get("fault") and f[f"{y}_passed"] is not None]
        if judged and not any(f[f"{y}_passed"] for f in judged) and (detail := _common_detail(y, judged)):
            found[f"none_passed_{y}"] = detail
    return found


def _common_detail(y: str, judged: list[dict]) -> str:
    """What they say if they say the same up to numbers, and more than that the answer is not equal."""
    details = {NUMBER.sub("N", f[f"{y}_detail"] or "") for f in judged}
    [detail] = details if len(details) == 1 else [""]
    if detail in ("", "not equal"):
        return ""
    return f", and every verdict of the last step says {code(detail[:MAX_DETAIL_CHARS])}"


def of_score(
    score: Score, recipe: Recipe, max_response_tokens: int | None, where: str = "evaluation.path"
) -> dict[str, str]:
    """The warnings that an evaluation gives.

    `max_response_tokens` is the limit of its answers, None if that is not known. `where` says where its problems come
    from.
    """
    found: dict[str, str] = {}
    n = score.problems * score.samples
    cut = score.truncated.value
    mute = 1 - score.answered.value
    if score.problems < FEW_PROBLEMS:
        found[f"few problems {where}"] = (
            f"{score.problems} held-out problem{'s' * (score.problems != 1)} can show next to nothing: give more in "
            f"{where}{' or raise evaluation.limit' if recipe.evaluation.limit else ''}."
        )
    before = len(found)
    if cut > 0.5:
        found[f"cut {where}"] = (
            f"{_share(round(cut * n), n)} held-out samples ({score.name}) are cut at "
            f"{f'{max_response_tokens} tokens' if max_response_tokens else 'the length limit'}: raise "
            "evaluation.max_response_tokens."
        )
    if mute > 0.5 and mute - cut > (1 - cut) / 2:  # even if no sample that was cut holds an answer
        found[f"no answer {where}"] = (
            f"{_share(round(mute * n), n)} held-out samples ({score.name}) hold no answer that was found: "
            f"{ask_for_answers('prompts.solve', recipe)}."
        )
    if len(found) == before and n >= ENOUGH and not any(any(passed) for passed in score.per_problem.values()):
        found[f"none passed {where}"] = (
            f"None of {n} held-out samples ({score.name}) passed: look at some in evaluation/, and whether the "
            f"answers in {where} are the right ones, or take easier problems."
        )
    return found


def of_unjudged(details: Iterable[str]) -> dict[str, str]:
    """The warning that these verdicts of held-out samples, told by their details, give."""
    unjudged = [detail for detail in details if detail.startswith(UNJUDGED)]
    if not unjudged:
        return {}
    return {
        "unjudged": f"{len(unjudged)} held-out samples could not be judged and count as not passed, such as one "
        f"{code(unjudged[0][:MAX_DETAIL_CHARS])}."
    }


def _share(count: int, of: int) -> str:
    return f"{count} of {of} ({count / of:.0%})"
