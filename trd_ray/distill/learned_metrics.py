"""What a step of the learner is told by: sums over the tokens of all ranks become metrics.

    sums by the names of head.STATISTICS, how many tokens  ->  learned_metrics()  ->  metrics of the step

Pure.
"""

from collections.abc import Mapping

from trd_ray.token_values import perplexity

# What `Learner.step` measures.
METRICS = (
    *("loss", "kl/mean", "kl/row_mean", "kl/max", "student/nll", "teacher/nll", "student/entropy", "teacher/entropy"),
    *("student/ppl", "teacher/ppl", "teacher/onset_mass", "trained_tokens", "grad_norm", "lr", "updates"),
    *("skipped_updates", "weights_not_finite"),
)
# Those that a step lacks whose loss has no teacher.
OF_TEACHER = ("kl/mean", "kl/row_mean", "kl/max", "teacher/nll", "teacher/ppl", "teacher/entropy", "teacher/onset_mass")


def learned_metrics(
    sums: Mapping[str, float], *, tokens: float, loss: float, row_kl: float, kl_max: float, has_teacher: bool
) -> dict[str, float]:
    """`row_kl` is the mean of the trajectories' mean KL, `loss` what was minimised."""
    mean = {name: total / max(1.0, tokens) for name, total in sums.items()}
    found = {
        "loss": loss,
        "kl/mean": mean["kl"],
        "kl/row_mean": row_kl,
        "kl/max": kl_max,
        "student/nll": mean["student_nll"],
        "teacher/nll": mean["teacher_nll"],
        "student/ppl": perplexity(mean["student_nll"]),
        "teacher/ppl": perplexity(mean["teacher_nll"]),
        "student/entropy": mean["student_entropy"],
        "teacher/entropy": mean["teacher_entropy"],
        "teacher/onset_mass": mean["teacher_mass"],
        "trained_tokens": tokens,
    }
    return {name: value for name, value in found.items() if has_teacher or name not in OF_TEACHER}
