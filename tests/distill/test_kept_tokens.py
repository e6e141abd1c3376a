"""What the learner keeps of each token is what float64 over the whole vocabulary of transformers' models gives.

The models and the data are those of test_learner.py. Float16's rounding, half a step, is the tolerance.
"""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_learner import (
    BAD,
    CLEAN,
    LORA,
    OPD,
    STEPS,
    VOCAB,
    join,
    make_learner,
    make_models,
    poison,
    recipe_of,
    row_logits,
    save,
    state,
    step_rows,
)
from tokenizers import Tokenizer, models
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from trd_ray.distill.batches import Example
from trd_ray.distill.checkpoint import Checkpointer
from trd_ray.distill.head import STATISTICS
from trd_ray.distill.learner import KEPT, Learner, _token_values
from trd_ray.distill.shared_out import shared_out
from trd_ray.token_values import TokenValues, together

DOUBTS = {"Wait": 5, "Hmm": 9, "However": 30}  # words of the tokenizer that begin a doubt
ROUNDING: Any = {"rtol": 2**-11 + 1e-4, "atol": 1e-5}
PARTS = {"tokens_per_micro_batch": 40}
CASES: dict[str, dict] = {
    "opd": OPD,
    "opd, padded, in parts": OPD | {"learner": {"packing": False} | PARTS},
    "opd, packed, in parts, two updates": OPD | {"learner": {"updates_per_step": 2} | PARTS},
    "opd, padded, two updates": OPD | {"learner": {"updates_per_step": 2, "packing": False}},
    "opsd, adapters, two updates": {"learner": LORA | {"updates_per_step": 2}},
    "live teacher": {"teacher": {"follow": "live"}, "learner": {"lr": 1e-2}},
    "moving average": {"teacher": {"follow": "ema", "ema_decay": 0.7}, "learner": {"lr": 1e-2, "updates_per_step": 2}},
    "another loss": OPD
    | {"loss": {"divergence": "reverse_kl", "top_k": 8, "token_clip": 0.1, "temperature": 1.5, "mean": "trajectories"}},
}


class Remembering(Learner):
    """Knows the weights of both sides before each update."""

    def __init__(self, *arguments: Any, **keys: Any):
        super().__init__(*arguments, **keys)
        self.before: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def _update(self) -> float:
        self.before.append(self.both())
        return super()._update()

    def both(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        student, teacher = (
            {n: w.clone() for n, w in self.weights(who, torch.float32)} for who in ("student", "teacher")
        )
        return student, teacher


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    make_models(folder)
    at = {i: word for word, i in DOUBTS.items()}
    words = {at.get(i, f"w{i}"): i for i in range(1, VOCAB)} | {"<pad>": 0}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), unk_token="<pad>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder / "student")
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """This process as the only rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shared(learner: Learner, examples: list[Example], updates: int) -> Any:
    r = learner.recipe.learner
    return shared_out(
        examples, ranks=dist.get_world_size(), updates=updates, packed=r.packing,
        budget_tokens=r.tokens_per_micro_batch, teachers=list(learner.recipe.by_teacher),
    )  # fmt: skip


def step(learner: Learner, examples: list[Example]) -> dict[str, float]:
    """As the trainer does it."""
    out = shared(learner, examples, learner.recipe.learner.updates_per_step)
    return learner.step(out.of_ranks[dist.get_rank()], out.teachers)


def score(learner: Learner, examples: list[Example]) -> TokenValues:
    out = shared(learner, examples, 1)
    return learner.score(out.of_ranks[dist.get_rank()][0], out.teachers[0])


# The oracle


def loaded(folder: Path, path: str, weights: dict[str, torch.Tensor] | None = None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder / path, dtype=torch.float32)
    if weights:
        missing, unknown = model.load_state_dict(weights, strict=False)
        assert not unknown and set(missing) <= {"lm_head.weight"}  # where it is tied
    return model.double()


@torch.no_grad()
def exact(student: Any, teacher: Any, e: Example) -> torch.Tensor:
    """[4, n] in the order of token_values.FIELDS: whole distributions in float64."""
    learned, taught = (
        row_logits(student, e.student_ids, e.response_ids),
        row_logits(teacher, e.teacher_ids, e.response_ids),
    )
    log_p, log_q = taught.log_softmax(-1), learned.log_softmax(-1)
    targets = torch.tensor(e.response_ids).long()
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    nll = [cross_entropy(logits, targets, reduction="none") for logits in (learned, taught)]
    return torch.stack([kl, *nll, log_p.exp()[:, list(DOUBTS.values())].sum(-1)])


def agrees(found: np.ndarray, expected: torch.Tensor) -> None:
    assert found.dtype == np.float16
    torch.testing.assert_close(torch.from_numpy(found.astype(np.float64)), expected, **ROUNDING)


def taught(folder: Path, learner: Learner, weights: tuple[dict, dict]) -> tuple[Any, Any]:
    """transformers' student and teacher with the weights that both sides had."""
    student, teacher = weights
    t = learner.recipe.teacher
    return (
        loaded(folder, "student", student),
        loaded(folder, learner.recipe.teacher_path, None if t.follow == "frozen" else teacher),
    )


# The claims


@pytest.mark.parametrize("case", CASES)
def test_every_trained_token_has_the_values_of_whole_distributions_before_its_own_update(folder, alone, case):
    learner = make_learner(folder, CASES[case], Remembering)
    per_step = learner.recipe.learner.updates_per_step
    for examples in (STEPS[0], STEPS[3]):
        learner.before = []
        measured = step(learner, examples)
        found = learner.tokens.by_key()
        assert sorted(found) == [e.row for e in examples]  # each once, whatever the micro-batches
        size = math.ceil(len(examples) / per_step)
        for nth, weights in enumerate(learner.before):
            models = taught(folder, learner, weights)
            for e in examples[nth * size : (nth + 1) * size]:
                agrees(found[e.row], exact(*models, e))
        kl, student_nll, teacher_nll, onset = learner.tokens.values_FN.astype(np.float64).mean(1)
        for name, mean in (("kl/mean", kl), ("student/nll", student_nll), ("teacher/nll", teacher_nll)):
            assert measured[name] == pytest.approx(mean, rel=1e-3)
        assert 0 < measured["teacher/onset_mass"] == pytest.approx(onset, rel=1e-3)
        for side in ("student", "teacher"):
            assert measured[f"{side}/ppl"] == pytest.approx(math.exp(measured[f"{side}/nll"]))
    assert len(learner.before) == per_step


@pytest.mark.parametrize(
    "case", ["opd, padded, in parts", "opsd, adapters, two updates", "live teacher", "moving average"]
)
def test_scored_trajectories_have_the_values_of_whole_distributions_with_the_weights_as_they_are(folder, alone, case):
    learner = make_learner(folder, CASES[case], Remembering)
    step(learner, STEPS[0])
    kept = learner.tokens
    asked = step_rows(7, seed=9)
    found = score(learner, asked).by_key()
    assert sorted(found) == list(range(7)) and learner.tokens is kept
    models = taught(folder, learner, learner.both())
    for e in asked:
        agrees(found[e.row], exact(*models, e))


def test_what_float16_cannot_hold_is_its_largest_number_and_nan_stays_nan():
    statistics_SN = torch.zeros(len(STATISTICS), 7)
    statistics_SN[KEPT[0]] = torch.tensor([1e9, -math.inf, math.inf, math.nan, 65519.0, 1e-9, 0.1])
    found = _token_values([Example(3, [1], [1], [2] * 7)], statistics_SN).by_key()[3][0].tolist()
    assert found[:3] == [65504, -65504, 65504] and math.isnan(found[3])
    assert found[4:6] == [65504, 0] and found[6] == pytest.approx(0.1, rel=2**-11)


def test_of_several_teachers_each_token_has_the_values_under_its_row_s_own(folder, alone):
    tree = {"teachers": {"big": OPD["teacher"], "own": {"follow": "live"}}, "learner": {"lr": 1e-2} | PARTS}
    paths = {name: str(folder / one.teacher_path) for name, one in recipe_of(tree).by_teacher.items()}
    learner = Remembering(
        recipe_of(tree), student_path=str(folder / "student"), teacher_path=paths, total_steps=4,
        tokenizer_path=str(folder / "student"), device=torch.device("cpu"),
    )  # fmt: skip
    for examples in (step_rows(6, seed=1), step_rows(5, seed=2)):
        for e in examples:
            e.teacher = ("big", "own")[e.row % 2]
        student = {name: w.clone() for name, w in learner.weights("student", torch.float32)}
        before = loaded(folder, "student", student)
        teachers = {"big": loaded(folder, "teacher"), "own": before}
        scored = score(learner, examples).by_key()
        step(learner, examples)
        kept = learner.tokens.by_key()
        for e in examples:
            expected = exact(before, teachers[e.teacher], e)
            agrees(kept[e.row], expected)
            agrees(scored[e.row], expected)


def test_no_tokens_are_kept_where_nobody_wants_them_and_nothing_else_changes(folder, alone):
    keeping, other = (make_learner(folder, OPD | {"diagnostics": {"tokens": tokens}}) for tokens in (True, False))
    for examples in STEPS:
        assert step(keeping, examples) == step(other, examples)
        assert len(keeping.tokens.keys_B) == len(examples) and len(other.tokens.keys_B) == 0
    assert all(map(torch.equal, state(keeping), state(other)))


DISTURBED: dict[str, dict] = {
    "opd": OPD,
    "live teacher": {"teacher": {"follow": "live"}},
    "moving average": {"teacher": {"follow": "ema", "ema_decay": 0.7}},
    "adapters with dropout": {"learner": {"lora": {"rank": 4, "alpha": 8, "dropout": 0.5}, "lr": 1e-2}},
    "live, adapters with dropout": {
        "teacher": {"follow": "live"},
        "learner": {"lora": {"rank": 4, "alpha": 8, "dropout": 0.5}, "activation_checkpointing": True},
    },
    "bfloat16": OPD | {"learner": {"dtype": "bfloat16"}},
    "offloaded": OPD | {"learner": {"cpu_offload": True}},
}


@pytest.mark.parametrize("case", DISTURBED)
def test_scoring_between_steps_changes_no_bit_of_losses_weights_and_checkpoints(folder, alone, tmp_path, case):
    asked, undisturbed = (make_learner(folder, DISTURBED[case]) for _ in range(2))
    for learner in (asked, undisturbed):
        torch.manual_seed(7)  # dropout's
        curve = []
        for examples in STEPS:
            if learner is asked:
                first, second = (score(learner, STEPS[3]) for _ in range(2))
                assert np.array_equal(first.values_FN, second.values_FN)  # no dropout, nothing left behind
            curve.append(step(learner, examples))
        learner.curve = curve  # type: ignore[attr-defined]
        save(learner, tmp_path / ("asked" if learner is asked else "undisturbed"), len(STEPS))
    assert asked.curve == undisturbed.curve
    assert all(map(torch.equal, state(asked), state(undisturbed)))
    exports = [next((tmp_path / name / "model").glob("*.safetensors")) for name in ("asked", "undisturbed")]
    assert exports[0].read_bytes() == exports[1].read_bytes()
    after = []
    for name in ("asked", "undisturbed"):
        resumed = make_learner(folder, DISTURBED[case])
        Checkpointer(resumed, 60).load(tmp_path / name)  # with the state of the generator that dropout draws from
        after.append(step(resumed, STEPS[0]))
    assert after[0] == after[1]


def test_a_row_that_breaks_an_update_is_told_by_its_own_tokens_alone(folder, alone):
    learner = make_learner(folder, OPD | {"learner": {"tokens_per_micro_batch": 1}})  # poison spoils a micro-batch
    poison(learner)
    fine = [e for e in CLEAN[0] if e.row][:2]
    assert step(learner, [*BAD, *fine])["skipped_updates"] == 1
    found = learner.tokens.by_key()
    assert np.isnan(found[BAD[0].row][0]).any()
    assert all(np.isfinite(found[e.row]).all() for e in fine)
    assert step(learner, CLEAN[2])["skipped_updates"] == 0
    assert np.isfinite(learner.tokens.values_FN).all()


# Two ranks: each has its own examples, one of them none in the second step


def two_ranks(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    join(folder, rank, 2)
    learner = make_learner(folder, OPD | {"learner": {"updates_per_step": 2} | PARTS})
    mine = []
    for examples in STEPS:
        mine.append(score(learner, examples))
        step(learner, examples)
        mine.append(learner.tokens)
    torch.save([tuple(one) for one in mine], folder / f"mine-{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the interpreter, whose end then aborts the process


def test_the_answers_of_two_ranks_are_together_those_of_one(folder, alone):
    mp.spawn(two_ranks, (folder,), nprocs=2)
    ranks = [[TokenValues(*one) for one in torch.load(folder / f"mine-{r}.pt", weights_only=False)] for r in (0, 1)]
    learner = make_learner(folder, OPD | {"learner": {"updates_per_step": 2} | PARTS})
    alone_found = []
    for examples in STEPS:
        alone_found.append(score(learner, examples))
        step(learner, examples)
        alone_found.append(learner.tokens)
    assert len(ranks[0][2].keys_B) + len(ranks[1][2].keys_B) == 1  # of the step with a single row
    for one, *parts in zip(alone_found, *ranks, strict=True):
        found = together(parts).by_key()
        assert found.keys() == one.by_key().keys()
        for key, expected in one.by_key().items():
            np.testing.assert_allclose(found[key].astype(float), expected.astype(float), rtol=2e-3, atol=1e-4)


def test_the_words_that_begin_a_doubt_are_those_of_the_tokenizer(folder, alone):
    assert sorted(make_learner(folder, OPD).onset_ids.tolist()) == sorted(DOUBTS.values())
