"""The run's series as Ray's own exporter writes them for Prometheus, and the dashboard that asks for them."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from dashboard_queries import FILE, POOL, STEP, dashboard, queries, series_of, unanswered

from trd_ray.record.metrics import metric_names
from trd_ray.trackers import grafana
from trd_ray.trackers.ray_series import OF_POOLS, OF_STEPS, SERIES, RunSeries, name_in_prometheus


class Exported(RunSeries):
    """Gives each value to the exporter that Ray's agent has at every node, without the way through a cluster."""

    def __init__(self, run: str, exporter: Any):
        super().__init__(run)
        self.exporter = exporter

    def _series(self, name: str) -> Any:
        counts, exporter = SERIES[name].counts, self.exporter
        register = exporter.register_counter_metric if counts else exporter.register_gauge_metric
        register(name, SERIES[name].explains)

        class Metric:
            @staticmethod
            def give(value: float, tags: dict[str, str]) -> None:
                assert set(tags) == set(SERIES[name].tags), "Ray refuses other tags than those of the series"
                exporter.set_metric_value(name, tags, value)

            set = inc = give

        return Metric


@pytest.fixture(scope="module")
def exporter() -> Any:
    from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder

    return OpenTelemetryMetricRecorder(gauge_metric_ttl_seconds=3600)


def scrape() -> str:
    from prometheus_client import generate_latest

    return generate_latest().decode()


def value(name: str, **labels: str) -> float | None:
    for found, number in series_of(scrape()).get(name, []):
        if labels.items() <= found.items():
            return number
    return None


def test_every_query_of_the_dashboard_is_answered_by_what_ray_exports(exporter):
    run = Exported("all", exporter)
    for tokens in (0, 500):
        run.pools({"sampler": POOL | {"tokens": tokens, "restarts": tokens // 500}})
    run.step(3, STEP)
    assert unanswered(scrape()) == []
    assert value("ray_trd_step", run="all") == 3
    assert value("ray_trd_pass_rate", run="all", of="refined") == 0.75
    assert value("ray_trd_stage_seconds", run="all", stage="verify") == 1.5
    assert value("ray_trd_alarm", run="all", alarm="truncated") == 1
    assert value("ray_trd_pool_busy", run="all", pool="sampler") == 0.75
    assert value("ray_trd_pool_tokens_total", run="all", pool="sampler") == 500
    assert value("ray_trd_tokens_trained_total", run="all") == 700


def test_counters_add_up_over_steps_and_over_processes_of_a_pool(exporter):
    run = Exported("counted", exporter)
    for step in (1, 2):
        run.step(step, {"trained_rows": 8, "rollouts": 10, "trained_tokens": 0})
    for tokens in (9000, 9100, 9100, 30, 50):  # it had worked for another run; then a new process counts from 0
        run.pools({"refiner.a": {"tokens": tokens}})
    assert value("ray_trd_rows_trained_total", run="counted") == 16
    assert value("ray_trd_pool_tokens_total", run="counted", pool="refiner.a") == 150
    assert value("ray_trd_tokens_trained_total", run="counted") is None


def test_what_a_step_did_not_measure_stays_as_it_was_and_an_alarm_that_ended_is_0(exporter):
    run = Exported("quiet", exporter)
    run.step(1, {"evaluation/avg": 0.5, "loss": 2.0, "alarm/leak": 1.0, "kl/mean": float("nan")})
    run.step(2, {"loss": 1.0, "alarm/entropy": 1.0})
    assert value("ray_trd_evaluation", run="quiet", of="avg") == 0.5 and value("ray_trd_loss", run="quiet") == 1.0
    assert value("ray_trd_alarm", run="quiet", alarm="leak") == 0
    assert value("ray_trd_alarm", run="quiet", alarm="entropy") == 1
    assert value("ray_trd_kl", run="quiet") is None


def test_gauges_are_set_again_while_a_step_goes_on(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("trd_ray.trackers.ray_series.time.monotonic", lambda: now[0])
    run, shown = RunSeries("slow"), []
    monkeypatch.setattr(run, "_series", lambda name: type("Gauge", (), {"set": lambda *_: shown.append(name)}))
    run.step(1, {"loss": 1.0})
    first = len(shown)
    run.pools({})
    assert len(shown) == first
    now[0] += 4
    run.pools({})
    assert shown[first:] == shown[:first] != []


def test_nothing_that_ray_does_ends_a_run(monkeypatch):
    run = RunSeries("broken")

    def broken(name: str) -> Any:
        raise RuntimeError("no such metric")

    monkeypatch.setattr(run, "_series", broken)
    run.step(1, STEP)
    run.pools({"sampler": POOL | {"tokens": "many"}})


def test_the_series_are_known_and_recorded_without_ray():
    script = (
        "import sys; from trd_ray.trackers.ray_series import SERIES, RunSeries; "
        "from trd_ray.trackers.grafana import dashboard; dashboard(); "
        "print([m for m in ('ray', 'torch', 'wandb', 'mlflow') if m in sys.modules]); "
        "sys.modules['ray.util.metrics'] = None; RunSeries('x').step(1, {'loss': 1.0})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_every_metric_that_a_series_shows_is_one_of_a_step():
    known = {*metric_names(), "step"}
    named = {m for s in OF_STEPS.values() for m in ([s.of] if isinstance(s.of, str) else s.of.values())}
    named |= {str(s.of) for s in SERIES.values() if s.counts and not s.tag}
    assert named <= known


def test_every_figure_of_a_pool_that_a_series_shows_is_one_of_status_json():
    from trd_ray.session.pool_figures import PoolFigures

    figures = PoolFigures({}, {"sampler": 4})
    figures.heard("sampler", {"tokens": 0, "running": 0, "restarts": 0, "up": 1, "waiting": 0, "engines": 1})
    named = {str(s.of) for s in [*OF_POOLS.values(), *SERIES.values()] if s.tag == "pool"}
    assert named <= figures.last["sampler"].keys()


# The dashboard


def test_the_dashboard_in_cluster_is_what_its_command_makes():
    assert json.loads(FILE.read_text()) == grafana.dashboard(), (
        "python -m trd_ray.trackers.grafana > cluster/grafana-trd.json"
    )


def test_every_series_is_on_the_dashboard_and_every_query_names_series_with_their_own_tags():
    by_name = {name_in_prometheus(name): series for name, series in SERIES.items()}
    assert {metric for query in queries() for metric in query.metrics} == by_name.keys()
    for query in queries():
        for metric in query.metrics:
            assert query.labels <= set(by_name[metric].tags), query.text
        assert "run" in query.labels, "a run can be told from others"
        for counted in (metric for metric in query.metrics if by_name[metric].counts):
            assert re.search(rf"(rate|increase)\({counted}\{{", query.text), "a counter alone says nothing"


def test_the_dashboard_has_the_form_that_grafana_imports():
    """The classic model: docs/grafana, "Dashboard JSON model"."""
    tree = dashboard()
    assert tree["schemaVersion"] >= 36 and tree["id"] is None and tree["uid"] and tree["title"]
    [source] = tree["__inputs"]
    assert (source["type"], source["pluginId"]) == ("datasource", "prometheus")
    ids = [panel["id"] for panel in tree["panels"]]
    assert len(set(ids)) == len(ids) > 20
    taken: set[tuple[int, int]] = set()
    for panel in tree["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["type"] == "timeseries" and panel["title"] and panel["targets"]
            assert panel["datasource"]["uid"] == f"${{{source['name']}}}"
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    [variable] = tree["templating"]["list"]
    assert variable["name"] == "run" and all("$run" in t["expr"] for p in tree["panels"] for t in p.get("targets", []))
