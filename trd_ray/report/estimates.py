"""An estimate as comparison.json holds it, as text in percent."""

from typing import Any


def in_percent(e: dict[str, Any] | None, signed: bool = False) -> str:
    """ "" for none; the interval is left out where there is none."""
    if e is None:
        return ""
    sign = "+" if signed else ""
    if e["low"] is None:
        return f"{100 * e['value']:{sign}.1f}"
    return f"{100 * e['value']:{sign}.1f} [{100 * e['low']:{sign}.1f}, {100 * e['high']:{sign}.1f}]"
