"""The untrusted program, in a child of the harness: one run as a script, or a function that is called again and again.

    script:    source  ->  __main__, with stdin, stdout and stderr  ->  exit status
    function:  source  ->  module `solution`  ->  a JSON line of arguments in, a JSON line of the returned value out

All of it runs in the program's own process, and the program may alter it: nothing here is trusted. A program ends as
under the interpreter itself: a traceback on stderr, threads joined, atexit handlers run, streams flushed.
"""

import _sitebuiltins
import atexit
import builtins
import contextlib
import json
import os
import sys
import types

from . import values

FILE_NAME = "solution.py"
LOADED = b"{}\n"
_source = ""  # for tracebacks to quote


def compiled(source: str, name: str = FILE_NAME) -> types.CodeType:
    """The code of a source. A byte order mark is no part of it, and a coding cookie in decoded text says nothing."""
    return compile(source.removeprefix("\ufeff"), name, "exec", dont_inherit=True)


def run_script(code: types.CodeType, source: str) -> int:
    """Run the script as __main__, and return its exit status."""
    main = _become("__main__", source)
    status = _status_of(lambda: exec(code, main.__dict__))
    return _leave(status)


def serve_calls(requests: int, replies: int, source: str, prelude: str, entry_point: str) -> int:
    """Answer requests until they end. The first reply says whether the source could be loaded."""
    solution = _become("solution", source)
    reply = os.fdopen(replies, "wb", closefd=False)
    function = None

    def load() -> dict:
        nonlocal function
        if prelude:
            exec(compiled(prelude, "prelude.py"), solution.__dict__)
        exec(compiled(source), solution.__dict__)
        owner, _, name = entry_point.rpartition(".")
        function = getattr(getattr(solution, owner)() if owner else solution, name)
        return {}

    def call(line: bytes) -> dict:
        assert function is not None
        return {"value": values.encode(function(*values.decode(json.loads(line))))}

    def answer(make, *arguments) -> bool:
        try:
            made = make(*arguments)
        except BaseException as e:
            _print_exception(e)
            made = {"error": _summary(e), "memory": isinstance(e, MemoryError)}
        _flush()
        reply.write(json.dumps(made).encode() + b"\n")
        reply.flush()
        return "error" not in made

    if not answer(load):
        return 1
    with os.fdopen(requests, "rb", closefd=False) as lines:
        for line in lines:
            answer(call, line)
    return 0


def _become(name: str, source: str) -> types.ModuleType:
    """A fresh module of that name, and an interpreter that looks as if nothing else had run in it."""
    global _source
    _source = source
    for loaded in [m for m in sys.modules if m == "inside" or m.startswith("inside.")]:
        del sys.modules[loaded]
    module = types.ModuleType(name)
    module.__dict__.update(__builtins__=builtins, __file__=FILE_NAME)
    sys.modules[name] = module
    sys.argv = [FILE_NAME]
    for command in ("exit", "quit"):  # of the site module, which is not loaded
        setattr(builtins, command, _sitebuiltins.Quitter(command, "Ctrl-D"))
    return module


def _status_of(run) -> int:
    try:
        run()
    except SystemExit as e:
        if e.code is None:
            return 0
        if isinstance(e.code, int):
            return e.code & 0xFF
        print(e.code, file=sys.stderr)
        return 1
    except BaseException as e:
        _print_exception(e)
        return 1
    return 0


def _leave(status: int) -> int:
    """Do what the interpreter does at its end, but do not take it down."""
    if "threading" in sys.modules:
        status = _status_of(sys.modules["threading"]._shutdown) or status
    status = _status_of(atexit._run_exitfuncs) or status
    return status if _flush() else 120


def _flush() -> bool:
    done = True
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException as e:
            _print_exception(e)
            done = False
    return done


def _print_exception(e: BaseException) -> None:
    """Print a traceback without the frames of this file. Never raises."""
    try:
        import linecache  # here: most programs do not fail, and all would pay for it
        import traceback

        linecache.cache[FILE_NAME] = (len(_source), None, _source.splitlines(keepends=True), FILE_NAME)
        e.__traceback__ = _of_the_program(e.__traceback__)
        traceback.print_exception(e)
    except BaseException:  # no memory left, or a stderr or an exception that the program has broken
        with contextlib.suppress(BaseException):
            os.write(2, f"{type(e).__name__}\n".encode("utf-8", "replace"))


def described(e: BaseException) -> str:
    """An exception's last lines, without a traceback. Source that does not compile has no more."""
    import traceback

    return "".join(traceback.format_exception_only(e))[-4096:]


def _of_the_program(frames):
    while frames is not None and frames.tb_frame.f_code.co_filename == _of_the_program.__code__.co_filename:
        frames = frames.tb_next
    return frames


def _summary(e: BaseException) -> str:
    try:
        return described(e).strip()[-500:]
    except BaseException:
        return type(e).__name__
