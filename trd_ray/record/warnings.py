"""What makes the numbers of a run worth little: a sentence for each kind of fault, with the key to set.

    facts of rows (see record.ledger), recipe  ->  of_rows()   ->  {kind: sentence}
    Score, how it was sampled                  ->  of_score()  ->  {kind: sentence}

A kind is said once in a run, before the numbers. Each sentence is plain text and Markdown at once: what it quotes from
the data is inline code.
"""

import re
from collections import Counter
from collections.abc import Iterable

from scipy.stats import binomtest

from trd_ray.config import Recipe, keys_of, pool_of
from trd_ray.record.markdown import code
from trd_ray.score.stats import Score
from trd_ray.verify import UNJUDGED

FEW_PROBLEMS = 10  # fewer give such a wide interval that hardly any training shows
ENOUGH = 8  # if at least so many verdicts all fail, that means something
SIGNIFICANCE = 0.05  # level of the sign test for refinement that breaks more than it repairs
NUMBER = re.compile(r"\d+(\.\d+)?")
MAX_DETAIL_CHARS = 80
POOLS = {"y_o": ("raw", "sampler"), "y_r": ("refined", "refiner")}


def of_rows(facts: list[dict], recipe: Recipe) -> dict[str, str]:
    """The warnings that these rows give; they are the rows of one step or of a whole run."""
    found: dict[str, str] = {}
    sound = [f for f in facts if not f.get("fault")]
    for y in POOLS:
        found |= _of_trajectories(y, [f for f in sound if f[f"{y}_tokens"] is not None], recipe)
    broken = sum(f["y_o_passed"] is True and f["y_r_passed"] is False for f in sound)
    repaired = sum(f["y_o_passed"] is False and f["y_r_passed"] is True for f in sound)
    if broken > repaired and binomtest(broken, broken + repaired, alternative="greater").pvalue < SIGNIFICANCE:
        found["refined below raw"] = (
            f"Refinement breaks more than it repairs: of {len(facts)} rollouts {broken} passed only before it and "
            f"{repaired} only after. Look at prompts.refine and refiner.max_response_tokens, take a stronger "
            "teacher.path, or set train.when_refinement_fails=raw_if_passed."
        )
    dropped = Counter(f["dropped_because"] for f in facts if f["dropped_because"])
    if facts and dropped.total() == len(facts):
        why = ", ".join(f"{reason} ({count})" for reason, count in dropped.most_common())
        near = "refiner.max_edited_share=1, " * any(
            r.refiner.max_edited_share is not None for r in recipe.by_teacher.values()
        )
        found["all dropped"] = (
            f"None of {len(facts)} rows was trained on: {why}. Set train.when_refinement_fails=train, "
            f"train.subset=all, {near}or help the refiner (prompts.refine, refiner.n)."
        )
    return found


def _of_trajectories(y: str, facts: list[dict], recipe: Recipe) -> dict[str, str]:
    name, pool = POOLS[y]
    n = len(facts)
    cut = sum(f[f"{y}_finish"] == "length" for f in facts)
    mute = [f for f in facts if not f[f"{y}_extracted"] and f[f"{y}_passed"] is False]
    ended_mute = sum(f[f"{y}_finish"] != "length" for f in mute)
    found = {}
    if cut > n / 2:
        limits, keys = _limits(y, pool, recipe)
        found[f"cut {y}"] = (
            f"{_share(cut, n)} {name} rollouts are cut at {limits} tokens, and {len(mute)} hold no answer: "
            f"raise {keys}."
        )
    if len(mute) > n / 2 and ended_mute > (n - cut) / 2:
        found[f"no answer {y}"] = (
            f"{_share(len(mute), n)} {name} rollouts hold no answer that was found, {ended_mute} of them though they "
            f"ended by themselves: {_ask_for_answers('prompts.refine' if y == 'y_r' else 'prompts.solve', recipe)}."
        )
    judged = [f for f in facts if f[f"{y}_passed"] is not None]
    if len(judged) >= ENOUGH and not found and not any(f[f"{y}_passed"] for f in judged):
        found[f"none passed {y}"] = (
            f"None of {len(judged)} {name} rollouts passed{_common_detail(y, judged)}: look at some in rows/, and "
            f"whether data.columns names the right answers, or take easier problems."
        )
    return found


def _limits(y: str, pool: str, recipe: Recipe) -> tuple[str, str]:
    """The longest responses of this kind, and the keys that say so: of several teachers each has its own."""
    if y == "y_o" or not recipe.teachers:
        asked = recipe.sampler if y == "y_o" else recipe.refiner
        return str(asked.max_response_tokens), f"{pool}.max_response_tokens"
    each = {keys_of(pool_of(name)): one.refiner.max_response_tokens for name, one in recipe.by_teacher.items()}
    return " or ".join(map(str, dict.fromkeys(each.values()))), " or ".join(f"{k}.max_response_tokens" for k in each)


def _ask_for_answers(prompt: str, recipe: Recipe) -> str:
    if recipe.task == "code":
        return f"let {prompt} ask for a fenced Python program"
    if recipe.verify.has_own:
        return f"let {prompt} ask for what verify.function accepts"
    prose = "" if recipe.verify.answer_in_prose else ", or set verify.answer_in_prose=true"
    return f"let {prompt} ask for \\boxed{{}}{prose}"


def _common_detail(y: str, judged: list[dict]) -> str:
    """What all verdicts say if they say the same up to numbers, and more than that the answer is not equal."""
    details = {NUMBER.sub("N", f[f"{y}_detail"] or "") for f in judged}
    [detail] = details if len(details) == 1 else [""]
    if detail in ("", "not equal"):
        return ""
    return f", and every verdict says {code(detail[:MAX_DETAIL_CHARS])}"


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
            f"{_ask_for_answers('prompts.solve', recipe)}."
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
