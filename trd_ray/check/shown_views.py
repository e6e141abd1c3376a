"""The views of a row as a person can read them, and what of the data does not arrive in them.

    views, tokenizers, a row, an attempt  ->  shown()      ->  ShownView: text with special tokens in « », and tokens
    the same, many rows                   ->  left_out()   ->  system texts and turns that a chat template drops
                                          ->  unwritable() ->  problems with characters that the tokenizer lacks

A text is shown as the tokens say it, so what a tokenizer or a template changes can be seen.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from trd_ray.check.material import Material
from trd_ray.config import own_wordings
from trd_ray.preflight.known_texts import Row
from trd_ray.views import View, Views, ViewTooLong, setting_of


@dataclass(frozen=True)
class ShownView:
    name: str  # of the model that sees it
    text: str
    tokens: int
    cut_tokens: int = 0  # of the attempt and the reference

    def __str__(self) -> str:
        cut = f", {self.cut_tokens} more cut off" if self.cut_tokens else ""
        return f"{self.name}: {self.tokens} tokens{cut}"


def shown(material: Material, row: Row, attempt: str, passed: bool | None, details: str) -> list[ShownView]:
    """The views that student, refiner and teacher have of a row; `attempt` stands for a y_o with that verdict."""
    r, views, tokenizer = material.of_teacher(row)
    ids = _ids(material.student_tokenizer, attempt)
    prompt = student_ids(views, row)
    found = [ShownView("student", marked(material.student_tokenizer, prompt), len(prompt))]
    try:
        refine = views.refine(row["problem"], row["reference"], ids, passed, details, **setting_of(row))
        vanilla = views.vanilla(row["problem"], row["reference"], **setting_of(row))
        taught = r.view_of(r.trains_on[0]) if r.loss.has_teacher else ""
        refined = ("refine" if r.refiner.begins == "attempt" else "vanilla") if r.refines else ""
        for name, view in (("refine", refine), ("vanilla", vanilla)):
            if who := [who for who, sees in (("refiner", refined), ("teacher", taught)) if sees == name]:
                found.append(_of_teacher(tokenizer, " and ".join(who), view))
    except ViewTooLong as e:
        found.append(ShownView("teacher", str(e), 0))
    return found


def marked(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of these tokens, each special one in « »."""
    special = _special(tokenizer)
    text = ""
    for is_special, group in groupby(ids, key=special.__contains__):
        if is_special:
            text += "".join(f"«{tokenizer.decode([i], skip_special_tokens=False)}»" for i in group)
        else:
            text += _decoded(tokenizer, list(group))
    return text


def left_out(material: Material, rows: Sequence[Row]) -> tuple[int, str]:
    """How many rows have a system text or an earlier turn that the student's view lacks, and the first such text."""
    tokenizer = material.student_tokenizer
    usual = material.recipe.prompts.system or ""
    systems = {name: own.get("system", usual) for name, own in own_wordings(material.recipe.data).items()}
    found = 0
    example = ""
    for row in rows:
        turns = json.loads(row.get("turns") or "[]")
        texts = [turn["content"] for turn in turns]
        if all(turn["role"] != "system" for turn in turns):  # else its own stands in place of prompts.system
            texts.append(systems.get(row.get("source") or "", usual))
        view = _squeezed(_decoded(tokenizer, student_ids(material.of_teacher(row)[1], row)))
        dropped = [text for text in texts if _squeezed(_decoded(tokenizer, _ids(tokenizer, text))) not in view]
        found += bool(dropped)
        example = example or next(iter(dropped), "")
    return found, example


def unwritable(material: Material, rows: Sequence[Row]) -> list[Row]:
    """Rows whose problem has characters that the student's tokenizer lacks, and writes as its unknown token."""
    tokenizer = material.student_tokenizer
    unknown = tokenizer.unk_token_id
    return [row for row in rows if unknown is not None and unknown in _ids(tokenizer, row["problem"])]


def student_ids(views: Views, row: Row) -> list[int]:
    return views.student(row["problem"], **setting_of(row))


def _of_teacher(tokenizer: Any, name: str, view: View) -> ShownView:
    return ShownView(name, marked(tokenizer, view.ids), len(view.ids), view.cut_tokens)


def _special(tokenizer: Any) -> frozenset[int]:
    added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*tokenizer.all_special_ids, *added])


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _squeezed(text: str) -> str:
    return "".join(text.split())
