"""The tokens with which a teacher begins to doubt what it has read: TRD's epistemic-token mass (its Figure 3)."""

from transformers import PreTrainedTokenizerBase

ONSETS = (
    "Wait", "Actually", "However", "Alternatively", "Oops", "Wrong", "Error", "Incorrect", "Correction", "Sorry",
    "Hmm", "Oh", "Hold", "Pause", "Uh", "Um",
)  # fmt: skip


def onset_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The first token id of each word, bare and after a space. Words that the tokenizer does not know have none."""
    firsts = (tokenizer(text, add_special_tokens=False).input_ids[:1] for w in ONSETS for text in (w, f" {w}"))
    return sorted({i for ids in firsts for i in ids if i != tokenizer.unk_token_id})
