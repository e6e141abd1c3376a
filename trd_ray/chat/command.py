"""`trd chat`: try a checkpoint in a terminal, or through a pipe, a line at a time.

    a line --> the student's view (prompts.solve), or with --plain the chat so far --> Answerer --> pieces on the screen

- A checkpoint of a run is asked in the words that it was trained with, with the run's evaluation settings; overrides
  such as evaluation.temperature=0 change them.
- What a model says is hostile: control characters, also those that would move the cursor, become U+FFFD. Its special
  tokens are shown as they are spelled. Nothing of it is markup.
- In a terminal Ctrl-C ends the answer under way; Ctrl-C or Ctrl-D at the prompt ends the program, with exit code 0.
- Where standard input is no terminal, every line that is not empty is a problem, and nothing but answers is printed.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from trd_ray.errors import UserError
from trd_ray.record.markdown import visible

Write = Callable[[str], object]
PROMPT = "> "
AGAIN = "/new"  # a line that makes a plain chat forget


class Talk:
    """What is said, one line after another. `answer` gets the messages and where to write, and returns the answer."""

    def __init__(self, answer: Callable[[list[dict[str, str]], Write], str], write: Write, plain: bool):
        self._answer = answer
        self._write = write
        self._plain = plain
        self._said: list[dict[str, str]] = []

    def hear(self, line: str) -> None:
        """Answer a line. What was said of an answer that is interrupted stays in the chat."""
        if not line.strip():
            return
        if self._plain and line.strip() == AGAIN:
            self._said = []
            return
        self._said = [*(self._said if self._plain else []), {"role": "user", "content": line}]
        pieces: list[str] = []

        def piece(text: str) -> None:
            pieces.append(text)
            self._write(visible(text))

        try:
            self._answer(self._said, piece)
        except UserError:
            self._said.pop()  # it cannot be answered, so it is as if it had not been said
            raise
        except KeyboardInterrupt:
            self._end("".join(pieces))
            raise
        self._end("".join(pieces))

    def _end(self, said: str) -> None:
        self._said.append({"role": "assistant", "content": said})
        self._write("\n")


def chat(place: str, prompt: str | None = None, plain: bool = False, overrides: list[str] | None = None) -> int:
    """Answer `prompt`, or whatever comes on standard input, with the model at `place`; returns 0. Raises UserError."""
    from trd_ray.evaluate.target import target

    found = target(place, overrides or [])
    if prompt is not None and not prompt.strip():
        raise UserError("--prompt is empty: give it a text, or leave it out to be asked")
    from trd_ray.chat.answerer import open_model

    answerer = open_model(found.recipe)
    ask = answerer.in_chat if plain else answerer.solving
    talk = Talk(lambda messages, write: answerer.answer(ask(messages), write), _writer(sys.stdout), plain)
    if prompt is not None:
        talk.hear(prompt)
        return 0
    terminal = sys.stdin.isatty()
    if terminal:
        how = f"a chat, which {AGAIN} begins again" if plain else "every line is a problem of its own"
        print(f"{found.name}: {how}; Ctrl-C ends an answer, Ctrl-D ends", file=sys.stderr)
        for line in typed():
            try:
                talk.hear(line)
            except KeyboardInterrupt:
                pass  # the answer has ended, and the next line may come
            except UserError as e:
                print(visible(str(e)), file=sys.stderr)
        return 0
    for line in sys.stdin:
        talk.hear(line.rstrip("\n"))
    return 0


def typed() -> Iterator[str]:
    """The lines that somebody types, until Ctrl-C or Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() a line that can be edited

    while True:
        try:
            yield input(PROMPT)
        except (EOFError, KeyboardInterrupt):
            print()
            return


def _writer(out: TextIO) -> Write:
    if hasattr(out, "reconfigure"):  # a terminal that lacks a character is no reason to end
        out.reconfigure(errors="replace")  # pyright: ignore

    def write(text: str) -> None:
        out.write(text)
        out.flush()

    return write
