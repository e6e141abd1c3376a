"""Names of models become what can be loaded, and what is known of a model without its weights.

    `miniature:student`, `smollm2`, a folder, a hub name  ->  resolve()    ->  what transformers and vLLM load
    a hub name                                            ->  download()   ->  its files in the cache of this machine
    that                                                  ->  facts()      ->  ModelFacts, from config.json alone
    that                                                  ->  tokenizer()  ->  its tokenizer

Everything that can be known to be wrong with a model before an engine starts is refused here as a UserError.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trd_ray import collector, made_here, model_files
from trd_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

HUB_TIMEOUT_S = 5.0  # one try to reach the hub may take this long; its client makes a few
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
# What of a hub's model is not loaded: other libraries' formats, second copies, and older formats where there are newer.
_UNUSED = ["*.gguf", "*.onnx*", "*.h5", "*.msgpack", "*.tflite", "*.ot", "*.pth", "original/*", "consolidated*", "*.md"]
_NOT_DOWNLOADED = ([*_UNUSED, "*.bin", "*.pt"], _UNUSED, [])  # the next one where the one before left no weights
_WANTED = "give a folder that holds config.json and weights, a Hugging Face name such as Qwen/Qwen3-1.7B, or smollm2"


@dataclass(frozen=True)
class ModelFacts:
    path: str
    architecture: str
    parameters: int  # tied matrices counted once
    hidden_size: int
    intermediate_size: int
    vocab_size: int  # rows of lm_head, padding included
    layers: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    tied_embeddings: bool
    max_positions: int
    dtype: str
    eos_ids: tuple[int, ...]  # they end generation, by generation_config.json, else by config.json
    head_bias: bool = False  # whether lm_head has a bias
    linear_layers: tuple[str, ...] = ()  # last parts of the names of linear modules, without lm_head


def resolve(path: str, revision: str | None = None) -> str:
    """What transformers and vLLM load for a name; a model that is made here is made first. Raises UserError."""
    if (made := made_here.like(path, made_here.MODELS)) and not Path(path).exists():
        if path not in made_here.MODELS:
            raise UserError(f"there is no model {path}: it is {' or '.join(made)}")
        return str(made_here.MODELS[path]())
    folder = Path(path).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return str(folder.resolve())  # Ray workers have another working directory
    if folder.exists():
        raise UserError(f"{path} is a file, not a model: {_WANTED}")
    if not _HUB_NAME.fullmatch(path):
        raise UserError(f"there is no such model: {path} does not exist; {_WANTED}")
    _check_hub(path, revision)
    return path


def _check_folder(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise UserError(
            f"model folder {folder} holds adapters alone: merge them into their base (PEFT's merge_and_unload), or "
            "write checkpoints with checkpoint.export=merged"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"there is no such model: folder {folder} holds no config.json; {_WANTED}")
    weights = [f for pattern in ("*.safetensors", "pytorch_model*.bin") for f in folder.glob(pattern)]
    if not weights:
        raise UserError(f"model folder {folder} holds no weights (*.safetensors): save or download the model again")
    empty = [f.name for f in weights if f.stat().st_size == 0]
    if empty:
        raise UserError(f"model folder {folder} holds an empty {empty[0]}: save or download the model again")
    model_files.require_whole(folder)


def _check_hub(name: str, revision: str | None) -> None:
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return
        HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_S)
    except Exception as e:  # the hub's HTTP client raises its own, which differ between its versions
        raise UserError(
            f"there is no such model: {name} is not a folder here, not in the cache, and the Hugging Face hub does not "
            f"answer for it ({' '.join(str(e).split())[:200]}); {_WANTED}"
        ) from e


def download(name: str, revision: str | None = None) -> Path:
    """The folder in this machine's cache with what transformers and vLLM load of a hub's model, fetched if it is not.

    Without the hub, a cache that holds the model whole is enough. Raises UserError where it cannot be had.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    try:
        for ignored in _NOT_DOWNLOADED:
            folder = Path(snapshot_download(name, revision=revision, ignore_patterns=ignored))
            if _has_weights(folder):
                return folder
        raise UserError(f"{folder} holds no weights")
    except Exception as e:  # the hub's HTTP client raises its own, which differ between its versions
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str) and _has_weights(Path(cached).parent):
            return Path(cached).parent
        raise UserError(
            f"{name} is not whole in its cache and cannot be downloaded from the Hugging Face hub "
            f"({' '.join(str(e).split())[:200]}): let the node reach the hub, with HF_TOKEN where the model asks for "
            "one, or download it before and name its folder"
        ) from e


def _has_weights(folder: Path) -> bool:
    """Whether a folder of the hub's cache holds weights. Raises UserError for some that are not whole."""
    model_files.require_whole(folder)
    return any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)


def facts(path: str, revision: str | None = None, trust_remote_code: bool = False) -> ModelFacts:
    """ModelFacts of what `resolve` returned, from config.json and generation_config.json.

    Raises UserError, also where a folder's weights are not those that its config.json describes.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"the config.json of {path} cannot be used ({' '.join(str(e).split())[:300]}): fix it") from e
    try:
        eos = GenerationConfig.from_pretrained(path, revision=revision or "main").eos_token_id
    except (OSError, ValueError):
        eos = None
    model = _without_weights(config, path, trust_remote_code)
    if Path(path).is_dir():
        model_files.require_fit(Path(path), model)
    return _facts(model, config, path, eos)


def facts_of(
    config: "PreTrainedConfig",
    path: str,
    eos: int | list[int] | None = None,
    trust_remote_code: bool = False,
) -> ModelFacts:
    """ModelFacts of a loaded config. `eos` is generation_config's, which goes before the config's own."""
    return _facts(_without_weights(config, path, trust_remote_code), config, path, eos)


def _without_weights(config: "PreTrainedConfig", path: str, trust_remote_code: bool) -> "PreTrainedModel":
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError as e:
        raise UserError(
            f"{path} ({config.model_type}) is not a causal language model that transformers can load: {_WANTED}"
        ) from e


def _facts(model: "PreTrainedModel", config: "PreTrainedConfig", path: str, eos: int | list[int] | None) -> ModelFacts:
    text = config.get_text_config(decoder=True)
    eos = eos if eos is not None else text.eos_token_id
    heads = text.num_attention_heads
    return ModelFacts(
        path=path,
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        vocab_size=text.vocab_size,
        layers=text.num_hidden_layers,
        attention_heads=heads,
        # Not every config has these: every head may have its own keys, and the width may say the size of a head.
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        tied_embeddings=bool(text.tie_word_embeddings),
        max_positions=text.max_position_embeddings,
        dtype=str(text.dtype or "float32").removeprefix("torch."),
        eos_ids=tuple(eos) if isinstance(eos, (list, tuple)) else () if eos is None else (eos,),
        linear_layers=_linear_layers(model),
        head_bias=getattr(model.get_output_embeddings(), "bias", None) is not None,
    )


def _linear_layers(model: "PreTrainedModel") -> tuple[str, ...]:
    from torch.nn import Linear

    head = model.get_output_embeddings()
    names = (name for name, m in model.named_modules() if isinstance(m, Linear) and m is not head)
    return tuple(sorted({name.rpartition(".")[2] for name in names}))


def tokenizer(path: str, revision: str | None = None, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer of what `resolve` returned. Raises UserError where there is none."""
    with collector.off():
        from transformers import AutoTokenizer

    remedy = "put tokenizer.json and tokenizer_config.json next to config.json"
    try:
        read = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"no tokenizer could be read from {path} ({' '.join(str(e).split())[:200]}): {remedy}") from e
    # Where the files are missing, transformers makes a tokenizer that has only the architecture's special tokens.
    if read.get_vocab().keys() <= set(read.all_special_tokens):
        raise UserError(f"{path} has no tokenizer: {remedy}")
    return read
