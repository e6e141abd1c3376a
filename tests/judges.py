"""A model that is a judge of one mind: whatever it reads, it writes the same line. Engines serve it as any other.

A Llama whose attention and MLP add nothing: what comes next depends on the last token alone. After the token that opens
the assistant's turn comes the verdict, which is one token, and after that the end of the turn.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|system|>", "<|user|>", "<|assistant|>"]
WIDTH = 512  # of the model: a dimension for each token


def letters(*words: str) -> PreTrainedTokenizerFast:
    """A token a byte and one for each of the words, so that what is decoded is what was written."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(word, normalized=False) for word in words])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>", extra_special_tokens=SPECIAL
    )
    made.chat_template = TEMPLATE
    return made


def one_minded(folder: Path, says: str = "Verdict: pass") -> Path:
    """The folder, with the model that always `says` so."""
    tokenizer = letters(says)
    end, opens, verdict = tokenizer.convert_tokens_to_ids(["<|end|>", SPECIAL[-1], says])
    config: Any = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=8192, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        for token in range(len(tokenizer)):
            model.model.embed_tokens.weight[token, token] = 1.0
        for token, after in ((opens, verdict), (verdict, end)):
            model.lm_head.weight[after, token] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
