"""How long prompts and responses may be: the defaults that a model's context leaves, and the problems that do not fit.

    recipe, contexts, tokens of every prompt  ->  resolve()   ->  the recipe with a number for every length
    that                                      ->  fit()       ->  the same, and the problems that are too long for it
                                                  require_held_out()  ->  UserError where a held-out one is

- A length that the recipe leaves empty is the paper's where the context holds it.
- In a smaller context an attempt and its refinement get equal shares of what the longest prompt leaves, so that no
  attempt is cut.
- A prompt that fills more than half of a context does not shorten the responses of all the others: its problem is too
  long. `data.too_long` says whether such a problem is refused or left out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from trd_ray.config import REFINER, Recipe
from trd_ray.errors import UserError
from trd_ray.models import ModelFacts
from trd_ray.problems.set_aside import SetAside, begins
from trd_ray.views import PromptTokens

# The paper has prompts of 2,048 tokens, references of 4,096 and attempts of 16,384.
RESPONSE_TOKENS = 16384
SOLUTION_TOKENS = 4096
REFINE_PROMPT_TOKENS = {"opd": 18432, "opsd": 22528}
SHOWN_CHARACTERS = 60  # how much of a problem's text names it


@dataclass(frozen=True)
class Contexts:
    """Tokens that prompt and response may take together: on the pools' engines, and in the learner's forward passes."""

    sampler: int
    refiner: int
    student: int
    teacher: int

    @classmethod
    def of(cls, recipe: Recipe, student: ModelFacts, teacher: ModelFacts) -> "Contexts":
        sampler = min(recipe.sampler.max_model_len or student.max_positions, student.max_positions)
        refiner = min(recipe.refiner.max_model_len or teacher.max_positions, teacher.max_positions)
        return cls(sampler, sampler if recipe.shares_engines else refiner, student.max_positions, teacher.max_positions)


def require_positions(pool: str, max_model_len: int | None, model: ModelFacts) -> None:
    """Refuse an engine that is to serve more positions than its model has. Raises UserError."""
    if max_model_len and max_model_len > model.max_positions:
        raise UserError(
            f"{pool}.max_model_len is {max_model_len}, but {model.path} has {model.max_positions} positions: "
            f"set {pool}.max_model_len to {model.max_positions} at most"
        )


def resolve(
    recipe: Recipe, contexts: Contexts, prompts: Sequence[PromptTokens], evaluated: Sequence[int] = ()
) -> Recipe:
    """The recipe with a number for every length that it leaves empty. `evaluated`: tokens of each held-out prompt."""
    r = recipe
    y_o = r.sampler.max_response_tokens
    y_r = r.refiner.max_response_tokens
    limit = r.refiner.max_prompt_tokens
    paper = REFINE_PROMPT_TOKENS[r.teacher.mode]
    is_taught = r.loss.has_teacher and "y_o" in r.trains_on
    context = contexts.refiner if r.refines else contexts.teacher if is_taught else contexts.sampler
    room = _left(context, [p.refine if r.shows_attempts else p.vanilla for p in prompts])
    bare = context - room
    holds_paper = context >= (limit or paper) + (y_r or RESPONSE_TOKENS)
    if y_o is None:
        y_o = min(RESPONSE_TOKENS, _left(contexts.sampler, [p.student for p in prompts]))
        if not r.shows_attempts:
            y_o = min(y_o, room) if is_taught else y_o
            if relays(r):
                y_o = max(1, min(y_o, room - 1))  # and the token that vLLM samples besides
        elif limit is None and not holds_paper:
            y_o = min(y_o, max(room // 2, room - (y_r or room)))
        if _mixes(r) and is_taught:
            # Below the vanilla view, of which no more than the limit is shown.
            y_o = min(y_o, _left(contexts.teacher, [min(limit or p.vanilla, p.vanilla) for p in prompts]))
    if y_r is None:
        asked = bare
        if r.shows_attempts or not r.refines:
            asked = min(limit, bare + y_o) if limit else bare + min(y_o, room // 2)
        y_r = RESPONSE_TOKENS if holds_paper else max(1, min(RESPONSE_TOKENS, context - asked))
        if "y_r" in r.trains_on:
            y_r = min(y_r, _left(contexts.student, [p.student for p in prompts]))
        if r.scores_refinements:
            y_r = max(1, min(y_r, _left(contexts.sampler, [p.student for p in prompts]) - 1))
    if limit is None:
        responses = [y_r] if r.refines else []
        responses += [y_o] if r.train.trajectory == "y_o" else []
        # The limit holds at least a whole attempt: a default cuts nothing off a length that was asked for.
        attempt = y_o if r.shows_attempts or not r.refines else 0
        limit = max(16, min(paper, max(context - max(responses, default=0), bare + attempt)))
    evaluation = r.evaluation.max_response_tokens or min(RESPONSE_TOKENS, _left(contexts.sampler, evaluated))
    return _with_lengths(r, y_o, y_r, limit, evaluation)


def _left(context: int, prompts: Sequence[int]) -> int:
    """What the longest prompt leaves of a context, but not less than half of it."""
    return context - min(max(prompts, default=0), context // 2)


def carried(recipe: Recipe, begun: Recipe) -> Recipe:
    """The recipe, with its empty lengths taken from `begun`, which was resolved before."""
    return _with_lengths(
        recipe,
        recipe.sampler.max_response_tokens or begun.sampler.max_response_tokens,
        recipe.refiner.max_response_tokens or begun.refiner.max_response_tokens,
        recipe.refiner.max_prompt_tokens or begun.refiner.max_prompt_tokens,
        recipe.evaluation.max_response_tokens or begun.evaluation.max_response_tokens,
    )


def _with_lengths(r: Recipe, y_o: int | None, y_r: int | None, limit: int | None, evaluation: int | None) -> Recipe:
    groups: dict[str, Any] = {
        "sampler": r.sampler.model_copy(update={"max_response_tokens": y_o}),
        "refiner": r.refiner.model_copy(update={"max_response_tokens": y_r, "max_prompt_tokens": limit}),
        "evaluation": r.evaluation.model_copy(update={"max_response_tokens": evaluation}),
    }
    return r.model_copy(update=groups)


@dataclass(frozen=True)
class Problem:
    problem_id: str
    text: str
    tokens: PromptTokens

    def __str__(self) -> str:
        return f"{self.problem_id} ({self.text[:SHOWN_CHARACTERS]!r})"


@dataclass
class Fitted:
    """What `fit` found. `recipe` has all lengths."""

    recipe: Recipe
    kept: list[Problem]
    set_aside: list[SetAside] = field(default_factory=list)


def fit(
    recipe: Recipe,
    problems: Sequence[Problem],
    evaluated: Sequence[int],
    contexts: Contexts,
    student: ModelFacts,
    teacher: ModelFacts,
    group: str = REFINER,
) -> Fitted:
    """Resolve the lengths. Problems that are too long for them are left out or refused, as data.too_long says.

    `group` is where the keys of the refiner stand, for sentences.

    Raises UserError with a sentence for each limit, also where no problem would be left.
    """
    kept = list(problems)
    set_aside = []
    while True:
        resolved = resolve(recipe, contexts, [p.tokens for p in kept], evaluated)
        found = [(p, exceeded) for p in kept if (exceeded := _exceeded(resolved, contexts, p.tokens, group))]
        if not found:
            return Fitted(resolved, kept, set_aside)
        if recipe.data.too_long == "refuse" or len(found) == len(kept):
            raise UserError(*_refusals(recipe, resolved, found, len(kept), student, teacher, group))
        for p, exceeded in found:
            why = next(iter(exceeded.values()))
            set_aside.append(SetAside(p.problem_id, begins(p.text), f"too long: {why}"))
        # Without them the defaults may leave the others more room.
        left_out = {p.problem_id for p, _ in found}
        kept = [p for p in kept if p.problem_id not in left_out]


def trained_responses(r: Recipe, solution: int) -> dict[str, int]:
    """The longest response of each trajectory that may train, as far as it has loss; y* has `solution` tokens."""
    limits = {"y_r": r.refiner.response_tokens, "y_o": r.sampler.response_tokens, "reference": solution}
    if relays(r):  # which may keep an attempt whole
        limits["y_r"] = max(limits["y_r"], limits["y_o"])
    return {y: math.ceil(r.loss.first_share * limits[y]) for y in r.trains_on}


def relays(r: Recipe) -> bool:
    """Whether the teacher reads attempts, and goes on from them."""
    return r.refines and r.refiner.begins == "relay"


def _mixes(r: Recipe) -> bool:
    """Whether attempts may train among refinements."""
    return len(r.trains_on) > 1


def taught(r: Recipe, p: PromptTokens) -> dict[str, tuple[int, int]]:
    """Tokens of the longest context that the teacher has in the loss, and of the longest response below it.

    One pair for each trajectory that may train; no context where the loss has no teacher.
    """
    seen = {"vanilla": p.vanilla, "refine": p.refine + r.sampler.response_tokens}
    most = r.refiner.prompt_tokens if r.loss.has_teacher else 0
    return {y: (min(most, seen[r.view_of(y)]), n) for y, n in trained_responses(r, p.solution).items()}


def longest_tokens(r: Recipe, p: PromptTokens) -> int:
    """The longest sequence of the learner's, on the student's or on the teacher's side."""
    return max(max(p.student, seen) + response for seen, response in taught(r, p).values())


def _exceeded(r: Recipe, contexts: Contexts, p: PromptTokens, group: str) -> dict[str, str]:
    """What a problem is too long for -> why."""
    y_o = r.sampler.response_tokens
    y_r = r.refiner.response_tokens
    limit = r.refiner.prompt_tokens
    found = {}
    if p.student + y_o > contexts.sampler:
        found["sampler"] = (
            f"its prompt of {p.student} tokens and sampler.max_response_tokens ({y_o}) make {p.student + y_o}, "
            f"but the context is {contexts.sampler}"
        )
    shows_vanilla = r.loss.has_teacher and "vanilla" in map(r.view_of, r.trains_on)
    shows_vanilla |= r.refines and r.refiner.begins != "attempt"
    views = [p.refine] * r.shows_attempts + [p.vanilla] * shows_vanilla
    if max(views, default=0) - p.reference > limit:
        found["teacher's prompt"] = (
            f"the problem and the instructions alone take {max(views) - p.reference} tokens of it, but "
            f"{group}.max_prompt_tokens is {limit}"
        )
    rewrites = r.refiner.begins == "attempt"
    prompt = min(limit, p.refine + y_o if rewrites else p.vanilla)
    if r.refines and prompt + y_r > contexts.refiner:
        with_attempt = " with an attempt of full length" if rewrites else ""
        found["refiner"] = (
            f"its prompt{with_attempt} ({prompt} tokens) and {group}.max_response_tokens ({y_r}) make {prompt + y_r}, "
            f"but the context is {contexts.refiner}"
        )
    if relays(r) and prompt + y_o + 1 > contexts.refiner:
        found["relay"] = (
            f"its prompt of {prompt} tokens, an attempt of full length ({y_o}) and the token that vLLM samples besides "
            f"make {prompt + y_o + 1}, but the refiner's context is {contexts.refiner}"
        )
    if r.scores_refinements and p.student + y_r + 1 > contexts.sampler:
        found["scoring"] = (
            f"its prompt of {p.student} tokens, a refinement of full length ({y_r}) and the token that vLLM samples "
            f"besides make {p.student + y_r + 1}, but the sampler's context is {contexts.sampler}"
        )
    seen, response = max(taught(r, p).values(), key=sum)
    if r.loss.has_teacher and seen + response > contexts.teacher:
        found["teacher"] = (
            f"the teacher's view ({seen} tokens) and the response ({response}) make {seen + response}, but it has "
            f"{contexts.teacher} positions"
        )
    response = max(trained_responses(r, p.solution).values())
    if p.student + response > contexts.student:
        found["student"] = (
            f"its prompt of {p.student} tokens and the response ({response}) make {p.student + response}, but it has "
            f"{contexts.student} positions"
        )
    return found


def _refusals(
    asked: Recipe,
    resolved: Recipe,
    found: list[tuple[Problem, dict[str, str]]],
    total: int,
    student: ModelFacts,
    teacher: ModelFacts,
    group: str,
) -> Iterator[str]:
    """A sentence for each limit, but only one about the same few problems."""
    engine = "sampler" if asked.shares_engines else group
    limits = {"y_r": f"{group}.max_response_tokens", "y_o": "sampler.max_response_tokens"}
    response = " or ".join(limits.get(y, "the lengths of the references") for y in asked.trains_on)
    default = asked.refiner.max_prompt_tokens is None
    what_is_left = default and resolved.refiner.prompt_tokens < REFINE_PROMPT_TOKENS[asked.teacher.mode]
    longer = {
        pool: f"raise {pool}.max_model_len (the model has {model.max_positions} positions)"
        for pool, model in (("sampler", student), (group, teacher))
    }
    remedies = {
        "sampler": f"lower sampler.max_response_tokens, {longer['sampler']}",
        "teacher's prompt": f"lower {group}.max_response_tokens, {longer[engine]}" if what_is_left else "raise it",
        "refiner": f"lower sampler.max_response_tokens, {group}.max_prompt_tokens or {group}.max_response_tokens, "
        f"{longer[engine]}",
        "relay": f"lower sampler.max_response_tokens, {longer[engine]}",
        "scoring": f"lower {group}.max_response_tokens, {longer['sampler']}, or set {group}.select=shortest_passed",
        "teacher": f"lower {group}.max_prompt_tokens or {response}",
        "student": f"lower {response}",
    }
    told: set[str] = set()
    for limit, remedy in remedies.items():
        over = [p for p, exceeded in found if limit in exceeded]
        ids = {p.problem_id for p in over}
        if not over or (ids <= told and len(ids) < total):
            continue
        told |= ids
        longest = max(over, key=lambda p: p.tokens.refine)
        why = next(exceeded[limit] for p, exceeded in found if p is longest)
        out = ", or set data.too_long=drop to leave out what is too long" if len(ids) < total else ""
        yield f"{_so_many(over, total, limit)}, the longest being {longest}: {why}: {remedy}{out}"


def _so_many(over: Sequence[Any], total: int, limit: str) -> str:
    verb = "problem is" if total == 1 else "problems is" if len(over) == 1 else "problems are"
    return f"{len(over)} of {total} {verb} too long for the {limit}"


def require_held_out(recipe: Recipe, problems: Sequence[tuple[str, str, int]], context: int, positions: int) -> None:
    """Refuse held-out problems, each (id, text, tokens of its prompt), that are too long. Raises UserError.

    None is left out: what remained would be another benchmark. `recipe` has its lengths.
    """
    response = recipe.evaluation.response_tokens
    over = [one for one in problems if one[2] + response > context]
    if not over:
        return
    problem_id, text, tokens = max(over, key=lambda one: one[2])
    out = ", or take what is too long out of the held-out problems" if len(over) < len(problems) else ""
    raise UserError(
        f"{_so_many(over, len(problems), 'sampler')} in the evaluation, the longest being {problem_id} "
        f"({text[:SHOWN_CHARACTERS]!r}): its prompt of {tokens} tokens and evaluation.max_response_tokens ({response}) "
        f"make {tokens + response}, but the context is {context}: lower evaluation.max_response_tokens, raise "
        f"sampler.max_model_len (the model has {positions} positions){out}"
    )
