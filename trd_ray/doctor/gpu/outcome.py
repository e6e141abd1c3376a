"""What came of a part: pass, fail or skipped, with its figures; and the exceptions by which a part says so."""

from collections.abc import Mapping
from dataclasses import dataclass, field

PASS, FAIL, SKIPPED = "pass", "fail", "skipped"

Figures = dict[str, float | str]


class PartFailed(Exception):
    """What was tried did not do what it must; the message is one sentence. `figures` are those measured until then."""

    def __init__(self, sentence: str, figures: Mapping[str, float | str] | None = None):
        super().__init__(sentence)
        self.figures = dict(figures or {})


class PartSkipped(Exception):
    """This machine lacks what the part needs; the message says what."""


@dataclass(frozen=True)
class PartOutcome:
    part: str
    state: str
    why: str = ""  # one sentence; "" for a pass
    figures: Figures = field(default_factory=dict)
    seconds: float = 0.0
    machine: str = ""  # cards, driver and commit that it was measured with

    @property
    def said(self) -> str:
        numbers = ", ".join(f"{name} {shown(value)}" for name, value in self.figures.items())
        return "; ".join(filter(None, [self.why, numbers]))


def shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if value == 0 or 0.001 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.1e}"
