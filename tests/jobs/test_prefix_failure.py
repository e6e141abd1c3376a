"""Prefix failure measured: the oracles of its gradients, its means, and what it says of the shipped models."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch.nn import functional

from trd_ray.miniature import model_path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
import prefix_failure  # noqa: E402
from prefix_parts import gradients, positions  # noqa: E402
from prefix_parts.rollouts import Models, Rollout, logits, rollouts  # noqa: E402


@pytest.fixture(scope="module")
def models() -> Models:
    return prefix_failure.loaded(None)


@pytest.fixture(scope="module")
def rows(models) -> list[Rollout]:
    return rollouts(models, 12, 4, seed=1)


def test_padding_changes_nothing_that_is_said_before_a_token(models, rows):
    alone = models.student(input_ids=torch.tensor([rows[0].prompt_ids + rows[0].y_o])).logits[0]
    first = next(logits(models.student, [row.prompt_ids for row in rows], [row.y_o for row in rows]))
    assert first.shape[0] == len(rows[0].y_o)
    torch.testing.assert_close(first, alone[len(rows[0].prompt_ids) - 1 : -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("method", "mode"), [("forward KL", "opsd"), ("reverse KL", "opd"), ("TRD", "opd")])
def test_the_gradient_of_a_group_is_that_of_its_rows_summed_kl(models, rows, method, mode):
    few = rows[:3]
    pull = gradients.by_method(models, few, mode)[method]["all"]
    total = torch.zeros(())
    for row in few:
        taught = row.taught[mode]
        prompt, response = (taught.refine_ids, taught.y_r) if method == "TRD" else (taught.vanilla_ids, row.y_o)
        said = [
            model(input_ids=torch.tensor([context + response])).logits[0, len(context) - 1 : -1].log_softmax(-1)
            for model, context in ((models.student, row.prompt_ids), (models.teachers[mode], prompt))
        ]
        student, teacher = said[0], said[1].detach()
        a, b = (student, teacher) if method == "reverse KL" else (teacher, student)
        total = total + functional.kl_div(b, a, reduction="sum", log_target=True)
    expected = gradients.flat(torch.autograd.grad(total, list(models.student.parameters())))
    assert gradients.cosine(pull.summed, expected) == pytest.approx(1, abs=1e-3)
    assert pull.loss * pull.tokens == pytest.approx(total.item(), rel=1e-3)
    assert pull.rows == 3 and 0 < pull.agreement <= 1


def test_the_gradient_of_the_pass_rate_is_reinforce_with_the_other_rollouts_as_baseline(models, rows):
    advantage = gradients.advantages(rows)
    total = torch.zeros(())
    for row, a in zip(rows, advantage, strict=True):
        said = models.student(input_ids=torch.tensor([row.prompt_ids + row.y_o])).logits[
            0, len(row.prompt_ids) - 1 : -1
        ]
        total = total - a * functional.cross_entropy(said, torch.tensor(row.y_o), reduction="sum")
    expected = gradients.flat(torch.autograd.grad(total, list(models.student.parameters())))
    assert gradients.cosine(gradients.pass_rate(models, rows).gradient, expected) == pytest.approx(1, abs=1e-3)


def test_a_rollout_is_set_against_the_others_of_its_problem():
    rows = [SimpleNamespace(problem=p, passed=passed) for p, passed in ((0, True), (0, False), (0, False), (1, True))]
    assert gradients.advantages(rows) == pytest.approx([1, -0.5, -0.5, 1])


def test_agreement_is_one_where_all_pull_one_way_and_small_where_none_does():
    same, apart = (gradients.Pull(2, 2, 0.0, 1.0, torch.tensor(summed)) for summed in ([2.0, 0.0], [0.0, 0.0]))
    assert (same.agreement, apart.agreement) == (1.0, 0.0)


def test_an_estimate_that_is_all_noise_has_no_room_and_one_without_noise_has_all():
    assert [gradients.PassRate(torch.zeros(1), halves).ceiling for halves in (-0.2, 0.0, 1.0)] == [0, 0, 1]


def test_every_token_is_in_the_tenth_in_which_it_stands():
    signal = positions.by_tenths(torch.arange(25, dtype=torch.float32))
    assert signal.tokens.sum() == 25 and signal.kl.sum() == 300 and signal.kl[0] == 0 + 1 + 2
    assert positions.mean_by_tenths([signal, positions.by_tenths(torch.zeros(3))])[0] == pytest.approx(3 / 4)


def test_an_interval_resamples_problems_and_not_their_steps():
    rng = np.random.default_rng(0)
    by_problem = rng.random(40)
    few = positions.clustered(list(by_problem), list(range(40)), 2000, 0)
    copied = positions.clustered(list(np.repeat(by_problem, 50)), list(np.repeat(range(40), 50)), 2000, 0)
    assert copied.value == pytest.approx(few.value)
    assert (copied.low, copied.high) == pytest.approx((few.low, few.high))
    assert positions.clustered([0.2, 0.4], [7, 7], 100, 0).low is None


def test_opsd_has_prefix_failure_and_opd_has_none(tmp_path, capsys):
    asked = ["--directory", str(tmp_path), "--problems", "8", "--rollouts", "3", "--gradient-rows", "6"]
    assert prefix_failure.main(asked) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    for mode, fails in (("opd", False), ("opsd", True)):
        lines = {(one["steps"], one["prefix"]): one for one in found["next_steps"][mode]}
        right, wrong = lines["+ and -", "right"], lines["+ and -", "wrong"]
        assert right["teacher_local"]["value"] > 0.9
        assert (wrong["teacher_local"]["value"] < 0.5) == fails
        assert (wrong["teacher_reference"]["value"] > 0.4) == fails
    assert {one["group"] for one in found["gradients"]["opsd"]} <= set(gradients.GROUPS)
    assert "OPSD" in capsys.readouterr().out and "| OPD | forward KL" in (tmp_path / "tables.md").read_text()
    ElementTree.parse(tmp_path / "prefix_failure.svg")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--problems", "1"], "at least 2"),
        (["--problems", "201"], "200 chains are held out"),
        (["--rollouts", "1"], "at least 2"),
        (["--student", "nowhere"], "nowhere has no config.json"),
        (["--student", str(model_path("code_student"))], "no model of the miniature world of arithmetic"),
        (["steps=3"], "unrecognized arguments"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_before_a_model_is_read(options, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prefix_failure, "loaded", lambda student: pytest.fail("read a model"))
    assert prefix_failure.main(["--directory", str(tmp_path / "D"), *options]) == 2
    told = capsys.readouterr().err.strip()
    assert sentence in told and len(told.splitlines()) == 1 and not (tmp_path / "D").exists()
