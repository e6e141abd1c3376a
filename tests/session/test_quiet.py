"""Ray's messages: what nobody needs is out of sight, and nothing else is."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from trd_ray.record.display import Display
from trd_ray.session.quiet import HARMLESS, memory_kill, ray_apart

# As Ray 2.60 writes it in the error of a process that its memory monitor ended, shortened in the middle.
KILLED = """\
1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: a6b161bfd858d6) \
was 22.88GB used / 23.54GB limit (0.972)
OOM kill reason: Memory usage 937177088B exceeded threshold of 505530016B (2.0% of 25276502016B limit)
Considered workers: [
Selected to kill: (Task: job ID=01000000, lease ID=00ff, task name=eat, required resources={CPU: 1}, pid=5241, a)
]
Total non-selected idle workers: 0
"""


def test_a_kill_for_memory_is_told_in_one_sentence_with_node_memory_and_process():
    said = "Ray ended 1 process (eat) because node 192.0.2.2 ran out of memory: 22.88 of 23.54 GiB were in use"
    assert memory_kill(f"The actor died: {KILLED}") == said
    assert memory_kill("The actor died because its owner has exited.") is None


def test_the_filter_takes_the_line_it_is_meant_for_and_no_other():
    ray = "[2026-11-25 00:09:59,668 E 7007 8037] core_worker.cc:2465: "
    assert HARMLESS.search(
        f"{ray}Actor with class name: 'MapWorker(MapBatches(Sample))' and ID: 'f1e4' has constructor arguments in the "
        "object store and max_restarts > 0. If the arguments in the object store go out of scope or are lost, the "
        "actor restart will fail."
    )
    assert not HARMLESS.search(f"{ray}Check failed: constructor arguments")
    assert not HARMLESS.search("RuntimeError: has constructor arguments in the object store")


def test_what_other_code_writes_to_standard_error_neither_tears_the_panel_nor_is_lost(tmp_path, capfd):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=30)
    with Display(3, console), ray_apart(tmp_path / "logs" / "ray.log"):
        os.write(2, b"a real error [red]of C++[/red]\n")
        os.write(
            2, b"core_worker.cc:1: Actor with class name: 'A' has constructor arguments in the object store and so"
        )
        os.write(2, b" on\nno line break at the end")
    assert capfd.readouterr().err == ""
    shown = console.file.getvalue()
    assert "a real error [red]of C++[/red]" in shown and "no line break at the end" in shown
    assert "constructor" not in shown
    assert (tmp_path / "logs" / "ray.log").read_text().count("\n") == 2
    os.write(2, b"back\n")
    assert capfd.readouterr().err == "back\n"


def test_without_a_terminal_errors_stay_on_standard_error(tmp_path, capfd):
    console = Console(file=io.StringIO())
    with pytest.raises(KeyError), Display(3, console), ray_apart(tmp_path / "ray.log"):
        os.write(2, b"an error\n")
        raise KeyError
    assert capfd.readouterr().err == "an error\n"
    assert console.file.getvalue() == ""


SCRIPT = """
import contextlib, logging, os, sys, time
os.environ |= {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": sys.argv[2]}
import ray
from pathlib import Path
from ray.data._internal.stats import _StatsManager, get_or_create_stats_actor
from ray.data.exceptions import omit_traceback_stdout
from trd_ray.record.display import Display
from trd_ray.session.quiet import ray_apart

class Restarted:
    def __init__(self, argument): pass
    def answer(self): return 1

def stage_fails():
    raise RuntimeError("of a stage")

def eat():
    time.sleep(60)

with Display(1), ray_apart(Path(sys.argv[1])):
    ray.init(
        address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
        object_store_memory=100 * 2**20,
    )
    if sys.argv[2] == "0":
        actor = ray.remote(max_restarts=1, num_cpus=0)(Restarted).remote(ray.put(b"x" * 10**6))
        ray.get(actor.answer.remote())
        ray.get(get_or_create_stats_actor().gen_dataset_id.remote())
        _StatsManager.update_execution_metrics("unknown", [], [], {"state": "RUNNING"})
        with contextlib.suppress(RuntimeError):
            omit_traceback_stdout(stage_fails)()
        ray.remote(num_cpus=0)(lambda: 1 / 0).remote()
        time.sleep(3)
    else:
        try:
            ray.get(ray.remote(max_retries=0)(eat).remote(), timeout=60)
        except ray.exceptions.OutOfMemoryError:
            time.sleep(1)
    ray.shutdown()
try:
    ray.put(1)
except Exception as e:
    print("put:", e)
"""


def output(tmp_path, refresh_ms: int) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / "ray.log"), str(refresh_ms)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200, env=environment)
    return done.stdout + done.stderr


@pytest.mark.timeout(220)
def test_rays_own_noise_is_out_of_sight_and_a_failed_task_is_not(tmp_path):
    said = output(tmp_path, 0)
    assert "constructor arguments" not in said and "_StatsActor" not in said and "KeyError" not in said
    assert "Exception occurred" not in said and "of a stage" not in said
    assert "ZeroDivisionError" in said
    assert "has constructor arguments in the object store" in (tmp_path / "ray.log").read_text()
    assert "put:" in said and "Ray has not been started" in said, "nothing starts a Ray of its own at the end"


@pytest.mark.timeout(220)
def test_a_kill_for_memory_is_told_while_it_happens(tmp_path):
    said = output(tmp_path, 100)
    assert said.count("ran out of memory") == 1
    assert "Ray ended" in said and "GiB were in use" in said and "(eat)" in said
