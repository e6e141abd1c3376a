"""Where a person judges (verify.function: review): only `trd refine` can wait for one, the rest is refused."""

from collections.abc import Iterable

from trd_ray.config import Recipe, VerifyConfig
from trd_ray.errors import UserError
from trd_ray.preflight.held_out import key_of
from trd_ray.preflight.placement import Job
from trd_ray.problems.load import held_out_verify

PERSON_JUDGES = (
    "verify.function=review: a person judges, so the responses are queued when they are made, the refiner is told "
    "nothing of a verdict, and the same command reads the verdicts back"
)


def require_no_person(r: Recipe, job: Job, evaluated: Iterable[str]) -> None:
    """Refuse a run that would wait for a person while its engines run; `evaluated` are the sets that it evaluates."""
    if not r.verify.asks_a_person or job == "refine":
        return
    if job == "train" and r.data.source == "problems":
        raise UserError(
            "verify.function=review lets a person judge, and a run that trains while it samples cannot wait for one: "
            "make a corpus with `trd refine`, judge it with `trd review`, and train on it with data.source=corpus and "
            "data.path=THE RUN'S DIRECTORY"
        )
    for name in evaluated:
        require_no_person_on(key_of(name), held_out_verify(r.evaluation.of(name), r.verify))


def require_no_person_on(group: str, verify: VerifyConfig) -> None:
    """Refuse an evaluation that a person would have to judge; `group` has the keys of its problems."""
    by_source_alone = verify.by_source and not verify.by  # held-out problems have no source, and are judged as usual
    if verify.asks_a_person and not by_source_alone:
        raise UserError(
            f"verify.function=review lets a person judge, and an evaluation cannot wait for one: set {group}.path to a "
            "benchmark, whose own rules judge, or to null, or set verify.function to a verifier that answers at once; "
            "`trd refine` makes a corpus that is reviewed, and data.source=corpus trains on it"
        )
