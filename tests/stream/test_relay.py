"""Where an attempt breaks with its teacher, and what a refinement that goes on from there consists of."""

import numpy as np
import pytest

from trd_ray.config import SamplerConfig
from trd_ray.engine.actor import Generation
from trd_ray.record.ledger import row_metrics
from trd_ray.rows import light, to_table
from trd_ray.stream.choosing import RefineCandidate, scoring
from trd_ray.stream.relay import continued, kept_tokens, unchanged
from trd_ray.stream.stages import record, record_refined, request
from trd_ray.verify import Verdict


@pytest.mark.parametrize(
    ("logprobs", "passed", "kept"),
    [
        ([-0.1, -0.2, -5.0, -0.1], False, 2),  # before the first token below -4.6
        ([-0.1, -0.2, -5.0, -9.0], True, 2),
        ([-5.0, -0.1], True, 0),
        ([-0.1, -4.6, -0.1], True, 3),  # not below: it passes and never breaks
        ([-0.1, -2.0, -0.1], False, 1),  # it fails and never breaks: the least likely token is cut
        ([-0.1, -np.inf], True, 1),
        ([-0.1] * 8 + [-7.0], False, 4),  # what is kept leaves room
        ([-0.1] * 8, True, 8),  # but for an attempt that stays as it is
    ],
)
def test_the_attempt_is_kept_up_to_where_it_breaks(logprobs, passed, kept):
    assert kept_tokens(np.array(logprobs, np.float32), -4.6, passed, most=4) == kept


def generation(ids: list[int], logprobs: list[float]) -> Generation:
    return Generation(np.array(ids, np.int32), "tail", "stop", np.array(logprobs, np.float32), 3, "engine", 1.0, 2.0)


def test_y_r_is_what_was_kept_and_the_tail_with_the_teacher_s_log_probabilities_of_both():
    y_r = continued([5, 6], np.array([-0.5, -0.25], np.float32), generation([7, 1], [-0.125, -1.0]), "kept tail")
    assert y_r.ids.tolist() == [5, 6, 7, 1] and y_r.logprobs.tolist() == [-0.5, -0.25, -0.125, -1.0]
    assert (y_r.text, y_r.finish, y_r.version, y_r.seconds) == ("kept tail", "stop", 3, 2.0)
    read = generation([9], [-1.0])
    same = unchanged([5, 6, 1], np.zeros(3, np.float32), "length", "all of it", read)
    assert same.ids.tolist() == [5, 6, 1] and (same.text, same.finish) == ("all of it", "length")


@pytest.mark.parametrize(("kept", "tails"), [(2, [3, 1]), (4, [0]), (0, [6])])
def test_a_row_costs_the_tails_that_were_generated_and_the_attempt_that_was_read(kept, tails):
    attempt = generation([2, 3, 4, 1], [0.0] * 4)
    row = {"problem_id": "p", "problem": "?", "answer": "1", "reference": "", "row": 0, "step": 0, "epoch": 0}
    row |= {"sample_index": 0, "seed": 0, "refine_kept_tokens": kept}
    record(row, "y_o", attempt)
    refinements = [generation([2] * (kept + tail), [0.0] * (kept + tail)) for tail in tails]
    verdicts = [(0.0, Verdict(True, 1.0, "1", "", 0.0)) for _ in tails]
    record_refined(row, refinements, verdicts, [RefineCandidate(len(r.ids), True, 1.0) for r in refinements], 0)
    metrics = row_metrics(light(to_table([row])))
    assert metrics["tokens/refined"] == sum(tails) and metrics["tokens/scored"] == len(attempt.ids)
    assert metrics["relay/kept_share"] == kept / 4 and metrics["y_r/tokens_mean"] == kept + tails[0]


def test_the_attempt_is_read_under_the_condition_in_which_the_tail_is_made():
    asked = request(SamplerConfig(max_response_tokens=8), [1, 2], 0, adapter=False)
    read = scoring(asked.prompt_ids, [5, 6], asked.adapter)
    assert read.prompt_ids.tolist() == [1, 2, 5, 6] and read.prompt_logprobs and not read.adapter
