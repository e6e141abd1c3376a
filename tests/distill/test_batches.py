"""Micro-batches lose no example, cost every rank the same, keep within the budget, and predict the right tokens."""

import math
import pickle
import random
from itertools import accumulate, chain, pairwise, product

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from trd_ray.distill.attention import prepare
from trd_ray.distill.batches import Cost, Example, collate, micro_batches, partition, split
from trd_ray.models import ModelFacts, facts_of

PAD = 0
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])


def examples(rows: int, seed: int = 0, longest: int = 60) -> list[Example]:
    """Rows whose student and teacher prompts differ, with a few responses far longer than the rest."""
    rng = random.Random(seed)

    def ids(most: int) -> list[int]:
        return [rng.randrange(2, 32) for _ in range(rng.randint(1, most))]

    return [Example(row, ids(6), ids(30), ids(longest if row % 5 == 0 else 10)) for row in range(rows)]


def plan(rows: list[Example], updates: int, ranks: int, budget: int, packed: bool) -> list[list[list[list[Example]]]]:
    """[update][rank][micro-batch] -> examples, as the loop makes it."""
    return [micro_batches(shares, budget, packed) for shares in split(rows, updates, ranks)]


SHAPES = pytest.mark.parametrize(
    ("rows", "updates", "ranks", "budget"),
    [(32, 1, 1, 200), (32, 1, 4, 200), (33, 4, 3, 100), (7, 3, 2, 1), (5, 1, 8, 10_000), (1, 1, 2, 50), (2, 5, 2, 50)],
)


@PACKED
@SHAPES
def test_every_example_is_trained_exactly_once_and_in_its_update(rows, updates, ranks, budget, packed):
    planned = plan(examples(rows), updates, ranks, budget, packed)
    per_update = [sorted(e.row for rank in update for micro in rank for e in micro) for update in planned]
    assert list(chain(*per_update)) == list(range(rows))  # once each, and updates in the order of the rows
    assert len(planned) == min(updates, rows)
    assert max(map(len, per_update)) - min(map(len, per_update)) <= 1


@PACKED
@SHAPES
def test_every_rank_runs_the_same_number_of_micro_batches_within_the_budget(rows, updates, ranks, budget, packed):
    for update in plan(examples(rows), updates, ranks, budget, packed):
        assert len(update) == ranks and len({len(rank) for rank in update}) == 1
        for micro in chain(*update):
            batch = collate(micro, PAD, packed)
            tokens = max(batch.student.input_ids_BT.numel(), batch.teacher.input_ids_BT.numel())
            assert tokens <= budget or len(micro) <= 1


@PACKED
def test_no_micro_batch_is_empty_on_every_rank(packed):
    for update in plan(examples(33), 3, 4, 80, packed):
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


@PACKED
def test_a_larger_budget_makes_fewer_micro_batches(packed):
    counts = [len(plan(examples(64), 1, 1, budget, packed)[0][0]) for budget in (1, 200, 800, 10**6)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 64 and counts[-1] == 1


@PACKED
def test_the_plan_depends_on_the_rows_alone(packed):
    def numbers(rows: list[Example], updates: int) -> list[list[list[list[int]]]]:
        planned = plan(rows, updates, 3, 150, packed)
        return [[[[e.row for e in micro] for micro in rank] for rank in update] for update in planned]

    assert numbers(examples(40), 2) == numbers(examples(40), 2)
    shuffled = random.Random(1).sample(examples(40), 40)
    # Within an update their order is of no matter.
    assert numbers(shuffled, 1) == numbers(examples(40), 1)


# Balance, at the sizes of the paper


def facts(parameters: int, hidden: int, layers: int, heads: int, tied: bool) -> ModelFacts:
    sizes = (parameters, hidden, 3 * hidden, 151_936, layers, heads, 8, 128)
    return ModelFacts("", "Qwen3ForCausalLM", *sizes, tied, 40_960, "bfloat16", ())


QWEN3_8B = facts(8_190_735_360, 4096, 36, 32, tied=False)
QWEN3_1_7B = facts(1_720_574_976, 2048, 28, 16, tied=True)
BUDGET = 40_000


def long_tailed(rows: int, median: int, seed: int) -> list[Example]:
    """Responses of a median length, prompts that hold the problem, and for the teacher a rollout of the same kind."""
    rng = random.Random(seed)

    def tokens() -> int:
        return max(1, min(16_384, round(rng.lognormvariate(math.log(median), 0.8))))

    def row(i: int) -> Example:
        problem = rng.randint(60, 400)
        return Example(i, [7] * problem, [7] * (problem + 300 + tokens()), [7] * tokens())

    return [row(i) for i in range(rows)]


@pytest.mark.parametrize("median", [900, 7700])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_dearest_rank_costs_at_most_a_twentieth_more_than_the_mean(ranks, median):
    for cost, seed in product((Cost.of(QWEN3_8B, QWEN3_8B), Cost.of(QWEN3_1_7B, QWEN3_8B)), range(5)):
        [shares] = split(long_tailed(8 * ranks, median, seed), 1, ranks, cost)
        loads = [sum(map(cost, share)) for share in shares]
        assert max(loads) <= 1.05 * sum(loads) / ranks


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_row_dearer_than_the_mean_has_a_rank_to_itself_and_no_other_costs_more(ranks):
    rows = [*long_tailed(8 * ranks, 300, seed=0), Example(8 * ranks, [7], [7] * 30_000, [7] * 30_000)]
    cost = Cost.of(QWEN3_8B, QWEN3_8B)
    assert cost(rows[-1]) > sum(map(cost, rows)) / ranks
    [shares] = split(rows, 1, ranks, cost)
    assert [rows[-1]] in shares and max(sum(map(cost, share)) for share in shares) == cost(rows[-1])


def test_partitions_are_those_of_the_largest_differencing_method():
    # en.wikipedia.org/wiki/Largest_differencing_method: of 8, 7, 6, 5, 4 in two parts and in three.
    numbers = [8.0, 7.0, 6.0, 5.0, 4.0]
    assert sorted(sum(numbers[i] for i in part) for part in partition(numbers, 2)) == [14, 16]
    assert sorted(sum(numbers[i] for i in part) for part in partition(numbers, 3)) == [8, 11, 11]


def test_a_number_above_the_mean_is_the_largest_sum_where_differencing_alone_adds_to_it():
    numbers = [4.0, 4.0, 9.0, 10.0, 20.0, 1.0, 5.0, 12.0, 14.0]
    parts = partition(numbers, 4)
    assert sorted(chain(*parts)) == list(range(9)) and max(sum(numbers[i] for i in part) for part in parts) == 20


def best_largest(numbers: list[float], parts: int) -> float:
    return min(
        max(sum(n for n, p in zip(numbers, places, strict=True) if p == part) for part in range(parts))
        for places in product(range(parts), repeat=len(numbers))
    )


def test_small_partitions_are_close_to_the_best_of_all():
    rng = random.Random(0)
    ratios = []
    for _ in range(20):
        numbers = [rng.lognormvariate(0, 1) for _ in range(8)]
        parts = partition(numbers, 3)
        assert sorted(chain(*parts)) == list(range(8))
        ratios.append(max(sum(numbers[i] for i in part) for part in parts) / best_largest(numbers, 3))
    assert max(ratios) < 1.17 and sum(ratios) / len(ratios) < 1.03


@pytest.mark.parametrize("median", [900, 7700])
@pytest.mark.parametrize(("ranks", "rows", "seeds"), [(2, 128, 2), (8, 128, 4), (8, 512, 1)])
def test_ranks_in_lock_step_wait_for_one_another_a_tenth_of_the_time_at_most(ranks, rows, seeds, median):
    cost = Cost.of(QWEN3_8B, QWEN3_8B)
    for seed in range(seeds):
        given = long_tailed(rows, median, seed)
        [shares] = split(given, 1, ranks, cost)
        batches = micro_batches(shares, BUDGET, packed=True, cost=cost)
        step = sum(max(sum(map(cost, rank[i])) for rank in batches) for i in range(len(batches[0])))
        assert step <= 1.1 * sum(map(cost, given)) / ranks
        # Not many more than if all were full.
        full = max(sum(e.sides[s] for e in share) for share in shares for s in (0, 1)) / BUDGET
        assert len(batches[0]) <= 1.15 * full + 2


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_cost_is_what_torch_counts(tied, adapters):
    config = Qwen3Config(
        vocab_size=500, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=tied,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model, known = Qwen3ForCausalLM(config), facts_of(config, "")
    cost = Cost.of(known, known, adapters=adapters)
    if adapters:  # frozen weights, through which gradients pass on to those before them
        model.requires_grad_(False)
        model.enable_input_require_grads()
    example = Example(0, [3] * 100, [3] * 250, [3] * 50)
    with FlopCounterMode(display=False) as counted:
        for prompt, backward in ((example.student_ids, True), (example.teacher_ids, False)):
            ids_BT = torch.tensor([[*prompt, *example.response_ids]])
            with torch.set_grad_enabled(backward):
                logits = model(ids_BT, logits_to_keep=len(example.response_ids)).logits
            if backward:
                logits.sum().backward()
    # Eager attention computes the upper half of the scores, too.
    s, t = example.sides
    whole = cost(example) + cost.student_square * s**2 + cost.teacher_square * t**2
    assert whole == pytest.approx(counted.get_total_flops(), rel=0.01)


# Tensors


@PACKED
def test_predicted_positions_are_those_of_each_row_on_its_own(packed):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    model, given = Qwen3ForCausalLM(config).eval(), examples(6)
    prepare(model, packed)
    batch = collate(given, PAD, packed)
    assert batch.rows == [e.row for e in given]
    assert batch.targets_N.tolist() == list(chain(*(e.response_ids for e in given)))
    for side, prompts in (
        (batch.student, [e.student_ids for e in given]),
        (batch.teacher, [e.teacher_ids for e in given]),
    ):
        with torch.no_grad():
            ours_NV = model(**side.model_inputs(), use_cache=False).logits.flatten(0, 1)[side.predicts_N]
            alone = [
                model(torch.tensor([[*prompt, *e.response_ids]])).logits[0, len(prompt) - 1 : -1]
                for prompt, e in zip(prompts, given, strict=True)
            ]
        torch.testing.assert_close(ours_NV, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_packed_sides_hold_every_token_once_and_no_other():
    given = examples(6)
    side = collate(given, PAD, packed=True).teacher
    sequences = [[*e.teacher_ids, *e.response_ids] for e in given]
    assert side.input_ids_BT.tolist() == [list(chain(*sequences))]
    inputs = side.model_inputs()
    assert inputs["position_ids"].tolist() == [list(chain(*(range(len(s)) for s in sequences)))]
    assert inputs["cu_seq_lens_q"].tolist() == list(accumulate(map(len, sequences), initial=0))
    assert inputs["cu_seq_lens_q"].dtype == torch.int32  # as FlashAttention wants it
    assert inputs["max_length_q"] == max(map(len, sequences))


@PACKED
@pytest.mark.parametrize("count", [1, 6])
def test_arrays_and_lists_make_the_same_tensors_and_those_that_lists_alone_would(packed, count):
    given = examples(count)
    lists = [Example(e.row, *([int(i) for i in ids] for ids in _ids(e))) for e in given]
    views = []
    for e in given:  # read-only slices, as from a table or out of the object store
        whole = np.concatenate([[9, 9], *_ids(e)]).astype(np.int32)
        whole.flags.writeable = False
        ends = list(accumulate(map(len, _ids(e)), initial=2))
        views.append(Example(e.row, *(whole[a:b] for a, b in pairwise(ends))))
        assert all(np.shares_memory(ids, whole) for ids in _ids(views[-1]))
    one, other = collate(lists, PAD, packed), collate(views, PAD, packed)
    assert one.targets_N.equal(other.targets_N) and one.targets_N.dtype == torch.long
    assert one.targets_N.tolist() == [i for e in given for i in e.response_ids.tolist()]
    for side, of_other, prompts in (
        (one.student, other.student, [e.student_ids for e in given]),
        (one.teacher, other.teacher, [e.teacher_ids for e in given]),
    ):
        naive = [[*prompt.tolist(), *e.response_ids.tolist()] for prompt, e in zip(prompts, given, strict=True)]
        width = max(map(len, naive))
        padded = [sequence + [PAD] * (width - len(sequence)) for sequence in naive]
        assert side.input_ids_BT.tolist() == ([list(chain(*naive))] if packed else padded)
        starts = list(accumulate(map(len, naive), initial=0)) if packed else [width * b for b in range(count)]
        assert side.predicts_N.tolist() == [
            start + len(prompt) - 1 + i
            for start, prompt, e in zip(starts, prompts, given, strict=False)
            for i in range(len(e.response_ids))
        ]
        for a, b in zip(vars(side).values(), vars(of_other).values(), strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b


def _ids(e: Example) -> list[np.ndarray]:
    return [e.student_ids, e.teacher_ids, e.response_ids]


def test_a_pickled_shard_is_as_large_as_its_own_ids():
    whole = np.arange(1_000_000, dtype=np.int32)
    shard = [Example(i, whole[:100], whole[100:1100], whole[5000:5900]) for i in range(4)]
    assert 4 * 4 * 2000 < len(pickle.dumps(shard, protocol=5)) < 4 * 4 * 2000 + 4 * 500


@PACKED
def test_a_micro_batch_without_examples_is_one_token_and_predicts_nothing(packed):
    batch = collate([], PAD, packed).to(torch.device("cpu"))
    for side in (batch.student, batch.teacher):
        assert side.input_ids_BT.tolist() == [[PAD]] and side.predicts_N.tolist() == []
    if packed:
        assert batch.student.model_inputs()["cu_seq_lens_k"].tolist() == [0, 1]
    assert batch.rows == [] and batch.targets_N.dtype == torch.long and len(batch.targets_N) == 0
