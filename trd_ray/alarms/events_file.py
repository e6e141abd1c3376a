"""The events that a run appends to its events.jsonl, as they come: each is read once."""

import contextlib
import json
from pathlib import Path
from typing import Any


class NewEvents:
    """From the end that the file has now."""

    def __init__(self, directory: Path):
        self._place = directory / "events.jsonl"
        self._read = self._place.stat().st_size if self._place.exists() else 0

    def read(self) -> list[dict[str, Any]]:
        """The whole lines since the last call; damaged ones are left out."""
        found: list[dict[str, Any]] = []
        with contextlib.suppress(OSError), open(self._place, "rb") as file:
            file.seek(self._read)
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.splitlines():
                with contextlib.suppress(ValueError):
                    one = json.loads(line)
                    found += [one] if isinstance(one, dict) else []
        return found
