"""Which run of a tracker is this run's, over all of its starts: a small file in the run directory.

    RUN/trackers/wandb.json  =  {"id": "...", "where": "a project", "step": 7}

A resumed run goes on with the tracker's run of that id. `step` is the last one that the tracker has: a step that is
done again after a crash is not given twice, since neither W&B nor MLflow can take a point back.
"""

import json
import os
from pathlib import Path

FOLDER = "trackers"


class KeptRun:
    def __init__(self, directory: Path, tracker: str):
        self.file = directory / FOLDER / f"{tracker}.json"
        self.id = ""
        self.where = ""
        self.step = 0

    def find(self, where: str) -> bool:
        """Whether the tracker has a run of this run directory in `where`, such as a project."""
        try:
            tree = json.loads(self.file.read_text())
            found = str(tree["id"]), str(tree["where"]), int(tree["step"])
        except (OSError, ValueError, KeyError, TypeError):
            found = "", "", 0
        if not found[0] or found[1] != where:
            return False
        self.id, self.where, self.step = found
        return True

    def begin(self, new_id: str, where: str) -> None:
        """From here on it is another run of the tracker, which has no step yet."""
        self.id = new_id
        self.where = where
        self.has(0)

    def has(self, step: int) -> None:
        """The tracker has this step, and all before it that it will ever have."""
        self.step = step
        self.file.parent.mkdir(exist_ok=True)
        temporary = self.file.with_name(f".{self.file.name}.tmp")
        temporary.write_text(json.dumps({"id": self.id, "where": self.where, "step": self.step}))
        os.replace(temporary, self.file)
