"""Checks of a model folder by what its files say of themselves. No tensor is read.

    folder                     ->  require_whole()  ->  nothing, or a UserError that names the file
    folder, a model on "meta"  ->  require_fit()    ->  nothing, or a UserError that names a tensor

A safetensors file begins with the length of its header and the header. That gives the name, the shape and the place of
every tensor, so it says how long the file must be (https://github.com/huggingface/safetensors#format).
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trd_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AGAIN = "save or download the model again"
_HEADER_BYTES = 10**8  # the limit that safetensors itself has
_READ_BY_ALL = ("config.json", "generation_config.json", "tokenizer_config.json")
_LFS_POINTER = b"version https://git-lfs"


def require_whole(folder: Path) -> None:
    """Refuse JSON that cannot be read, shards that are missing, and safetensors files that are cut off."""
    for name in _READ_BY_ALL:
        if (folder / name).is_file():
            _json(folder / name)
    for index in sorted(folder.glob("*.index.json")):
        shards = _json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise UserError(f"{index} holds no weight_map: {AGAIN}")
        missing = sorted({str(name) for name in shards.values() if not (folder / str(name)).is_file()})
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(f"{index} names {missing[0]}{more}, which {folder} does not hold: {AGAIN}")
    for file in sorted(folder.glob("*.safetensors")):
        _header(file)


def require_fit(folder: Path, model: "PreTrainedModel") -> None:
    """Refuse weights that are not those of the model that config.json describes. Raises UserError.

    Only tensors of one name are compared, by how many numbers they hold: transformers renames, joins and transposes
    some as it loads them. Quantized weights are not checked, nor those of other formats than safetensors.
    """
    found = _tensors(folder)
    if not found or getattr(model.config, "quantization_config", None):
        return
    prefix = f"{model.base_model_prefix}."
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    # A checkpoint of a model without its head has names without the prefix.
    ours = {name if name in wanted else prefix + name: shape for name, shape in found.items()}
    differ = [name for name in wanted if name in ours and math.prod(wanted[name]) != math.prod(ours[name])]
    fault = ""
    such = ""
    if differ:
        asked, there = (" x ".join(map(str, shapes[differ[0]])) for shapes in (wanted, ours))
        fault = f"{len(differ)} tensors have other sizes"
        such = f"{differ[0]}, {there} in the weights and {asked} by it"
    elif not _in_layers(wanted) & _in_layers(ours):
        fault = "no tensor has a name that it asks for"
        such = f"{next(iter(found))} in place of {next(iter(wanted))}"
    elif ours.keys() <= wanted.keys():  # nothing is renamed, so what is missing would be made up
        at = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
        there = {at[name] for name in ours}  # a tied matrix is there under any of its names
        missing = [name for name in wanted if at[name] not in there]
        if missing:
            fault = f"{len(missing)} tensors are missing"
            such = missing[0]
    if fault:
        raise UserError(
            f"the weights in {folder} do not fit its config.json: {fault}, such as {such}; put back the config.json "
            "that was saved with them"
        )


def _in_layers(names: Iterable[str]) -> set[str]:
    """The ends of the names of tensors in layers, such as `q_proj.weight`: they survive most renaming."""
    return {".".join(name.split(".")[-2:]) for name in names if name.count(".") > 2}


def _tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that transformers would load. {} where there is no safetensors file."""
    one = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if one.is_file():
        files = [one]
    elif index.is_file():
        files = [folder / name for name in sorted(set(_json(index)["weight_map"].values()))]
    else:
        files = []
    return {
        name: tuple(entry["shape"]) for file in files for name, entry in _header(file).items() if name != "__metadata__"
    }


def _header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file. Raises UserError unless the file is as long as the header says."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        begin = opened.read(len(_LFS_POINTER))
        if begin == _LFS_POINTER:
            raise UserError(f"{file} is a pointer of Git LFS, not the weights: run git lfs pull in its folder")
        length = int.from_bytes(begin[:8], "little")
        opened.seek(8)
        text = opened.read(length) if size > 8 and length <= min(size, _HEADER_BYTES) else b""
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as e:
        raise UserError(f"{file} is not a whole safetensors file, its header cannot be read: {AGAIN}") from e
    if size != expected:
        raise UserError(f"{file} is not whole: it has {size} bytes where its header tells of {expected}; {AGAIN}")
    return header


def _json(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:  # text that is not UTF-8 also raises it
        raise UserError(f"{file} is not valid JSON ({e}): correct it, or {AGAIN}") from e
    if not isinstance(tree, dict):
        raise UserError(f"{file} holds a {type(tree).__name__}, expected an object: {AGAIN}")
    return tree
