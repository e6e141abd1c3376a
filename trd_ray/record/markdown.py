"""Markdown that hostile text cannot break out of: tables of plain cells, and two texts side by side in a fence."""

import io
import re
import unicodedata

WIDTH = 118  # columns for two texts side by side
MAX_CHARS = 2400  # a longer text loses its middle

_SPECIAL = re.compile(r"([\\`*_\[\]<>&|~#!])")


def inline(text: str) -> str:
    """Any text as one line of plain Markdown text, fit for a table cell."""
    return _SPECIAL.sub(r"\\\1", " ".join(visible(text).split()))


def code(text: str) -> str:
    """Any text as inline code."""
    content = " ".join(visible(text).split())
    fence = _fence(content, 1)
    pad = " " if "`" in content else ""
    return f"{fence}{pad}{content}{pad}{fence}"


def table(lines: list[list[str]]) -> str:
    """A table of a header and rows. The first column is aligned left, the others right; cells are Markdown already."""
    header, *body = [f"| {' | '.join(line)} |" for line in lines]
    rule = "|:---|" + "---:|" * (len(lines[0]) - 1)
    return "\n".join([header, rule, *body])


def side_by_side(left: str, right: str, titles: tuple[str, str], above: str) -> str:
    """Two texts in columns, in a fenced block that neither can end: its fence is longer than any run of backticks.

    The columns have a fixed width, so the block reads the same in a terminal and on a page.
    """
    # These are imported here, since the rest of the module serves where nothing is installed, as `trd doctor` does.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = Table(box=box.SQUARE, show_lines=False, width=WIDTH)
    for title in titles:
        columns.add_column(Text(title), ratio=1, overflow="fold")
    columns.add_row(Text(_middle_out(visible(left))), Text(_middle_out(visible(right))))
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(Text(_middle_out(visible(above))), overflow="fold")
    console.print(columns)
    content = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    fence = _fence(content, 3)
    return f"{fence}text\n{content}\n{fence}"


def visible(text: str) -> str:
    """The text with U+FFFD for each character that would move the cursor, or hide or reorder text."""
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    if text.replace("\n", "").isprintable():  # nearly every text, and no look at each character
        return text
    return "".join(c if c == "\n" or not _hidden(c) else "\ufffd" for c in text)


def _fence(content: str, at_least: int) -> str:
    return "`" * max(at_least, 1 + max((len(run) for run in re.findall("`+", content)), default=0))


def _hidden(c: str) -> bool:
    return unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _middle_out(text: str) -> str:
    if len(text) <= MAX_CHARS:
        return text
    half = MAX_CHARS // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
