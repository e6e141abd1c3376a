"""A section of the page: what it is called, what it shows, and the data that its script draws."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Panel:
    name: str  # id of the section and of its script, trd.panels[name]; letters and dashes
    title: str  # its heading
    explains: str  # one sentence under the heading
    html: str = ""  # trusted markup, made by Jinja2 with autoescape; "" where the script draws all
    data: Any = None  # JSON-able, read by the script; nothing is drawn from it as markup
