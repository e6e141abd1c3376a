"""Runs whose rows are made up: what the learner found at their tokens, and text that means harm."""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from trd_ray.config import dump, from_tree
from trd_ray.record.directory import write_parquet
from trd_ray.rows import to_table

END = "<|end|>"
# A terminal that shows this raw is cleared, renamed, and shows text the wrong way round.
HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202egnp\r[bold]x[/bold]\x9b31m\u200b<b>"


def bytes_tokenizer() -> Tokenizer:
    """A token for each byte, so that what is not ASCII is halves of characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return tokenizer


def ids_of(text: str) -> list[int]:
    return bytes_tokenizer().encode(text).ids


def scored(y: str, kl: list[float], view: str = "refine", trained: bool = True, **lists: list[float]) -> dict[str, Any]:
    columns = {"kl": kl} | {name: lists.get(name, [0.25] * len(kl)) for name in ("student_nll", "teacher_nll", "onset")}
    return {"trajectory": y, "view": view, "trained": trained} | {
        name: np.asarray(values, dtype=np.float16) for name, values in columns.items()
    }


def trajectory(text: str, passed: bool | None, **more: Any) -> dict[str, Any]:
    found = {"ids": ids_of(text), "text": text.replace(END, ""), "finish": "stop", "version": 2, "engine": "sampler-0"}
    return found | {"passed": passed, "score": None if passed is None else float(passed), "extracted": "4"} | more


def a_row(number: int, step: int, y_o: Any, y_r: Any, **more: Any) -> dict[str, Any]:
    found = {
        "row": number, "step": step, "epoch": 0, "sample_index": 0, "seed": 1, "problem_id": f"p-{number}",
        "problem": "What is 2+2?", "answer": "4", "reference": "2+2=4", "y_o": y_o, "y_r": y_r, "trajectory": "y_r",
        "train": True, "dropped_because": "", "student_prompt_ids": ids_of("What is 2+2?"),
        "refine_prompt_ids": ids_of(f"What is 2+2?{END}Rewrite."), "refine_cut_tokens": 3,
        "student_ids": ids_of("What is 2+2?"), "teacher_ids": ids_of(f"What is 2+2?{END}Rewrite."),
    }  # fmt: skip
    return found | more


def a_run(path: Path, *steps: list[dict[str, Any]], model: Path | None = None) -> Path:
    """A run directory with these rows. Its student is in `model`, by default a folder with `bytes_tokenizer`."""
    if model is None:
        model = path / "student"
        model.mkdir(parents=True)
        bytes_tokenizer().save(str(model / "tokenizer.json"))
    (path / "rows").mkdir(parents=True, exist_ok=True)
    recipe = from_tree({"name": "mine", "student": {"path": str(model)}})
    (path / "recipe.yaml").write_text(dump(recipe))
    for number, rows in enumerate(steps, 1):
        write_parquet(path / "rows" / f"step-{number:06d}.parquet", to_table(rows))
    return path
