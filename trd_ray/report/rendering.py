"""A template of page/ with its values becomes the markup of a panel; every text is escaped, and nothing in it hides."""

import json
from typing import Any

from trd_ray.record.markdown import visible
from trd_ray.report.html_page import templates

LONGEST = 2_000  # characters of a value of the recipe; a longer one loses its middle


def rendered(template: str, **values: Any) -> str:
    return templates().get_template(template).render(**values)


def note(sentence: str) -> str:
    """A sentence in place of what is absent."""
    return rendered("note.html", sentence=sentence)


def shown(value: Any) -> str:
    """A value of a recipe as a person writes it in YAML."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} [... {len(text) - LONGEST} characters ...] {text[-half:]}"


def readable(value: Any) -> Any:
    """JSON-able data whose texts have nothing in them that could hide or reorder text."""
    if isinstance(value, dict):
        return {name: readable(one) for name, one in value.items()}
    if isinstance(value, list):
        return [readable(one) for one in value]
    return visible(value) if isinstance(value, str) else value
