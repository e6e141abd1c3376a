"""A template of page/ with its values becomes the markup of a panel; every value is escaped unless it is markup."""

import json
from typing import Any

from trd_ray.record.markdown import visible
from trd_ray.report.html_page import templates

LONGEST = 2_000  # characters of a value of the recipe; a longer one loses its middle


def rendered(template: str, **values: Any) -> str:
    return templates().get_template(template).render(**values)


def note(sentence: str) -> str:
    """A sentence in place of what is absent."""
    return rendered("note.html", sentence=visible(sentence))


def shown(value: Any) -> str:
    """A value of a recipe as a person writes it in YAML, without what could hide or reorder text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    half = LONGEST // 2
    cut = text if len(text) <= LONGEST else f"{text[:half]} [... {len(text) - LONGEST} characters ...] {text[-half:]}"
    return visible(cut)


def plain(lines: list[list[str]]) -> list[list[str]]:
    """A table's cells without what could hide or reorder text."""
    return [[visible(cell) for cell in line] for line in lines]
