"""Where in a response is its program? One pass over the text, whatever the model wrote.

    response -> after </think> -> fenced blocks -> candidates(), best first -> the first that is a program

The text is never parsed as Python in this process, because a hostile one can exhaust the parser's stack or memory.
Where the text alone does not decide, `extract` asks `inspect`, which CodeVerifier runs in its sandbox from the source
of INSPECTOR.
"""

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

MAX_INSPECTED = 8  # candidates of one response that are parsed to choose between them

# Runs in the sandbox. 0: no Python; 1: parses but does nothing, as one word of prose does; 2: a program.
INSPECTOR = """
import ast, warnings
warnings.simplefilter("ignore")
def inspect(source):
    try:
        body = ast.parse(source).body
    except Exception:
        return 0
    return 2 if any(not isinstance(s, ast.Expr) or isinstance(s.value, (ast.Call, ast.Await)) for s in body) else 1
"""

_PYTHON = {"python", "py", "python3", "py3", "cpython", "pypy", "pypy3"}
_LANGUAGE = re.compile(r"[{.\s]*([a-z0-9_+#-]*)")
_TRIPLE = re.compile(r'"""|' + r"'''")
_TAIL = re.compile(r"(?<!`)(`{3,})[ \t]*(python3?|py3?)?$")  # ends a line that says something before its fence
_CODE_LINE = re.compile(
    r"^(print\(|(import|from) \w|(def|class|for|while|if|with) .*:|[A-Za-z_]\w* *=[^=])", re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    language: str  # "" when the fence names none
    code: str
    closed: bool  # False: the response ends, or another block begins, before a closing fence

    @property
    def is_python(self) -> bool:
        return self.language in _PYTHON


def extract(text: str, entry_point: str, inspect: Callable[[str], int]) -> str:
    """The program that answers, "" when there is none.

    - The Python blocks count; when no block says Python, those without a language.
    - If an entry point is asked for and any of them defines it, only those that do count.
    - The last one that is closed and a program is taken, else the last closed one, else the last.
    - Without a block, the whole text is taken if it is a program.

    `inspect` is called only where several blocks, or none, leave a choice.
    """
    text = answer_part(text.replace("\r\n", "\n"))
    found = candidates(text, entry_point)
    if not found:
        whole = text if _CODE_LINE.search(text) and defines(text, entry_point) else ""
        return whole if whole and inspect(whole) == 2 else ""
    if len(found) == 1:
        return found[0]
    kinds = []
    for code in found[:MAX_INSPECTED]:
        kinds.append(inspect(code))
        if kinds[-1] == 2:
            break
    return found[kinds.index(max(kinds))]


def answer_part(text: str) -> str:
    """What follows the thinking; the whole text when nothing does."""
    answer = text.rpartition("</think>")[2]
    return answer if answer.strip() else text


def candidates(text: str, entry_point: str = "") -> list[str]:
    """Blocks that may be the program, best first, each once."""
    # A fence inside a docstring closes nothing, but a stray triple quote must not hide what comes after it either.
    found = [*reversed(blocks(text, strings=False))]
    if _TRIPLE.search(text):
        found = [*reversed(blocks(text, strings=True)), *found]
    found = [block for block in found if block.code.strip()]
    found = [b for b in found if b.is_python] or [b for b in found if not b.language]
    found = [b for b in found if defines(b.code, entry_point)] or found
    return list(dict.fromkeys(b.code for b in sorted(found, key=lambda b: not b.closed)))


def defines(code: str, entry_point: str) -> bool:
    """Whether the code seems to hold a def, a method or an assignment of that name. True for no entry point at all."""
    name = re.escape(entry_point.rpartition(".")[2])
    return (
        not entry_point
        or re.search(rf"^[ \t]*(?:(?:async[ \t]+)?def[ \t]+{name}\b|{name}[ \t]*[:=])", code, re.MULTILINE) is not None
    )


def blocks(text: str, strings: bool = True) -> list[Block]:
    """The fenced blocks in order. With `strings`, a fence inside a triple-quoted string is part of the code.

    As in CommonMark, with what models do besides: a fence that names a language always opens a block, inside another
    one too; a Python block may open, and any may close, at the end of a line.
    """
    found: list[Block] = []
    fence = ""
    indent = 0
    language = ""
    lines = []
    quote = ""

    def end(closed: bool) -> None:
        if fence:
            code = "\n".join(lines)
            indented = code.lstrip("\n")[:1] in (" ", "\t")
            found.append(Block(language, textwrap.dedent(code) if indented else code, closed))

    for line in text.split("\n"):
        mark, info, before = _fence(line) if not quote else ("", "", line)
        if mark and info:
            end(closed=False)
            fence = mark
            indent = len(line) - len(line.lstrip())
            language = _language(info)
            lines = []
        elif mark and fence and mark[0] == fence[0] and len(mark) >= len(fence):
            if before:
                lines.append(before)
            end(closed=True)
            fence = ""
        elif mark and not fence and not before:
            fence = mark
            indent = len(line) - len(line.lstrip())
            language = ""
            lines = []
        elif fence:
            lines.append(line[min(indent, len(line) - len(line.lstrip())) :])
            quote = _quote(line, quote) if strings and (not language or language in _PYTHON) else ""
    end(closed=False)
    return found


def _fence(line: str) -> tuple[str, str, str]:
    """(fence, info, what stands before it on the line); three times "" for a line without a fence."""
    bare = line.strip()
    for char in "`~":
        if bare.startswith(3 * char):
            info = bare.lstrip(char)
            if char == "~" or "`" not in info:
                return bare[: len(bare) - len(info)], info.strip(), ""
    tail = _TAIL.search(bare[-40:])
    if tail and len(tail.group()) < len(bare):
        return tail.group(1), tail.group(2) or "", line.rstrip()[: -len(tail.group())]
    return "", "", ""


def _language(info: str) -> str:
    named = _LANGUAGE.match(info.lower())
    return named.group(1) if named else ""


def _quote(line: str, quote: str) -> str:
    """The triple quote that is open after this line, given the one open before it."""
    at = 0
    while True:
        if quote:
            at = line.find(quote, at)
            if at < 0:
                return quote
            quote = ""
            at = at + 3
        else:
            opened = _TRIPLE.search(line, at)
            if not opened:
                return ""
            quote = opened.group()
            at = opened.end()
