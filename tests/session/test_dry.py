"""`--dry-run` for a cluster that is not here, and in its three forms."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import trd_ray
from trd_ray import config
from trd_ray.cli import main

RECIPES = sorted(p.stem for p in (Path(trd_ray.__file__).parent / "recipes").glob("*.yaml"))
# What a recipe was made for, as `--on` describes it. The recipes for CPUs are planned where there are GPUs too.
ENDINGS = {"_24gb": "1x24GiB", "_80gb": "1x80GiB", "_two_nodes": "2x8x80GiB"}
CLUSTERS = {
    name: next((cluster for ending, cluster in ENDINGS.items() if name.endswith(ending)), "8x80GiB") for name in RECIPES
}
ON_EIGHT = [name for name, cluster in CLUSTERS.items() if cluster == "8x80GiB"]
MACHINE = ["cluster.memory_gib=64", "cluster.local_cpus=16"]  # what else runs here is no part of the claims
# A process without network or caches, in which neither Ray nor torch nor transformers can be imported.
ALONE = """
import sys, socket
for name in ("ray", "torch", "transformers", "vllm", "datasets", "huggingface_hub"):
    sys.modules[name] = None
def refuse(*_, **__): raise AssertionError("the network was asked")
socket.socket.connect = socket.create_connection = refuse
from trd_ray.cli import main
sys.exit(main(sys.argv[1:]))
"""


def dry(capsys, *arguments: str) -> tuple[int, str]:
    code = main([*arguments, "--dry-run"])
    said, refused = capsys.readouterr()
    assert not refused, refused
    return code, said


@pytest.mark.parametrize(("name", "cluster"), [*CLUSTERS.items(), *((name, "8xH100") for name in ON_EIGHT)])
def test_every_recipe_is_planned_for_its_cluster_which_is_not_here(name, cluster, capsys):
    code, said = dry(capsys, "train", name, "--on", cluster, "--json")
    tree = json.loads(said)
    plan = tree["placement"]
    assert code == 0 and plan["fits"], plan["reasons"]
    assert len(plan["machines"]) == (2 if cluster.startswith("2x8x") else 1)
    hint = [note for note in tree["notes"] if "placement=shared" in note]
    lora, mode, shared = (tree["recipe"][key] for key in ("learner", "teacher", "placement"))
    assert bool(hint) == (lora["lora"] is not None and mode["mode"] == "opsd" and shared == "separate")
    on_gpus = [(seat["machine"], gpu, seat) for seat in plan["seats"] for gpu in seat["gpus"]]
    for machine, gpu, _ in on_gpus:
        here = [seat for *place, seat in on_gpus if place == [machine, gpu]]
        assert sum(seat["share"] for seat in here) <= 1 + 1e-6
        assert len({seat["actor"] for seat in here}) == len(here)
    assert sum(seat["share"] for *_, seat in on_gpus) == pytest.approx(plan["needs"]["GPU"])
    for actor in plan["actors"]:
        sits = [seat for seat in plan["seats"] if seat["actor"] == actor["actor"]]
        assert len(sits) == actor["count"] or actor["actor"] == "verifier"
    assert config.from_tree(tree["recipe"]).name == name.replace("_", "-")


def test_a_cluster_that_is_not_here_needs_neither_network_nor_models_nor_ray():
    for arguments in (["train", "paper_opsd_8b"], ["refine", "miniature_opd"], ["evaluate", "Qwen/Qwen3-8B"]):
        ended = subprocess.run(
            [sys.executable, "-c", ALONE, *arguments, "--dry-run", "--on", "8x80GiB"],
            capture_output=True, text=True, timeout=60, env={"HOME": "/nonexistent", "PATH": "/usr/bin:/bin"},
            cwd=Path(trd_ray.__file__).parents[1],
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr[-1000:]
        assert "fits: yes" in ended.stdout


def test_several_nodes_are_shown_as_a_map(capsys):
    _, said = dry(
        capsys, "train", "paper_opsd_8b", "sampler.replicas=2", "sampler.tensor_parallel=4", "refiner.replicas=1",
        "learner.workers=4", "--on", "2x8xH100",
    )  # fmt: skip
    rows = [line.split() for line in said.splitlines() if line.startswith(("who sits", "node"))]
    assert rows[0][:3] == ["who", "sits", "where"] and rows[0].count("GPU") == 8
    cells = [cell for row in rows[1:] for cell in row[3:]]
    assert [c for c in cells if c.startswith("S")] == [f"S{e}.{w}" for e in (0, 1) for w in range(4)]
    assert [c for c in cells if c.startswith("L")] == ["L0", "L1", "L2", "L3"]
    [together] = [row for row in rows[1:] if "L0" in row]
    assert {"L0", "L1", "L2", "L3"} <= set(together)
    assert "S sampler, R refiner, L learner rank; S0.1: worker 1 of a tensor-parallel engine" in said


def test_one_gpu_that_three_share_names_their_turns(capsys):
    shares = ["sampler.gpus=0.3", "refiner.gpus=0.3", "learner.gpus=0.4", "sync.lora=adapter", "learner.lora={}"]
    _, said = dry(capsys, "train", "miniature_opsd", *shares, "sampler.memory_utilization=0.28",
                  "refiner.memory_utilization=0.28", "--on", "1x24GiB")  # fmt: skip
    assert "S0 R0 L0" in said and "who shares a GPU starts in turn: sampler, refiner, learner" in said
    assert said.rstrip().endswith("fits: yes")


def test_both_phases_of_gpus_that_are_had_in_turn_are_shown(capsys):
    code, said = dry(capsys, "train", "paper_opd_1p7b_onpolicy", "--on", "8x80GiB")
    assert code == 0 and "S0 R0 L0  S1 R1 L1" in said and "weights by ipc" in said
    awake, at_work = (line for line in said.splitlines() if line.startswith(("  engines awake", "  learner at work")))
    assert awake.count("memory_utilization") == 2 and awake.endswith("at rest")
    assert "at rest (new weights come), refiner" in at_work


def test_engines_without_a_gpu_are_refused_where_vllm_is_a_cuda_build(capsys):
    code, said = dry(capsys, "train", "miniature_opsd", "sampler.gpus=0", "--on", "8xH100")
    assert code == 2 and "sampler.gpus=0 keeps no engine from a GPU" in said and "set sampler.gpus=null" in said


def test_a_refusal_is_about_nodes(capsys):
    code, said = dry(
        capsys, "train", "paper_opsd_8b", "sampler.tensor_parallel=8", "sampler.replicas=1", "--on", "4x4xH100"
    )
    assert code == 2
    assert "sampler 0 needs 8 GPUs, 4 CPUs" in said and "node 4 has 4 GPUs left" in said
    assert "lower sampler.tensor_parallel" in said


def test_what_is_printed_is_what_differs_unless_all_is_asked_for(capsys):
    own = ["miniature_opsd", "learner.lr=0.001", "data.limit=64", *MACHINE]
    recipe = config.load("miniature_opsd", own[1:])
    short = yaml.safe_load(dry(capsys, "train", *own)[1].partition("\n# every other key")[0])
    assert config.from_tree(short) == recipe and short["learner"]["lr"] == 0.001 and "loss" not in short
    full = dry(capsys, "train", *own, "--full")[1]
    assert "divergence: forward_kl" in full and "every other key" not in full
    tree = json.loads(dry(capsys, "train", *own, "--json")[1])
    assert config.from_tree(tree["recipe"]) == recipe
    assert tree["placement"]["fits"] and tree["placement"]["machines"][0]["gpus"] == 0
    assert "64 problems" in tree["found"]


def test_a_recipe_without_lengths_is_planned_by_those_that_its_context_leaves(capsys, tmp_path):
    (tmp_path / "my.yaml").write_text("student: {path: Qwen/Qwen3-0.6B}\ndata: {path: /no/such.jsonl}\n")
    code, said = dry(capsys, "train", str(tmp_path / "my.yaml"), "--on", "4x80GiB")
    assert "data, prompts and benchmarks were not read" in said and "max_response_tokens: 16384" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--on", "8xH100"], "--on says what --dry-run shows: add --dry-run"),
        (["--json"], "add --dry-run, or leave --json out"),
        (["--dry-run", "--on", "8x80"], "--on 8x80 does not say which GPUs: describe a cluster as"),
        (["--dry-run", "--on", "8xH100", "--gpu-gib", "40"], "leave --gpu-gib out"),
        (["--dry-run", "--on", "8xH100", "student.path=/no/model"], "there is no such model: /no/model"),
    ],
)
@pytest.mark.parametrize("command", ["train", "refine"])
def test_what_cannot_be_shown_is_one_sentence(command, arguments, told, capsys):
    assert main([command, "miniature_opsd", *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and told in said[0], said


def test_a_dry_run_says_what_a_run_costs(capsys):
    _, said = dry(capsys, "train", "paper_opsd_8b", "--on", "8xH100", "--price", "2.5")
    for part in ("a step of 512 rollouts:", "idle:", "79 steps:", "at 2.5 a GPU-hour", "plain OPSD on the same GPUs",
                 "faster with the same GPUs:", "sampler.extra="):  # fmt: skip
        assert part in said, part
    assert "assumed" in said and "not measured" in said
    tree = json.loads(dry(capsys, "train", "paper_opsd_8b", "--on", "8xH100", "--price", "2.5", "--json")[1])
    assert tree["cost"]["price"] == pytest.approx(20 * tree["cost"]["hours"])
    assert tree["cost"]["plain"]["hours"] > 0 and tree["cost"]["faster"]


def test_what_is_not_known_is_said(capsys):
    own = ["student.path=Qwen/Qwen3-1.7B", "teacher.path=Qwen/Qwen3-8B", "teacher.mode=opd"]
    _, said = dry(capsys, "train", "paper_opd_1p7b", "steps=", "data.path=/no/such.jsonl", "--on", "8xH100")
    assert "how many steps a run has is not known here" in said
    _, said = dry(capsys, "train", "paper_opd_1p7b", *own, "evaluation.path=/no/such.jsonl", "--on", "8xH100")
    assert "evaluations are not counted" in said


def test_a_placement_that_does_not_fit_has_no_cost(capsys):
    code, said = dry(capsys, "train", "paper_opsd_8b", "--on", "2xH100")
    assert code == 2 and "a step of" not in said
    tree = json.loads(dry(capsys, "train", "paper_opsd_8b", "--on", "2xH100", "--json")[1])
    assert tree["cost"] is None


def test_a_cpu_is_said_to_be_known_from_one_machine_alone(capsys):
    _, said = dry(capsys, "train", "miniature_opsd", *MACHINE)
    assert "16 CPU cores, not measured" in said and "off by a factor of 3" in said and "--like RUN" in said


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["train", "paper_opsd_8b", "--dry-run", "--on", "8xH100", "--like", "no/such/run"], "is no run directory"),
        (["train", "paper_opsd_8b", "--price", "2", "--json"], "--json and --price say what --dry-run shows"),
        (["train", "paper_opsd_8b", "--price", "2"], "--price says what --dry-run shows"),
        (["evaluate", "Qwen/Qwen3-8B", "--dry-run", "--on", "8xH100", "--price", "2"], "trains or refines"),
    ],
)
def test_costs_that_cannot_be_said_are_refused_in_a_sentence(capsys, arguments, why):
    assert main(arguments) == 2
    assert why in capsys.readouterr().err
