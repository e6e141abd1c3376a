"""Wordings that stand in files of their own: `prompts: {solve: "@prompts/solve.md"}`, `judge: {prompt: "@judge.md"}`.

    a tree of keys, the folder that its paths start from  ->  with_wordings()  ->  the tree with the files' texts

It looks at the judge's wordings, and at every group that is called `prompts`, wherever it stands: a source of data may
have its own. The texts stand in the recipe from then on. So a run's recipe.yaml holds them, a resumed run is compared
by them, and no other machine needs the files.

Every wording of a problem has a placeholder in braces, so an @ and a path cannot be one.
"""

import re
from pathlib import Path
from typing import Any

from trd_ray.errors import UserError

_OF_THE_JUDGE = ("judge.prompt", "judge.system")
_NAMES_A_FILE = re.compile(r"@[^\s{}\0]+")
MAX_BYTES = 2**20


def with_wordings(tree: Any, folder: Path) -> Any:
    """A copy of the tree. Raises UserError for a file that cannot be read, and names the key."""
    return _read(tree, folder, "")


def _read(node: Any, folder: Path, key: str) -> Any:
    if isinstance(node, list):
        return [_read(one, folder, f"{key}[{number}]") for number, one in enumerate(node)]
    if key in _OF_THE_JUDGE:
        return _wording(node, folder, key)
    if not isinstance(node, dict):
        return node
    if key.rpartition(".")[2] == "prompts":
        return {name: _wording(value, folder, f"{key}.{name}") for name, value in node.items()}
    return {name: _read(value, folder, f"{key}.{name}".removeprefix(".")) for name, value in node.items()}


def _wording(value: Any, folder: Path, key: str) -> Any:
    if not isinstance(value, str) or not _NAMES_A_FILE.fullmatch(value):
        return value
    file = folder / Path(value[1:]).expanduser()
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UserError(f"{key} is {value}, but {file} has more than {MAX_BYTES >> 20} MiB: name a text file")
        text = file.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise UserError(
            f"{key} is {value}, but the file {file} cannot be read ({e.strerror}): correct the path, which starts at "
            "the recipe's folder (on the command line where trd is called)"
        ) from e
    except UnicodeDecodeError as e:
        raise UserError(f"{key} is {value}, but {file} is not UTF-8 text: save it as UTF-8") from e
    text = text.strip("\n")
    if not text or _NAMES_A_FILE.fullmatch(text):
        raise UserError(f"{key} is {value}, but {file} holds no wording: write the prompt to it")
    return text
