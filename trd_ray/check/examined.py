"""The verifier examined on some rows: right and wrong texts, another order, another process, and how long it takes.

    make, rows  ->  examine()  ->  Examined: lines for the page, faults with their remedies

Each time that the texts are asked about ends after LONGEST_S: a slow verifier is seen on fewer rows.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from trd_ray.check.repeated import Make, Repetition, VerdictPace, in_another_order, in_another_process, shown_time
from trd_ray.config import Recipe
from trd_ray.preflight.known_texts import Reply, Row, Verify, asked, form_of, right_texts, wrong_texts
from trd_ray.preflight.soundness import TOLERATED, Soundness, passing_form

LONGEST_S = 60.0
START_S = 60.0  # for another process to begin on a busy machine
SLOW_STEP_S = 120.0  # verdicts of a step that take longer are a fault

Lines = list[tuple[str, str]]


@dataclass
class Examined:
    rows: Sequence[Row]  # those that were asked about
    replies: list[Reply]  # on right and wrong texts, in the order in which they were asked
    lines: Lines = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def examine(recipe: Recipe, rows: Sequence[Row], make: Make, verify: Verify) -> Examined:
    """`make` gives another process a verifier, `verify` is this process's. Raises UserError if none can run."""
    sound, rows = _sound(recipe, rows, verify)
    found = Examined(rows, list(sound.replies), sound.counts(), sound.faults())
    if not found.replies:
        return found
    order, again = in_another_order(verify, rows, found.replies, time.monotonic() + LONGEST_S)
    found.faults += _depends(
        order, rows, "the order in which it is asked", "let nothing stay from one call to the next"
    )
    if found.faults:
        process = Repetition(0, missing="something is wrong with the verifier already")
    else:
        took = sum(reply.seconds for reply in found.replies)
        process = in_another_process(make, rows, found.replies, START_S + 2 * min(took, LONGEST_S))
        found.faults += _depends(
            process,
            rows,
            "the process that it runs in",
            "use no hash() of a text, no unseeded random number, no time and nothing that only one process has set",
        )
    pace = VerdictPace.of([*found.replies, *again])
    step_s, said = _of_step(recipe, pace)
    found.lines += [
        ("asked in another order", str(order)),
        ("asked in another process", str(process)),
        ("a verdict takes", str(pace)),
        ("", said),
    ]
    if step_s > SLOW_STEP_S:
        found.faults.append(
            f"the verifier is slow: a verdict takes {shown_time(pace.mean)}, and {said}: make it faster, or raise "
            "verify.max_tasks where the cluster has the CPUs"
        )
    return found


def _sound(recipe: Recipe, rows: Sequence[Row], verify: Verify) -> tuple[Soundness, Sequence[Row]]:
    """What is said of right texts, then of wrong ones of the same rows."""
    form = form_of(recipe)
    texts = right_texts(rows, form)
    right = asked(verify, rows, texts, time.monotonic() + LONGEST_S / 2)
    if len(right) < len(texts):
        rows = rows[: right[-1].asked.row + 1]
    wrong = asked(verify, rows, wrong_texts(rows, right), time.monotonic() + LONGEST_S / 2)
    sound = Soundness(rows, [*right, *wrong], form, shows_reference=recipe.needs_references)
    if not all(sound.right.values()):
        sound.other_form = passing_form(verify, sound, time.monotonic() + LONGEST_S / 4)
    return sound, rows


def _depends(again: Repetition, rows: Sequence[Row], on: str, remedy: str) -> list[str]:
    if again.missing:
        return [f"whether verdicts depend on {on} is not known: {again.missing}"]
    if again.rows <= TOLERATED * len(rows):
        return []
    reply, passed, score = again.differing[0]
    first = f"{_said(reply.verdict.passed)} with {reply.verdict.score:g}"
    now = f"{_said(passed)} with {score:g}"
    return [
        f"verdicts depend on {on}: those on {again.rows} of {len(rows)} rows differ, such as that on the "
        f"{reply.asked.kind} text of problem {rows[reply.asked.row]['problem_id']!r}, which {first} at first and then "
        f"{now}: {remedy}"
    ]


def _said(passed: bool) -> str:
    return "passes" if passed else "does not pass"


def _of_step(recipe: Recipe, pace: VerdictPace) -> tuple[float, str]:
    """How long the verdicts of a step take if all tasks have a CPU, in seconds and in words."""
    verdicts = recipe.rollouts_per_step * (1 + recipe.most_refinements * recipe.refines)
    tasks = recipe.verify.max_tasks
    seconds = verdicts * pace.mean / tasks
    return seconds, f"the {verdicts} verdicts of a step take {shown_time(seconds)} in {tasks} tasks (verify.max_tasks)"
