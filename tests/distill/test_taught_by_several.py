"""A learner with several teachers trains as a naive loop would in which each row has its own, on one rank and on two.

Ranks are real processes over gloo, as in test_learner.py, whose models and oracle are taken here.
"""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import LoraConfig, get_peft_model
from test_learner import LORA, join, learning_rate, make_models, recipe_of, row_statistics, step_rows, weights
from transformers import AutoModelForCausalLM

from trd_ray.distill.batches import Example
from trd_ray.distill.learner import Learner
from trd_ray.distill.shared_out import shared_out

BIG: dict[str, Any] = {"mode": "opd", "path": "teacher"}
CASES: dict[str, dict] = {
    "a stronger model, and the privileged self": {"teachers": {"big": BIG, "own": {}}},
    "each moves in its own way": {
        "teachers": {"mean": {"follow": "ema", "ema_decay": 0.7}, "big": BIG, "new": {"follow": "live"}},
        "learner": {"lr": 1e-2, "tokens_per_micro_batch": 30},
    },
    "adapters": {"teachers": {"big": BIG, "own": {}}, "learner": LORA},
    "two models, padded": {
        "teachers": {"big": BIG, "small": {"mode": "opd", "path": "untied"}},
        "learner": {"packing": False, "updates_per_step": 2},
    },
}


def steps_of(names: list[str]) -> list[list[Example]]:
    """In the second step one teacher has a single row, so one of two ranks has none; another has no row at all."""
    steps = [step_rows(6, seed=0), step_rows(4, seed=1), step_rows(1, seed=2)]
    for i, example in enumerate(example for step in steps for example in step):
        example.teacher = names[i % len(names)]
    for example in steps[1]:
        example.teacher = names[0] if example.row else names[-1]
    return steps


def make(folder: Path, tree: dict) -> Learner:
    recipe = recipe_of(tree)
    paths = {name: str(folder / one.teacher_path) for name, one in recipe.by_teacher.items()}
    return Learner(
        recipe, student_path=str(folder / "student"), teacher_path=paths, tokenizer_path=str(folder / "student"),
        total_steps=3, device=torch.device("cpu"),
    )  # fmt: skip


def train(learner: Learner, steps: list[list[Example]]) -> list[dict[str, float]]:
    """What the trainer does with the examples of each step."""
    r = learner.recipe.learner
    curve = []
    for examples in steps:
        out = shared_out(
            examples, ranks=dist.get_world_size(), updates=r.updates_per_step, packed=r.packing,
            budget_tokens=r.tokens_per_micro_batch, teachers=list(learner.recipe.by_teacher),
        )  # fmt: skip
        curve.append(learner.step(out.of_ranks[dist.get_rank()], out.teachers))
    return curve


def run_cases(rank: int, ranks: int, folder: Path) -> None:
    join(folder, rank, ranks)
    results = {}
    for case, tree in CASES.items():
        learner = make(folder, tree)
        results[case] = (train(learner, steps_of(list(tree["teachers"]))), weights(learner))
    if rank == 0:
        torch.save(results, folder / f"results-{ranks}.pt")
    dist.destroy_process_group()


def second_rank(_: int, folder: Path) -> None:
    torch.set_num_threads(1)
    run_cases(1, 2, folder)
    os._exit(0)  # gloo's threads may outlive the interpreter, whose end then aborts the process


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    make_models(folder)
    second = mp.spawn(second_rank, (folder,), nprocs=1, join=False)
    run_cases(0, 1, folder)
    run_cases(0, 2, folder)
    assert second.join(timeout=60)
    return folder


def naive(folder: Path, tree: dict) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """A row at a time, in float64, with whole models for the student and for every teacher."""
    recipe = recipe_of(tree)
    c = recipe.learner

    def load(name: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)

    student = load("student")
    if c.lora:
        torch.manual_seed(recipe.seed)
        adapters = LoraConfig(r=c.lora.rank, lora_alpha=int(c.lora.alpha), target_modules="all-linear")
        student = get_peft_model(student, adapters)
    follows = {"frozen": lambda path: load(path), "ema": lambda _: copy.deepcopy(student), "live": lambda _: student}
    each = recipe.by_teacher
    teachers = {name: follows[one.teacher.follow](one.teacher_path) for name, one in each.items()}
    optimizer = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad], lr=c.lr, betas=c.betas, weight_decay=c.weight_decay
    )
    curve, done = [], 0
    for step in steps_of(list(each)):
        size, seen, losses = -(-len(step) // c.updates_per_step), [], []
        for i, rows in enumerate([step[i : i + size] for i in range(0, len(step), size)]):
            optimizer.param_groups[0]["lr"] = learning_rate(done + i, 3 * c.updates_per_step, c)
            found = [(e.teacher, row_statistics(student, teachers[e.teacher], e, recipe.loss)) for e in rows]
            loss = torch.cat([statistics[0] for _, statistics in found]).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), c.grad_clip)
            optimizer.step()
            for name, one in each.items():
                if one.teacher.follow == "ema":
                    decay = one.teacher.ema_decay
                    with torch.no_grad():
                        for old, new in zip(teachers[name].parameters(), student.parameters(), strict=True):
                            old.copy_(decay * old + (1 - decay) * new)
            losses.append(loss.item())
            seen += found
        done += c.updates_per_step
        of_each = {name: [kl for whose, (_, kl, *_) in seen if whose == name] for name in each}
        told = {f"teachers/{name}/kl": float(torch.cat(kls).mean()) for name, kls in of_each.items() if kls}
        curve.append({"loss": sum(losses) / len(losses)} | told)
    whole = student.merge_and_unload() if c.lora else student
    return curve, {name: p.detach() for name, p in whole.named_parameters()}


@pytest.mark.parametrize("case", CASES)
def test_each_row_learns_from_its_own_teacher_as_in_a_naive_loop(folder, case):
    expected, final = naive(folder, CASES[case])
    initial = dict(AutoModelForCausalLM.from_pretrained(folder / "student").named_parameters())
    for ranks in (1, 2):
        curve, trained = torch.load(folder / f"results-{ranks}.pt")[case]
        for measured, wanted in zip(curve, expected, strict=True):
            assert {name: measured[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)
            assert {name for name in measured if name.startswith("teachers/")} == wanted.keys() - {"loss"}
        for name, weight in final.items():
            assert (trained[name] - weight).norm() <= 1e-3 * (weight - initial[name]).norm(), (case, ranks, name)


@pytest.mark.parametrize("teacher", [BIG, {}, {"follow": "ema"}], ids=["opd", "opsd", "average"])
def test_one_teacher_has_the_same_losses_and_weights_to_the_last_bit_whether_it_has_a_name_or_not(folder, teacher):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        found = []
        for tree, name in (({"teacher": teacher}, ""), ({"teachers": {"x": teacher}}, "x")):
            learner = make(folder, tree)
            found.append((train(learner, steps_of([name])), weights(learner)))
    finally:
        dist.destroy_process_group()
    (curve, final), (named, final_named) = found
    assert [{k: v for k, v in step.items() if not k.startswith("teachers/")} for step in named] == curve
    assert all(torch.equal(final[name], final_named[name]) for name in final)
