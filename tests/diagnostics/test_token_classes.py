import numpy as np
import pytest
from made_steps import response, row, scored, step_table

from trd_ray.diagnostics.class_shares import ClassShares
from trd_ray.diagnostics.step_rows import StepRows
from trd_ray.diagnostics.token_classes import CLASSES, KEYWORDS, TokenClasses
from trd_ray.miniature import tokenizer as miniature
from trd_ray.miniature.code_world import code_tokenizer


class Pieces:
    """A tokenizer of the pieces that byte-level BPE cuts texts into: each is a token, in the order of its coming."""

    def __init__(self, pieces: list[str], special: tuple[str, ...] = ("<|im_end|>",)):
        self.pieces = list(dict.fromkeys([*special, *pieces]))
        self.all_special_ids = list(range(len(special)))

    def ids(self, *pieces: str) -> np.ndarray:
        return np.array([self.pieces.index(piece) for piece in pieces])

    def batch_decode(self, batch: list[list[int]]) -> list[str]:
        return ["".join(self.pieces[i] for i in ids) for ids in batch]


def classed(*pieces: str) -> list[str]:
    tokenizer = Pieces(list(pieces))
    first = np.zeros(len(pieces), dtype=bool)
    first[0] = True
    return [CLASSES[i] for i in TokenClasses(tokenizer).of(tokenizer.ids(*pieces), first)]


@pytest.mark.parametrize(
    ("piece", "its"),
    [
        ("<|im_end|>", "end"), (" ", "whitespace"), ("\n\n", "whitespace"), ("\t", "whitespace"), ("", "other"),
        ("7", "number"), (" 2024", "number"), ("3.14", "number"), ("½", "number"),
        ("+", "operator"), (" =", "operator"), ("^{", "operator"), ("≤", "operator"), ("∑", "operator"),
        (" **", "operator"), ("\\frac", "latex"), ("\\boxed{", "latex"), (" \\", "latex"), ("\\(", "punctuation"),
        ("Wait", "onset"), (" However", "onset"), (" hmm", "onset"), ("Hmm,", "onset"),
        (" Therefore", "connective"), ("So", "connective"), (" since", "connective"),
        (" apple", "word"), ("ing", "word"), (" x", "word"), ("don't", "word"), ("素数", "word"),
        (".", "punctuation"), (" (", "punctuation"), ("$$", "punctuation"), ("```", "punctuation"),
        ("€", "punctuation"), (" While_", "connective"),
        ("\ufffd", "other"), ("🙂", "other"), ("x2", "word"), ("2x", "word"),
    ],
)  # fmt: skip
def test_a_token_is_classed_by_its_text(piece, its):
    assert classed(piece) == [its]


def test_a_command_s_name_after_a_backslash_is_latex_and_the_next_word_is_not():
    assert classed("\\", "frac", "{", "a", "}") == ["latex", "latex", "punctuation", "word", "punctuation"]
    assert classed("\\", "so", "so") == ["latex", "latex", "connective"]


def test_words_inside_a_fence_are_code_and_outside_they_are_prose():
    pieces = [
        "for",
        " each",
        "```",
        "python",
        "\n",
        "for",
        " x",
        " in",
        " range",
        "\\",
        "n",
        "\n",
        "```",
        " for",
        " all",
    ]
    assert classed(*pieces) == [
        "connective", "word", "punctuation", "code name", "whitespace", "code keyword", "code name", "code keyword",
        "code name", "punctuation", "code name", "whitespace", "punctuation", "connective", "word",
    ]  # fmt: skip
    assert {"for", "in", "return"} <= KEYWORDS


def test_no_fence_or_backslash_reaches_into_the_next_response():
    tokenizer = Pieces(["```", "for", "\\"])
    ids = tokenizer.ids("```", "for", "for", "\\", "for")
    found = TokenClasses(tokenizer).of(ids, np.array([True, False, True, False, False]))
    assert [CLASSES[i] for i in found] == ["punctuation", "code keyword", "connective", "latex", "latex"]
    found = TokenClasses(tokenizer).of(tokenizer.ids("\\", "for"), np.array([True, True]))
    assert [CLASSES[i] for i in found] == ["latex", "connective"]


def test_the_miniature_worlds_speak_in_numbers_operators_and_doubts():
    tokenizer = miniature.build()
    ids = np.array(tokenizer("Hmm 7@2=5; So \\boxed{5}" + miniature.END, add_special_tokens=False).input_ids)
    first = np.arange(len(ids)) == 0
    assert [CLASSES[i] for i in TokenClasses(tokenizer).of(ids, first)] == [
        "onset", "number", "operator", "number", "operator", "number", "punctuation", "connective", "latex", "number",
        "punctuation", "end",
    ]  # fmt: skip
    code = code_tokenizer.build()
    ids = np.array(code("Wait ```python\n    print(sum(xs))\n```", add_special_tokens=False).input_ids)
    found = [CLASSES[i] for i in TokenClasses(code).of(ids, np.arange(len(ids)) == 0)]
    assert found[0] == "onset" and "code name" in found


def test_shares_are_of_all_signal_and_of_all_tokens():
    tokenizer = Pieces(["7", " apple", "Wait"])
    ids = tokenizer.ids("7", " apple", " apple", "Wait")
    table = step_table(
        row(0, y_r=response(ids), scored=[scored("y_r", "refine", True, kl=[1.0, 0.0, 1.0, 2.0])]),
        row(1, y_r=response(ids), scored=[scored("y_r", "refine", True, kl=[9.0])]),  # not as many as its tokens
        row(2, y_o=response(ids[:1]), scored=[scored("y_o", "vanilla", kl=[0.0])]),
        row(3, y_r=response(ids[:1]), scored=[scored("y_r", "refine", True, kl=[float("inf")])]),
    )
    shares = ClassShares(TokenClasses(tokenizer))
    shares.add(StepRows(table))
    found = shares.found()
    assert found["trained"] == {
        "onset": {"kl": 0.5, "tokens": 0.25, "mean": 2.0, "count": 1},
        "number": {"kl": 0.25, "tokens": 0.25, "mean": 1.0, "count": 1},
        "word": {"kl": 0.25, "tokens": 0.5, "mean": 0.5, "count": 2},
    }
    assert list(found["trained"])[0] == "onset"
    assert found["y_o_vanilla"] == {"number": {"kl": None, "tokens": 1.0, "mean": 0.0, "count": 1}}


def test_without_scored_rows_there_are_no_shares():
    shares = ClassShares(TokenClasses(Pieces(["7"])))
    shares.add(StepRows(step_table(row(0, y_r=response([1])))))
    assert shares.found() is None
