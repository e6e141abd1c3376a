"""The Grafana dashboard of the run's series, made here so that no query names a series that is not there.

    python -m trd_ray.trackers.grafana > cluster/grafana-trd.json

The form is Grafana's classic dashboard model, which every version since 8 imports. Its data source is asked for at the
import, and its variable `run` lists what `ray_trd_step` has.
"""

import json
from typing import Any

from trd_ray.trackers.ray_series import SERIES, name_in_prometheus

SOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
WIDTH, HEIGHT = 8, 8  # of a panel, of the 24 columns of a row


def _of_run(series: str) -> str:
    return f'{name_in_prometheus(series)}{{run=~"$run"}}'


def _rate(series: str) -> str:
    return f"rate({_of_run(series)}[$__rate_interval])"


def _legend(series: str) -> str:
    tag = SERIES[series].tag
    return "{{run}}" + (f" {{{{{tag}}}}}" if tag else "")


# A row of the dashboard -> its charts: title, unit of Grafana, queries with their legends.
Chart = tuple[str, str, list[tuple[str, str]]]


def _plain(title: str, unit: str, *series: str) -> Chart:
    return title, unit, [(_of_run(one), _legend(one)) for one in series]


ROWS: dict[str, list[Chart]] = {
    "Is it going on": [
        _plain("Steps", "none", "trd_step"),
        _plain("Alarms that last", "none", "trd_alarm"),
        ("Rows and trained tokens a second", "short", [
            (_rate("trd_rollouts"), "{{run}} rows"),
            (_rate("trd_rows_trained"), "{{run}} rows that trained"),
            (_rate("trd_tokens_trained"), "{{run}} trained tokens"),
        ]),
    ],
    "Does it help": [
        _plain("Pass rate, raw and refined", "percentunit", "trd_pass_rate"),
        _plain("Held-out problems", "percentunit", "trd_evaluation"),
        _plain("Tokens of a response", "short", "trd_response_tokens"),
        _plain("KL(teacher, student) a token", "none", "trd_kl"),
        _plain("Entropy of the next token", "none", "trd_entropy"),
        _plain("Cut at the limit", "percentunit", "trd_truncated"),
    ],
    "Is the learner well": [
        _plain("Loss", "none", "trd_loss"),
        _plain("Gradient norm", "none", "trd_grad_norm"),
        _plain("Learning rate", "sci", "trd_lr"),
        _plain("Gap between engine and learner", "sci", "trd_gap"),
        _plain("Staleness, in versions", "none", "trd_staleness"),
        ("Restarts of the learner in an hour", "none", [
            (f"increase({_of_run('trd_learner_restarts')}[1h])", "{{run}}"),
        ]),
    ],
    "Where does the time go": [
        _plain("Seconds of a step, by stage", "s", "trd_stage_seconds"),
        _plain("Tokens a second, by pool", "short", "trd_pool_tokens_per_second"),
        ("Tokens that a pool makes, over five minutes", "short", [
            (f"sum by (run, pool) (rate({_of_run('trd_pool_tokens')}[5m]))", "{{run}} {{pool}}"),
        ]),
    ],
    "Are the pools well": [
        _plain("Busy share, by pool", "percentunit", "trd_pool_busy"),
        _plain("Requests that wait and that run", "none", "trd_pool_queue", "trd_pool_running"),
        _plain("Engines, and those that serve", "none", "trd_pool_engines", "trd_pool_engines_serving"),
        ("Engines that started again in an hour", "none", [
            (f"increase({_of_run('trd_pool_restarts')}[1h])", "{{run}} {{pool}}"),
        ]),
    ],
}  # fmt: skip


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": top, "w": 24, "h": 1}
        panels.append({"type": "row", "title": title, "gridPos": place, "collapsed": False, "panels": []})
        top += 1
        for number, (name, unit, queries) in enumerate(row):
            place = {"x": WIDTH * (number % 3), "y": top + HEIGHT * (number // 3), "w": WIDTH, "h": HEIGHT}
            panels.append(_panel(name, unit, queries, place))
        top += HEIGHT * ((len(row) + 2) // 3)
    return {
        "__inputs": [{"name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource", "pluginId": "prometheus"}],
        "id": None,
        "uid": "trd-ray",
        "title": "trd_ray: runs",
        "tags": ["ray", "trd"],
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,  # one cross-hair for all panels
        "refresh": "10s",
        "schemaVersion": 39,
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_variable()]},
        "annotations": {"list": []},
        "links": [],
        "panels": [panel | {"id": number} for number, panel in enumerate(panels, 1)],
    }


def _variable() -> dict[str, Any]:
    query = f"label_values({name_in_prometheus('trd_step')}, run)"
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "run"},
        "definition": query,
        "refresh": 2,  # when the time range changes, so that a new run is found
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(title: str, unit: str, queries: list[tuple[str, str]], place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": title,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "custom": {"spanNulls": 60_000}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for number, (query, legend) in enumerate(queries)
        ],
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
