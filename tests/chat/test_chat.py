"""A model that is tried in a terminal: its words reach no control of the terminal, and keys end what they say."""

import io
import json
import shutil
import sys
from typing import Any

import pytest

from trd_ray import cli, config, models
from trd_ray.chat import command
from trd_ray.chat.answerer import Pieces, open_model
from trd_ray.chat.command import Talk, typed
from trd_ray.errors import UserError
from trd_ray.evaluate.target import target

HOSTILE = [
    "\x1b]0;owned\x07",
    "\x1b[2J\x1b[1;1H",
    "a\rb\x08\x9b31m",
    "\u202ereversed",
    "[bold]plain[/bold]<|im_end|>\n",
]


class Says:
    """An answer of fixed pieces, which remembers what it was asked."""

    def __init__(self, *pieces: str, ends_with: BaseException | None = None):
        self.pieces = pieces
        self.ends_with = ends_with
        self.asked: list[list[dict[str, str]]] = []

    def __call__(self, messages: list[dict[str, str]], write: Any) -> str:
        self.asked.append([dict(message) for message in messages])
        for piece in self.pieces:
            write(piece)
        if self.ends_with:
            raise self.ends_with
        return "".join(self.pieces)


def heard(says: Says, *lines: str, plain: bool = False) -> str:
    out = io.StringIO()
    talk = Talk(says, out.write, plain)
    for line in lines:
        talk.hear(line)
    return out.getvalue()


def test_what_a_model_says_cannot_move_the_cursor_or_hide_text():
    shown = heard(Says(*HOSTILE), "go on")
    assert all(c.isprintable() or c in "\n\ufffd" for c in shown)
    assert "[bold]plain[/bold]<|im_end|>" in shown and "\ufffd[2J" in shown


def test_a_problem_is_asked_alone_and_a_chat_goes_on_until_it_begins_again():
    alone, together = Says("4"), Says("4")
    heard(alone, "2+2", "", "3+1")
    assert [len(messages) for messages in alone.asked] == [1, 1]
    heard(together, "2+2", "and more?", "/new", "3+1", plain=True)
    assert [len(messages) for messages in together.asked] == [1, 3, 1]
    assert together.asked[1][1] == {"role": "assistant", "content": "4"}


def test_what_was_said_before_an_interrupt_stays_in_the_chat():
    says = Says("half of", ends_with=KeyboardInterrupt())
    out = io.StringIO()
    talk = Talk(says, out.write, plain=True)
    with pytest.raises(KeyboardInterrupt):
        talk.hear("go on")
    assert out.getvalue() == "half of\n"
    says.ends_with = None
    talk.hear("and now?")
    assert says.asked[-1][1] == {"role": "assistant", "content": "half of"}


def test_what_cannot_be_answered_is_not_part_of_the_chat():
    says = Says(ends_with=UserError("too long"))
    talk = Talk(says, io.StringIO().write, plain=True)
    with pytest.raises(UserError):
        talk.hear("x" * 100)
    says.ends_with = None
    talk.hear("short")
    assert len(says.asked[-1]) == 1


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_ctrl_c_and_ctrl_d_at_the_prompt_end_it(monkeypatch, end):
    lines = iter(["one", "two"])

    def asked(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise end from None

    monkeypatch.setattr("builtins.input", asked)
    assert list(typed()) == ["one", "two"]


class Bytes:
    """A tokenizer whose tokens are bytes: half a character is a token."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(ids).decode(errors="replace")


class Tokens(list):
    def reshape(self, _: int) -> "Tokens":
        return self

    def tolist(self) -> list[int]:
        return list(self)


def test_pieces_are_whole_characters_without_the_prompt_and_what_ends_the_answer():
    written: list[str] = []
    pieces = Pieces(Bytes(), (0,), written.append)
    pieces.put(Tokens(b"the prompt"))
    for byte in "aé\nß!".encode():
        pieces.put(Tokens([byte]))
    pieces.put(Tokens([0]))
    pieces.end()
    assert written == ["a", "é", "\n", "ß", "!"] and pieces.text == "aé\nß!"


def test_a_model_that_is_not_there_and_an_empty_prompt_are_refused(capsys):
    assert cli.main(["chat", "no/such/folder"]) == 2
    assert cli.main(["chat", "miniature:student", "--prompt", " "]) == 2
    said = capsys.readouterr().err
    assert "there is no such model" in said and "--prompt is empty" in said


def test_the_miniature_s_student_answers_in_its_own_words(capsys, monkeypatch):
    few = ["evaluation.max_response_tokens=8", "evaluation.temperature=0"]
    assert cli.main(["chat", "miniature:student", *few, "--prompt", "6+1@1-2"]) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("6+1@1-2\n\n6+1@1-2\n"))
    assert cli.main(["chat", "miniature:student", *few]) == 0
    assert first.strip() and capsys.readouterr().out == first * 2
    assert command.PROMPT not in first


def test_a_model_answers_as_in_a_run_whatever_its_generation_config_says(tmp_path, capsys):
    few = ["evaluation.max_response_tokens=24", "evaluation.temperature=0", "prompts.solve='{problem}'"]
    said = []
    for changes in ({}, {"repetition_penalty": 3.0, "do_sample": True, "temperature": 2.0, "min_new_tokens": 24}):
        folder = tmp_path / f"model-{len(changes)}"
        shutil.copytree(models.resolve("miniature:student"), folder)
        place = folder / "generation_config.json"
        place.write_text(json.dumps(json.loads(place.read_text()) | changes))
        assert cli.main(["chat", str(folder), *few, "--prompt", "6+1@1-2"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and said[0].strip()


def test_the_prompt_is_the_student_s_view():
    found = target("miniature:student", []).recipe
    answerer = open_model(found)
    ids = answerer.solving([{"role": "user", "content": "6+1@1-2"}])
    assert "6+1@1-2" in answerer._tokenizer.decode(ids).replace(" ", "")
    with pytest.raises(UserError, match="the prompt takes .* tokens of the context"):
        answerer.answer(ids * 10_000, lambda text: None)


@pytest.mark.parametrize("of_a_run", [True, False])
def test_adapters_alone_answer_on_the_model_that_they_were_trained_on(tmp_path, capsys, of_a_run):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = models.resolve("miniature:student")
    folder = tmp_path / "run" / "checkpoints" / "step-000001" / "model" if of_a_run else tmp_path / "exported"
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(folder)
    if of_a_run:
        recipe = config.load("miniature_opsd", ["student.path=miniature:student", "learner.lora={}"])
        (tmp_path / "run" / "recipe.yaml").write_text(config.dump(recipe))
        (folder.parent / "state.json").write_text('{"steps": 1, "metrics": {}}')
        moved = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": "moved/away"}
        (folder / "adapter_config.json").write_text(json.dumps(moved))
    place = str(tmp_path / "run") if of_a_run else str(folder)
    few = ["evaluation.max_response_tokens=8", "evaluation.temperature=0"]
    prompts = [] if of_a_run else ["prompts.solve='{problem}'"]
    assert cli.main(["chat", place, *few, *prompts, "--prompt", "6+1@1-2"]) == 0
    with_adapters = capsys.readouterr().out
    assert cli.main(["chat", "miniature:student", *few, "--prompt", "6+1@1-2"]) == 0
    assert with_adapters == capsys.readouterr().out  # fresh adapters change nothing
