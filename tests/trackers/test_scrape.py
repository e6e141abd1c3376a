"""The dashboard's queries against a real scrape: a Ray of the tests, and what its node exports for Prometheus."""

import time
import urllib.request

from dashboard_queries import POOL, STEP, series_of, unanswered

from trd_ray.trackers.ray_series import RunSeries

WAIT_S = 90  # until a metrics agent that has just started exports: Ray sends to it every 10 s


def scraped() -> str:
    """The text of every node that exports; empty where none answers yet."""
    import ray

    texts = []
    for node in ray.nodes():
        if node["Alive"] and node["MetricsExportPort"]:
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            try:
                texts.append(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10).read())
            except OSError:
                continue
    return b"\n".join(texts).decode()


def test_every_query_of_the_dashboard_is_answered_by_a_ray_that_runs(ray_cluster):
    run = RunSeries("scraped")
    run.step(1, STEP)
    run.pools({"sampler": POOL | {"tokens": 0, "restarts": 0}})
    deadline, tokens = time.monotonic() + WAIT_S, 0
    while unanswered(text := scraped()) and time.monotonic() < deadline:
        time.sleep(2)
        tokens += 100
        run.pools({"sampler": POOL | {"tokens": tokens, "restarts": tokens // 100}})
    assert unanswered(text) == []
    found = series_of(text)
    [step] = [value for labels, value in found["ray_trd_step"] if labels["run"] == "scraped"]
    assert step == 1
    shown = {labels["of"]: value for labels, value in found["ray_trd_pass_rate"] if labels["run"] == "scraped"}
    assert shown == {"raw": 0.25, "refined": 0.75}
