"""Whether a refinement mentions what the student never saw: the reference, the attempt, the instruction to rewrite.

    text of y_r, problem  ->  leak()  ->  the first Leak in it, or None

A student that trains on such a text learns to speak of things that are not there. The rule:

- A pattern of LEAKS stands in the text, whatever the case.
- Where the problem has the pattern's word itself, the pattern does not count: in a problem on success at the third
  attempt, or on a reference angle, the solution speaks of those too. Rather a leak is missed than one invented.

Pure.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trd_ray.diagnostics.assumptions import LEAK_CONTEXT_CHARACTERS


@dataclass(frozen=True)
class Pattern:
    name: str
    word: str  # in lower case; to a problem that holds it the pattern does not apply
    pattern: str  # both of Python and of RE2, without regard to case
    reason: str


_SAYS = r"(says|states|shows|gives|gave|claims|suggests|uses|used|mentions|writes|wrote)"
_DOES = (
    r"(is (wrong|right)|is (in)?correct|was|had|made|makes|forgot|failed to|wrongly|(in)?correctly|claim(s|ed)|use[ds])"
)
_MADE = r"(solution|version|response|attempt|answer|code|program)"

LEAKS = (
    Pattern(
        "reference solution", "reference",
        r"\b(reference|official|ground[- ]truth) (solution|answer|response|proof|implementation|derivation)s?\b",
        "the words of the refine prompt for y*; an angle, a frame or a point of reference is none",
    ),
    Pattern(
        "the reference", "reference",
        r"\b(according to|as in|as per|follow(s|ing)?|match(es|ing)?|agrees? with|guided by|consistent with|from|per) "
        r"the (given |provided )?reference([.,;:)!]|$|\s+(and|we|which|above)\b)",
        "a reference that is relied on, with nothing after it that would make it an angle or a frame",
    ),
    Pattern(
        "the reference says", "reference", rf"\bthe (given |provided )?reference {_SAYS}\b",
        "a reference that speaks is a text",
    ),
    Pattern(
        "provided solution", "provided solution", r"\bthe (provided|supplied) (solution|answer)\b",
        "other words for y*; a given or an original solution is left out, since a mixture has one",
    ),
    Pattern(
        "earlier attempt", "attempt",
        r"\b(previous|original|initial|earlier|given|provided|above|flawed|incorrect|failed) attempt('s)?\b",
        "an attempt before this text; the first attempt is left out, since a text may count its own",
    ),
    Pattern(
        "the attempt", "attempt",
        rf"\b(in|of|from|by) the attempt\b([^ ]| [^t]|$)|\bthe attempt('s\b| {_DOES}\b)|\bthe attempted solution\b",
        "the word of the refine prompt for y_o; `the attempt to factor` is the text's own, and is left out",
    ),
    Pattern(
        "the student", "student",
        r"\b(the|a) (student|user)'s (attempt|solution|answer|work|reasoning|approach|code|program|mistake|error)\b",
        "who wrote y_o; the solution's reader is nobody's teacher",
    ),
    Pattern(
        "the original solution", "original solution",
        r"\b(the|in the) (original|previous|earlier) (solution|answer|response|code|program) "
        r"(is|was) (wrong|right|correct|incorrect|flawed)\b",
        "a verdict on another text; without the verdict it may be what is in a flask",
    ),
    Pattern(
        "rewriting", "rewrit",
        rf"\b(rewritten|refined) {_MADE}\b|\bhere('s| is) (the|a|my) (corrected|revised|improved) {_MADE}\b",
        "says that there was a text before; a rewritten equation is none",
    ),
    Pattern(
        "feedback", "checker",
        r"\b(the|a) checker (found|said|says|accepted|rejected|did not accept)\b",
        "what the refine prompt says of y_o's verdict (trd_ray.wordings.FEEDBACK)",
    ),
    Pattern(
        "reference, in Chinese", "参考", r"参考(答案|解答|解法|解)",
        "models that are trained on much Chinese fall into it",
    ),
)  # fmt: skip
_ANY = "(?i)" + "|".join(f"({one.pattern})" for one in LEAKS)
_COMPILED = {one.name: re.compile(one.pattern, re.IGNORECASE) for one in LEAKS}


@dataclass(frozen=True)
class Leak:
    pattern: str  # the name of one of LEAKS
    text: str  # what was found, with some of the text around it


def leak(text: str, problem: str = "") -> Leak | None:
    """The first pattern of LEAKS that counts."""
    asked = problem.lower()
    for one in LEAKS:
        if one.word not in asked and (found := _COMPILED[one.name].search(text)):
            begin, end = found.start() - LEAK_CONTEXT_CHARACTERS, found.end() + LEAK_CONTEXT_CHARACTERS
            before, after = "..." if begin > 0 else "", "..." if end < len(text) else ""
            return Leak(one.name, before + text[max(0, begin) : end] + after)
    return None


def leaks(texts: pa.Array, problems: pa.Array | None) -> Iterator[tuple[int, Leak]]:
    """(row, Leak) of the rows that have one. The engine of pyarrow looks first, so Python reads only candidates."""
    # pyarrow.compute makes its functions when it is imported, out of a type checker's sight.
    candidates = pc.fill_null(pc.match_substring_regex(texts, _ANY), False)  # pyright: ignore
    for row in np.flatnonzero(candidates.to_numpy(zero_copy_only=False)).tolist():
        problem = problems[row].as_py() if problems is not None else None
        if found := leak(texts[row].as_py(), problem or ""):
            yield row, found
