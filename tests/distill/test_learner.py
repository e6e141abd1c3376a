"""The learner trains as a naive loop over transformers and float64 would, on any number of ranks, and resumes exactly.

Ranks are real processes over gloo; the models are a few thousand random parameters.
"""

import copy
import json
import math
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trd_ray import config
from trd_ray.config import ONLY
from trd_ray.distill.batches import Example, collate, micro_batches, split
from trd_ray.distill.checkpoint import Checkpointer
from trd_ray.distill.learned_metrics import OF_TEACHER
from trd_ray.distill.learner import Learner
from trd_ray.distill.model import _full, load
from trd_ray.errors import UserError
from trd_ray.models import facts

VOCAB = 40
SIZES: dict[str, Any] = {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}
OPD = {"teacher": {"mode": "opd", "path": "teacher"}}
# What is trained in every case; a recipe's learner settings are added to these.
LEARNER = {"dtype": "float32", "lr": 1e-3, "warmup_ratio": 0.0, "weight_decay": 0.01, "chunk_tokens": 7}
LORA: dict[str, Any] = {"lora": {"rank": 4, "alpha": 8}, "lr": 1e-2}
CASES: dict[str, dict] = {
    "opsd": {},
    "opd": OPD,
    "live teacher": {"teacher": {"follow": "live"}},
    "moving average": {"teacher": {"follow": "ema", "ema_decay": 0.7}, "learner": {"lr": 1e-2}},
    "untied student": {"student": {"path": "untied"}},
    "micro-batches": OPD | {"learner": {"tokens_per_micro_batch": 40}},
    "padded": OPD | {"learner": {"packing": False}},
    "two updates a step": OPD | {"learner": {"updates_per_step": 2}},
    "activation checkpointing": {"learner": {"activation_checkpointing": True}},
    "offloaded": OPD | {"learner": {"cpu_offload": True}},
    "clipped, at a temperature": OPD | {"learner": {"grad_clip": 0.01}, "loss": {"temperature": 1.5}},
    "warm-up": OPD | {"learner": {"warmup_ratio": 0.4, "min_lr_ratio": 0.2}},
    "mean of trajectories": OPD | {"loss": {"mean": "trajectories"}, "learner": {"tokens_per_micro_batch": 40}},
    "reverse KL on the top 8": OPD | {"loss": {"divergence": "reverse_kl", "top_k": 8}},
    "clipped tokens": OPD | {"loss": {"token_clip": 2.0}},
    "hard labels": OPD | {"loss": {"divergence": "cross_entropy"}},
    "hard labels, mean of trajectories, adapters": {
        "loss": {"divergence": "cross_entropy", "mean": "trajectories"},
        "learner": LORA | {"tokens_per_micro_batch": 40},
    },
    "adapters": {"learner": LORA},
    "adapters, opd, checkpointing": OPD | {"learner": LORA | {"activation_checkpointing": True}},
    "adapters, moving average": {"teacher": {"follow": "ema", "ema_decay": 0.7}, "learner": LORA},
}


# Ways to cut the same data.
SPLITS: dict[str, dict] = {
    "packed, whole": {"lr": 1e-9},
    "packed, in parts": {"lr": 1e-9, "tokens_per_micro_batch": 1},
    "packed, small chunks": {"lr": 1e-9, "chunk_tokens": 2},
    "padded, whole": {"lr": 1e-9, "packing": False},
    "padded, in parts": {"lr": 1e-9, "packing": False, "tokens_per_micro_batch": 1},
}


def step_rows(rows: int, seed: int) -> list[Example]:
    rng = random.Random(seed)

    def ids(most: int) -> list[int]:
        return [rng.randrange(2, VOCAB) for _ in range(rng.randint(2, most))]

    return [Example(row, ids(5), ids(9), ids(12)) for row in range(rows)]


# The second step has a single row, so that one of two ranks has none.
STEPS = [step_rows(6, seed=0), step_rows(1, seed=1), step_rows(4, seed=2), step_rows(6, seed=3)]


def make_models(folder: Path) -> None:
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *map(str, range(VOCAB - 2))])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), eos_token="<eos>", pad_token="<pad>"
    )
    for seed, (name, hidden, tied) in enumerate([("student", 16, True), ("untied", 16, False), ("teacher", 24, False)]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=VOCAB,
                hidden_size=hidden,
                num_hidden_layers=2,
                head_dim=8,
                tie_word_embeddings=tied,
                initializer_range=0.3,
                eos_token_id=1,
                pad_token_id=0,
                bos_token_id=None,
                **SIZES,
            )
        )
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def recipe_of(tree: dict) -> config.Recipe:
    tree = {"student": {"path": "student"}} | tree
    return config.from_tree(tree | {"learner": LEARNER | tree.get("learner", {})})


def make_learner(folder: Path, tree: dict, kind: type = Learner) -> Any:
    recipe = recipe_of(tree)
    return kind(
        recipe,
        student_path=str(folder / recipe.student.path),
        teacher_path=str(folder / recipe.teacher_path),
        tokenizer_path=str(folder / "student"),
        total_steps=len(STEPS),
        device=torch.device("cpu"),
    )


def train(learner: Learner, steps: list[list[Example]]) -> list[dict[str, float]]:
    """What the loop does with a step's examples; returns each step's metrics, equal on all ranks."""
    r, ranks = learner.recipe.learner, dist.get_world_size()
    curve = []
    for rows in steps:
        updates = [
            micro_batches(u, r.tokens_per_micro_batch, r.packing) for u in split(rows, r.updates_per_step, ranks)
        ]
        curve.append(learner.step([update[dist.get_rank()] for update in updates]))
        everywhere: list = [None] * ranks
        dist.all_gather_object(everywhere, curve[-1])
        assert all(metrics == curve[-1] for metrics in everywhere)
    return curve


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: w.clone() for name, w in learner.weights("student", torch.float32)}


def save(learner: Learner, folder: Path, steps: int) -> None:
    checkpointer = Checkpointer(learner, 60)
    if not dist.get_rank():
        folder.mkdir(exist_ok=True)
        (folder / "state.json").write_text(json.dumps({"steps": steps}))
    dist.barrier()
    checkpointer.begin(folder)
    assert checkpointer.done(60) == (True, None)


def join(folder: Path, rank: int, ranks: int) -> None:
    store = dist.FileStore(str(folder / f"store-{ranks}"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=120))


# How many sequences are scored: a share for each of two ranks, none for the second, one rank that scores one more.
PROBED = (6, 1, 3)


def probed(count: int) -> list[tuple[Any, Any]]:
    return [(e.student_ids, e.response_ids) for e in STEPS[0][:count]]


class Recording(Learner):
    """Keeps the gradients of its last update, whole, and how often shards were gathered in its last step."""

    def step(self, updates: list[list[list[Example]]]) -> dict[str, float]:
        self.gathers, gather = 0, dist.all_gather_single  # which FSDP calls

        def counted(*args, **kwargs):
            self.gathers += 1
            return gather(*args, **kwargs)

        dist.all_gather_single = counted
        try:
            return super().step(updates)
        finally:
            dist.all_gather_single = gather

    def _update(self) -> float:
        self.gradients = {name: _full(p.grad).clone() for name, p in self.trained.items()}
        return super()._update()


def second_rank(_: int, folder: Path) -> None:
    torch.set_num_threads(1)
    run_cases(1, 2, folder)


def run_cases(rank: int, ranks: int, folder: Path) -> None:
    """One rank's part in all cases: rank 0 writes {case: (curve, weights)}; one case leaves a checkpoint half-way."""
    join(folder, rank, ranks)
    results = {}
    for case, settings in SPLITS.items():
        learner = make_learner(folder, OPD | {"learner": settings}, Recording)
        train(learner, STEPS[:1])  # the teacher's root is gathered once and for all
        train(learner, STEPS[3:])
        results[case] = (learner.gradients, learner.gathers)
    learner = make_learner(folder, {})
    results["logprobs"] = [learner.logprobs(probed(count)) for count in PROBED]
    for case, tree in CASES.items():
        learner = make_learner(folder, tree)
        curve = train(learner, STEPS[:2])
        if case == "opd":
            save(learner, folder / f"checkpoint-{ranks}", steps=2)
        results[case] = (curve + train(learner, STEPS[2:]), weights(learner))
    if rank == 0:
        torch.save(results, folder / f"results-{ranks}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("learner")
    make_models(folder)
    second = mp.spawn(second_rank, (folder,), nprocs=1, join=False)  # loads its libraries in the meantime
    run_cases(0, 1, folder)
    run_cases(0, 2, folder)
    assert second.join(timeout=60)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """This process as the only rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# The oracle


def row_logits(model: torch.nn.Module, prompt_ids: np.ndarray, response_ids: np.ndarray) -> torch.Tensor:
    """What predicts each response token of one unpadded row, in float64."""
    ids = torch.tensor([[*prompt_ids, *response_ids]])
    return model(ids).logits[0, len(prompt_ids) - 1 : -1].double()


def learning_rate(update: int, updates: int, c: config.LearnerConfig) -> float:
    """Linear warm-up in which the first update counts, then a cosine from lr to min_lr_ratio * lr."""
    warmup = round(c.warmup_ratio * updates)
    if update < warmup:
        return c.lr * (update + 1) / warmup
    progress = (update - warmup) / (updates - warmup)
    return c.lr * (c.min_lr_ratio + (1 - c.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


def naive_divergence(learned: torch.Tensor, taught: torch.Tensor, loss: config.LossConfig) -> torch.Tensor:
    """Of the kinds that the cases ask for."""
    if loss.top_k:
        support = taught.topk(loss.top_k, -1).indices
        learned, taught = learned.gather(-1, support), taught.gather(-1, support)
    log_p, log_q = (logits.div(loss.temperature).log_softmax(-1) for logits in (taught, learned))
    if loss.divergence == "reverse_kl":
        log_p, log_q = log_q, log_p
    per_token = (log_p.exp() * (log_p - log_q)).sum(-1)
    return per_token.clamp(max=loss.token_clip) if loss.token_clip else per_token


def row_statistics(
    student: torch.nn.Module, teacher: torch.nn.Module, e: Example, loss: config.LossConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Divergence (with a gradient for the student), forward KL, student's and teacher's NLL of each response token."""
    with torch.no_grad():
        taught = row_logits(teacher, e.teacher_ids, e.response_ids)
    learned = row_logits(student, e.student_ids, e.response_ids)
    nll = [cross_entropy(logits, torch.tensor(e.response_ids).long(), reduction="none") for logits in (learned, taught)]
    kl = naive_divergence(learned, taught, config.LossConfig())
    minimised = naive_divergence(learned, taught, loss) if loss.has_teacher else nll[0]
    return minimised, kl.detach(), nll[0].detach(), nll[1]


def naive(folder: Path, tree: dict) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The same training, a row at a time: whole logits of transformers' models, float64, torch's AdamW, PEFT's LoRA."""
    recipe = recipe_of(tree)
    c = recipe.learner
    student: Any = AutoModelForCausalLM.from_pretrained(folder / recipe.student.path, dtype=torch.float32)
    teacher: Any = AutoModelForCausalLM.from_pretrained(folder / recipe.teacher_path, dtype=torch.float32)
    if c.lora:
        torch.manual_seed(recipe.seed)
        student = get_peft_model(
            student, LoraConfig(r=c.lora.rank, lora_alpha=int(c.lora.alpha), target_modules="all-linear")
        )
    if recipe.teacher.follow == "live":
        teacher = student
    average = copy.deepcopy(student) if recipe.teacher.follow == "ema" else None
    optimizer = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad], lr=c.lr, betas=c.betas, weight_decay=c.weight_decay
    )
    curve, done = [], 0
    for step in STEPS:
        size, seen, losses, norms, first = math.ceil(len(step) / c.updates_per_step), [], [], [], done
        for rows in [step[i : i + size] for i in range(0, len(step), size)]:
            optimizer.param_groups[0]["lr"] = learning_rate(done, len(STEPS) * c.updates_per_step, c)
            statistics = [row_statistics(student, average or teacher, e, recipe.loss) for e in rows]
            each = [divergence for divergence, *_ in statistics]
            if recipe.loss.mean == "tokens":
                loss = torch.cat(each).mean()
            else:
                loss = torch.stack([d.mean() for d in each]).mean()
            optimizer.zero_grad()
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(student.parameters(), c.grad_clip)))
            optimizer.step()
            if average is not None:
                with torch.no_grad():
                    for old, new in zip(average.parameters(), student.parameters(), strict=True):
                        old.copy_(recipe.teacher.ema_decay * old + (1 - recipe.teacher.ema_decay) * new)
            losses.append(loss.item())
            seen += statistics
            done += 1
        done = first + c.updates_per_step  # a step with too few rows makes fewer updates; the schedule counts steps
        kls, nlls, teacher_nlls = ([t.detach() for t in column] for column in list(zip(*seen, strict=True))[1:])
        curve.append(
            {
                "loss": sum(losses) / len(losses),
                "kl/mean": float(torch.cat(kls).mean()),
                "kl/row_mean": float(torch.stack([kl.mean() for kl in kls]).mean()),
                "kl/max": float(torch.cat(kls).max()),
                "student/nll": float(torch.cat(nlls).mean()),
                "teacher/nll": float(torch.cat(teacher_nlls).mean()),
                "trained_tokens": float(len(torch.cat(kls))),
                "grad_norm": sum(norms) / len(norms),
                "lr": learning_rate(first, len(STEPS) * c.updates_per_step, c),
            }
        )
    if c.lora:
        student = student.merge_and_unload()
    return curve, {name: p.detach() for name, p in student.named_parameters()}


# The claims


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_training_equals_a_naive_loop(folder, case, ranks):
    curve, trained = torch.load(folder / f"results-{ranks}.pt")[case]
    expected_curve, expected = naive(folder, CASES[case])
    for ours, theirs in zip(curve, expected_curve, strict=True):
        if not recipe_of(CASES[case]).loss.has_teacher:
            assert not ours.keys() & set(OF_TEACHER)
            theirs = {name: value for name, value in theirs.items() if name not in OF_TEACHER}
        assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=1e-5)
    initial = AutoModelForCausalLM.from_pretrained(folder / recipe_of(CASES[case]).student.path)
    adapted = "lora" in CASES[case].get("learner", {})
    for name, before in initial.named_parameters():
        # There is something to agree on.
        assert (expected[name] - before).abs().max() > 1e-4 or (adapted and "_proj" not in name)
        # Of the whole update: AdamW makes a step of full size of a gradient that is nothing but rounding.
        assert (trained[name] - expected[name]).norm() <= 1e-3 * (expected[name] - before).norm()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", SPLITS)
def test_however_the_data_is_cut_the_gradient_is_the_same(folder, case, ranks):
    expected, _ = torch.load(folder / "results-1.pt")["padded, whole"]
    gradients, _ = torch.load(folder / f"results-{ranks}.pt")[case]
    size = torch.cat([g.flatten() for g in expected.values()]).norm()
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 1e-5 * size


@pytest.mark.parametrize("case", SPLITS)
def test_lm_head_is_gathered_once_an_update_and_not_once_a_chunk_or_micro_batch(folder, case):
    gathers = torch.load(folder / "results-2.pt")[case][1]
    micro_batches = 3 if "in parts" in case else 1  # of each of two ranks, for 6 rows
    # Each of 2 layers for the teacher's forward, the student's forward and its backward.
    assert gathers == micro_batches * 2 * 3 + 1


def test_a_student_that_is_its_teacher_in_the_same_view_has_nothing_to_learn(folder, alone):
    same = [[Example(e.row, e.student_ids, e.student_ids, e.response_ids) for e in rows] for rows in STEPS]
    learner = make_learner(folder, {"learner": {"weight_decay": 0.0}})
    before = weights(learner)
    assert all(m["loss"] < 1e-9 and m["kl/max"] < 1e-6 for m in train(learner, same))
    for name, weight in weights(learner).items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=1e-6)


POISON = VOCAB - 1  # a token whose row breaks the student's arithmetic, once `poison` was called
BAD = [Example(0, [2, 3], [4], [5, POISON, 6])]


def poison(learner: Learner) -> None:
    def hook(embedding, given, out):
        return out * math.nan if (given[0] == POISON).any() else out

    learner.student.model.get_input_embeddings().register_forward_hook(hook)


def state(learner: Learner) -> list[torch.Tensor]:
    """All that an update changes."""
    optimizer = [v for kept in learner.optimizer.state.values() for v in kept.values()]
    average = list(learner.average.average.values()) if learner.average else []
    return [_full(t.detach()).clone() for t in (*learner.trained.values(), *optimizer, *average)]


CLEAN = [
    [e for e in rows if POISON not in np.concatenate([e.teacher_ids, e.student_ids, e.response_ids])] for rows in STEPS
]


@pytest.mark.parametrize("case", ["opsd", "moving average", "adapters", "offloaded"])
def test_an_update_whose_gradient_is_not_finite_changes_nothing_but_the_schedule(folder, alone, case):
    learner, undisturbed = (make_learner(folder, CASES[case]) for _ in range(2))
    poison(learner)
    train(learner, CLEAN[:1])
    before = state(learner)
    bad = learner.step([[BAD]])
    assert math.isnan(bad["loss"]) and not math.isfinite(bad["grad_norm"])
    assert (bad["updates"], bad["skipped_updates"], bad["weights_not_finite"]) == (0, 1, 0)
    assert all(torch.equal(now, then) for now, then in zip(state(learner), before, strict=True))
    assert all(p.grad is None for p in learner.trained.values())
    # The rest of the run is that of a learner which had no such step, at the same places of the schedule.
    train(undisturbed, CLEAN[:1])
    undisturbed.schedule.step()
    assert train(learner, CLEAN[2:]) == (rest := train(undisturbed, CLEAN[2:]))
    assert all(m["skipped_updates"] == 0 and m["updates"] == 1 and "weights_not_finite" not in m for m in rest)


def test_of_a_steps_updates_only_the_bad_one_is_skipped(folder, alone):
    learner, undisturbed = (make_learner(folder, CASES["two updates a step"]) for _ in range(2))
    poison(learner)
    metrics = learner.step([[BAD], [CLEAN[0]]])
    assert (metrics["updates"], metrics["skipped_updates"]) == (1, 1)
    undisturbed.schedule.step()
    undisturbed.step([[CLEAN[0]]])
    assert all(torch.equal(now, then) for now, then in zip(state(learner), state(undisturbed), strict=True))


def test_a_learning_rate_that_breaks_the_weights_is_told_by_the_steps_that_follow(folder, alone):
    learner = make_learner(folder, {"learner": {"lr": 1e35, "weight_decay": 0.0}})
    first, *others = [learner.step([[CLEAN[0]]]) for _ in range(3)]
    assert first["updates"] == 1 and all(m["updates"] == 0 and m["skipped_updates"] == 1 for m in others)
    with torch.no_grad():
        next(iter(learner.trained.values())).to_local()[0, :2] = math.inf
    assert learner.step([[CLEAN[0]]])["weights_not_finite"] == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("saved_after", [0, 2])
def test_a_resumed_run_goes_on_exactly_as_if_it_had_not_stopped(folder, alone, tmp_path, saved_after, dtype):
    tree = OPD | {"learner": {"dtype": dtype, "warmup_ratio": 0.5}}
    whole = train(make_learner(folder, tree), STEPS)
    stopped = make_learner(folder, tree)
    train(stopped, STEPS[:saved_after])
    stopped.logprobs([(e.student_ids, e.response_ids) for e in STEPS[0]])  # which leaves weights gathered, in `dtype`
    save(stopped, tmp_path, saved_after)
    assert train(stopped, STEPS[saved_after:]) == whole[saved_after:]  # saving disturbs nothing
    resumed = make_learner(folder, tree)
    Checkpointer(resumed, 60).load(tmp_path)
    assert train(resumed, STEPS[saved_after:]) == whole[saved_after:]
    assert all(torch.equal(weight, weights(stopped)[name]) for name, weight in weights(resumed).items())


def test_a_run_of_two_ranks_may_be_resumed_on_one(folder, alone):
    curve, trained = torch.load(folder / "results-2.pt")["opd"]
    checkpoint = folder / "checkpoint-2"
    resumed = make_learner(folder, OPD)
    Checkpointer(resumed, 60).load(checkpoint)
    for ours, theirs in zip(train(resumed, STEPS[2:]), curve[2:], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for name, weight in weights(resumed).items():
        torch.testing.assert_close(weight, trained[name], rtol=0, atol=1e-5)


def transformers_logprobs(model: torch.nn.Module, rows: list[Example]) -> list[list[float]]:
    with torch.no_grad():
        logprobs = [row_logits(model, e.student_ids, e.response_ids).log_softmax(-1) for e in rows]
    return [
        lp.gather(1, torch.tensor(e.response_ids).long()[:, None])[:, 0].tolist()
        for lp, e in zip(logprobs, rows, strict=True)
    ]


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_share_the_sequences_that_are_scored_and_all_answers_come_in_their_order(folder, ranks):
    scored = torch.load(folder / f"results-{ranks}.pt", weights_only=False)["logprobs"]
    expected = transformers_logprobs(AutoModelForCausalLM.from_pretrained(folder / "student"), STEPS[0])
    for count, answers in zip(PROBED, scored, strict=True):
        assert len(answers) == count
        for ours, theirs in zip(answers, expected[:count], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("student", ["student", "untied"])
def test_the_export_loads_in_transformers_and_says_what_the_learner_says(folder, alone, tmp_path, student):
    learner = make_learner(folder, {"student": {"path": student}})
    sequences = [(e.student_ids, e.response_ids) for e in STEPS[3]]
    initial = AutoModelForCausalLM.from_pretrained(folder / student)
    before = learner.logprobs(sequences)
    for ours, theirs in zip(before, transformers_logprobs(initial, STEPS[3]), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    train(learner, STEPS)
    after = learner.logprobs(sequences)
    save(learner, tmp_path, len(STEPS))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for ours, old, theirs in zip(after, before, transformers_logprobs(exported, STEPS[3]), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4) and ours != pytest.approx(old, abs=1e-3)
    assert exported.config.tie_word_embeddings == initial.config.tie_word_embeddings
    assert AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab()["<eos>"] == 1
    for name, weight in weights(learner).items():
        assert torch.equal(dict(exported.named_parameters())[name], weight)


@pytest.mark.parametrize("mean", ["tokens", "trajectories"])
def test_tokens_without_loss_are_context_and_nothing_else(folder, alone, mean):
    tree = OPD | {"loss": {"mean": mean}, "learner": {"tokens_per_micro_batch": 40}}
    places = [np.flatnonzero(np.arange(len(e.response_ids)) % 3 == 1) for e in STEPS[0]]
    rows = [
        Example(e.row, e.student_ids, e.teacher_ids, e.response_ids, loss_at=at)
        for e, at in zip(STEPS[0], places, strict=True)
    ]
    learner = make_learner(folder, tree)
    [ours] = train(learner, [rows])
    student: Any = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
    teacher: Any = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.float32)
    each = [row_statistics(student, teacher, e, config.LossConfig()) for e in STEPS[0]]
    kl = [divergence[at] for (divergence, *_), at in zip(each, places, strict=True)]
    loss = torch.cat(kl).mean() if mean == "tokens" else torch.stack([one.mean() for one in kl]).mean()
    loss.backward()
    norm = float(torch.nn.utils.clip_grad_norm_(student.parameters(), 1e9))
    theirs = {
        "loss": loss.item(),
        "kl/mean": torch.cat(kl).mean().item(),
        "kl/row_mean": torch.stack([one.mean() for one in kl]).mean().item(),
        "kl/max": torch.cat(kl).max().item(),
        "student/nll": torch.cat([nll[at] for (_, _, nll, _), at in zip(each, places, strict=True)]).mean().item(),
        "trained_tokens": sum(map(len, places)),
        "grad_norm": norm,
    }
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=1e-5)
    assert learner.tokens.lengths_B.sum() == sum(len(e.response_ids) for e in STEPS[0]), "all are kept to be looked at"


def test_hard_labels_load_no_teacher_and_keep_nothing_of_one(folder, alone):
    learner = make_learner(folder, OPD | {"loss": {"divergence": "cross_entropy"}})
    assert learner.teachers == {ONLY: None}
    unseen = [Example(e.row, e.student_ids, (), e.response_ids) for e in STEPS[0]]
    [without] = train(learner, [unseen])
    [with_view] = train(make_learner(folder, OPD | {"loss": {"divergence": "cross_entropy"}}), [STEPS[0]])
    assert without == pytest.approx(with_view, rel=1e-6)
    assert not len(learner.tokens.keys_B)


def parameter_bytes(learner: Learner) -> int:
    """Of student and teacher, what they share counted once."""
    both = {id(p): p for side in (learner.student, learner.teachers[ONLY]) for p in side.parameters()}
    return sum(p.numel() * p.element_size() for p in both.values())


def test_adapters_with_a_frozen_self_as_teacher_need_no_second_copy_of_the_weights(folder, alone):
    base = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder / "student").parameters())
    whole, adapted = (make_learner(folder, {"learner": settings}) for settings in ({}, LORA))
    adapters = sum(p.numel() for p in adapted.trained.values())
    assert parameter_bytes(whole) == 4 * (base + base)
    assert parameter_bytes(adapted) == 4 * (base + adapters)
    assert set(adapted.trained) == {name for name, _ in adapted.student.model.named_parameters() if ".lora_" in name}


@pytest.mark.parametrize("settings", [{}, LORA], ids=["whole", "adapters"])
def test_the_refiner_is_sent_the_moving_average_of_the_students(folder, alone, settings):
    learner = make_learner(folder, {"teacher": {"follow": "ema", "ema_decay": 0.7}, "learner": settings})
    trained = {name: p.full_tensor().detach().clone() for name, p in learner.trained.items()}
    for rows in STEPS:
        train(learner, [rows])
        for name, p in learner.trained.items():
            trained[name] = 0.7 * trained[name] + 0.3 * p.full_tensor().detach()
    sent, newest = (
        {name: w.clone() for name, w in learner.weights(who, torch.float32)} for who in ("teacher", "student")
    )
    assert {name for name, _ in learner.shapes()} == sent.keys()
    for p, average in zip(learner.trained.values(), trained.values(), strict=True):
        p.to_local().detach().copy_(average)
    for name, expected in learner.weights("student", torch.float32):
        torch.testing.assert_close(sent[name], expected, rtol=1e-5, atol=1e-6)
    assert any((sent[name] - newest[name]).abs().max() > 1e-4 for name in sent)


def test_a_teacher_has_no_dropout_and_neither_have_the_logprobs(folder, alone):
    """Of a student with dropout that is its own teacher in the same view."""
    dropout = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.5}, "lr": 1e-2}
    learner = make_learner(folder, {"teacher": {"follow": "live"}, "learner": dropout})
    train(learner, STEPS)
    sequences = [(e.student_ids, e.response_ids) for e in STEPS[0]]
    assert learner.logprobs(sequences) == learner.logprobs(sequences)
    batch = collate(STEPS[0], 0, packed=True)
    with torch.no_grad():
        with learner.teaching():
            teacher = learner.teachers[ONLY]
            one, two = teacher(batch.student), teacher(batch.student)
        three = learner.student(batch.student)
    assert torch.equal(one, two) and not torch.equal(one, three)  # which learns with dropout


@pytest.mark.compiler
def test_a_compiled_learner_trains_as_one_that_is_not(folder, alone):
    plain, compiled = (train(make_learner(folder, OPD | {"learner": {"compile": c}}), STEPS) for c in (False, True))
    for ours, theirs in zip(compiled, plain, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("follow", ["frozen", "ema"])
def test_adapters_in_bfloat16_train_close_to_float32(folder, alone, follow):
    curves = []
    for dtype in ("float32", "bfloat16"):
        learner = make_learner(folder, {"teacher": {"follow": follow}, "learner": LORA | {"dtype": dtype}})
        curves.append(train(learner, STEPS))
        assert {p.dtype for p in learner.trained.values()} == {torch.float32}
        kept = {p.dtype for name, p in learner.student.named_parameters() if not p.requires_grad}
        assert kept == {getattr(torch, dtype)}
    for exact, rounded in zip(*curves, strict=True):
        assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.05)


def test_asking_for_logprobs_between_steps_changes_no_step(folder, alone):
    asked, undisturbed = (make_learner(folder, {"teacher": {"follow": "live"}}) for _ in range(2))
    curve = []
    for rows in STEPS:
        asked.logprobs([(e.student_ids, e.response_ids) for e in rows])
        curve += train(asked, [rows])
    assert curve == train(undisturbed, STEPS)


@pytest.mark.parametrize("teacher_dtype", ["float32", "bfloat16"])
def test_bfloat16_trains_close_to_float32_and_keeps_float32_weights(folder, alone, teacher_dtype):
    tree = {"teacher": OPD["teacher"] | {"dtype": teacher_dtype}, "learner": {"dtype": "bfloat16", "lr": 1e-6}}
    learner = make_learner(folder, tree)
    before = weights(learner)
    curve, (exact, _) = train(learner, STEPS[:1]), torch.load(folder / "results-1.pt")["opd"]
    assert curve[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02)
    assert curve[0]["grad_norm"] == pytest.approx(exact[0]["grad_norm"], rel=0.05)
    # An update that bfloat16 could not hold beside weights of this size.
    moved = {name: (weight - before[name]).abs().max() for name, weight in weights(learner).items()}
    assert all(0 < m < 2e-6 for m in moved.values())


@pytest.mark.parametrize("padded", ["student", "teacher"])
@pytest.mark.parametrize("mode", ["whole", "adapters"])
def test_a_model_padded_further_than_the_other_trains_as_one_that_is_not(folder, alone, padded, mode):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder / padded)
    model.resize_token_embeddings(VOCAB + 8)
    torch.nn.init.constant_(model.get_output_embeddings().weight.data[VOCAB:], 3.0)  # likely, if they were compared
    model.save_pretrained(folder / f"long-{padded}")
    tree = OPD | ({"learner": LORA} if mode == "adapters" else {})
    path = {"path": f"long-{padded}"} | ({"mode": "opd"} if padded == "teacher" else {})
    plain, long = make_learner(folder, tree), make_learner(folder, tree | {padded: path})
    for ours, theirs in zip(train(long, STEPS), train(plain, STEPS), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    expected = weights(plain)
    for name, weight in weights(long).items():
        torch.testing.assert_close(weight[: len(expected[name])], expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_model_that_caps_its_logits_trains_as_its_own_forward_does(folder, alone):
    sizes = SIZES | {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1}
    torch.manual_seed(0)
    capped = Gemma2Config(head_dim=8, final_logit_softcapping=0.5, initializer_range=0.3, **sizes)
    Gemma2ForCausalLM(capped).save_pretrained(folder / "capped")
    tree = {"student": {"path": "capped"}} | OPD
    learner = make_learner(folder, tree)
    curve, trained = train(learner, STEPS), weights(learner)
    expected_curve, expected = naive(folder, tree)
    for ours, theirs in zip(curve, expected_curve, strict=True):
        assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=1e-4)
    for name, weight in expected.items():
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=1e-5)
    rounded = train(make_learner(folder, tree | {"learner": LORA | {"dtype": "bfloat16"}}), STEPS[:1])
    assert rounded[0]["loss"] == pytest.approx(expected_curve[0]["loss"], rel=0.05)


def test_a_model_that_adds_a_bias_to_its_logits_is_known_from_its_config_and_refused(folder):
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1}
    biased = PhiForCausalLM(PhiConfig(**sizes))
    torch.nn.init.ones_(biased.lm_head.bias)
    biased.save_pretrained(folder / "biased")
    assert facts(str(folder / "biased")).head_bias and not facts(str(folder / "student")).head_bias
    with pytest.raises(UserError, match="logits of .*biased.* are not the product"):
        load(config.ModelConfig(path="biased"), str(folder / "biased"), torch.float32, config.LearnerConfig())
