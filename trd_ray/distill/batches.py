"""From a step's examples to micro-batches: balanced over ranks, bounded in padded tokens, as many on every rank.

    examples -> updates (in row order) -> ranks (longest first to the lightest) -> micro-batches (similar lengths)

Pure. FSDP's collectives need every rank to run the same number of micro-batches, so the shorter lists are filled with
empty ones.
"""

import heapq
from dataclasses import dataclass

import torch


@dataclass
class Example:
    """One trajectory to train on: token ids as the engine sampled them, after each side's view of the prompt."""

    row: int
    student_ids: list[int]
    teacher_ids: list[int]
    response_ids: list[int]

    @property
    def tokens(self) -> int:
        """The longer of the two sequences: what a micro-batch of it is bounded by."""
        return max(len(self.student_ids), len(self.teacher_ids)) + len(self.response_ids)


@dataclass
class Side:
    """Sequences of one side and, for each response token, the flat position that predicts it.

    Padding is on the right, where causal attention never sees it, so no mask is needed and the fast kernels apply.
    """

    input_ids_BT: torch.Tensor
    predicts_N: torch.Tensor  # into B*T


@dataclass
class MicroBatch:
    rows: list[int]
    student: Side
    teacher: Side
    targets_N: torch.Tensor

    def to(self, device: torch.device) -> "MicroBatch":
        def move(s: Side) -> Side:
            return Side(s.input_ids_BT.to(device), s.predicts_N.to(device))

        return MicroBatch(self.rows, move(self.student), move(self.teacher), self.targets_N.to(device))


def split(examples: list[Example], updates: int, ranks: int) -> list[list[list[Example]]]:
    """[update][rank] -> examples. Rows keep their order over updates; in one, tokens are balanced over the ranks."""
    per_update = [examples[i * len(examples) // updates : (i + 1) * len(examples) // updates] for i in range(updates)]
    return [_balance(u, ranks) for u in per_update if u]


def _balance(examples: list[Example], ranks: int) -> list[list[Example]]:
    # Longest processing time first: at most 4/3 of the best possible load, and close to it for many rows.
    loads: list[tuple[int, int]] = [(0, r) for r in range(ranks)]
    shares: list[list[Example]] = [[] for _ in range(ranks)]
    for example in sorted(examples, key=lambda e: (-e.tokens, e.row)):
        load, rank = heapq.heappop(loads)
        shares[rank].append(example)
        heapq.heappush(loads, (load + example.tokens, rank))
    return shares


def micro_batches(shares: list[list[Example]], budget_tokens: int) -> list[list[list[Example]]]:
    """[rank][micro-batch] -> examples, as many lists on every rank; an empty list is a micro-batch without tokens."""
    cut = [_cut(share, budget_tokens) for share in shares]
    most = max(len(c) for c in cut)
    return [c + [[]] * (most - len(c)) for c in cut]


def _cut(share: list[Example], budget_tokens: int) -> list[list[Example]]:
    batches: list[list[Example]] = []
    for example in sorted(share, key=lambda e: (e.tokens, e.row)):
        # Sorted by length, so this one is the longest of its batch and sets the padding.
        if batches and (len(batches[-1]) + 1) * example.tokens <= budget_tokens:
            batches[-1].append(example)
        else:
            batches.append([example])
    return batches


def collate(examples: list[Example], pad_id: int) -> MicroBatch:
    """Pad one micro-batch; without examples it is one pad token that predicts nothing."""
    return MicroBatch(
        rows=[e.row for e in examples],
        student=_side([(e.student_ids, e.response_ids) for e in examples], pad_id),
        teacher=_side([(e.teacher_ids, e.response_ids) for e in examples], pad_id),
        targets_N=torch.tensor([t for e in examples for t in e.response_ids], dtype=torch.long),
    )


def _side(pairs: list[tuple[list[int], list[int]]], pad_id: int) -> Side:
    width = max((len(p) + len(r) for p, r in pairs), default=1)
    ids = torch.full((max(1, len(pairs)), width), pad_id, dtype=torch.long)
    predicts: list[int] = []
    for b, (prompt, response) in enumerate(pairs):
        sequence = prompt + response
        ids[b, : len(sequence)] = torch.tensor(sequence)
        first = b * width + len(prompt) - 1
        predicts.extend(range(first, first + len(response)))
    return Side(ids, torch.tensor(predicts, dtype=torch.long))
