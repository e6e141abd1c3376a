"""The page that `trd check` prints: sections of named lines, and views cut to what fits a terminal.

title, [(section, [(name, text)])]  ->  section()  ->  text
ShownView                           ->  excerpt()  ->  its first and last lines
"""

from collections.abc import Sequence

from trd_ray.check.shown_views import ShownView

LINE_CHARACTERS = 116
HEAD_LINES, TAIL_LINES = 4, 4
INDENT = "  "


def section(title: str, lines: Sequence[tuple[str, str]]) -> str:
    """Names in one column, what is said of them in another; a name that repeats is written once."""
    width = max(len(name) for name, _ in lines) + 2
    names = [name if i == 0 or lines[i - 1][0] != name else "" for i, (name, _) in enumerate(lines)]
    told = [f"{INDENT}{name.ljust(width)}{text}".rstrip() for name, (_, text) in zip(names, lines, strict=True)]
    return "\n".join([title, *told])


def whole(view: ShownView) -> str:
    return "\n".join([str(view), *(f"{INDENT}| {line}" for line in view.text.split("\n"))])


def excerpt(view: ShownView) -> str:
    lines = view.text.split("\n")
    most = HEAD_LINES + TAIL_LINES
    if len(lines) > most + 1:
        left_out = len(lines) - most
        lines = [*lines[:HEAD_LINES], f"[... {left_out} lines ...]", *lines[-TAIL_LINES:]]
    return "\n".join([f"{INDENT}{view}", *(f"{INDENT}| {_cut(line)}" for line in lines)])


def _cut(line: str) -> str:
    if len(line) <= LINE_CHARACTERS:
        return line
    half = LINE_CHARACTERS // 2 - 2
    return f"{line[:half]} ... {line[-half:]}"
