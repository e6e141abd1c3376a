"""The one file of a report: panels become an HTML page that needs no network and runs no script but its own.

    panels, page/report.html, page/*.js, page/*.css  ->  html_page()  ->  text of report.html
    data of a panel  ->  JSON -> gzip -> base64  ->  <script type="application/octet-stream" id="data-NAME">

- Every text is escaped by Jinja2, or lies packed in base64 and is drawn by a script as text, never as markup.
- The Content-Security-Policy names the page's own scripts and styles by their hashes. It forbids everything else: other
  scripts, requests, frames, forms, and the attributes `style` and `on...`.
- A panel's script registers itself as trd.panels[name]; page/shell.js calls it once its section is near.
"""

import base64
import gzip
import hashlib
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trd_ray.record.markdown import visible
from trd_ray.report.panel import Panel

PAGE = Path(__file__).parent / "page"
GENERATOR = "trd_ray report"  # by which a page of ours is known
FIRST = ("theme.js",)  # in the head: the page is never seen in the wrong colours
SCRIPTS = (
    "vendor/uplot/uPlot.iife.min.js",
    *("shell.js", "charts.js", "curves.js", "spending.js", "ledger.js", "lanes.js", "diagnosed.js"),
    *(f"samples_{part}.js" for part in ("text", "diff", "list", "filter", "detail")),
    "samples.js",
)
STYLES = ("vendor/uplot/uPlot.min.css", "shell.css", "panels.css", "samples.css")
LAST = ("start.js",)
LEVEL = 6  # of gzip: 9 takes five times as long for a percent or two


def html_page(title: str, panels: list[Panel], subtitle: str = "") -> str:
    """The page of these panels, in their order. The title is of a user's making: it is escaped."""
    first, scripts, last = (_read(names) for names in (FIRST, SCRIPTS, LAST))
    styles = _read(STYLES)
    return (
        templates()
        .get_template("report.html")
        .render(
            generator=GENERATOR,
            title=visible_line(title),
            subtitle=visible_line(subtitle),
            panels=panels,
            packed={panel.name: packed(panel.data) for panel in panels if panel.data is not None},
            first=first,
            scripts=[*scripts, *last],
            styles=styles,
            policy=policy([*first, *scripts, *last], styles),
        )
    )


@cache
def templates() -> Environment:
    """The templates of the page. Each text that they get is made visible and escaped, unless it is marked as safe."""
    return Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
    )  # fmt: skip


def policy(scripts: list[str], styles: list[str]) -> str:
    """The Content-Security-Policy that allows these texts, pictures that the page itself holds, and nothing else."""
    allowed = {"script-src": scripts, "style-src": styles}
    parts = ["default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"]
    parts += [f"{kind} {' '.join(map(_hash, texts))}" for kind, texts in allowed.items()]
    return "; ".join([*parts, "require-trusted-types-for 'script'", "trusted-types 'none'"])


def packed(data: Any) -> str:
    """JSON as base64 of gzip. What JSON has no number for is null; a lone surrogate is a question mark."""
    text = json.dumps(_finite(data), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), LEVEL, mtime=0)).decode()


def visible_line(text: str) -> str:
    """Any text as one line that UTF-8 can hold, without what could hide or reorder text."""
    return " ".join(visible(text).split())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(names: tuple[str, ...]) -> list[str]:
    """The texts of the files that there are, as an HTML parser reads them: with line feeds alone."""
    found = [PAGE / name for name in names if (PAGE / name).is_file()]
    return [file.read_text(encoding="utf-8").replace("\r\n", "\n") for file in found]
