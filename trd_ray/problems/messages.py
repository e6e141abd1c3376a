"""A conversation as data has it becomes a problem: the last user message, and what was said before it.

    [{role, content}, ...], or JSON text of one  ->  conversation()  ->  Conversation(problem, turns, reply)
    turns                                        ->  written()       ->  the text that rows.PROBLEM keeps of them

- Roles are system, user and assistant. Those of ShareGPT (`from`, `value`; human, gpt) are read as these.
- A content may be a list of parts, as long as all of them are text.
- One answer may stand after the last user message: it is the reply, which becomes the reference.

What is neither text nor said by one of the three, such as an image or a tool's result, is refused with its place: it
would be lost without a word.
"""

import json
from dataclasses import dataclass
from typing import Any

from trd_ray.errors import UserError

ROLES = ("system", "user", "assistant")
_ALSO_CALLED = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "developer": "system"}


@dataclass(frozen=True)
class Conversation:
    problem: str  # the last user message
    turns: tuple[dict[str, str], ...]  # what was said before it
    reply: str  # the answer after it, "" where the conversation ends with the problem


def messages_in(value: Any) -> list[Any] | None:
    """The list of messages that a cell holds, also as JSON text; None for every other value."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        return None
    if not any({"role", "content"} <= one.keys() or {"from", "value"} <= one.keys() for one in value):
        return None
    return value if all("role" in one or "from" in one for one in value) else None


def conversation(messages: list[Any], where: str, column: str) -> Conversation:
    """Raises UserError, which names the row and the column, for a conversation that asks nothing or holds no text."""
    turns = [_turn(one, f"{where}: message {number} of {column}") for number, one in enumerate(messages, 1)]
    asked = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=None)
    if asked is None:
        raise UserError(f"{where}: {column} has no message of the user, which is the problem: add one, or drop the row")
    after = turns[asked + 1 :]
    if len(after) > 1 or any(turn["role"] != "assistant" for turn in after):
        roles = ", ".join(turn["role"] for turn in after)
        raise UserError(
            f"{where}: after the last message of the user {column} has {roles}, where only one answer may stand: end "
            "the conversation with the question, or with its answer"
        )
    reply = after[0]["content"] if after else ""
    return Conversation(turns[asked]["content"], tuple(turns[:asked]), reply)


def reply_of(messages: list[Any], where: str, column: str) -> str:
    """The text of a conversation that only answers, such as TRL's `completion`."""
    turns = [_turn(one, f"{where}: message {number} of {column}") for number, one in enumerate(messages, 1)]
    if turns[-1]["role"] != "assistant":
        raise UserError(f"{where}: {column} ends with a message of the {turns[-1]['role']}, and should with an answer")
    return turns[-1]["content"]


def written(turns: tuple[dict[str, str], ...]) -> str | None:
    return json.dumps(turns, ensure_ascii=False) if turns else None


def _turn(message: dict[str, Any], where: str) -> dict[str, str]:
    said = message.get("role") if "role" in message else message.get("from")
    role = _ALSO_CALLED.get(str(said), said)
    if role not in ROLES:
        raise UserError(
            f"{where} is said by {said!r}, but a prompt is made of {', '.join(ROLES)}: take such rows out of the data"
        )
    if message.get("tool_calls"):
        raise UserError(f"{where} calls a tool, which no view can show: take such rows out of the data")
    return {"role": role, "content": _content(message.get("content", message.get("value")), where)}


def _content(content: Any, where: str) -> str:
    if isinstance(content, list):
        kinds = [one.get("type", "text") if isinstance(one, dict) else type(one).__name__ for one in content]
        if odd := next((kind for kind in kinds if kind != "text"), None):
            raise UserError(f"{where} holds a part of the kind {odd!r}, and only text is read: leave such rows out")
        content = "".join(str(one.get("text") or "") for one in content)
    if not isinstance(content, str):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"{where} holds {found}, expected text: fix that row")
    try:
        content.encode()
    except UnicodeEncodeError as e:  # JSON can spell half a surrogate pair
        raise UserError(f"{where} holds {content[e.start]!r}, which is no text: fix that row") from e
    return content
