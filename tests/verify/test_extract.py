"""Which program of a response is the one that is judged."""

import ast
import time

import pytest

from trd_ray.verify.code.extract import INSPECTOR, answer_part, blocks, candidates, extract

SCOPE: dict = {}
exec(INSPECTOR, SCOPE)
inspect = SCOPE["inspect"]  # what CodeVerifier runs in its sandbox

PROGRAM = "n = int(input())\nprint(n + 1)"
FUNCTION = "def add(a, b):\n    return a + b"


def fenced(code: str, language: str = "python", mark: str = "```") -> str:
    return f"{mark}{language}\n{code}\n{mark}"


def found(text: str, entry_point: str = "") -> str:
    return extract(text, entry_point, inspect)


@pytest.mark.parametrize("language", ["python", "py", "Python3", "PYTHON", "python runnable", "{.python .lines}", ""])
@pytest.mark.parametrize("mark", ["```", "~~~", "`````"])
def test_a_block_among_prose_is_the_program(language, mark):
    assert found(f"Here you go:\n\n{fenced(PROGRAM, language, mark)}\n\nIt adds one.") == PROGRAM


def test_windows_newlines():
    assert found(f"Look:\n{fenced(PROGRAM)}\nDone.".replace("\n", "\r\n")) == PROGRAM


def test_a_block_in_a_list_loses_the_indentation_of_its_fence():
    text = "1. Like so:\n   ```python\n" + "\n".join("   " + line for line in FUNCTION.split("\n")) + "\n   ```\n"
    assert found(text) == FUNCTION


def test_an_indented_program_in_a_plain_fence_is_dedented():
    assert found("```python\n    a = 1\n    if a:\n        print(a)\n```") == "a = 1\nif a:\n    print(a)"


def test_the_last_of_several_python_blocks_wins():
    assert found(f"{fenced('print(1)')}\nBetter:\n{fenced(PROGRAM)}\nThat is it.") == PROGRAM


def test_a_last_block_that_is_no_program_does_not_win():
    for last in ("3 4", "print(", "x = [1,", '"""the output is 7"""'):
        assert found(f"{fenced(PROGRAM)}\nFor example\n{fenced(last)}") == PROGRAM


def test_blocks_that_are_all_broken_give_the_last_whose_syntax_error_is_the_verdict():
    assert found(f"{fenced('def f(:')}\n{fenced('def g(:')}") == "def g(:"


def test_other_languages_are_skipped():
    assert found(f"{fenced(PROGRAM)}\n{fenced('int main() {}', 'cpp')}\n{fenced('5', 'text')}") == PROGRAM
    assert found(fenced("int main() { return 0; }", "cpp")) == ""
    assert found(fenced('{"a": 1}', "json")) == ""


def test_an_unlabelled_block_counts_only_where_none_says_python():
    assert found(f"{fenced(PROGRAM)}\nprints\n{fenced('x = 5', '')}") == PROGRAM
    assert found(f"{fenced('g++ a.cpp', 'bash')}\n{fenced(PROGRAM, '')}\nprints\n{fenced('5', '')}") == PROGRAM


def test_a_function_task_takes_the_last_block_that_defines_its_entry_point():
    text = f"{fenced('def add(a, b): return 0')}\n{fenced(FUNCTION)}\nUse it:\n{fenced('print(add(1, 2))')}"
    assert found(text, "add") == FUNCTION
    method = "class Solution:\n    def add(self, a, b):\n        return a + b"
    assert found(f"{fenced(method)}\n{fenced('Solution().add(1, 2)')}", "Solution.add") == method
    assert found(f"{fenced(method)}\n{fenced('Solution().add(1, 2)')}", "add") == method
    assert found(fenced("add = lambda a, b: a + b") + fenced("print(1)"), "add") == "add = lambda a, b: a + b"
    assert (
        found(f"{fenced('def address(): pass')}\n{fenced(FUNCTION)}\n{fenced('def readd(): pass')}", "add") == FUNCTION
    )


def test_a_response_that_was_cut_off_gives_its_unclosed_block():
    assert found(f"So:\n```python\n{PROGRAM}") == PROGRAM


def test_a_closed_program_is_preferred_to_one_that_was_cut_off():
    assert found(f"{fenced(PROGRAM)}\nOr shorter:\n```python\nn = int(inp") == PROGRAM
    assert found(f"{fenced(PROGRAM)}\nOr shorter:\n```python\nprint('half of it')") == PROGRAM


def test_a_block_that_is_never_closed_ends_where_the_next_begins():
    assert candidates(f"```python\nprint(\n\nNo, rather:\n{fenced(PROGRAM)}")[0] == PROGRAM


def test_a_fence_inside_a_docstring_is_part_of_the_program():
    code = 'def add(a, b):\n    """Adds.\n\n```python\nadd(1, 2)\n```\n"""\n    return a + b'
    assert found(f"Thus:\n{fenced(code)}\nand\n{fenced('3', 'text')}", "add") == code
    assert found(fenced(code.replace('"""', "'''")), "add") == code.replace('"""', "'''")


def test_a_stray_triple_quote_hides_nothing_that_follows():
    stray = 'x = 1  # not """ a string'
    assert found(f"{fenced(stray)}\nThen:\n{fenced(PROGRAM)}\nEnd.") == PROGRAM
    assert found(fenced(PROGRAM + '  # """')) == PROGRAM + '  # """'


def test_python_inside_a_markdown_block():
    assert found(f"```markdown\n# Answer\n{fenced(PROGRAM)}\n```") == PROGRAM


def test_fences_at_the_end_of_a_line():
    assert found(f"**Solution:** ```python\n{PROGRAM}```\nDone.") == PROGRAM


def test_a_nested_longer_fence():
    inner = 's = """\n```\n"""\nprint(s)'
    assert found(f"````python\n{inner}\n````") == inner


def test_a_bare_program_counts_and_prose_does_not():
    assert found(PROGRAM) == PROGRAM
    assert found(FUNCTION, "add") == FUNCTION
    for prose in (
        "Yes",
        "42",
        "I cannot do this.",
        "The answer is x = 5, for a start.",
        "import substitution is a policy",
        "from here on, n grows",
        "for example: this",
        "x",
        "```",
        "a == b",
    ):
        assert found(prose) == "", prose
    assert found(PROGRAM, "add") == ""  # a program, but not of the function that was asked for


def test_thinking_is_not_searched_when_an_answer_follows():
    think = f"<think>\nMaybe\n{fenced('print(1)')}\n</think>\n"
    assert found(f"{think}{fenced(PROGRAM)}") == PROGRAM
    assert found(f"{think}I give up.") == ""
    assert (
        found(f"Perhaps {fenced('print(1)')}</think>The answer:\n{fenced(PROGRAM)}") == PROGRAM
    )  # opened by the prompt
    assert found(think) == "print(1)"
    assert found(f"<think>\n{fenced(PROGRAM)}\nhm, wait") == PROGRAM
    assert answer_part("no thinking") == "no thinking"


def test_no_text_makes_it_raise():
    for text in (
        "",
        "\0",
        "```",
        "~~~\n```",
        "```python",
        "```python\n```",
        "`" * 7,
        "\ud800",
        "```\ud800\n\ud800\n```",
    ):
        found(text)
    assert found("```python\n\n```\n") == ""
    assert blocks("```python\n```")[0].code == ""


HOSTILE = {
    "fences": "```python\nx\n```\n" * 100_000,
    "openers": "```python\n" * 100_000,
    "quotes": "```python\n'''\n```\n\"\"\"\n" * 60_000,
    "backticks": "`" * 2_000_000,
    "backticks and a letter": ("`" * 1000 + "x\n") * 2000,
    "one line": "x = 1; " * 300_000,
    "spaces": " " * 2_000_000 + "def",
    "blank lines": "\n" * 2_000_000,
    "indented": ("\t" * 1000 + "\n") * 2000,
    "thinking": "</think>" * 250_000 + "x",
    "quote line": "```python\n" + "'" * 2_000_001 + "\n```",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_megabytes_take_seconds(name):
    start = time.monotonic()
    extract(HOSTILE[name], "add", lambda source: 0)
    extract(HOSTILE[name], "", lambda source: 0)
    assert time.monotonic() - start < 10


def test_a_single_block_is_never_parsed():
    def refuse(source: str) -> int:
        raise AssertionError("asked to parse")

    nested = "x = " + "(" * 5000 + ")" * 5000
    assert extract(fenced(nested), "", refuse) == nested
    assert extract("Only prose, which no rule takes for code.", "", refuse) == ""


def test_inspector_agrees_with_the_parser():
    for source in ("x", "5", "print(1)", "def f(): pass", "def f(:", "", "a\0b", "import os", "'doc'", "(" * 300):
        try:
            ast.parse(source)
        except Exception:
            assert inspect(source) == 0
        else:
            assert inspect(source) in (1, 2)
    assert [inspect(s) for s in ("x", "5", "'doc'", "")] == [1] * 4
    assert [inspect(s) for s in ("x = 1", "print(1)", "import os")] == [2] * 3
