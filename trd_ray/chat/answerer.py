"""A checkpoint that answers, in transformers: on the first GPU if there is one, else on the CPU.

    run, checkpoint, model folder, hub name --target()--> recipe  ->  open_model()  ->  Answerer
    messages  ->  solving(): the student's view of the last one  |  in_chat(): all, by the chat template  ->  token ids
    token ids ->  answer()  ->  the text, in pieces as they come

A checkpoint that holds adapters alone is put on the model that they were trained on. No code of a model runs unless
student.trust_remote_code says so.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trd_ray import config, models
from trd_ray.config import Recipe
from trd_ray.errors import UserError
from trd_ray.evaluate.target import run_of
from trd_ray.layouts import rendered
from trd_ray.views import Views

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_TOKENS = 2048  # of an answer, where nothing says how many
ADAPTERS = "adapter_config.json"


class Answerer:
    def __init__(
        self, model: Any, tokenizer: "PreTrainedTokenizerBase", recipe: Recipe, eos_ids: tuple[int, ...], context: int
    ):
        """`model` is loaded, and `context` is how many tokens it takes."""
        self._model = model
        self._tokenizer = tokenizer
        self._recipe = recipe
        self._eos = eos_ids or tuple(i for i in [tokenizer.eos_token_id] if isinstance(i, int))
        self._context = context
        self._views: Views | None = None

    def solving(self, messages: list[dict[str, str]]) -> list[int]:
        """The student's view of the last message, which is the problem."""
        self._views = self._views or Views(self._recipe, self._tokenizer, self._tokenizer)
        return self._views.evaluation(messages[-1]["content"])

    def in_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """All messages as the chat template has them, without a word of ours."""
        kwargs = self._recipe.evaluation.chat_template_kwargs or self._recipe.student.chat_template_kwargs
        text = rendered(self._tokenizer, "student", messages, "this chat", kwargs, add_generation_prompt=True)
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def answer(self, ids: list[int], write: Callable[[str], object]) -> str:
        """Write the answer piece by piece, and return it. Raises UserError for a prompt that leaves no room for one."""
        import torch
        from transformers import GenerationConfig

        e = self._recipe.evaluation
        room = min(e.max_response_tokens or MOST_TOKENS, self._context - len(ids))
        if room < 1:
            raise UserError(f"the prompt takes {len(ids)} of the {self._context} tokens of the context: shorten it")
        pieces = Pieces(self._tokenizer, self._eos, write)
        sampled = {"temperature": e.temperature, "top_p": e.top_p, "top_k": e.top_k} if e.temperature else {}
        asked = GenerationConfig(
            max_new_tokens=room, do_sample=bool(sampled), eos_token_id=list(self._eos),
            pad_token_id=self._eos[0] if self._eos else 0, **sampled,
        )  # fmt: skip
        prompt = torch.tensor([ids], device=self._model.device)
        with torch.inference_mode():
            self._model.generate(
                prompt, attention_mask=torch.ones_like(prompt), generation_config=asked, streamer=pieces
            )
        return pieces.text


class Pieces:
    """A streamer of transformers: token ids enter, whole characters leave. What ends the answer is no text."""

    def __init__(self, tokenizer: Any, eos_ids: tuple[int, ...], write: Callable[[str], object]):
        self.text = ""
        self._tokenizer = tokenizer
        self._eos = eos_ids
        self._write = write
        self._begun = False
        self._line: list[int] = []  # ids since the last end of a line, and how much of their text is written
        self._written = 0

    def put(self, value: Any) -> None:
        if not self._begun:  # the prompt comes first
            self._begun = True
            return
        self._line += [i for i in value.reshape(-1).tolist() if i not in self._eos]
        text = self._tokenizer.decode(self._line, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if not text.endswith("\ufffd"):  # half a character
            self._say(text)
        if text.endswith("\n"):
            self._line, self._written = [], 0

    def end(self) -> None:
        if self._line:
            self._say(self._tokenizer.decode(self._line, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _say(self, text: str) -> None:
        if piece := text[self._written :]:
            self._written = len(text)
            self.text += piece
            self._write(piece)


def open_model(recipe: Recipe) -> Answerer:
    """The student of a recipe, loaded. Raises UserError."""
    student = recipe.student
    folder = Path(student.path).expanduser()
    adapters = folder if (folder / ADAPTERS).is_file() and not (folder / "config.json").is_file() else None
    path = models.resolve(_base_of(adapters) if adapters else student.path, student.revision)
    facts = models.facts(path, student.revision, student.trust_remote_code)
    has_tokenizer = adapters is not None and (adapters / "tokenizer_config.json").is_file()
    source = str(adapters) if has_tokenizer else path
    tokenizer = models.tokenizer(source, student.revision, student.trust_remote_code)
    model = _loaded(path, recipe, adapters)
    return Answerer(model, tokenizer, recipe, facts.eos_ids, facts.max_positions)


def _base_of(adapters: Path) -> str:
    if run := run_of(adapters):
        return config.stored(run / "recipe.yaml").student.path
    try:
        return str(json.loads((adapters / ADAPTERS).read_text())["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{adapters / ADAPTERS} names no model that the adapters are for: export them again") from e


def _loaded(path: str, recipe: Recipe, adapters: Path | None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    student = recipe.student
    on_gpu = torch.cuda.is_available()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, revision=student.revision, trust_remote_code=student.trust_remote_code,
            dtype=torch.bfloat16 if on_gpu else torch.float32,
        )  # fmt: skip
        # What its generation_config.json says (a repetition penalty) no engine of a run does.
        model.generation_config = GenerationConfig()
        if adapters:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapters))
        return model.to("cuda" if on_gpu else "cpu").eval()
    except Exception as e:  # from safetensors too, whose error has no type of its own to name
        why = " ".join(str(e).split())[:200] or type(e).__name__
        raise UserError(f"{adapters or path} cannot be loaded ({why}): try another checkpoint") from e
