"""A first look at the verifier on a few rows, which every training run takes: what is surely wrong becomes a warning.

    recipe, problems  ->  first_look()  ->  sentences, none where all is well or nothing could be seen within LOOK_S

`trd check` looks at more rows, in another order and in another process. This look must not delay a run: what has not
answered in time is left to end by itself, and nothing is said. A judge has no engines yet, so rows that it alone judges
are left out.
"""

import logging
import threading
import time

import pyarrow as pa

from trd_ray.config import Recipe, VerifyConfig
from trd_ray.preflight.known_texts import Row, Verify, asked, form_of, right_texts, spread_rows, wrong_texts
from trd_ray.preflight.placement import Job
from trd_ray.preflight.soundness import Soundness
from trd_ray.preflight.tokenised import verifier_with_ids
from trd_ray.problems.load import has_tests
from trd_ray.session.cluster import is_local
from trd_ray.verify import needs_engines

logger = logging.getLogger(__name__)

ROWS = 4
LOOK_S = 2.0
TOLERATED_IN_LOOK = 0.25  # one wrong row among four says little
MAX_TESTS = 2  # of a program; more would take longer and say the same
HINT = "`trd check` with the same recipe looks at more rows"


def warn_at_first_look(recipe: Recipe, problems: pa.Table, job: Job) -> None:
    """For training alone. The head of a cluster runs no programs: its workers have the sandboxes."""
    if job == "train" and (is_local(recipe) or not has_tests(problems)):
        for sentence in first_look(recipe, problems):
            logger.warning("%s (%s)", sentence, HINT)


def first_look(recipe: Recipe, problems: pa.Table, verify: Verify | None = None) -> list[str]:
    """What is wrong with the verifier, as far as a few rows show. `verify` is the recipe's unless it is given."""
    rows = [row for row in spread_rows(problems, ROWS) if not needs_engines(recipe.verify, row)]
    found: list[str] = []

    def look() -> None:
        made = None
        try:
            own = recipe.verify.without_judge() if recipe.verify.names_judge else recipe.verify
            made = None if verify else verifier_with_ids(_with_limits(own), recipe.student)
            found.extend(_faults(recipe, rows, verify or made))
        except Exception as e:  # noqa: BLE001 - this look refuses nothing: what stands in the way is told elsewhere
            logger.debug("no first look at the verifier: %s", e)
        finally:
            if made:
                made.close()

    if not rows:
        return []
    thread = threading.Thread(target=look, name="first look at the verifier", daemon=True)
    thread.start()
    thread.join(LOOK_S)
    return [] if thread.is_alive() else found


def _faults(recipe: Recipe, rows: list[Row], verify: Verify | None) -> list[str]:
    assert verify is not None
    form = form_of(recipe)
    until = time.monotonic() + LOOK_S
    right = asked(verify, rows, right_texts(rows, form), until)
    wrong = asked(verify, rows, wrong_texts(rows, right), until)
    return Soundness(rows, [*right, *wrong], form, recipe.needs_references, tolerated=TOLERATED_IN_LOOK).faults()


def _with_limits(verify: VerifyConfig) -> VerifyConfig:
    limits = {
        "max_tests": min(verify.max_tests or MAX_TESTS, MAX_TESTS),
        "timeout_s": min(verify.timeout_s, LOOK_S),
        "program_timeout_s": min(verify.program_timeout_s, LOOK_S),
        "deadline_s": min(verify.deadline_s, LOOK_S),
    }
    return verify.model_copy(update=limits)
