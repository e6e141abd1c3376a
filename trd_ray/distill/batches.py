"""A step's examples become micro-batches: balanced over the ranks, bounded in tokens.

    examples -> updates (in row order) -> ranks (equal cost) -> micro-batches (as many on every rank, i-th ones alike)
             -> Side: one row without padding, or padded rows

FSDP's collectives need every rank to run the same number of micro-batches. A rank that has finished its i-th waits for
the others to finish theirs, so a step takes the sum over i of the most expensive i-th micro-batch.

Pure.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from trd_ray.models import ModelFacts
from trd_ray.only_teacher import ONLY


class Example:
    """One trajectory to train on: token ids as the engine sampled them, after each side's view of the prompt.

    The ids are int32 arrays. Those that are given as such are not copied, so they may be slices of a step's table;
    pickled, a slice is no larger than itself. `teacher` names whose it is, where there are several. `loss_at` are the
    places of the response's tokens that have loss, None: all of them.
    """

    def __init__(
        self,
        row: int,
        student_ids: ArrayLike,
        teacher_ids: ArrayLike,
        response_ids: ArrayLike,
        teacher: str = ONLY,
        loss_at: ArrayLike | None = None,
    ):
        self.row = row
        self.teacher = teacher
        self.student_ids = np.asarray(student_ids, np.int32)
        self.teacher_ids = np.asarray(teacher_ids, np.int32)
        self.response_ids = np.asarray(response_ids, np.int32)
        self.loss_at = None if loss_at is None else np.array(loss_at, np.int32)

    @property
    def loss_tokens(self) -> int:
        return len(self.response_ids if self.loss_at is None else self.loss_at)

    @property
    def sides(self) -> tuple[int, int]:
        """Tokens of the student's and of the teacher's sequence."""
        return len(self.student_ids) + len(self.response_ids), len(self.teacher_ids) + len(self.response_ids)

    @property
    def tokens(self) -> int:
        """The longer of the two sequences, which counts against a micro-batch's budget."""
        return max(self.sides)


@dataclass
class Side:
    """Sequences of one side and, for each response token, the flat position that predicts it.

    - Packed: one row [1, T] holds all sequences end to end. Attention tells them apart by their lengths
      (`attention.prepare`).
    - Padded: a row a sequence. The padding is on the right, where causal attention never sees it. So no mask is needed,
      and the fast kernels apply.
    """

    input_ids_BT: torch.Tensor
    predicts_N: torch.Tensor  # indices into B*T
    # Only packed sides have these: positions from 0 in each of S sequences, cumulative lengths from 0, the longest.
    position_ids_BT: torch.Tensor | None = None
    starts_S1: torch.Tensor | None = None
    longest: int = 0

    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments of a transformers model's forward, the same for our attention and for FlashAttention."""
        if self.starts_S1 is None:
            return {"input_ids": self.input_ids_BT}
        return {
            "input_ids": self.input_ids_BT,
            "position_ids": self.position_ids_BT,
            "cu_seq_lens_q": self.starts_S1,
            "cu_seq_lens_k": self.starts_S1,
            "max_length_q": self.longest,
            "max_length_k": self.longest,
        }

    def to(self, device: torch.device) -> "Side":
        def move(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x.to(device)

        return Side(
            self.input_ids_BT.to(device),
            self.predicts_N.to(device),
            move(self.position_ids_BT),
            move(self.starts_S1),
            self.longest,
        )


@dataclass
class MicroBatch:
    rows: list[int]
    student: Side
    teacher: Side
    targets_N: torch.Tensor

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(self.rows, self.student.to(device), self.teacher.to(device), self.targets_N.to(device))


@dataclass(frozen=True)
class Cost:
    """Estimated floating-point operations of training on one example, in tokens and squared lengths of each side."""

    student_token: float
    student_square: float
    teacher_token: float
    teacher_square: float
    response_token: float

    @classmethod
    def of(
        cls,
        student: ModelFacts,
        teacher: ModelFacts | None,
        activation_checkpointing: bool = False,
        adapters: bool = False,
    ) -> "Cost":
        """The cost of a student and a teacher, counted as J. Kaplan et al. do (arXiv:2001.08361, section 2.1).

        - A weight takes 2 operations a token, causal scores L^2 / 2 of their products.
        - A backward pass takes twice the forward's.
        - With `adapters` the weights are frozen: the backward pass through them, and through lm_head, takes as long as
          the forward's.
        - The experts of a mixture count as if all were used.
        - Without a teacher (None) there is its forward pass in none of it.
        """
        again = 1 if activation_checkpointing else 0
        passes = (2 if adapters else 3) + again
        scores = 3 + again
        s_token, s_square = _forward(student)
        t_token, t_square = _forward(teacher) if teacher else (0.0, 0.0)
        of_teacher = teacher.hidden_size if teacher else 0
        head = 2 * student.vocab_size * ((2 if adapters else 3) * student.hidden_size + of_teacher)
        return cls(passes * s_token, scores * s_square, t_token, t_square, head)

    def __call__(self, example: Example) -> float:
        s, t = example.sides
        return (
            self.student_token * s
            + self.student_square * s**2
            + self.teacher_token * t
            + self.teacher_square * t**2
            + self.response_token * len(example.response_ids)
        )


def _forward(model: ModelFacts) -> tuple[float, float]:
    """Operations that the layers' forward pass takes for a token, and for a squared length."""
    tables = model.vocab_size * model.hidden_size * (1 if model.tied_embeddings else 2)
    return 2 * (model.parameters - tables), 2 * model.layers * model.attention_heads * model.head_dim


def token_count(example: Example) -> float:
    """The cost where nothing is known of the models: the tokens of the longer side."""
    return example.tokens


def split(
    examples: list[Example], updates: int, ranks: int, cost: Callable[[Example], float] = token_count
) -> list[list[list[Example]]]:
    """[update][rank] -> examples. Updates take rows in order. Within an update, `cost` is balanced over the ranks."""
    per_update = [examples[i * len(examples) // updates : (i + 1) * len(examples) // updates] for i in range(updates)]
    return [_balance(sorted(u, key=lambda e: e.row), ranks, cost) for u in per_update if u]


def _balance(examples: list[Example], ranks: int, cost: Callable[[Example], float]) -> list[list[Example]]:
    parts = partition([cost(e) for e in examples], ranks)
    return [[examples[i] for i in sorted(part)] for part in parts]


def partition(costs: list[float], parts: int) -> list[list[int]]:
    """Indices of `costs` in `parts` groups whose sums are nearly equal: the largest differencing method.

    Every partial solution is a list of groups. The two solutions with the largest differences are merged: the heaviest
    groups of one with the lightest of the other (N. Karmarkar, R. M. Karp, The Differencing Method of Set Partitioning,
    UCB/CSD 82/113, 1982). What alone costs as much as the mean of a group first gets a group to itself: no partition
    does better.
    """
    order = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    alone: list[list[int]] = []
    total = sum(costs[i] for i in order)
    while order and parts > 1 and costs[order[0]] * parts >= total:
        alone.append([order.pop(0)])
        total -= costs[alone[-1][0]]
        parts -= 1
    if not order:
        return alone + [[] for _ in range(parts)]
    age = count()
    heap = [(-costs[i], next(age), [(costs[i], [i])] + [(0.0, [])] * (parts - 1)) for i in order]
    while len(heap) > 1:
        (_, _, one), (_, _, other) = heapq.heappop(heap), heapq.heappop(heap)
        merged = sorted(
            ((a + b, p + q) for (a, p), (b, q) in zip(one, reversed(other), strict=True)), key=lambda g: -g[0]
        )
        heapq.heappush(heap, (merged[-1][0] - merged[0][0], next(age), merged))
    return alone + [group for _, group in heap[0][2]]


def micro_batches(
    shares: list[list[Example]],
    budget_tokens: int,
    packed: bool = False,
    cost: Callable[[Example], float] = token_count,
) -> list[list[list[Example]]]:
    """[rank][micro-batch] -> examples, with as many lists on every rank.

    Neither side of a micro-batch has more than `budget_tokens`, padding counted, unless it is a single longer example.
    An empty list is a micro-batch without tokens.
    """
    if not packed:
        cut = [_cut(share, budget_tokens) for share in shares]
        most = max(len(c) for c in cut)
        return [c + [[]] * (most - len(c)) for c in cut]
    # Begin with as few as the tokens allow. Try one more until all examples find a place.
    full = max(sum(min(e.sides[s], budget_tokens) for e in share) for share in shares for s in (0, 1))
    batches = next(
        filter(None, (_in_step(shares, budget_tokens, n, cost) for n in count(max(1, -(-full // budget_tokens)))))
    )
    used = [i for i in range(len(batches[0])) if any(rank[i] for rank in batches)]
    return [[rank[i] for i in used] for rank in batches]


def _fits(batch: list[Example], budget_tokens: int) -> bool:
    return len(batch) <= 1 or all(sum(e.sides[s] for e in batch) <= budget_tokens for s in (0, 1))


def _in_step(
    shares: list[list[Example]], budget_tokens: int, n: int, cost: Callable[[Example], float]
) -> list[list[list[Example]]] | None:
    """Each rank's share in `n` micro-batches, i-th ones of like cost; None if a rank needs more of them.

    Ranks other than the first take the order of its micro-batches: its most expensive runs next to their most
    expensive. No order waits less, because a sum of maxima is smallest where the terms are sorted alike.
    """
    ranks = [_spread(share, budget_tokens, n, cost) for share in shares]
    batches = [rank for rank in ranks if rank is not None]
    if len(batches) < len(ranks):
        return None
    cheapest_first = [sorted(range(n), key=lambda i: sum(map(cost, rank[i]))) for rank in batches]
    place = {first: nth for nth, first in enumerate(cheapest_first[0])}
    return [[rank[order[place[i]]] for i in range(n)] for rank, order in zip(batches, cheapest_first, strict=True)]


def _spread(
    share: list[Example], budget_tokens: int, n: int, cost: Callable[[Example], float]
) -> list[list[Example]] | None:
    """The most expensive example first, each to the cheapest of `n` micro-batches with room; None if one fits nowhere.

    List scheduling (R. L. Graham, Bounds on Multiprocessing Timing Anomalies, 1969).
    """
    batches: list[list[Example]] = [[] for _ in range(n)]
    load = [0.0] * n
    for example in sorted(share, key=lambda e: (-cost(e), e.row)):
        room = [i for i in range(n) if _fits([*batches[i], example], budget_tokens)]
        if not room:
            return None
        cheapest = min(room, key=lambda i: load[i])
        batches[cheapest].append(example)
        load[cheapest] += cost(example)
    return batches


def _cut(share: list[Example], budget_tokens: int) -> list[list[Example]]:
    """Micro-batches of padded rows, longest first: the first row sets the width, and its neighbours waste little."""
    batches: list[list[Example]] = []
    for example in sorted(share, key=lambda e: (-e.tokens, e.row)):
        if batches and (len(batches[-1]) + 1) * batches[-1][0].tokens <= budget_tokens:
            batches[-1].append(example)
        else:
            batches.append([example])
    return batches


Pair = tuple[np.ndarray, np.ndarray]  # ids of a prompt, ids of the response


def collate(examples: list[Example], pad_id: int, packed: bool = False) -> MicroBatch:
    """The tensors of one micro-batch. Without examples it is one pad token that predicts nothing."""
    side = _packed if packed else _padded
    return MicroBatch(
        rows=[e.row for e in examples],
        student=side([(e.student_ids, e.response_ids) for e in examples], pad_id),
        teacher=side([(e.teacher_ids, e.response_ids) for e in examples], pad_id),
        targets_N=_long([e.response_ids for e in examples]),
    )


def _long(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """The arrays end to end, as the integers that torch takes for indices."""
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *arrays], dtype=np.int64))


def _padded(pairs: list[Pair], pad_id: int) -> Side:
    width = max((len(p) + len(r) for p, r in pairs), default=1)
    ids = torch.full((max(1, len(pairs)), width), pad_id, dtype=torch.long)
    for b, pair in enumerate(pairs):
        ids[b, : sum(map(len, pair))] = _long(pair)
    return Side(ids, _predicts(pairs, [b * width for b in range(len(pairs))]))


def _packed(pairs: list[Pair], pad_id: int) -> Side:
    lengths = [len(p) + len(r) for p, r in pairs] or [1]
    starts = list(accumulate(lengths, initial=0))
    return Side(
        _long([ids for pair in pairs for ids in pair] or [np.array([pad_id])]).unsqueeze(0),
        _predicts(pairs, starts),
        position_ids_BT=torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0),
        starts_S1=torch.tensor(starts, dtype=torch.int32),
        longest=max(lengths),
    )


def _predicts(pairs: list[Pair], starts: list[int]) -> torch.Tensor:
    """Where the response tokens are predicted: each at the position before its own."""
    firsts = [start + len(prompt) - 1 for start, (prompt, _) in zip(starts, pairs, strict=False)]
    return _long([np.arange(first, first + len(r)) for first, (_, r) in zip(firsts, pairs, strict=True)])
