"""`trd export`: a checkpoint of a run as a Hugging Face folder to keep, share or serve.

    run or checkpoint -> Checkpoint -> weights in `dtype`, merged or as adapters -> FOLDER: weights, tokenizer,
                                       + trd_ray.export.card                         generation config, README.md

The folder is filled next to its place and then renamed, so it is whole or not there. An export holds the model in
memory once (in float32 when it merges adapters) and needs no GPU.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trd_ray import config
from trd_ray.config import Recipe
from trd_ray.distill import checksums
from trd_ray.errors import UserError
from trd_ray.record.best import value_of

Form = Literal["merged", "adapter"]
DIRECTORY = Path("exports")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WEIGHTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.bin.index.json",
    "adapter_config.json",
    "README.md",
)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint and its run."""

    folder: Path
    run: Path
    recipe: Recipe
    steps: int
    has: Form  # what its Hugging Face folder holds

    @property
    def model(self) -> Path:
        return self.folder / "model"


def export(
    place: str,
    to: str | None = None,
    dtype: str | None = None,
    form: Form | None = None,
    best: bool = False,
    push: str | None = None,
) -> int:
    """Write the folder, and upload it to the hub as `push`; 0 when done. Raises UserError.

    `dtype` is bfloat16 by default, and for adapters the type in which they train (float32).
    """
    found = find(place, best)
    form = form or found.has
    if form == "adapter" and not found.recipe.learner.lora:
        raise UserError(f"{found.run} trained all weights, so there are no adapters to export: leave --adapter out")
    target = Path(to).expanduser() if to else DIRECTORY / f"{found.run.name}-{found.folder.name}"
    if target.exists():
        raise UserError(f"{target} is there already: name another place with --to, or delete it")
    if push:
        require_hub(push)
    dtype = dtype or ("float32" if form == "adapter" else "bfloat16")
    _write(found, target, dtype, form, push)
    print(f"wrote {target} ({form}, {dtype}, after {found.steps} steps); README.md is its model card")
    if push:
        print(f"uploaded to {upload(push, target)}")
    return 0


def find(place: str, best: bool = False) -> Checkpoint:
    """The newest checkpoint of a run, the best one, or the one that is named. Raises UserError."""
    path = Path(place).expanduser().absolute()
    if path.name == "model" and (path.parent / "state.json").is_file():
        path = path.parent
    if (path / "recipe.yaml").is_file():
        run = path
        recipe = _recipe(path)
        folders = sorted(path.glob("checkpoints/step-*"), key=_steps)
        if not folders:
            raise UserError(f"the run in {path} has no checkpoint to export: let it write one")
        folder = _best(folders, recipe) if best else folders[-1]
    elif (path / "state.json").is_file() and (path / "model").is_dir():
        if best:
            raise UserError(f"--best chooses among a run's checkpoints, but {path} is one of them: name the run")
        folder = path
        run = path.parents[1]
        if not (run / "recipe.yaml").is_file():
            raise UserError(
                f"checkpoint {path} does not lie in its run directory, whose recipe.yaml says how it was made: put it "
                "back into RUN/checkpoints"
            )
        recipe = _recipe(run)
    else:
        raise UserError(
            f"{path} is neither a run directory nor a checkpoint of one, such as runs/x/checkpoints/step-25"
        )
    _require_as_written(folder)
    has: Form = "adapter" if (folder / "model" / "adapter_config.json").is_file() else "merged"
    return Checkpoint(folder, run, recipe, _state(folder)["steps"], has)


def _require_as_written(folder: Path) -> None:
    """Refuse a checkpoint whose export is no longer what was written."""
    try:
        sums = checksums.read(folder) or {}
    except (ValueError, OSError) as e:
        raise UserError(f"{folder / checksums.FILE} is damaged ({e}): export another checkpoint") from e
    if problem := checksums.flaw(folder, {name: sum for name, sum in sums.items() if name.startswith("model/")}):
        raise UserError(f"checkpoint {folder} is damaged ({problem}): export another one")


def _recipe(run: Path) -> Recipe:
    place = run / "recipe.yaml"
    try:
        return config.from_tree(config.read_tree(place, f"recipe {place}"))
    except UserError as e:
        raise UserError(f"{place} is of another version of this program ({e}): export with that version") from e


def _best(folders: list[Path], recipe: Recipe) -> Path:
    name = recipe.checkpoint.best
    is_best = recipe.checkpoint.best_is
    if not name:
        raise UserError("the run kept no best checkpoint (checkpoint.best is empty): leave --best out, or name one")
    values = {folder: value_of(_state(folder)["metrics"], name) for folder in folders}
    known = {folder: value for folder, value in values.items() if value is not None}
    if not known:
        raise UserError(f"no checkpoint of the run has a {name} to be the best by: name one of its checkpoints")
    return (max if is_best == "max" else min)(known, key=lambda folder: known[folder])


def _state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / "state.json").read_text())
        return {"steps": int(state["steps"]), "metrics": state["metrics"]}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"checkpoint {folder} is damaged (state.json): name another one") from e


def _steps(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _write(found: Checkpoint, target: Path, dtype: str, form: Form, push: str | None) -> None:
    from trd_ray.export import card

    fresh = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        fresh.mkdir(parents=True)
        if form == "adapter":
            _adapters(found, fresh, dtype)
        else:
            _merged(found, fresh, dtype)
        _copy_the_rest(found.model, fresh)
        name = push or target.name
        (fresh / "README.md").write_text(card.card(found.run, found.recipe, found.steps, form, dtype, name))
        _settle(fresh)
        os.rename(fresh, target)
    except OSError as e:
        raise UserError(f"{target} cannot be written ({e.strerror or e}): name another place with --to") from e
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _merged(found: Checkpoint, folder: Path, dtype: str) -> None:
    """Write a model as transformers does: weights in shards, config, generation config."""
    import torch

    student = found.recipe.student
    wanted = getattr(torch, dtype)
    if found.has == "merged":
        model = _load(str(found.model), None, student.trust_remote_code, wanted)
    else:
        from peft import PeftModel

        from trd_ray import models

        _of_export(found.model)
        # The learner adds adapters in float32 to weights that it keeps in its own type.
        base = models.resolve(student.path, student.revision)
        own = getattr(torch, found.recipe.learner.dtype)
        model = _load(base, student.revision, student.trust_remote_code, own).float()
        model = PeftModel.from_pretrained(model, str(found.model)).merge_and_unload().to(wanted)  # pyright: ignore
    model.save_pretrained(folder)


def _load(path: str, revision: str | None, trust_remote_code: bool, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(  # pyright: ignore
            path, revision=revision, trust_remote_code=trust_remote_code, dtype=dtype, output_loading_info=True
        )
    except Exception as e:  # from safetensors too, whose error has no type of its own to name
        why = " ".join(str(e).split())[:200]
        raise UserError(f"the weights in {path} cannot be read ({why}): they are damaged, export another one") from e
    if lacking := sorted(loaded["missing_keys"]):
        raise UserError(
            f"the weights in {path} lack {len(lacking)} tensors, such as {lacking[0]}: they are damaged, export "
            "another one"
        )
    return model


def _adapters(found: Checkpoint, folder: Path, dtype: str) -> None:
    """Write a PEFT folder, from the checkpoint's own one or from the learner's state."""
    import safetensors.torch
    import torch

    if found.has == "adapter":
        tensors, adapter_config = _of_export(found.model)
    else:
        tensors = _of_learner(found.folder / "learner")
        adapter_config = _adapter_config(found.recipe, tensors)
    cast = {name: t.to(getattr(torch, dtype)).contiguous() for name, t in tensors.items()}
    safetensors.torch.save_file(cast, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(adapter_config, indent=2, sort_keys=True))


def _of_export(model: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    import safetensors.torch

    try:
        tensors = safetensors.torch.load_file(model / "adapter_model.safetensors")
        return tensors, json.loads((model / "adapter_config.json").read_text())
    except Exception as e:  # safetensors has an error of its own
        raise UserError(f"the adapters in {model} cannot be read ({_why(e)}): export another checkpoint") from e


def _of_learner(shards: Path) -> dict[str, Any]:
    """The adapters in the learner's state, which any number of ranks wrote, under PEFT's names."""
    import torch
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load as load_shards

    try:
        saved: Any = FileSystemReader(shards).read_metadata().state_dict_metadata
        names = [name for name in saved if name.startswith("model.") and ".lora_" in name]
        state = {name: torch.empty(saved[name].size, dtype=saved[name].properties.dtype) for name in names}
        load_shards(state, storage_reader=FileSystemReader(shards), no_dist=True)
    except (Exception, CheckpointException) as e:  # whatever a damaged pickle raises; the latter is a BaseException
        raise UserError(
            f"the adapters in {shards} cannot be read ({type(e).__name__}): export another checkpoint"
        ) from e
    return {f"base_model.model.{name.removeprefix('model.').replace('.default.', '.')}": state[name] for name in names}


def _adapter_config(recipe: Recipe, tensors: dict[str, Any]) -> dict[str, Any]:
    from peft import LoraConfig

    lora = recipe.learner.lora
    assert lora
    found = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors}),
        task_type="CAUSAL_LM",
        base_model_name_or_path=recipe.student.path,
        inference_mode=True,
    ).to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in found.items()}


def _copy_the_rest(model: Path, folder: Path) -> None:
    """Copy the tokenizer, chat template and code that came with the model: all but weights and what is written anew."""
    for file in sorted(model.iterdir()):
        if file.is_file() and not any(map(file.match, _WEIGHTS)) and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


def _settle(folder: Path) -> None:
    """Bring everything to the disk, and let everyone read it whom the umask lets (safetensors lets nobody)."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.iterdir():
        file.chmod((0o777 if file.is_dir() else 0o666) & ~umask)
        if file.is_file():
            with file.open("rb") as written:
                os.fsync(written.fileno())


def require_hub(name: str) -> None:
    """Raise UserError where an upload could not begin: before anything is written."""
    from huggingface_hub import HfApi, get_token

    if not _HUB_NAME.fullmatch(name):
        raise UserError(f"--push {name} is no name on the Hugging Face hub: write it as OWNER/NAME")
    if not get_token():
        raise UserError("--push needs a token of the Hugging Face hub: run `hf auth login`, or set HF_TOKEN")
    try:
        HfApi().whoami()
    except Exception as e:  # from the hub's HTTP client too, which differs between its versions
        raise UserError(
            f"the Hugging Face hub does not answer for --push {name} ({_why(e)}): check the network and the token, or "
            "leave --push out and upload later with `hf upload`"
        ) from e


def upload(name: str, folder: Path) -> str:
    """Upload into a repository, which is made private unless it exists. Returns its address."""
    from huggingface_hub import HfApi

    try:
        repository = HfApi().create_repo(name, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="trd export")
    except Exception as e:  # as above
        raise UserError(
            f"{folder} is written, but could not be uploaded as {name} ({_why(e)}): try again with "
            f"`hf upload {name} {folder}`"
        ) from e
    return str(repository)


def _why(e: BaseException) -> str:
    return " ".join(str(e).split())[:200] or type(e).__name__
