"""A word-level tokenizer of 28 entries for the miniature task, with its chat template.

    "Hmm 7@2=5; \\boxed{5}"  ->  Hmm 7 @ 2 = 5 ; \\boxed{ 5 }  ->  the same text

The spaces that make a solution readable (after a semicolon, after a word of self-talk) cost no token. They are dropped
on the way in and written again on the way out, so decode(encode(text)) == text for every text that the task makes.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, USER, ASSISTANT, END = "<|pad|>", "<|unknown|>", "<|user|>", "<|assistant|>", "<|end|>"
REFERENCE, ATTEMPT = "<|reference|>", "<|attempt|>"
SPECIAL = (PAD, UNKNOWN, USER, ASSISTANT, END, REFERENCE, ATTEMPT)
WORDS = ("Hmm", "So", "Check", "Wait")
ALPHABET = (*"0123456789+-@=;", "\\boxed{", "}", *WORDS)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role not in ('user', 'assistant') -%}"
    "{{ raise_exception('the miniature models know the roles user and assistant, not ' + message.role) }}"
    "{%- endif -%}"
    "{{ '<|' + message.role + '|>' + message.content + '" + END + "' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '" + ASSISTANT + "' }}{%- endif -%}"
)

# What a recipe for these models has in `prompts:`. They are trained on exactly these sequences and know no others.
PROMPTS = {
    "solve": "{problem}",
    "solve_with_reference": "{problem}" + REFERENCE + "{reference}",
    "refine": "{problem}" + ATTEMPT + "{attempt}",
    "refine_with_reference": "{problem}" + REFERENCE + "{reference}" + ATTEMPT + "{attempt}",
}


def build() -> PreTrainedTokenizerFast:
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\\boxed\{|" + "|".join(WORDS) + r"|\S"), "isolated"),
            pre_tokenizers.Split(Regex(r"\s+"), "removed"),
        ]
    )
    join = decoders.Sequence([*(decoders.Replace(spaced, spaced + " ") for spaced in (";", *WORDS)), decoders.Fuse()])
    return word_level(ALPHABET, split, join)


def word_level(
    alphabet: Iterable[str], split: pre_tokenizers.PreTokenizer, join: decoders.Decoder
) -> PreTrainedTokenizerFast:
    """A tokenizer of the special tokens and this alphabet, with the chat template that all miniature models share."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = join
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        extra_special_tokens=[USER, ASSISTANT, REFERENCE, ATTEMPT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=512,
    )
