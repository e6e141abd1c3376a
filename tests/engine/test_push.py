"""A push of weights by two ranks in which something fails: all ranks return in seconds, and the next push goes well."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from ray.exceptions import ActorDiedError

from two_ranks import MIDDLE, NUMBERS, RANKS, TIMEOUT_S, Story, Told, rank_process

# On a busy machine. A rank that was left alone would wait for TIMEOUT_S at least.
SECONDS = TIMEOUT_S / 2


# name -> story, what the first push says
STORIES: dict[str, tuple[Story, str | None]] = {
    "nothing fails": (Story(), None),
    **{
        f"{what} fails on rank {rank}": (Story(rank, point), f"ValueError: {point} failed on rank {rank}")
        for rank in range(RANKS)
        for what, point in [
            ("connect", "connect"),
            ("what is asked before the gather", "shapes"),
            ("the first tensor", "0"),
            ("a tensor in the middle", str(MIDDLE)),
            ("the last tensor", str(len(NUMBERS) - 1)),
        ]
    },
    **{
        f"an engine {how} in {method}": (Story(engine={method: failure()}), f"engine p-0, {method}: {named}")
        for method in [
            "init_weight_transfer_engine", "pause", "start_weight_update", "update_weights", "finish_weight_update",
            "resume",
        ]
        for how, failure, named in [("dies", ActorDiedError, "ActorDied"), ("fails", lambda: OSError("odd"), "OSError")]
    },
    "an engine dies in the middle of the tensors": (Story(in_tensor="dies"), "engine p-0, update_weights: ActorDied"),
    "an engine hangs in the middle of the tensors": (
        Story(in_tensor="hangs", timeout_s=2.0),
        r"TimeoutError: waited 2 s (sync.timeout_s) for the engines to receive the new weights",
    ),
    "nothing fails by handles": (Story(by_handles=True), None),
    **{
        f"a tensor in the middle fails on rank {rank} by handles": (
            Story(rank, str(MIDDLE), by_handles=True), f"ValueError: {MIDDLE} failed on rank {rank}",
        )
        for rank in range(RANKS)
    },
    "an engine dies in the middle of the tensors by handles": (
        Story(in_tensor="dies", by_handles=True), "engine p-0, update_weights: ActorDied",
    ),
    "an engine is dead before the push": (Story(engine={"check_health": ActorDiedError()}), None),
}  # fmt: skip


@dataclass
class Seen:
    ranks: list[list[list[Told]]]  # rank -> story -> push
    alone: tuple[float, list[tuple[int, bool]], bool]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Seen:
    folder: Path = tmp_path_factory.mktemp("ranks")
    stories = [story for story, _ in STORIES.values()]
    ranks = mp.get_context("fork")  # what is imported here takes many seconds to import
    processes = [ranks.Process(target=rank_process, args=(rank, stories, folder, True)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 150
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()
    told = [torch.load(folder / f"rank-{rank}", weights_only=False) for rank in range(RANKS)]
    return Seen(told, torch.load(folder / "alone", weights_only=False))


@pytest.mark.parametrize("name", STORIES)
def test_all_ranks_return_soon_with_the_same_outcome_and_the_next_push_goes_well(seen, name):
    place = list(STORIES).index(name)
    expected = STORIES[name][1]
    first, second = ([seen.ranks[rank][place][push] for rank in range(RANKS)] for push in (0, 1))
    assert first[0].problem == first[1].problem
    assert (expected or "") in (first[0].problem or "")
    assert (first[0].problem is None) == (expected is None)
    assert max(told.seconds for told in [*first, *second]) < SECONDS
    assert [told.problem for told in second] == [None, None]
    # What an engine serves is whole, and of a version that was pushed to it; in the end all serve the second.
    assert all(whole for _, whole in first[0].served)
    assert second[0].served == [(2, True), (2, True)]


def test_engines_that_hold_no_part_of_the_weights_are_not_restarted(seen):
    for name in ["connect fails on rank 0", "connect fails on rank 1", "an engine fails in pause"]:
        assert seen.ranks[0][list(STORIES).index(name)][1].restarts == 0, name


def test_a_push_whose_other_rank_has_died_ends_at_once_and_lets_the_engines_go(seen):
    seconds, served, given_up = seen.alone
    assert seconds < SECONDS and given_up and served == [(0, True), (0, True)]
