"""The claims of the paper and of this project, each with the rule by which the cells of a comparison decide it.

    comparison, CellTables  ->  judged()  ->  Judged claim by claim
    worlds                  ->  page()    ->  the table of README.md, "not run yet" where a world has no cells

A claim is made of parts. A part is a difference between methods, or between differences, that the claim says is above
a margin. The intervals of a claim's parts are corrected together. So:

- holds: every part's interval lies above its margin
- does not hold here: some part's interval lies below its margin
- cannot be told with this many seeds: anything else

A claim of which a method has no finished run yet is not decided; the numbers of its other parts are shown.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trd_ray.compare.cell_tables import CellTable
from trd_ray.compare.compared import Runs, blocks
from trd_ray.compare.design import Comparison
from trd_ray.compare.results import of_comparison
from trd_ray.compare.spending import at_budget, budget_of
from trd_ray.record import markdown
from trd_ray.score.two_level import Crossed, SeedBlock, simultaneous

RESAMPLES = 4_000
NOT_RUN, PARTLY_RUN, NOT_ASKED = "not run yet", "not all run yet", "its methods are not in this comparison"
HOLDS, FAILS, OPEN = "holds", "does not hold here", "cannot be told with this many seeds"
BOTH = ("opd", "opsd")
RAW = ("forward_kl", "clipped_forward_kl", "reverse_kl", "reverse_kl_top_k")
FILTERS = ("failed", "passed", "repaired")
TOLERATED = 0.05  # of Avg: the loss that staleness may cost
CHEAPER, NOT_WORSE = 1.4, 0.02  # times the tokens of plain distillation; of Avg


@dataclass(frozen=True)
class ClaimPart:
    said: str
    weights: Mapping[str, float]  # method -> what its values count
    measure: str  # avg | pass | righter | shorter | kilotokens
    mode: str = ""
    at: str = "steps"  # steps | tokens
    margin: float = 0.0


@dataclass(frozen=True)
class Claim:
    letter: str
    text: str
    rule: str
    parts: Sequence[ClaimPart]


@dataclass(frozen=True)
class Judged:
    letter: str
    verdict: str
    numbers: list[str]


def _above(ours: str, theirs: str, measure: str, modes: Sequence[str], at: str = "steps") -> list[ClaimPart]:
    said = f"{ours} - {theirs}, {'Avg' if measure == 'avg' else 'Pass'}"
    return [ClaimPart(said, {ours: 1.0, theirs: -1.0}, measure, mode, at) for mode in modes]


def _above_raw(measure: str) -> list[ClaimPart]:
    modes = {raw: BOTH if raw in ("forward_kl", "reverse_kl") else ("opsd",) for raw in RAW}
    return [part for raw in RAW for part in _above("trd", raw, measure, modes[raw])]


def _stale(method: str, level: str) -> ClaimPart:
    of = f"{method}_{level}"
    return ClaimPart(f"{of} - {method}, Avg", {of: 1.0, method: -1.0}, "avg", "opsd", margin=-TOLERATED)


CLAIMS = (
    Claim(
        "a, Avg",
        "TRD is above KL on raw rollouts, on Avg",
        "At equal steps TRD is above forward and reverse KL in OPD and OPSD, and in OPSD above clipped forward KL and "
        "reverse KL with top k, on Avg.",
        _above_raw("avg"),
    ),
    Claim(
        "a, Pass",
        "TRD is above KL on raw rollouts, on Pass",
        "The same on Pass. Where all solve everything, it cannot be told.",
        _above_raw("pass"),
    ),
    Claim(
        "b",
        "Refined rollouts are shorter, and more often right",
        "Over the runs of TRD, in each mode: the pass rate of the refined minus that of the raw is above 0, and so is "
        "the share of its tokens that a rollout loses.",
        [
            ClaimPart(said, {"trd": 1.0}, measure, mode)
            for mode in BOTH
            for measure, said in (("righter", "pass rate, refined - raw"), ("shorter", "share of tokens lost"))
        ],
    ),
    Claim(
        "c",
        "Filters hurt coverage",
        "TRD on the whole corpus is above TRD on its failed, its passed and its repaired rollouts, on Pass, in OPSD.",
        [part for subset in FILTERS for part in _above("trd", subset, "pass", ("opsd",))],
    ),
    Claim(
        "d",
        "Fixes at the level of tokens do not cure prefix failure",
        "In OPSD, where there is prefix failure, TRD is above forward KL with a clip, above reverse KL with top k, and "
        "above forward KL on the first third of the rollout, on Avg.",
        [
            part
            for fix in ("clipped_forward_kl", "reverse_kl_top_k", "first_third")
            for part in _above("trd", fix, "avg", ("opsd",))
        ],
    ),
    Claim(
        "e",
        "Forward KL tolerates stale rollouts, reverse KL does not",
        f"In OPSD, TRD and forward KL lose at most {100 * TOLERATED:.0f} points of Avg with rollouts 4 versions old "
        "and with those of the base alone; and reverse KL loses more than forward KL with the latter.",
        [
            *(_stale(method, level) for method in ("trd", "forward_kl") for level in ("stale_4", "stale_never")),
            ClaimPart(
                "what reverse KL loses - what forward KL loses, base's rollouts, Avg",
                {"reverse_kl": 1.0, "reverse_kl_stale_never": -1.0, "forward_kl": -1.0, "forward_kl_stale_never": 1.0},
                "avg",
                "opsd",
            ),
        ],
    ),
    Claim(
        "f",
        "The gain is not that of right trajectories alone",
        "TRD is above KL on fresh solutions of the same teacher that ignore the rollout, and above hard labels on the "
        "refined rollout, in OPD and OPSD; and in OPSD above KL on the passing one of two rollouts; on Avg.",
        [
            *(part for other in ("fresh", "sft_refined") for part in _above("trd", other, "avg", BOTH)),
            *_above("trd", "best_of_2", "avg", ("opsd",)),
        ],
    ),
    Claim(
        "g",
        "It is worth its tokens",
        "At equal generated tokens, which are what the cheapest run of the two methods spends, TRD is above forward KL "
        "and above reverse KL, in OPD and OPSD, on Avg.",
        [part for raw in ("forward_kl", "reverse_kl") for part in _above("trd", raw, "avg", BOTH, "tokens")],
    ),
    Claim(
        "h",
        "Rewriting only what failed costs little more than plain distillation",
        f"In OPD repair is at most {100 * NOT_WORSE:.0f} points below forward KL, on Avg at equal steps, and generates "
        f"at most {CHEAPER} times its tokens.",
        [
            ClaimPart("repair - forward_kl, Avg", {"repair": 1.0, "forward_kl": -1.0}, "avg", "opd", margin=-NOT_WORSE),
            ClaimPart(
                f"{CHEAPER} x forward_kl - repair, thousands of tokens",
                {"forward_kl": CHEAPER, "repair": -1.0},
                "kilotokens",
                "opd",
            ),
        ],
    ),
)


def _is_asked(claim: Claim, comparison: Comparison) -> bool:
    """Whether a comparison has every method, in the modes, that the claim speaks of."""
    needed = {(part.mode, method) for part in claim.parts for method in part.weights}
    return all(mode in comparison.modes and method in comparison.methods_of(mode) for mode, method in needed)


def judged(comparison: Comparison, tables: Sequence[CellTable]) -> list[Judged]:
    """Every claim in order; `tables` are the finished cells so far."""
    finals, _ = of_comparison(comparison, tables)
    found = []
    for claim in CLAIMS:
        if not _is_asked(claim, comparison):
            found.append(Judged(claim.letter, NOT_ASKED, []))
            continue
        made = {str(i): _contrast(finals, part) for i, part in enumerate(claim.parts)}
        there = {i: values for i, values in made.items() if values}
        estimates = simultaneous(there, RESAMPLES, 0) if there else {}
        found.append(_verdict(claim, [estimates.get(i) for i in made]))
    return found


def _verdict(claim: Claim, found: list[Crossed | None]) -> Judged:
    numbers, states = [], []
    for part, e in zip(claim.parts, found, strict=True):
        if e is None:
            continue
        margin = f" (margin {100 * part.margin:+.0f})" if part.margin else ""
        numbers.append(f"{part.mode} {part.said}: {_points(e)}{margin}")
        if e.low is not None and e.high is not None:
            states.append(HOLDS if e.low > part.margin else FAILS if e.high < part.margin else OPEN)
    if len(states) < len(claim.parts):
        return Judged(claim.letter, PARTLY_RUN if states else NOT_RUN, numbers)
    verdict = FAILS if FAILS in states else OPEN if OPEN in states else HOLDS
    return Judged(claim.letter, verdict, numbers)


def _points(e: Crossed) -> str:
    if e.low is None or e.high is None:
        return f"{100 * e.value:+.1f}"
    told = "" if e.detectable is None else f", could tell {100 * e.detectable:.1f}"
    return f"{100 * e.value:+.1f} [{100 * e.low:+.1f}, {100 * e.high:+.1f}]{told}"


def _contrast(finals: Mapping[tuple, Any], part: ClaimPart) -> list[SeedBlock] | None:
    """The part's value for every base, seed and problem that all of its methods have; None for none."""
    runs = [table for method in part.weights for table in finals.get((part.mode, method), {}).values()]
    # What the cheapest of them spends, or the runs that never spend so much would be left out.
    budget = budget_of(runs, part.at) if runs and part.at != "steps" else None
    found = [dict(_measured(finals, part, method, budget)) for method in part.weights]
    common = set.intersection(*(set(one) for one in found))
    if not common:
        return None
    values: Runs = {
        run: {"": np.sum([w * one[run] for w, one in zip(part.weights.values(), found, strict=True)], axis=0)}
        for run in common
    }
    return blocks(values, "")


def _measured(
    finals: Mapping[tuple, Any], part: ClaimPart, method: str, budget: float | None
) -> Iterator[tuple[tuple[str, int], np.ndarray]]:
    runs: dict[tuple[str, int], CellTable] = finals.get((part.mode, method), {})
    for run, table in runs.items():
        if part.measure in ("righter", "shorter"):
            on = table.trained_on
            if on.get("raw_passed") is None or on.get("refined_passed") is None:
                continue
            if part.measure == "righter":
                yield run, np.array([on["refined_passed"] - on["raw_passed"]])
            else:
                yield run, np.array([1 - on["refined_tokens"] / on["raw_tokens"]])
            continue
        if part.measure == "kilotokens":  # numbers are shown times 100
            yield run, np.array([table.last.tokens / 1e5])
            continue
        measures = table.last.graded[""].measures() if budget is None else at_budget(table, part.at, budget)
        if measures is None:
            continue
        samples = table.last.graded[""].samples
        yield run, measures[f"{part.measure}@{samples}"]


def page(worlds: Mapping[str, list[Judged] | None]) -> str:
    """The table of the claims; a world's claims are None as long as it has no cells."""
    lines = [["", "claim", "decided so, before any final cell was run (h: see below)", *worlds]]
    for i, claim in enumerate(CLAIMS):
        told = [NOT_RUN if found is None else found[i].verdict for found in worlds.values()]
        lines.append([claim.letter, claim.text, claim.rule, *told])
    header, *rows = [f"| {' | '.join(map(markdown.inline, line))} |" for line in lines]
    parts = ["\n".join([header, "|---" * len(lines[0]) + "|", *rows])]
    for world, found in worlds.items():
        for one in found or ():
            if one.numbers:
                listed = "\n".join(f"- {markdown.inline(number)}" for number in one.numbers)
                parts.append(f"{world}, {one.letter}: {one.verdict}\n\n{listed}")
    return "\n\n".join(parts) + "\n"


def of_world(comparison: Comparison, tables: Sequence[CellTable]) -> str:
    """The page of one comparison."""
    note = (
        "Points; in brackets the 95% interval over seeds and problems, corrected for the parts of a claim. Could "
        "tell: the smallest difference that this many seeds and problems find in 80% of cases."
    )
    return f"# The claims, by {comparison.name}\n\n{page({comparison.name: judged(comparison, tables)})}\n{note}\n"
