"""Micro-batches lose no example, are as many on every rank, keep within the budget, and predict the right tokens."""

import random
from itertools import chain

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from trd_ray.distill.batches import Example, collate, micro_batches, split

PAD = 0


def examples(rows: int, seed: int = 0, longest: int = 60) -> list[Example]:
    """Rows whose student and teacher prompts differ, with a few responses far longer than the rest."""
    rng = random.Random(seed)

    def ids(most: int) -> list[int]:
        return [rng.randrange(2, 32) for _ in range(rng.randint(1, most))]

    return [Example(row, ids(6), ids(30), ids(longest if row % 5 == 0 else 10)) for row in range(rows)]


def plan(rows: list[Example], updates: int, ranks: int, budget: int) -> list[list[list[list[Example]]]]:
    """[update][rank][micro-batch] -> examples, as the loop makes it."""
    return [micro_batches(shares, budget) for shares in split(rows, updates, ranks)]


SHAPES = pytest.mark.parametrize(
    ("rows", "updates", "ranks", "budget"),
    [(32, 1, 1, 200), (32, 1, 4, 200), (33, 4, 3, 100), (7, 3, 2, 1), (5, 1, 8, 10_000), (1, 1, 2, 50), (2, 5, 2, 50)],
)


@SHAPES
def test_every_example_is_trained_exactly_once_and_in_its_update(rows, updates, ranks, budget):
    given = examples(rows)
    planned = plan(given, updates, ranks, budget)
    per_update = [sorted(e.row for rank in update for micro in rank for e in micro) for update in planned]
    assert list(chain(*per_update)) == list(range(rows))  # once each, and updates in the order of the rows
    assert len(planned) == min(updates, rows)
    assert max(map(len, per_update)) - min(map(len, per_update)) <= 1


@SHAPES
def test_every_rank_runs_the_same_number_of_micro_batches_within_the_budget(rows, updates, ranks, budget):
    for update in plan(examples(rows), updates, ranks, budget):
        assert len(update) == ranks and len({len(rank) for rank in update}) == 1
        for micro in chain(*update):
            batch = collate(micro, PAD)
            padded = max(batch.student.input_ids_BT.numel(), batch.teacher.input_ids_BT.numel())
            assert padded <= budget or len(micro) <= 1


def test_no_micro_batch_is_empty_on_every_rank():
    for update in plan(examples(33), 3, 4, 80):
        assert all(any(rank[m] for rank in update) for m in range(len(update[0])))


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_tokens_differ_between_ranks_by_one_example_at_most(ranks):
    [shares] = split(examples(64), 1, ranks)
    loads = [sum(e.tokens for e in share) for share in shares]
    assert max(loads) - min(loads) <= max(e.tokens for share in shares for e in share)


def test_one_rank_takes_the_long_example_and_the_other_all_the_short_ones():
    rows = [Example(row, [1], [1], [2] * (99 if row == 3 else 10)) for row in range(10)]
    [shares] = split(rows, updates=1, ranks=2)
    assert sorted([e.row for e in share] for share in shares) == [[0, 1, 2, 4, 5, 6, 7, 8, 9], [3]]


def test_a_larger_budget_makes_fewer_micro_batches():
    counts = [len(plan(examples(64), 1, 1, budget)[0][0]) for budget in (1, 200, 800, 10**6)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 64 and counts[-1] == 1


def test_the_plan_depends_on_the_rows_alone():
    assert plan(examples(40), 2, 3, 150) == plan(examples(40), 2, 3, 150)
    shuffled = random.Random(1).sample(examples(40), 40)
    assert plan(shuffled, 1, 3, 150) == plan(examples(40), 1, 3, 150)  # within an update their order is of no matter


def test_predicted_positions_are_those_of_each_row_on_its_own():
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    model, given = Qwen3ForCausalLM(config).eval(), examples(6)
    batch = collate(given, PAD)
    assert batch.rows == [e.row for e in given]
    assert batch.targets_N.tolist() == list(chain(*(e.response_ids for e in given)))
    for side, prompts in (
        (batch.student, [e.student_ids for e in given]),
        (batch.teacher, [e.teacher_ids for e in given]),
    ):
        with torch.no_grad():
            ours_NV = model(side.input_ids_BT).logits.flatten(0, 1)[side.predicts_N]
            alone = [
                model(torch.tensor([prompt + e.response_ids])).logits[0, len(prompt) - 1 : -1]
                for prompt, e in zip(prompts, given, strict=True)
            ]
        torch.testing.assert_close(ours_NV, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_micro_batch_without_examples_runs_through_a_model_and_predicts_nothing():
    batch = collate([], PAD).to(torch.device("cpu"))
    for side in (batch.student, batch.teacher):
        assert side.input_ids_BT.tolist() == [[PAD]] and side.predicts_N.tolist() == []
    assert batch.rows == [] and batch.targets_N.dtype == torch.long and len(batch.targets_N) == 0
