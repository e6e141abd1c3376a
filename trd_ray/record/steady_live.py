"""A live panel that neither flickers nor costs what it need not: drawn only when it has changed, and in one piece.

    get_renderable()  ->  lines  ->  as before?  ->  nothing
                                 ->  other lines ->  begin (mode 2026), the panel, end

A terminal that knows mode 2026 shows what stands between begin and end at once. Others ignore both.
"""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.segment import Segment, Segments


class SteadyLive(Live):
    """A panel that is drawn only when it has changed, in one piece where the terminal knows how (mode 2026)."""

    _drawn: tuple[Any, list[list[Segment]]] | None = None  # the size of the terminal, and the lines

    def refresh(self) -> None:
        with self._lock:
            if self._started:
                lines = self.console.render_lines(self.get_renderable(), pad=False)
                if self._drawn == (self.console.size, lines):
                    return
                self._drawn = self.console.size, lines
            super().refresh()

    @property
    def renderable(self) -> RenderableType:
        return Rendered(self._drawn[1]) if self._started and self._drawn else self.get_renderable()

    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        found = super().process_renderables(renderables)
        if not self.console.is_terminal or self.console.is_jupyter:
            return found
        begin, end = (Segments([Segment(f"\x1b[?2026{how}", None, [])]) for how in "hl")
        return [begin, *found, end]


class Rendered:
    """Lines that were made before."""

    def __init__(self, lines: list[list[Segment]]):
        self.lines = lines

    def __rich_console__(self, console: Console, options: Any) -> Iterable[Any]:
        for pieces in self.lines:
            yield from pieces
            yield Segment.line()


class Within:
    """A renderable in a width of its own."""

    def __init__(self, shown: RenderableType, width: int):
        self.shown = shown
        self.width = width

    def __rich_console__(self, console: Console, options: Any) -> Iterable[Any]:
        yield from console.render(self.shown, options.update_width(min(self.width, options.max_width)))
