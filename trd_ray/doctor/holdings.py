"""What a machine holds of what a recipe names, and whether the Hugging Face hub answers: files alone, no hub client.

    a model's path or name  ->  model_here()     ->  whether its weights are here, and where
    a data set's            ->  problems_here()  ->  the same
    nothing                 ->  reach_hub()      ->  whether the hub answers, within HUB_S, and where the token is from

These run on every node (see this_machine.py), so they import nothing.
"""

import glob
import json
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path

HUB_S = 5.0
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def model_here(path: str, revision: str, made_here: tuple[str, ...]) -> tuple[bool, str]:
    """Whether the model's weights are on this machine, and a few words about it."""
    if path in made_here:
        return True, "comes with the package"
    folder = Path(path).expanduser()
    if folder.is_dir():
        lacking = "" if (folder / "config.json").is_file() else "config.json"
        lacking = lacking or _lacking(folder)
        return not lacking, f"a folder without {lacking}" if lacking else "a folder"
    if path.startswith(("/", ".", "~")):
        return False, "there is no such folder here"
    found = "not in the hub's cache"
    for snapshot in _snapshots("models", path, revision):
        lacking = _lacking(snapshot)
        if not lacking:
            return True, "in the hub's cache"
        found = f"in the hub's cache without {lacking}"
    return False, found


def _lacking(folder: Path) -> str:
    """A file of the weights that a folder does not have, "" where it has all: a download may have been cut off."""
    index = folder / "model.safetensors.index.json"
    try:
        files = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    except (OSError, ValueError, KeyError, AttributeError):
        return f"a readable {index.name}"
    absent = sorted(file for file in files if not (folder / file).is_file())
    if absent:
        return absent[0]
    return "" if any(file.is_file() for pattern in WEIGHTS for file in folder.glob(pattern)) else "weights"


def problems_here(path: str, made_here: tuple[str, ...]) -> tuple[bool, str]:
    """Whether the data set's files are on this machine, and a few words about it."""
    if path in made_here:
        return True, "comes with the package"
    if Path(path).expanduser().exists() or glob.glob(str(Path(path).expanduser()), recursive=True):
        return True, "here"
    name = path.partition(":")[0]
    if next(iter(_snapshots("datasets", name, "")), None):
        return True, "in the hub's cache"
    return False, "neither a file here nor in the hub's cache"


def _snapshots(kind: str, name: str, revision: str) -> list[Path]:
    """Folders of the hub's cache that hold a revision, or any where none is named."""
    place = hub_cache() / f"{kind}--{name.replace('/', '--')}"
    if revision:
        named = place / "refs" / revision
        commit = named.read_text().strip() if named.is_file() else revision
        return [p for p in [place / "snapshots" / commit] if p.is_dir()]
    return sorted(place.glob("snapshots/*"))


def reach_hub() -> tuple[bool, str, str]:
    """(whether the hub answers, what is to be said of it, where a token is found, "" for nowhere)."""
    token = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)), "")
    file = Path(os.environ.get("HF_TOKEN_PATH") or hub_cache().parent / "token")
    token = token or (str(file) if os.path.isfile(file) else "")  # false of one that may not be read
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False, "HF_HUB_OFFLINE is set, so nothing is asked of the hub", token
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    problem = [f"no answer within {HUB_S:g} s"]
    asking = threading.Thread(target=_ask, args=(address, problem), daemon=True)
    asking.start()
    asking.join(HUB_S)  # a name server that does not answer has no other deadline
    if problem:
        return False, f"{address} does not answer ({problem[0]})", token
    return True, f"{address} answers", token


def _ask(address: str, problem: list[str]) -> None:
    """Empty `problem` if anything of the hub answers, through the proxy that the environment names; else replace it."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_S).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as e:
        problem[:] = [str(getattr(e, "reason", e))]
        return
    problem.clear()
