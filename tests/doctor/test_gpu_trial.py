"""The trial on GPUs, as far as no GPU is needed: its parts end whatever they do, it goes on, and it counts rightly."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from trd_ray import config
from trd_ray.doctor import holdings
from trd_ray.doctor.gpu import flops, gpu_tests, lone_engine, short_runs, speed
from trd_ray.doctor.gpu.outcome import PartFailed, PartSkipped
from trd_ray.doctor.gpu.parts import ENGINES, PARTS, function

ROOT = Path(__file__).parents[2]
TINY = flops.Shape(hidden=64, intermediate=96, layers=2, heads=4, kv_heads=2, head_dim=16, vocabulary=128)

# A trial of other parts, on a machine that seems to have one card.
PROGRAM = """
import sys
from pathlib import Path
from trd_ray.doctor.gpu import trial
from trd_ray.doctor.gpu.parts import Part
names, only, out = sys.argv[1].split(","), [n for n in sys.argv[2].split(",") if n], Path(sys.argv[3])
trial.PARTS = [Part(n, n, f"doctor.stand_ins:{n}", ("torch",), deadline_s=6.0 if n == "hangs" else 60.0) for n in names]
trial.BY_NAME = {part.name: part for part in trial.PARTS}
trial.gpus_seen = lambda: ["Stand-in card, 81920 MiB, 580.1"] * int(sys.argv[4])
sys.exit(trial.run(only, out))
"""


def environment(*paths: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT, ROOT / "tests"]))}


def begin(out: Path, names: str, only: str = "", cards: int = 1) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, names, only, str(out), str(cards)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(out: Path, names: str, only: str = "", cards: int = 1) -> tuple[int, str, dict[str, dict]]:
    """Exit code, what was printed, and the outcomes in results.json."""
    trial = begin(out, names, only, cards)
    said, _ = trial.communicate(timeout=120)
    parts = json.loads((out / "results.json").read_text())["parts"]
    return trial.returncode, said, {part["part"]: part for part in parts}


def until(condition, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_a_part_that_fails_crashes_or_hangs_costs_itself_alone_and_leaves_no_process(tmp_path):
    names = "fails,raises,crashes,hangs,lacks_something,passes"
    code, said, found = ended(tmp_path, names)
    assert code == 1, said
    states = {name: part["state"] for name, part in found.items()}
    assert states == dict.fromkeys(names.split(",")[:4], "fail") | {"lacks_something": "skipped", "passes": "pass"}
    assert found["fails"]["figures"] == {"gap": 0.5} and found["fails"]["why"] == "engine and learner differ"
    assert found["raises"]["why"] == "ZeroDivisionError: a part divided by zero"
    assert "-11" in found["crashes"]["why"] and "the last words" in (tmp_path / "crashes" / "log").read_text()
    assert "not done after 6 s" in found["hangs"]["why"]
    assert not psutil.pid_exists(int((tmp_path / "hangs" / "left").read_text()))
    assert "1 pass, 4 fail, 1 skipped" in said
    table = (tmp_path / "results.md").read_text()
    assert "| passes | pass |" in table and "1,234" in table and "Stand-in card" in table


def test_a_second_start_keeps_what_passed_and_tries_the_rest_again(tmp_path):
    runs = tmp_path / "passes" / "runs"
    ended(tmp_path, "fails,passes")
    assert ended(tmp_path, "fails,passes")[0] == 1
    assert runs.read_text() == "x"
    code, said, found = ended(tmp_path, "fails,passes", only="passes")
    assert (code, runs.read_text()) == (0, "xx")
    assert set(found) == {"fails", "passes"}, "the table keeps the parts that were not asked for"
    results = json.loads((tmp_path / "results.json").read_text())
    results["parts"][1]["machine"] = "another card"
    (tmp_path / "results.json").write_text(json.dumps(results))
    ended(tmp_path, "fails,passes")
    assert runs.read_text() == "xxx", "what passed on another machine says nothing about this one"


def test_a_start_without_gpus_keeps_what_an_earlier_one_measured(tmp_path):
    measured = ended(tmp_path, "fails,passes")[2]
    code, said, found = ended(tmp_path, "fails,passes,raises", cards=0)
    assert found == measured | {"raises": found["raises"]} and found["raises"]["state"] == "skipped"
    assert (code, "no GPU; the table keeps pass, of an earlier start" in said) == (0, True)
    assert "0 pass, 0 fail, 3 skipped" in said, "of this start"


def test_a_signal_ends_the_part_under_way_and_keeps_what_is_done(tmp_path):
    trial = begin(tmp_path, "passes,hangs")
    until(lambda: (tmp_path / "hangs" / "left").exists())
    trial.send_signal(signal.SIGTERM)
    said, _ = trial.communicate(timeout=30)
    assert "Stopped" in said and "the same command goes on" in said
    until(lambda: not psutil.pid_exists(int((tmp_path / "hangs" / "left").read_text())))
    [kept] = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert (kept["part"], kept["state"]) == ("passes", "pass")


def test_make_test_gpu_skips_every_part_without_a_gpu_and_says_why(tmp_path):
    done = subprocess.run(
        ["make", "-s", "test-gpu", f"PY={sys.executable}", f"ARGS=--json --out {tmp_path}"],
        cwd=ROOT, env=environment() | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts = json.loads(done.stdout)["parts"]
    assert [part["part"] for part in parts] == [part.name for part in PARTS]
    assert {(part["state"], part["why"]) for part in parts} == {("skipped", "no GPU")}


def test_the_trial_and_its_refusals_need_nothing_but_python(without, tmp_path):
    env = without("ray", "vllm", "pydantic", "yaml", "rich", "numpy", "pyarrow", "psutil", "transformers")
    env["CUDA_VISIBLE_DEVICES"] = ""
    for arguments, code in ((["--json", "--out", str(tmp_path / "out")], 0), (["--only", "hed"], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "trd_ray.cli", "doctor", "--gpu", *arguments],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("trd: --only hed names no part")
    assert (tmp_path / "out" / "results.md").is_file()


def test_a_part_is_skipped_for_want_of_gpus_or_packages_and_each_ends_before_8_minutes():
    [nccl] = [part for part in PARTS if part.name == "nccl"]
    assert nccl.lacking(1) == "needs 2 GPUs, here is 1"
    assert nccl.lacking(2) == ""
    absent = replace(nccl, needs=("torch", "no_such_package"))
    assert absent.lacking(2) == "no_such_package is not installed"
    assert all(part.deadline_s < 480 for part in PARTS)
    assert min(p.deadline_s for p in PARTS if "short_runs" in p.work) > short_runs.RUN_S + short_runs.LEAVE_S


def test_every_part_has_its_function_and_a_row_in_the_readme():
    for part in PARTS:
        assert callable(function(part.work)), part.name
    text = (ROOT / "trd_ray" / "doctor" / "README.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if re.match(r"\| `", line)]
    shown = {name: int(row[1]) for row in rows for name in re.findall(r"`([\w-]+)`", row[0])}
    assert shown == {part.name: part.gpus for part in PARTS}


# Without Ray and vLLM


@pytest.fixture
def without(tmp_path):
    """A function that makes packages impossible to import, in the environment that it returns."""

    def block(*packages: str) -> dict[str, str]:
        folder = tmp_path / "blocked"
        folder.mkdir()
        for package in packages:
            (folder / f"{package}.py").write_text(f"raise ImportError('{package} is blocked')")
        return environment(folder)

    return block


def run(code: str, env: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_parts_that_need_only_torch_import_nothing_else_and_the_head_s_benchmark_runs(without):
    env = without("ray", "vllm", "pydantic", "transformers", "peft", "trl", "datasets")
    torch_only = [part.work for part in PARTS if part.needs == ("torch",)]
    assert len(torch_only) >= 2
    run(f"from trd_ray.doctor.gpu.parts import function\nfor w in {torch_only}: function(w)", env)
    small = ["--device=cpu", "--tokens=256", "--sizes=64:96", "--vocabulary=2000", "--repeats=1", "--methods=ours"]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.bench_head", *small],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = speed.head_rows(done.stdout)
    assert [row[:2] for row in rows] == [(256, "matrix products"), (256, "ours")]
    assert all(seconds > 0 for _, _, seconds, _ in rows)


def test_the_learner_s_step_is_measured_where_neither_ray_nor_vllm_can_be_imported(without):
    env = without("ray", "vllm")
    code = f"""
from trd_ray.doctor.gpu import speed
from trd_ray.doctor.gpu.flops import Shape
shape = {TINY!r}
for lora in (True, False):
    print(*speed.learner_step(shape, lora=lora, device="cpu", rows=2, prompts=(8, 24), response=8))
"""
    lines = [line.split() for line in run(code, env).splitlines() if re.match(r"[\d.]", line)]
    assert [(float(seconds) > 0, int(tokens)) for seconds, _, tokens in lines] == [(True, 16), (True, 16)]


def test_parts_with_engines_import_where_they_are_listed_without_loading_vllm(without):
    works = [part.work for part in PARTS if part.needs == ENGINES]
    env = without("ray", "vllm")
    run(f"from trd_ray.doctor.gpu.parts import function\nfor w in {works}: function(w)", env)


def test_the_tests_marked_gpu_are_found_and_a_skipped_one_is_no_pass():
    files = gpu_tests.marked_files()
    assert {Path(file).name for file in files} >= {"test_attention.py", "test_head.py"}
    assert gpu_tests.counted(0, "....\n6 passed, 80 deselected in 4.1s") == {"passed": 6.0}
    for code, output in ((0, "SKIPPED [6] needs a GPU\n6 skipped in 3s"), (1, "FAILED a\n1 failed, 5 passed"), (5, "")):
        with pytest.raises(PartFailed):
            gpu_tests.counted(code, output)


def test_the_tests_marked_gpu_are_collected_with_torch_transformers_and_pytest_alone(without):
    env = without("ray", "vllm", "pydantic", "peft", "trl", "datasets", "rich")
    done = subprocess.run(
        gpu_tests.command(gpu_tests.marked_files()), cwd=ROOT, env=env, capture_output=True, text=True, timeout=200
    )
    assert re.search(r"\d+ (skipped|passed), \d+ deselected", done.stdout), done.stdout[-2000:]
    assert "error" not in done.stdout.splitlines()[-1]


# What is counted


def counted(work) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("train", [False, True])
def test_the_flops_of_the_layers_are_those_that_torch_counts(tmp_path, train):
    model = AutoModelForCausalLM.from_config(speed.make_folder(TINY, str(tmp_path)), attn_implementation="eager")
    ids = torch.randint(2, TINY.vocabulary, (1, 48))
    ids[:] = ids.sort()[0]
    hidden = model.model(input_ids=ids).last_hidden_state.detach().requires_grad_()

    def layers() -> None:
        with torch.set_grad_enabled(train):
            out = model.model(inputs_embeds=hidden).last_hidden_state
        if train:
            out.sum().backward()

    # torch's eager attention computes the half above the diagonal too.
    expected = TINY.products([48]) * (3 if train else 1) + 2 * TINY.attention([48]) * (3 if train else 1)
    assert counted(layers) == pytest.approx(expected, rel=0.01)


def test_the_flops_of_a_step_are_teacher_forward_student_forward_and_backward_and_the_head():
    lengths, longer = [10, 20], [30, 40]
    lora = flops.step(TINY, TINY, lengths, longer, 12, lora=True)
    full = flops.step(TINY, TINY, lengths, longer, 12, lora=False)
    gradients_of_weights = TINY.products(lengths) + 2 * 12 * TINY.vocabulary * TINY.hidden
    assert full - lora == pytest.approx(gradients_of_weights)
    assert lora > TINY.products(longer) + 2 * TINY.products(lengths)


def test_the_shapes_are_those_of_the_models_and_the_cards_have_their_own_peaks():
    assert pytest.approx(8.19e9, rel=0.01) == flops.QWEN3_8B.parameters
    peaks = {"NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H200": 989, "NVIDIA A100-SXM4-80GB": 312,
             "NVIDIA GeForce RTX 4090": 165, "NVIDIA L4": 121, "NVIDIA L40S": 362, "Tesla T4": None}  # fmt: skip
    assert {card: flops.peak_tflops(card) for card in peaks} == peaks


def test_as_many_sequences_are_decoded_as_the_cache_holds():
    assert 35 <= lone_engine.sequences(flops.QWEN3_8B, 80.0, 2) <= 43
    assert lone_engine.sequences(flops.QWEN3_8B, 80.0, 1) == 43
    assert 1 <= lone_engine.sequences(flops.QWEN3_1P7B, 24.0, 2) < 20


def steps(*gaps: float | None, **more: float) -> list[dict]:
    return [{"sync/gap_mean": gap, "seconds/step": 2.0, "seconds/sync": 0.5} | more for gap in gaps]


def test_a_run_passes_where_engine_and_learner_agree_all_along():
    found = short_runs.checked(steps(0.004, 0.005, 0.004))
    assert found == {"first gap": 0.004, "last gap": 0.004, "seconds/sync": 0.5, "seconds/step": 2.0}


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        (steps(0.004, 0.03, 0.004), "above 0.02"),
        (steps(0.001, 0.005, 0.019), "grows"),
        (steps(0.004, None, None), "only 1 of 3 steps"),
        ([], "only 0 of 0"),
        (steps(0.004, 0.004, skipped_updates=1.0), "2 updates were skipped"),
    ],
)
def test_a_run_in_which_engines_have_other_weights_fails(metrics, why):
    with pytest.raises(PartFailed, match=why):
        short_runs.checked(metrics)


def test_a_short_run_can_be_tried_again_in_a_folder_of_any_name(monkeypatch, tmp_path):
    """Another program stands in for `trd train`: it refuses a run directory that holds a run, as that does."""
    train = tmp_path / "train"
    metrics = "".join(json.dumps(step) + "\n" for step in steps(0.004, 0.004))
    train.write_text(f"""#!{sys.executable}
import sys, yaml
from pathlib import Path
key, _, value = sys.argv[-1].partition("=")
place = Path(yaml.safe_load(value))
place.mkdir()
(place / "metrics.jsonl").write_text({metrics!r})
""")
    train.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(train))
    folder = tmp_path / "trial: 1, #2"
    folder.mkdir()
    for _ in range(2):
        assert short_runs.short_run(folder, "miniature_opsd")["last gap"] == 0.004
    assert (folder / "run" / "metrics.jsonl").is_file()


@pytest.mark.parametrize("has_smollm2", [True, False])
def test_every_short_run_is_a_recipe_that_can_be_loaded(monkeypatch, tmp_path, has_smollm2):
    begun: list[config.Recipe] = []
    monkeypatch.setattr(short_runs, "_installed", lambda package: has_smollm2)
    monkeypatch.setattr(holdings, "model_here", lambda *asked: (True, "here"))
    monkeypatch.setattr(short_runs, "short_run", lambda folder, *words: begun.append(config.load(words[0], words[1:])))
    runs = [part for part in PARTS if part.work.startswith("short_runs")]
    runs = [part for part in runs if part.name != "shared" or "placement" in config.Recipe.model_fields]
    for part in runs:
        with contextlib.suppress(PartSkipped):
            function(part.work)(tmp_path)
    assert len(begun) >= len(runs) - 1, "only the recipe for one card may be of a later version"
    assert {r.learner.dtype for r in begun} == {"bfloat16"}
    by_name = {part.name: r for part, r in zip(runs, begun, strict=False)}
    assert (by_name["gloo"].sync.backend, by_name["ipc"].sync.backend) == ("gloo", "ipc")
    assert by_name["adapter"].sync.lora == "adapter"


# With engines, on the CPU


@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_engine_killed_in_a_transfer_is_told_restarted_and_served_again(tmp_path):
    code = """
import json, sys
from pathlib import Path
from trd_ray.doctor.gpu.pushes import kill_one
print(json.dumps(kill_one(Path(sys.argv[1]), backend="gloo", device="cpu", gpus=0, dtype="bfloat16")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment(), capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["s until told"] < 30 and max(figures["gap before"], figures["gap after"]) < 2e-2


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_short_run_on_the_cpu_has_the_figures_that_are_checked(tmp_path):
    few = ("rollouts_per_step=16", "learner.updates_per_step=1", "sync.backend=gloo", "stream.rows_per_block=16")
    found = short_runs.short_run(tmp_path, "miniature_opsd", *short_runs.COMMON, *few, "cluster.memory_gib=16")
    assert found["recipe"] == "miniature_opsd" and 0 < float(found["last gap"]) < short_runs.MOST_GAP
    assert float(found["seconds/sync"]) > 0
