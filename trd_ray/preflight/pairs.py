"""Whether a student and a teacher can be compared token by token: their vocabularies, and how their turns end.

ModelFacts and tokenizers of both  ->  same_vocabulary(), same_ends(), thinking_is_stated()  ->  a UserError
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trd_ray.config import Recipe, group_of_teacher
from trd_ray.errors import Faults, UserError
from trd_ray.layouts import turn_end
from trd_ray.models import ModelFacts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def same_vocabulary(
    student: ModelFacts,
    teacher: ModelFacts,
    student_tokenizer: "PreTrainedTokenizerBase",
    teacher_tokenizer: "PreTrainedTokenizerBase",
) -> str:
    """Refuse different vocabularies. Return a sentence about an lm_head that is padded further, or ""."""
    remedy = "the KL compares them token by token: choose a student and a teacher that share one tokenizer"
    ours, theirs = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    differ = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if differ:
        ids = [vocabulary.get(differ[0], "absent") for vocabulary in (ours, theirs)]
        raise UserError(
            f"student and teacher have different vocabularies: {len(differ)} tokens differ, such as {differ[0]!r}, "
            f"which is {ids[0]} in {student.path} and {ids[1]} in {teacher.path}; {remedy}"
        )
    smaller = min(student, teacher, key=lambda model: model.vocab_size)
    if max(ours.values()) >= smaller.vocab_size:
        raise UserError(
            f"the tokenizer of {smaller.path} has ids up to {max(ours.values())}, but its config.json a vocab_size of "
            f"{smaller.vocab_size}: the two do not belong together; save model and tokenizer again"
        )
    if student.vocab_size == teacher.vocab_size:
        return ""
    return (
        f"the lm_head of {student.path} has {student.vocab_size} rows and that of {teacher.path} {teacher.vocab_size}, "
        f"of which the first {smaller.vocab_size} are compared: their tokenizers agree, one is padded further"
    )


def thinking_is_stated(
    recipe: Recipe,
    student: "PreTrainedTokenizerBase",
    teachers: "Mapping[str, PreTrainedTokenizerBase]",
    samples: bool,
    evaluates: bool,
) -> None:
    """Refuse to guess between two modes whose lengths and scores differ by far."""
    r = recipe
    used: list[tuple[str, Any, Any]] = [("student", student, r.student)] if samples else []
    if samples:
        used += [(group_of_teacher(name), teachers[name], one.teacher) for name, one in r.by_teacher.items()]
    if evaluates:
        used.append(("evaluation", student, r.evaluation if r.evaluation.chat_template_kwargs else r.student))
    faults = Faults()
    for group, tokenizer, asked in used:
        if "enable_thinking" in str(tokenizer.chat_template) and "enable_thinking" not in asked.chat_template_kwargs:
            faults.add(
                f"the chat template has a thinking mode, and {group}.chat_template_kwargs does not say whether it is "
                f"used: set {group}.chat_template_kwargs={{enable_thinking: true}}, or false"
            )
    faults.require_none()


def same_ends(
    recipe: Recipe,
    student: ModelFacts,
    teacher: ModelFacts,
    student_tokenizer: "PreTrainedTokenizerBase",
    teacher_tokenizer: "PreTrainedTokenizerBase",
    who: str = "teacher",
) -> None:
    """`who` is the teacher, as the recipe calls its group."""
    faults = Faults()
    ends = []
    with faults:
        ends.append(_turn_ends(student, student_tokenizer, "student", recipe.student.chat_template_kwargs))
    if ends or teacher_tokenizer is not student_tokenizer:  # one model is told once
        with faults:
            ends.append(_turn_ends(teacher, teacher_tokenizer, who, recipe.teacher.chat_template_kwargs))
    faults.require_none()
    if ends[0] != ends[1]:
        told = [repr(student_tokenizer.decode([i])) for i in ends]
        raise UserError(
            f"the student ends its turn with {told[0]}, the {who} with {told[1]}, so the student would never "
            "learn to stop: choose two models of one family, or give both the same chat_template"
        )


def _turn_ends(model: ModelFacts, tokenizer: "PreTrainedTokenizerBase", who: str, kwargs: dict[str, Any]) -> int:
    """The token that the chat template puts after an answer. It must be one that ends generation."""
    if not tokenizer.chat_template:
        raise UserError(
            f"the {who}'s tokenizer ({model.path}) has no chat template: use an instruct model, or put a "
            "chat_template.jinja next to its tokenizer.json"
        )
    after = turn_end(tokenizer, who, kwargs)
    stops = ", ".join(f"{tokenizer.decode([i])!r} ({i})" for i in model.eos_ids) or "none"
    remedy = f"set eos_token_id in the generation_config.json of {model.path} to the template's end token"
    if after[0] not in model.eos_ids:
        raise UserError(
            f"the {who}'s chat template ends a turn with {tokenizer.decode([after[0]])!r} ({after[0]}), which is not "
            f"the model's eos: {stops}; {remedy}"
        )
    return after[0]
