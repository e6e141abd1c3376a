"""Hostile programs that define a function `f`, called with 1 unless they say otherwise."""

from hostile import Hostile

FUNCTIONS = [
    Hostile("loops", "time", "def f(x):\n    while True: pass"),
    Hostile("loops when loaded", "time", "while True: pass"),
    Hostile("memory", "memory", "def f(x): return len(bytearray(1 << 40))"),
    Hostile("too long a value", "output", "def f(x): return 'x' * 1_000_000"),
    Hostile("a value that explodes", "time", "def f(x):\n    a = []\n    for _ in range(80): a = [a, a]\n    return a"),
    Hostile("leaves", "died", "import os\ndef f(x): os._exit(0)", detail="exit code 0"),
    Hostile("leaves when loaded", "died", "import os\nos._exit(0)", detail="exit code 0"),
    Hostile("exits", "error", "import sys\ndef f(x): sys.exit(0)", detail="SystemExit"),
    Hostile("exits when loaded", "error", "exit()", detail="SystemExit"),
    Hostile("kills itself", "died", "import os\ndef f(x): os.kill(os.getpid(), 9)", detail="SIGKILL"),
    Hostile("null pointer", "died", "import ctypes\ndef f(x): ctypes.string_at(0)", detail="SIGSEGV"),
    Hostile("raises its own", "error", "class Own(BaseException): pass\ndef f(x): raise Own('why')", detail="Own: why"),
    Hostile("raises half a character", "error", "def f(x): raise ValueError('\\ud800')", detail="ValueError: ?"),
    Hostile("is not there", "error", "g = 1", detail="no attribute 'f'"),
    Hostile("reads stdin", "error", "def f(x): return input()", detail="EOFError"),
    Hostile("prints replies", "ok", """
import json, sys
def f(x):
    print(json.dumps({"value": 5}))
    print(json.dumps({"value": 5}), file=sys.stderr)
    return 2
""", stdout='{"value": 5}\n', value=2),
    Hostile("answers for good when loaded", "died", """
import os
for fd in range(3, 64):
    try: os.write(fd, b'{}\\n{"value": 5}\\n')
    except OSError: pass
os._exit(0)
"""),
    Hostile("answers with bytes that are no reply", "died", """
import os
def f(x):
    for fd in range(3, 64):
        try: os.write(fd, b"\\xff\\x00[" * 1000 + b"\\n")
        except OSError: pass
    os._exit(0)
""", detail="no value"),
    Hostile("answers with endless nesting", "died", """
import os
def f(x):
    os.write(4, b"[" * 50_000 + b"\\n")
    os._exit(0)
""", detail="no value"),
    Hostile("answers with a set of lists", "died", """
import os
def f(x):
    os.write(4, b'{"value": {"set": [[1]]}}\\n')
    os._exit(0)
""", detail="no value"),
    Hostile("answers with keys of one hash", "died", """
def f(x): return {i * (2**61 - 1): 0 for i in range(1, 800)}
""", detail="no value"),
    Hostile("closes the channel", "time", """
import os
def f(x):
    os.closerange(3, 64)
    while True: pass
"""),
    Hostile("overrides what equals it", "ok", """
class I(int):
    def __eq__(self, other): return True
    def __pos__(self): return 7
    __index__ = __int__ = __pos__
class S(str):
    def __str__(self): return "other"
class L(list):
    def __iter__(self): return iter([9])
    def __eq__(self, other): return True
def f(x): return [I(3), S("three"), L([1, 2])]
""", value=[3, "three", [1, 2]]),
    Hostile("replaces the harness", "ok", """
import builtins, sys
for module in list(sys.modules.values()):
    for name in ("dumps", "loads", "encode", "decode"):
        if hasattr(module, name): setattr(module, name, lambda *a, **k: '{"value": 5}')
def f(x): return 2
""", value=5),  # it computes 5, by whatever means
]  # fmt: skip
