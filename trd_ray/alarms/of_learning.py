"""Alarms of what is learned: numbers that are not finite, spikes, collapse, engine against learner, held-out scores."""

from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

from trd_ray.alarms import thresholds as t
from trd_ray.alarms.condition import AlarmCondition
from trd_ray.alarms.history import History

NAMES = {
    "loss": "the loss",
    "kl/mean": "the KL",
    "grad_norm": "the gradient's norm",
    "student/nll": "the student's NLL",
}


def _not_finite(h: History) -> str | None:
    found = [NAMES[name] for name in h.odd(*NAMES)]
    if weights := h.last.get("weights_not_finite"):
        found.append(f"{weights:.0f} numbers of the weights")
    skipped = h.last.get("skipped_updates") or 0
    if not found and not skipped:
        return None
    what = f"Not finite in step {h.last.step}: {', '.join(found)}" if found else f"In step {h.last.step}"
    made = (h.last.get("updates") or 0) + skipped
    return what + (f"{';' if found else ''} {skipped:.0f} of {made:.0f} updates were skipped" if skipped else "")


def _kl_spike(h: History) -> str | None:
    kl, before = h.last.get("kl/mean"), h.before("kl/mean", t.SPIKE_STEPS)
    if kl is None or not before or kl < max(t.KL_SPIKE * median(before), t.KL_LEAST):
        return None
    return (
        f"The KL of step {h.last.step} is {kl:.3g} a token, {_times(kl, median(before))} the median of the steps before"
    )


def _kl_is_calm(h: History) -> bool:
    kl, before = h.last.get("kl/mean"), h.before("kl/mean", t.SPIKE_STEPS)
    return kl is not None and (not before or kl < max(t.KL_SPIKE_END * median(before), t.KL_LEAST))


def _gradient_spike(h: History) -> str | None:
    norm, before = h.last.get("grad_norm"), h.before("grad_norm", t.SPIKE_STEPS)
    if norm is None or not before or norm < max(t.GRADIENT_SPIKE * median(before), h.around.grad_clip):
        return None
    return (
        f"The gradient of step {h.last.step} has the norm {norm:.3g}, {_times(norm, median(before))} the median of the "
        f"steps before; it is clipped to {h.around.grad_clip:g}"
    )


def _gradient_is_calm(h: History) -> bool:
    norm, before = h.last.get("grad_norm"), h.before("grad_norm", t.SPIKE_STEPS)
    return norm is not None and (not before or norm < max(t.GRADIENT_SPIKE_END * median(before), h.around.grad_clip))


def _kl_rises(h: History) -> str | None:
    newest = h.values("kl/mean", t.KL_RISES_STEPS)
    if not newest or median(newest) < max(t.KL_RISES * h.lowest_kl, t.KL_LEAST):
        return None
    return (
        f"The KL of the last {t.KL_RISES_STEPS} steps is {median(newest):.3g} a token, their median, and was "
        f"{h.lowest_kl:.3g} before"
    )


def _kl_rises_no_more(h: History) -> bool:
    newest = h.values("kl/mean", t.KL_RISES_STEPS)
    return bool(newest) and median(newest) < max(t.KL_RISES_END * h.lowest_kl, t.KL_LEAST)


def _entropies(h: History) -> tuple[float, float, float] | None:
    """Of student and teacher over the last steps, and of the student at the start."""
    student, teacher = (h.values(f"{who}/entropy", t.ENTROPY_STEPS) for who in ("student", "teacher"))
    start = h.at_start("student/entropy")
    return (median(student), median(teacher), start) if student and teacher and start else None


def _collapses(h: History) -> str | None:
    found = _entropies(h)
    if found is None:
        return None
    student, teacher, start = found
    surer = student < t.ENTROPY_OF_TEACHER * teacher and student < t.ENTROPY_OF_START * start
    if not surer and not (h.around.teacher_follows and student < t.ENTROPY_OF_START_ALONE * start):
        return None
    return (
        f"The student's entropy is {student:.2g} nats a token, after {start:.2g} in the first steps; the teacher's is "
        f"{teacher:.2g}"
    )


def _collapses_no_more(h: History) -> bool:
    found = _entropies(h)
    if found is None:
        return False
    student, teacher, start = found
    return student > 2 * t.ENTROPY_OF_TEACHER * teacher or student > 2 * t.ENTROPY_OF_START * start


def _gap(h: History) -> float | None:
    """The median of the last probes; None where there were not so many."""
    found = [gap for line in h.lines if (gap := line.get("sync/gap_mean")) is not None][-t.GAP_STEPS :]
    return median(found) if len(found) == t.GAP_STEPS else None


def _gap_is_wide(h: History) -> str | None:
    limit, now, usual = t.GAP[h.around.precision], h.last.get("sync/gap_mean"), _gap(h)
    if now is None or not (now > t.GAP_AT_ONCE * limit or (usual is not None and usual > limit)):
        return None
    return (
        f"Engine and learner differ by {now:.2g} in the log-probabilities of the same tokens at step {h.last.step}; in "
        f"{h.around.precision} they should stay below {limit:g}"
    )


def _gap_is_closed(h: History) -> bool:
    usual, now = _gap(h), h.last.get("sync/gap_mean")
    return usual is not None and now is not None and max(usual, now) < t.GAP_END * t.GAP[h.around.precision]


def _stale(h: History) -> str | None:
    bound = h.around.max_staleness
    if not h.around.samples or bound is None or bound < t.STALE_FROM:
        return None
    stale = h.values("staleness/mean", t.STALE_STEPS)
    waits = [_waited(line.get("seconds/wait"), line.get("seconds/step")) for line in h.newest(t.STALE_STEPS)]
    if not stale or min(stale) < bound - t.STALE_WITHIN or max(waits) > t.STALE_WAIT:
        return None
    return (
        f"Rows were {fmean(stale):.1f} versions old in each of the last {t.STALE_STEPS} steps, which is the bound, and "
        "the learner never waited for one"
    )


def _stale_no_more(h: History) -> bool:
    stale, bound = h.last.get("staleness/mean"), h.around.max_staleness
    return stale is not None and bound is not None and stale < bound - 2 * t.STALE_WITHIN


def _waited(wait: float | None, step: float | None) -> float:
    return wait / step if wait is not None and step else 1.0


def _held_out_falls(h: History) -> str | None:
    """A score below an earlier one, though the KL on the training rows fell meanwhile."""
    for score in [one for one in h.scores if not one.get("of")][-1:]:  # those of evaluation.sets come after it
        best = score.get("best")
        if not isinstance(best, Mapping):
            return None
        value, _, high = best["change"]
        # The best of several was chosen for being high, so the interval is widened.
        if value is None or high is None or value + t.FALL_WIDER * (high - value) >= 0 or not _kl_fell(h, best):
            return None
        return (
            f"The held-out Avg@k of {score['name']} is {100 * score['avg']:.1f}%, {-100 * value:.1f} points below "
            f"{best['name']}, while the KL in training fell"
        )
    return None


def _kl_fell(h: History, best: Mapping[str, Any]) -> bool:
    steps = sorted(h.kl)
    then = [h.kl[step] for step in steps if step <= max(best["step"], steps[0] + t.FALL_STEPS - 1)][-t.FALL_STEPS :]
    now = [h.kl[step] for step in steps][-t.FALL_STEPS :]
    return bool(then) and fmean(now) < fmean(then)


def _held_out_is_back(h: History) -> bool:
    new = [score for score in h.events("evaluation") if not score.get("of")]
    return bool(new) and _held_out_falls(h) is None


def _lost_guards(h: History) -> dict[str, Mapping[str, Any]]:
    """The newest score of each guard that is lost."""
    newest = {score["of"]: score for score in h.scores if score.get("of")}
    return {name: score for name, score in newest.items() if score.get("lost")}


def _guard_lost(h: History) -> str | None:
    said = [str(score.get("lost_said") or f"The guard {name} is lost.") for name, score in _lost_guards(h).items()]
    return " ".join(said) or None


def _times(value: float, usual: float) -> str:
    return f"{value / usual:.0f} times" if usual else "far above"


CONDITIONS = [
    AlarmCondition(
        "not_finite",
        "An update that is not finite is left out; three steps of nothing else end the run.",
        "Lower learner.lr, and look at the rows of the step in rows/; loss.token_clip bounds what one token adds.",
        _not_finite,
        lambda h: _not_finite(h) is None,
    ),
    AlarmCondition(
        "kl_spike",
        "Rows of another kind, or an update that broke the student.",
        "Look at the step's rows (`trd show`); if it comes again, lower learner.lr.",
        _kl_spike,
        _kl_is_calm,
    ),
    AlarmCondition(
        "kl_rises",
        "The student moves away from its teacher for many steps.",
        "Lower learner.lr; with teacher.follow=ema or live the teacher moves too: try frozen.",
        _kl_rises,
        _kl_rises_no_more,
    ),
    AlarmCondition(
        "gradient_spike",
        "The clip bounds the step, but its direction is that of few tokens.",
        "Look at the step's rows; if it comes again, lower learner.lr or set loss.token_clip.",
        _gradient_spike,
        _gradient_is_calm,
    ),
    AlarmCondition(
        "entropy_collapse",
        "The student is surer than its teacher and says one thing only: Pass@k falls while Avg@k may still rise.",
        "Go on from an earlier checkpoint in a new run with a lower learner.lr or fewer steps; "
        "loss.divergence=forward_kl keeps more of what the teacher holds possible.",
        _collapses,
        _collapses_no_more,
    ),
    AlarmCondition(
        "engine_gap",
        "The engines sample with other weights, another template or in another way than the learner trains: do not "
        "trust the run.",
        "With learner.dtype=float32 and sampler.dtype=float32 a right run shows less than 1e-3; see sampler.extra, "
        "sync.backend, and whether the model is one that both sides compute alike.",
        _gap_is_wide,
        _gap_is_closed,
    ),
    AlarmCondition(
        "staleness_at_bound",
        "Sampling is as far ahead as it may be and gains nothing by it: rows only grow old.",
        "Lower stream.max_staleness, or give the learner more: learner.workers.",
        _stale,
        _stale_no_more,
    ),
    AlarmCondition(
        "held_out_falls",
        "The student fits its training rows and loses elsewhere.",
        "Fewer steps, a lower learner.lr or more problems; checkpoint.best=evaluation/avg keeps the best checkpoint.",
        _held_out_falls,
        _held_out_is_back,
    ),
    AlarmCondition(
        "guard_lost",
        "The student has lost what it could do before training, and chance does not explain it.",
        "Lower learner.lr or steps, mix problems of its kind into data.path, or take an earlier checkpoint.",
        _guard_lost,
        lambda h: not _lost_guards(h),
        told_elsewhere=True,
    ),
]
