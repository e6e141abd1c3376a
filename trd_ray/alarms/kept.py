"""alarms.json in a run directory: the alarms of the run, those that are over too, the newest last.

[{"name": "kl_spike", "since_step": 12, "until_step": null, "sentence": ..., "means": ..., "do": ...}, ...]
"""

import json
from pathlib import Path
from typing import Any

from trd_ray.files import write_atomically

FILE = "alarms.json"
KEYS = ("name", "since_step", "until_step", "sentence", "means", "do")


def read(directory: Path | str) -> list[dict[str, Any]]:
    """The alarms of a run; none where nothing was written, or nothing that can be read."""
    try:
        found = json.loads((Path(directory) / FILE).read_text())
    except (OSError, ValueError):
        return []
    return (
        [one for one in found if isinstance(one, dict) and one.keys() >= set(KEYS)] if isinstance(found, list) else []
    )


def write(directory: Path, alarms: list[dict[str, Any]]) -> None:
    write_atomically(directory / FILE, json.dumps(alarms, indent=1))
