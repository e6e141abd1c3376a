import pytest

from browsed import HOSTILE, byte_level, ids_of
from trd_ray import models
from trd_ray.report.samples.token_pieces import TokenPieces


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return byte_level(tmp_path_factory.mktemp("words"))


@pytest.mark.parametrize("text", ["let me think", "数学 🎉👩‍👧 ünï", HOSTILE, ""])
def test_pieces_of_bytes_make_up_the_text(words, text):
    ids = ids_of(words, text)
    pieces = TokenPieces(words).of(ids)
    assert "".join(pieces) == text and len(pieces) == len(ids)


def test_a_character_of_several_tokens_stands_at_the_one_that_completes_it(words):
    assert TokenPieces(words).of(ids_of(words, "a🎉b")) == ["a", "", "", "", "🎉", "b"]


def test_bytes_that_nothing_completes_are_replaced(words):
    whole = ids_of(words, "🎉")
    assert "".join(TokenPieces(words).of([*whole[:2], *ids_of(words, "x")])) == "\ufffdx"
    assert "".join(TokenPieces(words).of([*ids_of(words, "x"), *whole[:3]])) == "x\ufffd"


def test_a_special_token_is_told_from_text_that_spells_it(words):
    end = words.eos_token_id
    spelled = ids_of(words, "a<|end|>")
    assert end not in spelled
    assert TokenPieces(words).runs([*spelled, end]) == ["a<|end|>", "<|end|>", ""]


def test_an_id_past_the_vocabularys_end_stands_for_no_text(words):
    assert TokenPieces(words).of([*ids_of(words, "ab"), len(words) + 5]) == ["a", "b", ""]


def test_tokens_of_the_miniature_world_have_their_spaces():
    words = models.tokenizer(models.resolve("miniature:student"))
    ids = words("5-2=3; Hmm 3@1=1; \\boxed{1}", add_special_tokens=False).input_ids
    pieces = TokenPieces(words).of(ids)
    assert "".join(pieces) == words.decode(ids) and "; " in pieces


def a_tokenizer(decoder, vocabulary: list[str]):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(vocabulary)}, unk_token=vocabulary[0]))
    made.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=vocabulary[0])


def test_a_sentence_piece_vocabulary_has_spaces_and_bytes():
    from tokenizers import decoders

    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    words = a_tokenizer(decoder, ["<unk>", "▁so", "x", "<0xC3>", "<0xBC>"])
    assert TokenPieces(words).of([1, 2, 3, 4, 1]) == [" so", "x", "", "ü", " so"]


def test_a_tokenizer_of_another_kind_is_asked_for_what_each_token_adds():
    from tokenizers import decoders

    words = a_tokenizer(decoders.WordPiece(), ["[UNK]", "play", "##ing", "now"])
    pieces = TokenPieces(words).of([1, 2, 3, 1])
    assert "".join(pieces) == words.decode([1, 2, 3, 1]) == "playing now play"
    assert pieces == ["play", "ing", " now", " play"]
