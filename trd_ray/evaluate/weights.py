"""Which weights a model has: enough to tell two checkpoints apart, wherever their files lie.

resolved folder  ->  fingerprint()  ->  {file name: size, time of change, BLAKE2b of its content}
hub name         ->  fingerprint()  ->  {"commit": ...}
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trd_ray.errors import UserError
from trd_ray.models import HUB_TIMEOUT_S

# The weights, and the files that say how they are used. Prompts are compared by their tokens.
PATTERNS = ("config.json", "generation_config.json", "adapter_config.json", "*.safetensors", "*.bin", "*.index.json")
READERS = 8


def fingerprint(path: str, revision: str | None, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """The fingerprint of the model at `path`, which `models.resolve` returned.

    If `known`, an earlier fingerprint, has a file with the same size and time of change, the file is not read again.
    Raises UserError if the commit of a hub name cannot be found out.
    """
    folder = Path(path)
    if not folder.is_dir():
        return {"path": path, "commit": _commit(path, revision)}
    before = (known or {}).get("files", {})
    files = sorted({file for pattern in PATTERNS for file in folder.glob(pattern)})
    with ThreadPoolExecutor(READERS) as readers:
        found = readers.map(lambda file: _file(file, before.get(file.name)), files)
        return {"path": path, "files": {file.name: facts for file, facts in zip(files, found, strict=True)}}


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """How the weights of two fingerprints differ, "" if they do not."""
    if one.get("commit") or other.get("commit"):
        if one.get("commit") != other.get("commit"):
            return f"{one['path']} at {one.get('commit')}, not {other['path']} at {other.get('commit')}"
        return ""
    ours, theirs = one["files"], other["files"]
    for name in sorted(ours.keys() | theirs.keys()):
        if _content(ours.get(name)) != _content(theirs.get(name)):
            return f"{name} of {one['path']} is not that of {other['path']}"
    return ""


def _content(facts: dict[str, Any] | None) -> tuple | None:
    return (facts["bytes"], facts["blake2b"]) if facts else None


def _file(file: Path, before: dict[str, Any] | None) -> dict[str, Any]:
    status = file.stat()
    facts = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    if before and all(before[key] == value for key, value in facts.items()):
        return before
    with open(file, "rb") as content:
        return facts | {"blake2b": hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()}


def _commit(name: str, revision: str | None) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached).parent.name  # .../snapshots/<commit>/config.json
    try:
        return HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_S).sha or "unknown"
    except Exception as e:  # also one of the hub's HTTP client, which differs between versions
        raise UserError(f"the hub does not say which commit of {name} this is ({e}): download it first") from e
