"""What the learner found at a token, as a shade behind its text. The scales are fixed, so that rows can be compared.

"kl", 0.7  ->  level_of()  ->  4, of 6  ->  STYLES[4]
"""

import math
from dataclasses import dataclass

from rich.text import Text


@dataclass(frozen=True)
class TokenScale:
    column: str  # of rows.SCORED
    title: str
    short: str
    steps: tuple[float, ...]  # where each shade begins


SCALES = {
    "kl": TokenScale("kl", "KL of a token in nats", "KL", (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)),
    "student": TokenScale("student_nll", "student's NLL of a token in nats", "student", (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)),
    "teacher": TokenScale("teacher_nll", "teacher's NLL of a token in nats", "teacher", (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)),
    "onset": TokenScale(
        "onset", "teacher's probability of a word that begins a doubt", "onset", (0.001, 0.01, 0.05, 0.1, 0.3, 0.6)
    ),
}
# By hue rather than by brightness, since nobody can tell whether a terminal is light or dark.
_BACKGROUNDS = ("#8c9bb0", "#b0b070", "#ccb846", "#e0963c", "#e0693c", "#d2323c")
STYLES = ("", *(f"#000000 on {color}" for color in _BACKGROUNDS[:-1]), f"#ffffff on {_BACKGROUNDS[-1]}")


def level_of(scale: TokenScale, value: float | None) -> int:
    """0 for what is below the first shade, or not finite."""
    if value is None or not math.isfinite(value):
        return 0
    return sum(value >= step for step in scale.steps)


def legend(scale: TokenScale) -> Text:
    parts = [f"{scale.title}: below {scale.steps[0]:g}"]
    shades = [(f" {step:g} ", style) for step, style in zip(scale.steps, STYLES[1:], strict=True)]
    return Text.assemble(*parts, " ", *(part for shade in shades for part in (shade, " ")), "and more")
