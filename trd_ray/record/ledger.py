"""The ledger: what refinement did to the rollouts, and when each stage was at work.

    rows of a step (rows.light), or rows/*.parquet of a run  ->  facts (a few numbers a row)  ->  flat metrics

A key appears only when it means something: without refinements there is no y_r/..., without dropped rows no dropped/...
The trajectories of a row that could not be made or judged are in no share: nobody knows what they are. One that waits
for a person (verify.function: review) is in no share of verdicts, until its step is recorded again.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trd_ray.record.by_source import source_metrics
from trd_ray.record.by_verifier import verifier_metrics
from trd_ray.record.generated import KINDS, generated
from trd_ray.rows import RowFiles, part
from trd_ray.verify import EMPTY, missed_deadline

STAGES = {
    "sample": [("y_o", "start_s", "seconds")],
    "verify": [(y, "verify_start_s", "verify_seconds") for y in ("y_o", "y_r")],
    "refine": [("y_r", "start_s", "seconds")],
}

# What `ledger` measures, apart from dropped/<reason>, and of several sources and verifiers source/... and verifiers/...
METRICS = (
    *("rollouts", "trained_rows", "refine/cut_rows", "teacher/cut_rows", "staleness/mean", "staleness/max"),
    *(f"trained_rows/{y}" for y in ("y_o", "y_r")),
    *(f"tokens/{kind}" for kind in KINDS),
    *("y_r/edited_share", "y_r/student_logprob", "relay/kept_share"),
    *(
        f"{y}/{name}"
        for y in ("y_o", "y_r")
        for name in ("passed", "tokens_mean", "tokens_p50", "truncated", "no_answer", "unanswered", "empty")
    ),
    *(f"ledger/{raw}_{refined}" for raw in ("pass", "fail") for refined in ("pass", "fail")),
    "verify/deadlines",
)
DROPPED = "dropped/"
OF_TEACHERS = ("rollouts", "y_o_passed", "y_r_passed")  # as teachers/<name>/<one of these>, of several teachers

_PLAIN = ["row", "step", "source", "teacher", "fault", "train", "dropped_because"]
_PLAIN += ["refine_cut_tokens", "teacher_cut_tokens", "trajectory", "refine_tokens", "refine_scored_tokens"]
_PLAIN += ["refine_student_logprob", "refine_edited_share", "refine_kept_tokens"]
_VERDICT = ("passed", "finish", "extracted", "detail", "seconds", "parts")
_PARTS = [("y_o", "version"), *((y, n) for y in ("y_o", "y_r") for n in _VERDICT)]


def facts_of_rows(rows: Iterable[dict]) -> list[dict]:
    """What the ledger needs from each light row (see `rows.light`): the verdicts, and the number of tokens."""
    return [
        {name: row.get(name) for name in _PLAIN}
        | {f"{y}_{name}": part(row, y, name) for y, name in [*_PARTS, ("y_o", "tokens"), ("y_r", "tokens")]}
        for row in rows
    ]


def facts_of_run(stored: RowFiles) -> list[dict]:
    """`facts_of_rows` of every row of a run, without its tokens and texts in memory."""
    facts = []
    for table in stored.tables([*_PLAIN, *(f"{y}.{name}" for y, name in _PARTS), "y_o.ids", "y_r.ids"]):
        columns = {name: table[name] for name in _PLAIN}
        columns |= {f"{y}_{name}": table[f"{y}.{name}"] for y, name in _PARTS}
        for y in ("y_o", "y_r"):
            # pyarrow.compute makes its functions at import, where no type checker sees them.
            columns[f"{y}_tokens"] = pc.list_value_length(table[f"{y}.ids"])  # pyright: ignore
        facts += pa.table(columns).to_pylist()
    return facts


def row_metrics(rows: Iterable[dict], version: int | None = None) -> dict[str, float]:
    """Metrics of one step's light rows. Staleness counts from `version`, the policy version that trains on them."""
    return ledger(facts_of_rows(rows), version)


def ledger(facts: list[dict], version: int | None = None) -> dict[str, float]:
    """The metrics of these facts.

    - counts of rows: rollouts, trained_rows, dropped/*, *_rows, and ledger/{raw}_{refined}, whose four cells add up to
      the refined rollouts
    - trained_rows/{trajectory}, where both trained
    - shares of the trajectories that exist: passed, truncated, no_answer, unanswered (ended by itself, holds no answer
      and did not pass), empty
    - tokens/*, what all of the rows cost (see generated.py)
    - relay/kept_share, the mean share of its attempt that a refinement keeps, where it goes on from it
    - numbers of tokens, and staleness if `version` is given
    - of each source what `by_source` says, of each of several verifiers what `by_verifier` says
    """
    out: dict[str, float] = {"rollouts": len(facts), "trained_rows": sum(bool(f["train"]) for f in facts)}
    dropped = Counter(f["dropped_because"] for f in facts if f["dropped_because"])
    out |= {f"{DROPPED}{reason}": count for reason, count in sorted(dropped.items())}
    on = Counter(f["trajectory"] for f in facts if f["train"])
    if on["y_o"] and on["y_r"]:
        out |= {f"trained_rows/{y}": on[y] for y in ("y_o", "y_r")}
    out |= {f"tokens/{kind}": tokens for kind, tokens in generated(facts).items()}
    sound = [f for f in facts if not f["fault"]]
    for name in ("edited_share", "student_logprob"):
        if known := [f[f"refine_{name}"] for f in sound if f[f"refine_{name}"] is not None]:
            out[f"y_r/{name}"] = float(np.mean(known))
    if relayed := [f for f in sound if f["refine_kept_tokens"] is not None and f["y_o_tokens"]]:
        out["relay/kept_share"] = float(np.mean([f["refine_kept_tokens"] / f["y_o_tokens"] for f in relayed]))
    for y in ("y_o", "y_r"):
        out |= _trajectory_metrics(y, [f for f in sound if f[f"{y}_tokens"] is not None])
    judged = [f for f in sound if f["y_o_passed"] is not None and f["y_r_passed"] is not None]
    if judged:
        words = {True: "pass", False: "fail"}
        cells = Counter((f["y_o_passed"], f["y_r_passed"]) for f in judged)
        out |= {f"ledger/{words[o]}_{words[r]}": cells[o, r] for o in (True, False) for r in (True, False)}
    if verdicts := [f[f"{y}_detail"] or "" for f in sound for y in ("y_o", "y_r") if f[f"{y}_passed"] is not None]:
        out["verify/deadlines"] = sum(map(missed_deadline, verdicts))
    out["refine/cut_rows"] = sum((f["refine_cut_tokens"] or 0) > 0 for f in facts)
    out["teacher/cut_rows"] = sum((f["teacher_cut_tokens"] or 0) > 0 for f in facts)
    out |= _of_teachers(sound)
    sampled_at = [f["y_o_version"] for f in facts if f["y_o_version"] is not None]
    if version is not None and sampled_at:
        out["staleness/mean"] = version - float(np.mean(sampled_at))
        out["staleness/max"] = version - min(sampled_at)
    return out | source_metrics(facts) | verifier_metrics(facts)


def _of_teachers(facts: list[dict]) -> dict[str, float]:
    """What became of the rows of each of several teachers."""
    found: dict[str, float] = {}
    for name in sorted({f["teacher"] for f in facts if f.get("teacher")}):
        its = [f for f in facts if f["teacher"] == name]
        found[f"teachers/{name}/rollouts"] = len(its)
        for y in ("y_o", "y_r"):
            if passed := [f[f"{y}_passed"] for f in its if f[f"{y}_passed"] is not None]:
                found[f"teachers/{name}/{y}_passed"] = float(np.mean(passed))
    return found


def stage_seconds(
    rows: Iterable[dict], window: tuple[float, float], others: Iterable[tuple[float, float]] = ()
) -> dict[str, float]:
    """Wall time, within a window of Unix seconds, in which each stage had work under way.

    Requests overlap, so the time of a stage is the length of the union of their intervals. `busy` is the length of the
    union over all stages and `others`, which are intervals of work that no row records.
    """
    rows = list(rows)
    spans = {
        stage: [
            (begin, begin + length)
            for y, start, seconds in work
            for row in rows
            if (begin := part(row, y, start)) is not None and (length := part(row, y, seconds)) is not None
        ]
        for stage, work in STAGES.items()
    }
    spans["busy"] = [span for stage in spans.values() for span in stage] + list(others)
    return {stage: union_seconds(intervals, window) for stage, intervals in spans.items()}


def union_seconds(intervals: list[tuple[float, float]], window: tuple[float, float]) -> float:
    """The length of the union of the intervals within the window."""
    reached = window[0]
    total = 0.0
    for begin, end in sorted(intervals):
        start = max(begin, reached)
        end = min(end, window[1])
        if end > start:
            total += end - start
            reached = end
    return total


def _trajectory_metrics(y: str, facts: list[dict]) -> dict[str, float]:
    if not facts:
        return {}
    tokens = [f[f"{y}_tokens"] for f in facts]
    found = {
        f"{y}/tokens_mean": float(np.mean(tokens)),
        f"{y}/tokens_p50": float(np.median(tokens)),
        f"{y}/truncated": float(np.mean([f[f"{y}_finish"] == "length" for f in facts])),
    }
    if not (judged := [f for f in facts if f[f"{y}_passed"] is not None]):
        return found
    return found | {
        f"{y}/passed": float(np.mean([f[f"{y}_passed"] for f in judged])),
        f"{y}/no_answer": float(np.mean([not f[f"{y}_extracted"] for f in judged])),
        f"{y}/unanswered": float(np.mean([_is_unanswered(f, y) for f in judged])),
        f"{y}/empty": float(np.mean([f[f"{y}_detail"] == EMPTY for f in judged])),
    }


def _is_unanswered(f: dict, y: str) -> bool:
    return not (f[f"{y}_finish"] == "length" or f[f"{y}_extracted"] or f[f"{y}_passed"])
