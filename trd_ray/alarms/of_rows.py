"""Alarms of the rows: how responses end, what verifiers and refinement make of them, and which of them train."""

from trd_ray.alarms import thresholds as t
from trd_ray.alarms.chance import at_least
from trd_ray.alarms.condition import AlarmCondition, found_above, is_above, is_over
from trd_ray.alarms.history import History, Share, StepLine, dropped, trajectories

Y = {"y_o": ("attempts", "sampler"), "y_r": ("refinements", "refiner")}


def _truncated(y: str) -> AlarmCondition:
    def begins(h: History) -> str | None:
        cut = found_above(lambda rows: h.pooled("truncated", y, rows), t.TRUNCATED)
        if cut is None or (y == "y_o" and _exploded(h)):
            return None
        limit = h.around.y_o_limit if y == "y_o" else h.around.y_r_limit
        mute = h.pooled("no_answer", y, cut.n)
        without = f", and {mute.count} hold no answer" if mute.count else ""
        return f"{cut} {Y[y][0]} of {cut.where} are cut at {limit} tokens{without}"

    key = "sampler.max_response_tokens" if y == "y_o" else "{y_r_limits}"
    what = "What is cut fails, and its rest is refined" if y == "y_o" else "A cut text trains, without its end"
    return AlarmCondition(
        f"truncated_{y}",
        f"{what}: the limit is too short for these problems, or the model does not come to an end.",
        f"Raise {key}; if the texts go on after their answer, look at the chat template.",
        begins,
        lambda h: is_over(h.pooled("truncated", y), t.TRUNCATED),
    )


def _mute(h: History, y: str, rows: int = t.WINDOW_ROWS) -> Share:
    """Of the responses that ended by themselves, those that hold no answer."""

    def of(line: StepLine) -> tuple[float | None, int]:
        n = trajectories(line, y)
        mute, cut = line.get(f"{y}/unanswered"), line.get(f"{y}/truncated")
        if mute is None or cut is None:
            return None, 0
        ended = round((1 - cut) * n)
        return (mute * n / ended if ended else None), ended

    return h.counted(of, rows)


def _no_answer(y: str) -> AlarmCondition:
    def begins(h: History) -> str | None:
        mute = found_above(lambda rows: _mute(h, y, rows), t.NO_ANSWER)
        if mute is None:
            return None
        return f"{mute} {Y[y][0]} of {mute.where} that ended by themselves hold no answer that was found"

    return AlarmCondition(
        f"no_answer_{y}",
        "They count as failed, right or wrong: the model is not told how to answer, or answers in another way.",
        "{" + ("solve" if y == "y_o" else "refine") + "_asks}; look at some in rows/.",
        begins,
        lambda h: is_over(_mute(h, y), t.NO_ANSWER),
    )


def _exploded(h: History) -> bool:
    lengths = h.at_start("y_o/tokens_mean"), h.last.get("y_o/tokens_mean")
    cut = h.pooled("truncated", "y_o", t.EXPLODED_ROWS)
    sound = h.at_start("y_o/truncated")
    if sound is None and len(h.lines) > 1:  # in the first steps of a run, the first of them is what there was
        lengths, sound = (h.first[0].get("y_o/tokens_mean"), lengths[1]), h.first[0].get("y_o/truncated")
    if sound is None or lengths[0] is None or lengths[1] is None:
        return False
    grown = lengths[1] >= t.EXPLODED_LENGTH * lengths[0] and sound <= t.SOUND_TRUNCATED
    return grown and cut.n >= t.EXPLODED_ROWS and cut.value >= t.EXPLODED_TRUNCATED


def _explodes(h: History) -> str | None:
    if not _exploded(h):
        return None
    before = h.at_start("y_o/tokens_mean") or h.first[0].get("y_o/tokens_mean")
    cut = h.pooled("truncated", "y_o", t.EXPLODED_ROWS)
    return (
        f"Attempts have grown from {before:.0f} to {h.last.get('y_o/tokens_mean'):.0f} tokens, and {cut} of "
        f"{cut.where} never end by themselves"
    )


def _cut_views(h: History, rows: int = t.WINDOW_ROWS) -> Share:
    def of(line: StepLine) -> tuple[float | None, int]:
        n = trajectories(line, "y_o")
        cut = [count for kind in ("refine", "teacher") if (count := line.get(f"{kind}/cut_rows")) is not None]
        return (max(cut) / n if cut and n else None), n

    return h.counted(of, rows)


def _views_are_cut(h: History) -> str | None:
    cut = found_above(lambda rows: _cut_views(h, rows), t.VIEWS_CUT)
    if cut is None:
        return None
    return f"The prompts of {cut} rows of {cut.where} were cut to fit the refiner or the teacher"


def _none_passed(y: str) -> AlarmCondition:
    def begins(h: History) -> str | None:
        passed = h.pooled("passed", y, t.NONE_PASSED_ROWS)
        explained = is_above(h.pooled("truncated", y), t.TRUNCATED) or is_above(_mute(h, y), t.NO_ANSWER)
        if passed.n < t.NONE_PASSED_ROWS or passed.count or explained:
            return None
        return f"None of {passed.n} {Y[y][0]} of {passed.where} passed"

    harder = "take easier problems" if y == "y_o" else "take a stronger teacher.path or easier problems"
    return AlarmCondition(
        f"none_passed_{y}",
        "Either the problems are too hard, or the verifier compares with the wrong answers or in the wrong way.",
        f"`trd check` shows verdicts on some rows; see whether data.columns names the right answers, or {harder}.",
        begins,
        lambda h: h.pooled("passed", y, t.NONE_PASSED_ROWS).count > 0,
    )


def _all_passed(h: History) -> str | None:
    passed = h.pooled("passed", "y_o", t.ALL_PASSED_ROWS)
    if passed.n < t.ALL_PASSED_ROWS or passed.count < passed.n:
        return None
    return f"All {passed.n} attempts of {passed.where} passed"


def _harms(h: History) -> str | None:
    broken, repaired = h.cells()
    changed = broken.count + repaired.count
    if broken.count <= repaired.count or at_least(broken.count, changed, 0.5) >= t.ALPHA:
        return None
    return (
        f"Refinement breaks more than it repairs: of {broken.n} rollouts of {broken.where} {broken.count} passed only "
        f"before it and {repaired.count} only after"
    )


def _harms_no_more(h: History) -> bool:
    broken, repaired = h.cells()
    return broken.count <= repaired.count


def _leaks(h: History, rows: int = t.WINDOW_ROWS) -> Share:
    return h.counted(lambda line: (line.get("support/leaks"), trajectories(line, "y_r")), rows)


def _leak(h: History) -> str | None:
    leaks = found_above(lambda rows: _leaks(h, rows), t.LEAK)
    if leaks is None:
        return None
    return f"{leaks} refinements of {leaks.where} mention the reference or the attempt, which the student never sees"


def _times_longer(h: History) -> float | None:
    """Mean length of refinements over that of attempts, over rows enough."""
    rows, sums = 0, {"y_o": 0.0, "y_r": 0.0}
    for line in reversed(h.newest(t.WINDOW_STEPS)):
        lengths = {y: line.get(f"{y}/tokens_mean") for y in sums}
        if None not in lengths.values():
            n = trajectories(line, "y_r")
            rows += n
            for y in sums:
                sums[y] += n * (lengths[y] or 0.0)
        if rows >= t.LONGER_ROWS:
            return sums["y_r"] / sums["y_o"] if sums["y_o"] else None
    return None


def _longer(h: History) -> str | None:
    times = _times_longer(h)
    if times is None or times < t.LONGER:
        return None
    return f"Refinements are {times:.1f} times as long as the attempts that they rewrite"


def _is_all_dropped(h: History) -> bool:
    rows = h.last.get("rollouts") or 0  # those of `trd refine` train in no step, and none is dropped
    return rows >= t.DROPPED_ROWS and sum(count for _, count in dropped(h.last)) >= rows


def _drops_all(h: History) -> str | None:
    if not _is_all_dropped(h):
        return None
    why = ", ".join(f"{reason} ({count})" for reason, count in sorted(dropped(h.last), key=lambda one: -one[1]))
    return f"None of {h.last.get('rollouts'):.0f} rows of step {h.last.step} was trained on: {why}"


def _bad_rows(h: History) -> str | None:
    most = h.around.max_bad_rows
    if not h.around.samples:  # those of a corpus were counted when it was made, and end no run
        return None
    if h.bad_rows < max(t.BAD_ROWS_LEAST, t.BAD_ROWS * most):
        return None
    return f"{h.bad_rows} rows could not be made or judged, and more than {most} end the run"


def _missed_deadlines(h: History, rows: int = t.WINDOW_ROWS) -> Share:
    def of(line: StepLine) -> tuple[float | None, int]:
        n = sum(trajectories(line, y) for y in Y if line.get(f"{y}/passed") is not None)
        return ((line.get("verify/deadlines") or 0) / n if n else None), n

    return h.counted(of, rows)


def _verifier_is_late(h: History) -> str | None:
    missed = found_above(lambda rows: _missed_deadlines(h, rows), t.VERIFIER_DEADLINES)
    if missed is None:
        return None
    return f"{missed} verdicts of {missed.where} missed their deadline, and so did not pass"


CONDITIONS = [
    _truncated("y_o"),
    _truncated("y_r"),
    _no_answer("y_o"),
    _no_answer("y_r"),
    AlarmCondition(
        "length_explosion",
        "The student no longer samples its end token: it repeats itself, and trains on what repeats.",
        "Stop; go on from an earlier checkpoint in a new run with a lower learner.lr, and see whether refinements end "
        "(y_r/truncated). A longer limit does not help.",
        _explodes,
        lambda h: h.pooled("truncated", "y_o", t.EXPLODED_ROWS).value < t.EXPLODED_END,
    ),
    AlarmCondition(
        "views_cut",
        "The refiner does not see the end of the attempt, or the teacher not all of the reference.",
        "Raise refiner.max_prompt_tokens, or lower sampler.max_response_tokens.",
        _views_are_cut,
        lambda h: is_over(_cut_views(h), t.VIEWS_CUT),
    ),
    _none_passed("y_o"),
    _none_passed("y_r"),
    AlarmCondition(
        "all_passed",
        "There is nothing left to learn from these problems, or the verifier passes everything.",
        "Take harder problems, or end the run here; `trd check` shows whether wrong answers fail.",
        _all_passed,
        lambda h: (passed := h.pooled("passed", "y_o", t.ALL_PASSED_ROWS)).count < passed.n,
    ),
    AlarmCondition(
        "refinement_harms",
        "What trains is worse than what was sampled.",
        "Look at prompts.refine and {y_r_limits}, take a stronger teacher.path, or set "
        "train.when_refinement_fails=raw_if_passed.",
        _harms,
        _harms_no_more,
    ),
    AlarmCondition(
        "refinement_leaks",
        "The student learns to mention what it will not be shown.",
        "Let prompts.refine ask for the rewritten solution alone; refiner.n=4 with refiner.select=nearest takes the "
        "likeliest under the student.",
        _leak,
        lambda h: is_over(_leaks(h), t.LEAK),
    ),
    AlarmCondition(
        "refinement_longer",
        "A rewrite is shorter than what it rewrites: this teacher explains itself, or its thinking mode is on.",
        "Set teacher.chat_template_kwargs={{enable_thinking: false}} where the template knows it, or let "
        "prompts.refine ask for the solution alone.",
        _longer,
        lambda h: (times := _times_longer(h)) is not None and times < t.LONGER_END,
    ),
    AlarmCondition(
        "all_dropped",
        "Sampling and refinement were paid for, and nothing was learned.",
        "Set train.when_refinement_fails=train, train.subset=all, {near}or help the refiner (prompts.refine, "
        "refiner.n).",
        _drops_all,
        lambda h: not _is_all_dropped(h),
    ),
    AlarmCondition(
        "bad_rows",
        "What breaks them is in the data, the verifier or a machine, and comes again.",
        "Repair what events.jsonl says of each, or raise data.max_bad_rows.",
        _bad_rows,
        lambda h: False,  # the count only rises
    ),
    AlarmCondition(
        "verifier_deadlines",
        "Right answers count as wrong where the verifier has too little time or too few CPUs.",
        "Raise the limit that its verdicts name (verify.timeout_s, for code verify.time_limit_s, for a function of "
        "your own verify.deadline_s), or lower verify.max_tasks on a busy machine.",
        _verifier_is_late,
        lambda h: is_over(_missed_deadlines(h), t.VERIFIER_DEADLINES),
    ),
]
