"""The token ids whose mass tells a teacher's doubts."""

import pytest

from trd_ray import models
from trd_ray.distill.onset import ONSETS, onset_ids


@pytest.fixture(scope="module")
def smol():
    return models.tokenizer(models.resolve("smollm2"))


def test_each_word_gives_its_first_token_bare_and_after_a_space(smol):
    ids = onset_ids(smol)
    assert len(ids) == len(set(ids))
    for word in ONSETS:
        for text in (word, f" {word}"):
            assert smol(text, add_special_tokens=False).input_ids[0] in ids
    assert all(any(f" {w}".strip().startswith(smol.decode([i]).strip()) for w in ONSETS) for i in ids)


def test_a_tokenizer_that_knows_none_of_them_gives_none():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<unk>": 0, "1": 1}, unk_token="<unk>"))
    assert onset_ids(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")) == []
