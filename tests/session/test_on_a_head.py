"""What a program asks of a cluster that it did not start: whether its nodes run sandboxes, and one connection."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from heads import Head, head_of_its_own
from runs import engines
from trd_ray import miniature

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TOOLS = ("bwrap", "unshare")  # what a sandbox is made with


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """One that cannot start sandboxes, while this machine's own shells can."""
    folder = tmp_path_factory.mktemp("head")
    tools = folder / "tools"
    tools.mkdir()
    for place in map(Path, os.get_exec_path()):
        for tool in place.iterdir() if place.is_dir() else ():
            if tool.name not in TOOLS and not (tools / tool.name).is_symlink():
                (tools / tool.name).symlink_to(tool)
    with head_of_its_own(folder, path=str(tools)) as started:
        yield started


def trd(head: Head, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "trd_ray.cli", *arguments],
        env=head.environment | {"RAY_ADDRESS": f"127.0.0.1:{head.port}"},
        capture_output=True,
        text=True,
        timeout=200,
    )


def drivers(head: Head) -> set[str]:
    """The jobs that the head has known: each is a driver that connected."""
    asked = urllib.request.Request(
        f"http://127.0.0.1:{head.dashboard_port}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"}
    )
    with urllib.request.urlopen(asked, timeout=30) as reply:
        return {job["job_id"] for job in json.load(reply)}


def test_a_comparison_on_code_is_refused_by_a_node_without_a_sandbox_before_engines_start(head, tmp_path):
    comparison = tmp_path / "code.yaml"
    comparison.write_text(
        yaml.safe_dump(
            {
                "name": "code",
                "directory": str(tmp_path / "compared"),
                "seeds": [0],
                "modes": {"opd": {"recipe": "miniature_code_opd"}},
                "set": {"steps": 1, "rollouts_per_step": 16, "stream": {"rows_per_block": 16}},
                "methods": {"trd": {}},
            }
        )
    )
    ended = trd(head, "compare", str(comparison))
    assert ended.returncode == 2, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert f"node {os.uname().nodename}: verify.sandbox=auto cannot isolate a program" in ended.stderr
    assert all(f"{tool} is not installed" in ended.stderr for tool in TOOLS)
    assert engines(head.pid) == [] and not (tmp_path / "compared").exists()


def test_an_evaluation_connects_to_the_cluster_once(head, tmp_path):
    problems = tmp_path / "held_out.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in miniature.problems("test")[:4]))
    before = drivers(head)
    ended = trd(
        head, "evaluate", "miniature:student", str(problems), f"run_dir={tmp_path / 'scored'}", "evaluation.samples=2"
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert (tmp_path / "scored" / "evaluation" / "held_out.json").is_file()
    assert len(drivers(head) - before) == 1


def test_the_doctor_asks_each_node_and_names_the_one_that_starts_no_sandbox(head):
    asked = {recipe: trd(head, "doctor", recipe, "--json") for recipe in ("miniature_opsd", "miniature_code_opsd")}
    assert {recipe: ended.returncode for recipe, ended in asked.items()} == {
        "miniature_opsd": 0,  # mathematics, which needs none
        "miniature_code_opsd": 2,
    }, [ended.stderr[-2000:] for ended in asked.values()]
    found = json.loads(asked["miniature_code_opsd"].stdout)
    assert found["nodes"] == [os.uname().nodename]
    states = {one["what"]: one["state"] for one in found["findings"]}
    assert states["sandbox"] == "lacks"
    assert {what: states[what] for what in ("Python", "packages", "clock", "object store")} == dict.fromkeys(
        ("Python", "packages", "clock", "object store"), "pass"
    )
