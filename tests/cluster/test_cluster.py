"""The local cluster of a run."""

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
SCRIPT = """
import sys
from trd_ray.config import load
from trd_ray.session.cluster import cluster
with cluster(load("miniature_opsd", ["cluster.dashboard=true", "cluster.local_cpus=1"])):
    sys.stdin.readline()
"""
ASKS = """
import ray
from ray.train.v2._internal.state.util import is_actor_alive
from trd_ray.config import load
from trd_ray.session.cluster import cluster

class Controller:
    def alive(self):
        try:
            return is_actor_alive(ray.get_runtime_context().get_actor_id(), timeout=10)
        except Exception as e:
            return f"cannot be told: {type(e).__name__}"

with cluster(load("miniature_opsd", ["cluster.local_cpus=1"])):
    print(ray.get(ray.remote(Controller).remote().alive.remote(), timeout=60))
"""


@pytest.fixture
def dashboard():
    """What a local cluster with a dashboard prints when it is there; it ends with the test."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin and process.stdout
    try:
        said = re.fullmatch(
            r"Ray's dashboard is at (http://\S+) and wants what `ray get-auth-token` prints\n",
            process.stdout.readline(),
        )
        assert said
        yield said[1]
    finally:
        process.stdin.close()
        process.wait(60)


def test_a_local_cluster_has_a_dashboard_if_asked_and_says_where(dashboard):
    token = subprocess.run([BIN / "ray", "get-auth-token"], capture_output=True, text=True, check=True).stdout
    asked = urllib.request.Request(f"{dashboard}/api/version", headers={"Authorization": f"Bearer {token.strip()}"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        assert b"ray_version" in answer.read()


def test_another_cluster_on_the_machine_is_not_asked_whether_the_learner_s_controller_lives(dashboard):
    """Ray Train ends the learner of a controller that the dashboard does not know."""
    environment = os.environ | {"RAY_API_SERVER_ADDRESS": dashboard}  # as cluster/README.md has one set it
    asked = subprocess.run(
        [sys.executable, "-c", ASKS], env=environment, capture_output=True, text=True, timeout=120
    ).stdout
    assert asked.startswith(("True", "cannot be told")), asked
