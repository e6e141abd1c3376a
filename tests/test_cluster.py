"""The local cluster of a run."""

import re
import subprocess
import sys
import urllib.request
from pathlib import Path

BIN = Path(sys.executable).parent
SCRIPT = """
import sys
from trd_ray.config import load
from trd_ray.run.cluster import cluster
with cluster(load("miniature_opsd", ["cluster.dashboard=true", "cluster.local_cpus=1"])):
    sys.stdin.readline()
"""


def test_a_local_cluster_has_a_dashboard_if_asked_and_says_where():
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
        token = subprocess.run([BIN / "ray", "get-auth-token"], capture_output=True, text=True, check=True).stdout
        asked = urllib.request.Request(f"{said[1]}/api/version", headers={"Authorization": f"Bearer {token.strip()}"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert b"ray_version" in answer.read()
    finally:
        process.stdin.close()
        process.wait(60)
