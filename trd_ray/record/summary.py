"""summary.md: what a run did, from what it recorded.

    recipe.yaml, environment.json, metrics.jsonl, rows/, evaluation/  ->  write_summary(directory)  ->  summary.md

Model output appears only inside fenced blocks. Their fence is longer than any run of backticks in them, and control and
bidirectional characters are replaced. Everything else that a person or model wrote is escaped.
"""

import json
import re
from collections import Counter
from statistics import fmean, median

import pyarrow.compute as pc

from trd_ray.config import Recipe, load
from trd_ray.files import write_atomically
from trd_ray.record import bounds, guards, predicted, raised, warnings
from trd_ray.record.by_source import source_table
from trd_ray.record.by_verifier import verifier_table
from trd_ray.record.directory import RunDirectory
from trd_ray.record.generated import KINDS, generated
from trd_ray.record.ledger import facts_of_run, ledger
from trd_ray.record.markdown import code, inline, side_by_side, table
from trd_ray.score.stats import Estimate, Score
from trd_ray.score.stats import table as score_table

SECONDS = ["step", "sample", "verify", "refine", "train", "rest", "wake", "sync", "overhead"]
COURSE = {
    "Raw pass": ("y_o/passed", ".3f"),
    "Refined pass": ("y_r/passed", ".3f"),
    "Raw tokens": ("y_o/tokens_mean", ".1f"),
    "Refined tokens": ("y_r/tokens_mean", ".1f"),
    "KL": ("kl/mean", ".4f"),
    "Gradient norm": ("grad_norm", ".3f"),
    "Held-out Avg@k": ("evaluation/avg", ".3f"),
}
ORDINARY = ("", "not equal", None)  # details of verdicts that need no mention
NUMBER = re.compile(r"\d+(\.\d+)?")
MAX_VERDICTS = 20
PLACES = {
    "report.html": "the page of the run: verdict, curves, samples, cost; any browser opens it",
    "recipe.yaml": "the resolved recipe",
    "set_aside.jsonl": "problems of the data that were left out, with the reason",
    "environment.json": "versions, machine and command of every start",
    "alarms.json": "the alarms, when each began and ended, and what to set",
    "metrics.jsonl": "everything measured, one line a step",
    "train.log": "the same as one aligned line a step",
    "tensorboard/": "the same for TensorBoard",
    "wandb/": "the same for W&B, as it writes it here",
    "mlruns/": "the same for MLflow, without a server",
    "rows/": "every rollout and refinement with its verdict, one Parquet file a step",
    "checkpoints/": "the state to resume from and the trained model",
    "evaluation/": "scores as JSON, and the samples behind them as Parquet",
    "timeline.json": "who worked and who waited when; opens in ui.perfetto.dev",
    "review/": "the responses that wait for a person, and the verdicts",
    "logs/": "logs of the processes",
}


def write_summary(directory: RunDirectory) -> str:
    """Write summary.md from what is recorded so far, and return its text."""
    recipe = load(str(directory.path / "recipe.yaml"))
    metrics = directory.read_metrics()
    facts = facts_of_run(directory.read_rows())
    evaluations = directory.read_evaluations()
    sets = {name: directory.read_evaluations(name) for name in directory.evaluated_sets()}
    alarms = raised.alarms_of(directory.path, recipe)
    sections = {
        "": raised.lasting(alarms)
        + _warnings(evaluations, sets, recipe)
        + _headline(recipe, metrics, ledger(facts), evaluations),
        "Alarms that are over": raised.over(alarms),
        "Evaluation": _evaluation(evaluations),
        "Evaluation sets": guards.section(sets, recipe),
        "Ledger": _ledger(ledger(facts)),
        "Sources": source_table(facts),
        "Verifiers": verifier_table(facts),
        "Lengths": _lengths(facts),
        "Generated tokens": _generated(facts),
        "Course of the run": _course(metrics),
        "Time": _time(metrics) + _bound(recipe, metrics, facts),
        "Cost": predicted.section(directory, recipe, metrics),
        "Verdicts": _verdicts(facts),
        "Engine and learner": _gap(metrics),
        "Repaired examples": _examples(directory, facts),
        "Where everything lies": _places(directory),
    }
    text = f"# {inline(recipe.name)}\n\n"
    text += "\n\n".join(f"## {title}\n\n{body}" if title else body for title, body in sections.items() if body) + "\n"
    write_atomically(directory.path / "summary.md", text)
    return text


def summarise(directory: RunDirectory) -> None:
    """`write_summary`, but if that fails, print why, and delete an older summary.md, which would pass for this one."""
    try:
        write_summary(directory)
    except Exception as e:
        (directory.path / "summary.md").unlink(missing_ok=True)
        print(f"summary.md could not be written ({' '.join(str(e).split())[:300]})")


def _warnings(evaluations: list[Score], sets: dict[str, list[Score]], recipe: Recipe) -> str:
    found: dict[str, str] = {}
    if evaluations:
        found |= warnings.of_score(evaluations[-1], recipe, recipe.evaluation.max_response_tokens)
    for name, scores in sets.items():
        where = f"evaluation.sets.{name}"
        found |= warnings.of_score(scores[-1], recipe, recipe.evaluation.max_response_tokens, where)
    found |= guards.of_guards(sets, recipe)
    return "".join(f"Warning: {text}\n\n" for text in found.values())


def _headline(recipe: Recipe, metrics: list[dict], totals: dict[str, float], evaluations: list[Score]) -> str:
    trains_on = {
        "y_r": "refined rollouts",
        "y_o": "raw rollouts",
        "repair": "refined rollouts where raw ones failed, else raw ones",
        "mixture": f"raw ({recipe.train.mixture_share:.0%} of the rows) and refined rollouts",
        "reference": "reference solutions",
    }[recipe.train.trajectory]
    lines = [
        f"{_modes(recipe)} on {trains_on}: {len(metrics)} steps, {totals['rollouts']} rollouts, "
        f"{totals['trained_rows']} trained on. Student {code(recipe.student.path)}, {_taught_by(recipe, totals)}"
        + (f", judge {code(str(recipe.judge.path))}." if recipe.verify.names_judge else ".")
    ]
    if recipe.train.trajectory in ("repair", "mixture"):
        lines += _of_refined(totals)
    elif "y_o/passed" in totals and "y_r/passed" in totals:
        raw = totals["y_o/passed"]
        refined = totals["y_r/passed"]
        lines.append(
            f"Refinement took the pass rate from {raw:.1%} to {refined:.1%} and the mean length from "
            f"{totals['y_o/tokens_mean']:.1f} to {totals['y_r/tokens_mean']:.1f} tokens."
        )
    name, gain = _gain(evaluations)
    if gain is not None and gain.low is not None and gain.high is not None:
        lines.append(
            f"Training moved {name} by {100 * gain.value:+.1f} points, "
            f"95% interval [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}], "
            f"which is {'clear of' if gain.clear_of_zero else 'not clear of'} zero."
        )
    return "\n\n".join(lines)


def _of_refined(totals: dict[str, float]) -> list[str]:
    """What refinement did where not every rollout is refined: all of them are no fair comparison for those that are."""
    cells = {(o, r): totals.get(f"ledger/{o}_{r}", 0) for o in ("pass", "fail") for r in ("pass", "fail")}
    n = sum(cells.values())
    if not n:
        return []
    raw, refined = ((cells["pass", "pass"] + cells[one]) / n for one in (("pass", "fail"), ("fail", "pass")))
    on = ", ".join(f"{totals[f'trained_rows/{y}']} {y}" for y in ("y_o", "y_r") if f"trained_rows/{y}" in totals)
    return [
        f"{n} of {totals['rollouts']} rollouts were refined, which took their pass rate from {raw:.1%} to "
        f"{refined:.1%}." + (f" Trained on: {on}." if on else "")
    ]


def _modes(recipe: Recipe) -> str:
    return " and ".join(dict.fromkeys(one.teacher.mode.upper() for one in recipe.by_teacher.values()))


def _taught_by(recipe: Recipe, totals: dict[str, float]) -> str:
    if not recipe.teachers:
        return f"teacher {code(recipe.teacher_path)} ({recipe.teacher.follow})"
    told = [
        f"{name} {code(one.teacher_path)} ({one.teacher.follow}, {totals.get(f'teachers/{name}/rollouts', 0):.0f} rows)"
        for name, one in recipe.by_teacher.items()
    ]
    return f"teachers {' and '.join(told)}"


def _gain(evaluations: list[Score]) -> tuple[str, Estimate | None]:
    """The difference in Avg@k of the last score that has one."""
    for score in reversed(evaluations):
        if score.paired_with:
            name = f"avg@{score.samples}"
            return name.capitalize(), score.paired_with.differences.get(name)
    return "", None


def _evaluation(evaluations: list[Score]) -> str:
    if not evaluations:
        return ""
    last = evaluations[-1]
    note = (
        f"{last.problems} problems, {last.samples} samples each; shares in percent, in brackets the 95% "
        "interval over problems."
    )
    if last.paired_with:
        note += " The last column compares problem by problem."
    header, *lines = score_table(first_and_last(evaluations))
    return f"{table([[inline(cell) for cell in header], *lines])}\n\n{note}"


def first_and_last(evaluations: list[Score]) -> list[Score]:
    """The first and the last score, which fit in one table; the course of the run shows those between them."""
    return [*evaluations[:1], *evaluations[1:][-1:]]


def _ledger(totals: dict[str, float]) -> str:
    parts = []
    if "ledger/pass_pass" in totals:
        words = ("pass", "fail")
        n = sum(totals[f"ledger/{raw}_{refined}"] for raw in words for refined in words)
        lines = [["", "refined passed", "refined failed", "all"]]
        for raw in words:
            counts = [totals[f"ledger/{raw}_{refined}"] for refined in words]
            lines.append([f"raw {raw}ed", *(f"{count} ({count / n:.1%})" for count in [*counts, sum(counts)])])
        sums = [totals[f"ledger/pass_{refined}"] + totals[f"ledger/fail_{refined}"] for refined in words]
        lines.append(["all", *(f"{count} ({count / n:.1%})" for count in [*sums, n])])
        parts.append(table(lines))
    dropped = {name.removeprefix("dropped/"): n for name, n in totals.items() if name.startswith("dropped/")}
    if dropped:
        parts.append("Not trained on: " + ", ".join(f"{n} ({inline(why)})" for why, n in dropped.items()) + ".")
    parts.append(
        f"Prompts cut to fit: {totals['refine/cut_rows']} of the refiner's, "
        f"{totals['teacher/cut_rows']} of the teacher's."
    )
    return "\n\n".join(parts)


def _lengths(facts: list[dict]) -> str:
    groups = {
        "raw": [(f, "y_o") for f in facts],
        "refined": [(f, "y_r") for f in facts],
        "raw, already correct": [(f, "y_o") for f in facts if f["y_o_passed"]],
        "refined from those": [(f, "y_r") for f in facts if f["y_o_passed"]],
    }
    lines = [["tokens", "median", "mean", "longest", "cut at the limit", "without an answer"]]
    for name, group in groups.items():
        there = [(f, y) for f, y in group if f[f"{y}_tokens"] is not None]
        if there:
            tokens = [f[f"{y}_tokens"] for f, y in there]
            cut = fmean(f[f"{y}_finish"] == "length" for f, y in there)
            judged = [not f[f"{y}_extracted"] for f, y in there if f[f"{y}_passed"] is not None]
            mute = f"{fmean(judged):.1%}" if judged else "-"
            lines.append([name, f"{median(tokens):.0f}", f"{fmean(tokens):.1f}", str(max(tokens)), f"{cut:.1%}", mute])
    return table(lines) if len(lines) > 1 else ""


def _generated(facts: list[dict]) -> str:
    """What the rows cost in tokens."""
    trained = sum(bool(f["train"]) for f in facts)
    lines = [["", "tokens", "for a row that trained"]]
    for kind, tokens in generated(facts).items():
        lines.append([KINDS[kind], f"{tokens:,}", f"{tokens / trained:,.0f}" if trained else "-"])
    return table(lines) if len(lines) > 1 else ""


def _course(metrics: list[dict]) -> str:
    """A table of means over each quarter of the run."""
    n = len(metrics)
    parts = [part for i in range(4) if (part := metrics[n * i // 4 : n * (i + 1) // 4])]
    if not parts:
        return "No step was finished."
    lines = [["steps", *(_steps(part) for part in parts)]]
    for label, (name, form) in COURSE.items():
        means = [_mean(part, name) for part in parts]
        if any(m is not None for m in means):
            lines.append([label, *("-" if m is None else format(m, form) for m in means)])
    return table(lines)


def _time(metrics: list[dict]) -> str:
    lines = [["seconds a step", "mean", "longest"]]
    for stage in SECONDS:
        values = _values(metrics, f"seconds/{stage}")
        if values:
            lines.append([stage, f"{fmean(values):.2f}", f"{max(values):.2f}"])
    if len(lines) == 1:
        return ""
    note = (
        "A stage's time is the wall time in which it had work under way; stages overlap, so they may add up to more "
        "than the step. Overhead is what is left outside sampling, verification, refinement and training: scheduling, "
        "feeding, weight transfer, and GPUs that change hands (rest, wake)."
    )
    return f"{table(lines)}\n\n{note}"


def _bound(recipe: Recipe, metrics: list[dict], facts: list[dict]) -> str:
    """What a step took beside what it takes at least, and what sets that bound; "" where nothing was sampled for it."""
    staleness = recipe.stream.max_staleness
    if recipe.data.source == "corpus" or staleness == "never":
        return ""
    # An adapter comes beside the requests under way, so it waits for none, as `keep` does not.
    in_flight = "keep" if recipe.sync.lora == "adapter" else recipe.sync.in_flight
    steady = bounds.steady(metrics, staleness, recipe.steps)
    steps = _values(steady, "seconds/step")
    s = bounds.of_run(facts, steady)
    if s is None or not steps or not (least := bounds.bound(s, staleness, in_flight)):
        return ""
    work = "S + R + T" if staleness == 0 else f"(S + R + T) / {staleness + 1}"
    formula = work if staleness == 0 else f"max(T, {'S, ' if in_flight == 'drain' else ''}{work})"
    said = (
        f"\n\nA step took {fmean(_values(metrics, 'seconds/step')):.2f} s on average. Between pauses it took "
        f"{median(steps):.2f} s, {median(steps) / least:.2f} times its bound, {formula} = {least:.2f} s: the slowest "
        f"rollout was sampled in S = {s.sample:.2f} s and refined in R = {s.refine:.2f} s, and the learner trained "
        f"for T = {s.train:.2f} s (medians over {len(steps)} steps, without those that had not all of a step's work)."
    )
    binding = bounds.binding(s, staleness, in_flight)
    if binding == "drain":
        keep = bounds.bound(s, staleness, "keep")
        return (
            f"{said} S binds: new weights wait for the slowest rollout. `sync.in_flight=keep` has the bound "
            f"{keep:.2f} s."
        )
    why = {"row": "the work on a row", "train": "the learner"}[binding]
    drained = ", not draining: `sync.in_flight=keep` has the same bound" if staleness and in_flight == "drain" else ""
    return f"{said} What binds is {why}{drained}."


def _verdicts(facts: list[dict]) -> str:
    # Without numbers, which say where a program failed, there are few different verdicts.
    odd = {
        y: Counter(NUMBER.sub("N", f[f"{y}_detail"]) for f in facts if f[f"{y}_detail"] not in ORDINARY)
        for y in ("y_o", "y_r")
    }
    details = sorted(odd["y_o"] | odd["y_r"], key=lambda d: (-odd["y_o"][d] - odd["y_r"][d], d))
    faults = Counter(NUMBER.sub("N", f["fault"]) for f in facts if f["fault"])
    named = "; ".join(f"{inline(why)} ({count})" for why, count in faults.most_common(MAX_VERDICTS))
    bad = f"\n\n{faults.total()} rows could not be made or judged, and did not train: {named}." if faults else ""
    if not details:
        return f"Every response held an answer that could be compared.{bad}"
    lines = [["verdict", "raw", "refined"]]
    lines += [[inline(d), str(odd["y_o"][d]), str(odd["y_r"][d])] for d in details[:MAX_VERDICTS]]
    if len(details) > MAX_VERDICTS:
        rest = [str(sum(odd[y][d] for d in details[MAX_VERDICTS:])) for y in ("y_o", "y_r")]
        lines.append([f"{len(details) - MAX_VERDICTS} others", *rest])
    return f"{table(lines)}{bad}"


def _gap(metrics: list[dict]) -> str:
    means = _values(metrics, "sync/gap_mean")
    most = _values(metrics, "sync/gap_max")
    if not means:
        return ""
    largest = f", {max(most):.1e} at the worst token" if most else ""
    return (
        f"The engine's and the learner's log-probabilities of the sampled tokens at the same weights differ by "
        f"{fmean(means):.1e} on average ({max(means):.1e} in the worst step{largest}). In float32 the average stays "
        "below 1e-3 when weight transfer and templating are right; half precision rounds more."
    )


def _examples(directory: RunDirectory, facts: list[dict]) -> str:
    repaired = [f for f in facts if f["y_o_passed"] is False and f["y_r_passed"]]
    if not repaired:
        return ""
    telling = [f for f in repaired if f["y_o_extracted"] and f["y_o_finish"] != "length"] or repaired
    typical = median(f["y_o_tokens"] + f["y_r_tokens"] for f in telling)
    chosen = sorted(telling, key=lambda f: (abs(f["y_o_tokens"] + f["y_r_tokens"] - typical), f["row"]))[:2]
    columns = ["step", "problem_id", "problem", "answer"]
    columns += ["y_o.text", "y_o.extracted", "y_o.detail", "y_r.text", "y_r.extracted"]
    found = directory.read_rows().to_table(columns, pc.field("row").isin([f["row"] for f in chosen]))
    blocks = [
        side_by_side(
            row["y_o.text"] or "",
            row["y_r.text"] or "",
            *_headings(row),
        )
        for row in found.to_pylist()
    ]
    return f"Of typical length among {len(repaired)} repaired rollouts.\n\n" + "\n\n".join(blocks)


def _headings(row: dict) -> tuple[tuple[str, str], str]:
    """((heading of y_o, heading of y_r), the text above both).

    The headings of a program quote its verdict: what was extracted is the program, which the text shows whole.
    """
    where = f"problem {row['problem_id']}, step {row['step']}]"
    if not row["answer"]:
        return (f"y_o, failed: {row['y_o.detail']}"[:60], "y_r, passed"), f"{row['problem']}\n[{where}"
    headings = f"y_o, failed with {row['y_o.extracted'][:30]!r}", f"y_r, passed with {row['y_r.extracted'][:30]!r}"
    return headings, f"{row['problem']}\n[expected {row['answer']}; {where}"


def _places(directory: RunDirectory) -> str:
    start = json.loads((directory.path / "environment.json").read_text())[-1]
    there = [f"- `{place}`: {what}" for place, what in PLACES.items() if (directory.path / place).exists()]
    listed = "\n".join(there)
    return f"In {code(str(directory.path))}, made by {code(start['command'])}:\n\n{listed}"


def _values(metrics: list[dict], name: str) -> list[float]:
    return [m[name] for m in metrics if m.get(name) is not None]


def _mean(metrics: list[dict], name: str) -> float | None:
    values = _values(metrics, name)
    return fmean(values) if values else None


def _steps(metrics: list[dict]) -> str:
    first, last = metrics[0]["step"], metrics[-1]["step"]
    return str(first) if first == last else f"{first} to {last}"
