"""What prompt lookup would accept, on hand-made texts, on random ones, and beside vLLM's own proposer."""

import random

import numpy as np
import pytest

from trd_ray.diagnostics.prompt_lookup import Drafting, Lookup, _Runs, drafting

HOW = Lookup(shortest=2, longest=4, draft=5)


def test_a_response_that_repeats_its_prompt_is_accepted_a_draft_at_a_time():
    text = list(range(100, 130))
    found = drafting(text, text, HOW)
    # Two tokens until a run of two is known, then a draft of 5 and a token of the model's own in each pass.
    assert found.tokens == 30 and found.passes == 2 + 28 // 6 + 1 and found.accepted == found.tokens - found.passes


def test_without_anything_in_common_each_token_costs_a_pass_and_nothing_is_drafted():
    assert drafting(range(50), range(100, 140), HOW) == Drafting(40, 40, 0, 0)


def test_an_edit_ends_a_draft_and_the_copying_begins_again_behind_it():
    prompt = list(range(40))
    response = [*range(10), 99, *range(11, 40)]
    found = drafting(prompt, response, Lookup(2, 4, 100))
    # 0, 1 alone; 2..9 drafted and 99 the model's own; 11, 12 alone; 13..39 drafted but for the last token.
    assert found.passes == 6 and found.accepted == 8 + 26


def test_the_longest_run_is_looked_up_where_it_stood_first():
    seen = _Runs(Lookup(1, 3, 2))
    for token in (7, 8, 1, 2, 9, 8, 3, 4, 7, 8):
        seen.read(token)
    assert seen.draft() == [1, 2]  # after 7 8, not after the nearer 8
    seen.read(3)
    assert seen.draft() == [4, 7]


@pytest.mark.parametrize("seed", range(5))
def test_every_token_is_counted_once_whatever_is_drafted(seed):
    rng = random.Random(seed)
    prompt, response = ([rng.randrange(6) for _ in range(n)] for n in (200, 150))
    found = drafting(prompt, response, Lookup(1, 3, 4))
    assert found.passes + found.accepted == found.tokens == 150
    assert found.accepted <= found.drafted and 1 < found.tokens_a_pass <= 5


def test_it_proposes_what_vllm_proposes():
    ngram = pytest.importorskip("vllm.v1.spec_decode.ngram_proposer")
    rng = random.Random(1)
    for _ in range(200):
        tokens = [rng.randrange(5) for _ in range(rng.randint(1, 60))]
        seen = _Runs(HOW)
        for token in tokens:
            seen.read(token)
        theirs = ngram._find_longest_matched_ngram_and_propose_tokens(np.array(tokens), 2, 4, 10_000, 5)
        assert seen.draft() == theirs.tolist()
