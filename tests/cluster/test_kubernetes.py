"""The Kubernetes files and the image: fields that KubeRay knows, versions that the lock has, and one cluster in both.

The fields are those of KubeRay's API reference (docs/reference/api.md of ray-project/kuberay, group ray.io/v1) and of
Kubernetes' core/v1. `authOptions` came with KubeRay 1.5.1, which the files ask for. No cluster has been made of them.
"""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from trd_ray import cli
from trd_ray.cli import main
from trd_ray.config import load

ROOT = Path(__file__).parents[2]
LOCK = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements/gpu.lock").read_text(), re.MULTILINE))
DOCKERFILE = (ROOT / "cluster/Dockerfile").read_text()
README = (ROOT / "cluster/README.md").read_text()
DRIVERS = {"13": "R580"}  # the oldest branch of the driver that a major version of CUDA runs on

ANY = object()


class Many:
    """A list of one kind of thing."""

    def __init__(self, kind):
        self.kind = kind


QUANTITIES = dict.fromkeys(("cpu", "memory", "nvidia.com/gpu"), (str, int))
CONTAINER = {
    "name": str, "image": str, "imagePullPolicy": str, "command": Many(str), "args": Many(str), "workingDir": str,
    "ports": Many({"containerPort": int, "name": str, "protocol": str, "hostPort": int}),
    "env": Many({"name": str, "value": str, "valueFrom": ANY}),
    "envFrom": ANY, "resources": {"limits": QUANTITIES, "requests": QUANTITIES},
    "volumeMounts": Many({"name": str, "mountPath": str, "readOnly": bool, "subPath": str}),
    "lifecycle": ANY, "livenessProbe": ANY, "readinessProbe": ANY, "startupProbe": ANY, "securityContext": ANY,
}  # fmt: skip
POD = {
    "containers": Many(CONTAINER), "initContainers": Many(CONTAINER), "nodeSelector": ANY, "affinity": ANY,
    "tolerations": Many({"key": str, "operator": str, "value": str, "effect": str, "tolerationSeconds": int}),
    "volumes": Many({
        "name": str, "persistentVolumeClaim": {"claimName": str, "readOnly": bool},
        "emptyDir": {"medium": str, "sizeLimit": str}, "hostPath": ANY, "configMap": ANY, "secret": ANY,
    }),
    "securityContext": ANY, "hostUsers": bool, "serviceAccountName": str, "runtimeClassName": str,
    "restartPolicy": str, "imagePullSecrets": ANY, "priorityClassName": str, "terminationGracePeriodSeconds": int,
}  # fmt: skip
TEMPLATE = {"metadata": {"labels": ANY, "annotations": ANY}, "spec": POD}
CLUSTER = {
    "suspend": bool, "managedBy": str, "autoscalerOptions": ANY, "headServiceAnnotations": ANY, "rayVersion": str,
    "enableInTreeAutoscaling": bool, "gcsFaultToleranceOptions": ANY, "authOptions": {"mode": str},
    "headGroupSpec": {
        "template": TEMPLATE, "headService": ANY, "enableIngress": bool, "rayStartParams": ANY, "serviceType": str,
    },
    "workerGroupSpecs": Many({
        "suspend": bool, "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int,
        "idleTimeoutSeconds": int, "rayStartParams": ANY, "template": TEMPLATE, "scaleStrategy": ANY, "numOfHosts": int,
    }),
}  # fmt: skip
JOB = {
    "activeDeadlineSeconds": int, "backoffLimit": int, "rayClusterSpec": CLUSTER, "submitterPodTemplate": TEMPLATE,
    "metadata": ANY, "clusterSelector": ANY, "submitterConfig": {"backoffLimit": int}, "managedBy": str,
    "entrypoint": str, "runtimeEnvYAML": str, "jobId": str, "submissionMode": str, "entrypointResources": str,
    "entrypointNumCpus": (int, float), "entrypointNumGpus": (int, float), "ttlSecondsAfterFinished": int,
    "shutdownAfterJobFinishes": bool, "suspend": bool,
}  # fmt: skip
NEEDED = {"headGroupSpec", "template", "rayStartParams", "groupName", "minReplicas", "maxReplicas", "containers"}


def faults(found, known, where: str = "spec") -> list[str]:
    """What of a tree is not in its schema, and which of its required fields are missing."""
    if known is ANY:
        return []
    if isinstance(known, Many):
        if not isinstance(found, list):
            return [f"{where} is no list"]
        return [f for i, one in enumerate(found) for f in faults(one, known.kind, f"{where}[{i}]")]
    if isinstance(known, dict):
        if not isinstance(found, dict):
            return [f"{where} is no group of fields"]
        out = [f"{where}.{key} is unknown" for key in found.keys() - known.keys()]
        out += [f"{where}.{key} is missing" for key in known.keys() & NEEDED - found.keys()]
        return out + [
            f for key in found.keys() & known.keys() for f in faults(found[key], known[key], f"{where}.{key}")
        ]
    strict = isinstance(found, known) and not (isinstance(found, bool) and known is int)
    return [] if strict else [f"{where} is {found!r}"]


def file(name: str) -> dict:
    return yaml.safe_load((ROOT / "cluster" / name).read_text())


@pytest.mark.parametrize(
    ("name", "kind", "schema"), [("raycluster.yaml", "RayCluster", CLUSTER), ("rayjob.yaml", "RayJob", JOB)]
)
def test_every_field_of_a_kubernetes_file_is_one_of_kuberay_s(name, kind, schema):
    found = file(name)
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", kind)
    assert re.fullmatch(r"[a-z0-9-]{1,40}", found["metadata"]["name"]), "a pod's name is made of it"
    assert faults(found["spec"], schema) == []


def test_a_misspelled_field_and_a_number_where_text_belongs_are_found():
    spec = file("raycluster.yaml")["spec"]
    spec["headGroupSpec"]["rayStartParam"] = spec["headGroupSpec"].pop("rayStartParams")
    spec["rayVersion"] = 2.60
    assert sorted(faults(spec, CLUSTER)) == [
        "spec.headGroupSpec.rayStartParam is unknown", "spec.headGroupSpec.rayStartParams is missing",
        "spec.rayVersion is 2.6",
    ]  # fmt: skip


@pytest.mark.parametrize("spec", [file("raycluster.yaml")["spec"], file("rayjob.yaml")["spec"]["rayClusterSpec"]])
def test_the_cluster_of_both_files_is_one_and_has_the_locked_ray_and_what_is_mounted(spec):
    assert spec == file("raycluster.yaml")["spec"]
    assert spec["rayVersion"] == LOCK["ray"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        assert {m["name"] for m in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_job_begins_with_a_command_that_parses_and_goes_on_after_a_retry(monkeypatch):
    told = []
    monkeypatch.setattr(cli, "_job", lambda options: told.append(options) or 0)
    program, *arguments = shlex.split(file("rayjob.yaml")["spec"]["entrypoint"])
    assert program == "trd" and main(arguments) == 0
    recipe = load(told[0].recipe, told[0].overrides)
    mounts = file("raycluster.yaml")["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert any(recipe.directory.is_relative_to(m["mountPath"]) for m in mounts), "the run would end with the cluster"
    assert told[0].resume == "auto"


def test_the_image_has_the_lock_a_python_that_the_lock_is_for_and_no_version_of_its_own():
    python = re.search(r"^FROM python:(3\.\d+)-", DOCKERFILE, re.MULTILINE)
    assert python and f"--python-version {python[1]} " in (ROOT / "Makefile").read_text()
    assert "COPY requirements/gpu.lock /tmp/gpu.lock\n" in DOCKERFILE
    assert re.findall(r"[\w-]+==[\d.]+", DOCKERFILE) == []
    sources = [word for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]]
    assert [s for s in sources if not s.startswith("--") and not (ROOT / s).exists()] == []


def test_the_image_has_every_file_of_which_its_wheel_is_built():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = build["tool"]["hatch"]["build"]["targets"]["wheel"]
    asked = [
        *wheel["packages"],
        *wheel["force-include"],
        build["project"]["readme"],
        *build["project"]["license-files"],
    ]
    copied = set()
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE):
        *sources, to = line.split()
        copied |= {f"{to}{Path(source).name}" if to.endswith("/") else to for source in sources}
    assert {f"/opt/trd_ray/{name}" for name in asked} <= copied


def test_the_driver_that_the_locked_cuda_needs_is_named():
    driver = DRIVERS[LOCK["cuda-toolkit"].split(".")[0]]
    for text in (DOCKERFILE, README):
        assert driver in text
    assert f"CUDA {'.'.join(LOCK['cuda-toolkit'].split('.')[:2])}" in DOCKERFILE


@pytest.mark.parametrize("name", ["Dockerfile", "raycluster.yaml", "rayjob.yaml"])
def test_what_nobody_has_tried_says_so(name):
    assert "Untried: " in (ROOT / "cluster" / name).read_text()
    assert name in README
