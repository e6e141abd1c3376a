"""The verifier of a recipe, by what it names: one function, or several that are weighted or chosen by a column.

verify.function: NAME  ->  MAKERS[NAME]     one that is built in
verify.function: FILE.py:NAME, MODULE:NAME  ->  own/own_verifier.py
neither                ->  code where a problem has tests, reasoning_gym for an item of it, else math

data.sources[].verify  ->  what a row's source names judges alone; a row without a source as if neither were set

verify.functions       ->  each of them judges: their weighted mean is the score, Verdict.parts has what each gave
with verify.by         ->  the one that the row's column names judges alone

The judge has to be given where it has engines: stream/judging.py does so. Calls of it wait for those, so a task makes
many at once, and the built-in verifiers beside it are called one at a time, as they are without it.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from trd_ray.config import JUDGE, REVIEW, NamedFunction, VerifyConfig, did_you_mean, is_own
from trd_ray.errors import BadRow
from trd_ray.verify.gym.gym_verifier import PASS_AT, entry_of
from trd_ray.verify.judge.judge_verifier import JudgeVerifier, NoEngines
from trd_ray.verify.own.call import opened
from trd_ray.verify.own.own_verifier import NO_SCORE, OwnVerifier
from trd_ray.verify.verdict import Awaited, Verdict, Verifier, unjudged, waiting

Maker = Callable[[VerifyConfig, dict[str, Any]], Verifier]


def _math(config: VerifyConfig, arguments: dict[str, Any]) -> Verifier:
    from trd_ray.verify.math.math_verifier import MathVerifier

    return MathVerifier(config.timeout_s, config.answer_in_prose, config.answer_in_formula)


def _code(config: VerifyConfig, arguments: dict[str, Any]) -> Verifier:
    from trd_ray.verify.code.code_verifier import CodeVerifier

    return CodeVerifier(config)


def _gym(config: VerifyConfig, arguments: dict[str, Any]) -> Verifier:
    from trd_ray.verify.gym.gym_verifier import GymVerifier

    return GymVerifier(config.timeout_s)


def _review(config: VerifyConfig, arguments: dict[str, Any]) -> Verifier:
    from trd_ray.verify.review.review_verifier import ReviewVerifier

    return ReviewVerifier()


def _no_engines(config: VerifyConfig, arguments: dict[str, Any]) -> Verifier:
    return NoEngines()


# The names of trd_ray.config.BUILT_IN, which says whether each takes verify.arguments.
MAKERS: dict[str, Maker] = {
    "math": _math, "code": _code, "reasoning_gym": _gym, JUDGE: _no_engines, REVIEW: _review,
}  # fmt: skip


class Chosen:
    """Any thread may call it. A verifier is made when it is first needed."""

    def __init__(self, config: VerifyConfig, judge: JudgeVerifier | None = None):
        """`judge` is the judge with its engines, where there are some."""
        self._config = config
        self._judge = judge
        self._made: dict[str, Verifier] = {}
        at_once = config.concurrency if config.has_own else 1  # calls that gain from being made together
        self.at_once = max(at_once, judge.at_once) if judge else at_once

    def __call__(self, text: str | None, problem: dict) -> Verdict:
        config = self._config
        name = judge_of(config, problem)
        if name is not None:
            return self._one(name)(text, problem)
        if config.functions and not config.has_usual_rows:
            return weighed(config, {name: self._one(name)(text, problem) for name in config.functions})
        return self._built_in(usual_verifier(problem))(text, problem)

    def close(self) -> None:
        for made in [*self._made.values(), *filter(None, [self._judge])]:
            made.close()

    def own(self) -> dict[str, OwnVerifier]:
        """The user's functions by their names in verify.functions, "" for verify.function."""
        made = {name: self._one(name) for name in self._config.chosen}
        return {name: one for name, one in made.items() if isinstance(one, OwnVerifier)}

    def _one(self, name: str) -> Verifier:
        named = self._config.chosen.get(name) or NamedFunction(function=name)  # a source may name one that is built in
        if not is_own(named.function):
            return _Graded(self._built_in(named.function, named), self._pass_at(named))
        # Two threads that race make two, of which one is dropped unused: all start their processes lazily.
        key = f"verify.functions.{name}" if name else "verify.function"
        return self._made.get(name) or self._made.setdefault(name, OwnVerifier(self._config, named, key))

    def _built_in(self, function: str, named: NamedFunction | None = None) -> Verifier:
        if function == JUDGE and self._judge:
            return self._judge
        arguments = named.arguments if named else {}
        key = f"{function} {sorted(arguments.items())}"
        return self._made.get(key) or self._made.setdefault(key, self._new(function, arguments))

    def _new(self, function: str, arguments: dict[str, Any]) -> Verifier:
        made = MAKERS[function](self._config, arguments)
        return _InTurn(made) if self._judge else made

    def _pass_at(self, named: NamedFunction) -> float:
        if named.function == "reasoning_gym":  # whose partial credit is for what is no answer
            return PASS_AT
        return self._config.pass_at if named.pass_at is None else named.pass_at


class _InTurn:
    """A verifier that works in this process, called one text at a time beside a judge that many wait for."""

    def __init__(self, verifier: Verifier):
        self._verifier = verifier
        self._turn = threading.Lock()

    def __call__(self, text: str | None, problem: dict) -> Verdict:
        with self._turn:
            return self._verifier(text, problem)

    def close(self) -> None:
        self._verifier.close()


class _Graded:
    """A built-in verifier whose responses also pass with less than the full score, where the recipe says so."""

    def __init__(self, verifier: Verifier, pass_at: float):
        self._verifier = verifier
        self._pass_at = pass_at

    def __call__(self, text: str | None, problem: dict) -> Verdict:
        verdict = self._verifier(text, problem)
        if verdict.awaited:
            return replace(verdict, awaited=replace(verdict.awaited, pass_at=self._pass_at))
        if self._pass_at == 1.0 or not verdict.judged:
            return verdict
        return replace(verdict, passed=verdict.score >= self._pass_at)

    def close(self) -> None:
        self._verifier.close()


def weighed(config: VerifyConfig, verdicts: dict[str, Verdict]) -> Verdict:
    """What the verdicts of all of verify.functions, by their names, come to."""
    named = config.functions
    seconds = sum(v.seconds for v in verdicts.values())
    lost = next((v for name, v in verdicts.items() if _is_lost(v) and named[name].counts), None)
    if lost:
        return lost
    if any(v.awaited for v in verdicts.values()):
        return waiting(Awaited(beside=verdicts), seconds)
    parts = {name: v.score for name, v in verdicts.items() if v.judged}
    weight = sum(named[name].weight for name in parts)
    if not weight:
        return unjudged(f"{NO_SCORE}, any of them", seconds)
    score = sum(named[name].weight * part for name, part in parts.items()) / weight
    held = all(verdicts[name].passed for name in parts if named[name].pass_at is not None)
    return Verdict(
        passed=held and score >= config.pass_at,
        score=score,
        extracted=next((v.extracted for v in verdicts.values() if v.extracted), ""),
        detail=", ".join(_told(name, v) for name, v in verdicts.items() if v.judged or _is_lost(v)),
        seconds=seconds,
        feedback="\n".join(v.feedback for v in verdicts.values() if v.feedback),
        parts=parts,
    )


def usual_verifier(problem: dict) -> str:
    """The name of the built-in one that judges the problem where a recipe names none."""
    if problem.get("tests"):
        return "code"
    return "reasoning_gym" if entry_of(problem) else "math"


def judge_of(config: VerifyConfig, problem: dict) -> str | None:
    """Who judges the row alone: the name in verify.functions, "" for verify.function, or that of a built-in one.

    None where all of verify.functions judge it, or what judges where a recipe names nothing. Raises BadRow as
    `chosen_by` does.
    """
    if name := config.by_source.get(problem.get("source") or ""):
        return name
    if config.by:
        return chosen_by(config, problem)
    return "" if config.function else None


def chosen_by(config: VerifyConfig, problem: dict) -> str:
    """The name in verify.functions that the row names. Raises BadRow where it names none."""
    column = str(config.by)
    row = opened(problem)
    value = row["source"] if column == "source" and row.get("source") else row["extra"].get(column, row.get(column))
    if not isinstance(value, str) or value not in config.functions:
        told = did_you_mean(str(value), list(config.functions))
        raise BadRow(f"verify.by is {column}, whose value {value!r} names none of verify.functions{told}")
    return value


def person_judges(config: VerifyConfig, problem: dict) -> bool:
    """Whether a verdict on this row waits for a person. False also where the row names no verifier."""
    named = config.chosen
    try:
        name = judge_of(config, problem)
    except BadRow:
        return False
    if name is None:
        return not config.has_usual_rows and any(one.function == REVIEW for one in named.values())
    return (named[name].function if name in named else name) == REVIEW


def needs_engines(config: VerifyConfig, problem: dict) -> bool:
    """Whether nothing but the judge says what a response to this row is worth; False where it names no verifier."""
    try:
        name = judge_of(config, problem)
    except BadRow:
        return False
    if name is not None:
        return config.is_judge(name)
    others = (one for name, one in config.chosen.items() if not config.is_judge(name))
    return config.may_ask_judge(problem.get("source")) and not any(one.weight for one in others)


def limit_s(config: VerifyConfig, runs_code: bool) -> float:
    """The longest that a verdict may take, starting what judges aside. A call whose process ends is made twice.

    A judge's time is counted by whoever knows its engines (trd_ray/stream/judging.py), a person's by nobody.
    """
    limits = {"math": config.timeout_s, "code": config.program_timeout_s, "reasoning_gym": config.timeout_s}
    limits |= {JUDGE: 0.0, REVIEW: 0.0}
    usual = limits["code" if runs_code else "math"]
    if not config.chosen:
        return usual
    named = sum(limits.get(one.function, 2 * config.deadline_s) for one in config.chosen.values())
    return named + usual if config.by_source else named


def _is_lost(verdict: Verdict) -> bool:
    """Whether it says nothing about the response; a function that gave no score has had its say."""
    return not verdict.judged and not verdict.awaited and NO_SCORE not in verdict.detail


def _told(name: str, verdict: Verdict) -> str:
    if not verdict.judged:
        return f"{name} {verdict.detail}"
    why = f" ({verdict.detail})" if verdict.detail and not verdict.detail.startswith("score ") else ""
    return f"{name} {verdict.score:g}{why}"
