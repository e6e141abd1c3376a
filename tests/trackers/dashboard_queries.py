"""The queries of the Grafana dashboard, and what each asks of Prometheus: names of metrics and of their labels."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

FILE = Path(__file__).parents[2] / "cluster" / "grafana-trd.json"
# A step of a run whose every series has a value, and what its pools do.
STEP = {
    "y_o/passed": 0.25, "y_r/passed": 0.75, "y_o/tokens_mean": 30.0, "y_r/tokens_mean": 20.0, "y_o/truncated": 0.0,
    "y_r/truncated": 0.0, "kl/mean": 0.5, "student/entropy": 1.0, "teacher/entropy": 0.5, "loss": 0.1, "grad_norm": 2.0,
    "lr": 1e-4, "sync/gap_mean": 1e-6, "sync/gap_max": 1e-4, "staleness/mean": 0.5, "staleness/max": 1.0,
    "evaluation/avg": 0.5, "evaluation/pass": 0.75, "rollouts": 16, "trained_rows": 12, "trained_tokens": 700,
    "learner/restarts": 1, "alarm/truncated": 1.0,
}  # fmt: skip
STEP |= {f"seconds/{s}": 1.5 for s in ("step", "wait", "sample", "refine", "verify", "train", "sync", "overhead")}
POOL = {"tokens_per_s": 900.0, "waiting": 3, "running": 4, "busy": 0.75, "engines": 2, "up": 1}


@dataclass(frozen=True)
class Query:
    text: str
    legend: str

    @property
    def metrics(self) -> set[str]:
        return set(re.findall(r"\bray_\w+", self.text))

    @property
    def labels(self) -> set[str]:
        """Those that the query selects or sums by, and those that its legend shows."""
        inside = [name for part in re.findall(r"\{([^}]*)\}", self.text) for name in re.findall(r"(\w+)\s*[=!]", part)]
        by = [name.strip() for part in re.findall(r"\bby \(([^)]*)\)", self.text) for name in part.split(",")]
        return {*inside, *by, *re.findall(r"\{\{(\w+)\}\}", self.legend)}


def dashboard() -> dict[str, Any]:
    return json.loads(FILE.read_text())


def queries() -> list[Query]:
    found = [Query(t["expr"], t["legendFormat"]) for panel in dashboard()["panels"] for t in panel.get("targets", [])]
    variables = [Query(v["query"]["query"], "{{run}}") for v in dashboard()["templating"]["list"]]
    return [*found, *variables]


def series_of(scrape: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Every sample of a scrape by the name that a query calls it by."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(scrape):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def unanswered(scrape: str) -> list[str]:
    """The queries of which a metric is not in the scrape, or has none of the labels that the query names."""
    there = series_of(scrape)
    return [
        query.text
        for query in queries()
        for metric in query.metrics
        if not any(query.labels <= labels.keys() for labels, _ in there.get(metric, []))
    ]
