"""Hostile programs against each backend that this machine has; honest programs against the interpreter itself."""

import contextlib
import functools
import http.server
import json
import os
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict, deque, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from enum import IntEnum
from pathlib import Path

import numpy as np
import psutil
import pytest
from hostile.functions import FUNCTIONS
from hostile.scripts import ESCAPES, EXHAUSTION, SIGHT, TAMPERING

from trd_ray.errors import UserError
from trd_ray.sandbox import GRACE_S, MAX_STRETCH, Limits, Sandbox, backends, values
from trd_ray.verify.code.outputs import rule
from trd_ray.verify.code.tests import Tests

REPO = Path(__file__).parents[2]
CANARY = "canary-" + secrets.token_hex(8)
LIMITS = Limits(time_s=0.3, memory_mib=160, output_kib=64, processes=8, files_mib=4)
UNHURRIED = replace(LIMITS, time_s=10)  # for those that must end for another reason, also on a busy machine
GENEROUS = Limits(time_s=20)
HONEST = """
import os, sys
if sys.stdin.readline() == "honest\\n":
    with open("mine", "w") as file: file.write("kept")
    kept = open("mine").read()
    os.remove("mine")
    print(os.listdir("."), kept)
else:
    exec({hostile!r})
"""
SCRIPTS = EXHAUSTION + SIGHT + ESCAPES + TAMPERING


@functools.cache
def sandbox(backend: str) -> Sandbox:
    try:
        return Sandbox(backend)
    except UserError as e:
        pytest.skip(str(e))


@pytest.fixture(params=["bubblewrap", "unshare"])
def backend(request) -> Sandbox:
    return sandbox(request.param)


def processes() -> set[int]:
    """The descendants of this process, orphans of a sandbox included: they belong to its process 1."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def named(token: str) -> list[int]:
    """Processes of the host that took that name."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text().strip() == token:
                found.append(int(comm.parent.name))
    return found


@pytest.fixture(scope="module")
def listener():
    """A server on loopback and an abstract socket, for programs that must not reach them, and what reached them."""
    reached = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle(self):
            reached.append(self.client_address)

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    name = secrets.token_hex(8)
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{name}")
        abstract.listen()
        socket.create_connection(server.server_address, 5).close()  # it can be reached, but from here alone
        yield {"$PORT": str(server.server_address[1]), "$ABSTRACT": name, "reached": reached}
    server.shutdown()
    server.server_close()


@pytest.fixture
def planted(listener, monkeypatch):
    """Replaces the $NAMES of a source."""
    monkeypatch.setenv("TRD_CANARY", CANARY)
    token = "trd" + secrets.token_hex(6)
    names = {"$PORT": listener["$PORT"], "$ABSTRACT": listener["$ABSTRACT"], "$REPO": str(REPO), "$CANARY": CANARY}
    names["$SHOWN"] = repr({"/proc", *(target for _, target in backends.this_interpreter().files)})
    names["$TOKEN"] = token

    def plant(source: str) -> str:
        for name, value in names.items():
            source = source.replace(name, value)
        return source

    plant.token = token
    return plant


@pytest.mark.parametrize("program", SCRIPTS, ids=lambda p: p.name)
def test_hostile_script_is_contained_and_harms_no_later_case(program, backend, planted, listener):
    before, reached = processes(), len(listener["reached"])
    source = planted(program.source)
    whole = program.name.startswith("source") or program.stdin
    limits = LIMITS if program.status == "time" else UNHURRIED
    with backend.script(source if whole else HONEST.format(hostile=source), limits) as running:
        outcome = running.run(program.stdin)
        assert outcome.status == program.status, outcome
        assert program.stdout is None or outcome.stdout == program.stdout, outcome
        assert program.detail in outcome.detail + outcome.stderr, outcome
        assert program.exit_code is None or outcome.exit_code == program.exit_code, outcome
        assert len(outcome.stdout) <= LIMITS.output_kib << 10
        assert len(outcome.stderr.encode()) <= 3 * 4096
        assert outcome.seconds < MAX_STRETCH * limits.time_s + GRACE_S  # the harness says so, not the deadline outside
        alive = processes() - before
        assert len(alive) in (0, 2), "only the tool and the harness may be left"
        if not whole:
            assert running.run("honest\n").stdout == "[] kept\n"
    assert processes() <= before
    assert named(planted.token) == []
    assert not os.path.exists(f"/tmp/{planted.token}")
    assert len(listener["reached"]) == reached


@pytest.mark.parametrize("program", FUNCTIONS, ids=lambda p: p.name)
def test_hostile_function_is_contained(program, backend):
    before = processes()
    limits = LIMITS if program.status == "time" else UNHURRIED
    with backend.function(program.source, "f", limits) as running:
        for again in (False, True):  # the second call starts the program again, where the first has ended it
            outcome = running.call(program.args)
            assert outcome.status == program.status, outcome
            assert outcome.value == program.value, outcome
            (outcome.stdout + outcome.stderr + outcome.detail).encode()  # Arrow takes no half characters
            assert program.detail in outcome.detail or again, outcome
            assert outcome.stdout == program.stdout or program.status == "died", outcome
    assert processes() <= before


EXITS = [
    "print(1)",
    "import sys; print(1); sys.exit()",
    "import sys; sys.exit(0)",
    "import sys; sys.exit(3)",
    "import sys; sys.exit(-1)",
    "import sys; sys.exit(256)",
    "import sys; sys.exit('reason')",
    "import sys; sys.exit((1, 2))",
    "raise SystemExit(True)",
    "exit()",
    "quit(4)",
    "import os; print(1); os._exit(0)",
    "import os; os.abort()",
    "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "1 / 0",
    "def f(n): return f(n + 1)\nf(0)",
    "x = = 1",
    "import atexit; atexit.register(print, 'last'); print('first')",
    "import atexit, os; atexit.register(os._exit, 0); 1 / 0",
    "import threading, time\ndef late(): time.sleep(0.1); print(2)\nthreading.Thread(target=late).start(); print(1)",
    "import threading, time\nthreading.Thread(target=time.sleep, args=(100,), daemon=True).start(); print('main')",
    "import threading, sys\nt = threading.Thread(target=lambda: 1 / 0); t.start(); t.join(); print('main')",
    "import sys; sys.stdout.close()",
    "import sys; sys.stdout.write('no newline')",
    "import os; os.close(1); print('lost')",
    "import sys; print(sys.argv[1:], __name__, sys.stdin.encoding, sys.stdout.encoding, sys.stdin.isatty())",
    "if __name__ == '__main__': print(input() + input())",
    "print(input()); print(input()); print(input())",
    "print(open(0).read())",
    "print(open('/dev/stdin').read())",
    "import sys\nfor line in sys.stdin: print(line.strip()[::-1])",
    "from dataclasses import *\nimport pickle\n@dataclass\nclass P: x: int\nprint(pickle.loads(pickle.dumps(P(2))))",
    "import heapq, math, random, re, hashlib, sqlite3, decimal, zlib; print(hashlib.sha256(b'x').hexdigest())",
    "from multiprocessing.dummy import Pool; print(Pool(2).map(abs, [-1, 2]))",
    "import subprocess, sys; print(subprocess.check_output([sys.executable, '-S', '-c', 'print(7)']))",
    "import asyncio\nasync def f(): await asyncio.sleep(0); return 3\nprint(asyncio.run(f()))",
]  # fmt: skip


def by_the_interpreter(source: str, stdin: str) -> subprocess.CompletedProcess:
    command = [backends.this_interpreter().executable, "-c", source]
    environment = {"PYTHONUTF8": "1", "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
    return subprocess.run(command, input=stdin.encode(), capture_output=True, env=environment, timeout=60)


@pytest.mark.parametrize("source", EXITS)
def test_script_ends_as_under_the_interpreter_itself(source):
    stdin = "ab\ncd\n"
    expected = by_the_interpreter(source, stdin)
    with sandbox("auto").script(source, GENEROUS) as program:
        outcome = program.run(stdin)
    assert outcome.exit_code == expected.returncode
    assert outcome.stdout == expected.stdout.decode()
    assert outcome.status == ("ok" if expected.returncode == 0 else "error")
    last = expected.stderr.decode().strip().rpartition("\n")[2]
    assert last in outcome.stderr


def test_each_case_is_a_fresh_process_of_one_sandbox(backend):
    before = processes()
    with backend.script(
        "import builtins\nprint(hasattr(builtins, 'seen'), input())\nbuiltins.seen = 1", GENEROUS
    ) as program:
        first = processes() - before
        for word in ("one", "two", "three"):
            assert program.run(word).stdout == f"False {word}\n"
        assert processes() - before == first


def test_function_keeps_its_state_and_takes_and_returns_values(backend):
    source = "class Solution:\n    n = 0\n    def f(self, *a):\n        self.n += 1\n        return self.n, a"
    value = [
        None,
        True,
        1.5,
        float("inf"),
        10**40,
        "é\ud800",
        b"\x00",
        2j,
        (1, [2]),
        {1, "a"},
        frozenset([3]),
        {(1,): {}},
    ]
    with backend.function(source, "Solution.f", GENEROUS, prelude="from typing import *") as program:
        assert program.call(value).value == (1, tuple(value))
        assert program.call([]).value == (2, ())


def test_numpy_is_there_for_a_program_that_imports_it(backend):
    source = "import numpy as np\ndef f(n): return np.arange(n).sum(), np.float32(0.5), np.linalg.det(np.eye(2)) == 1"
    with backend.function(source, "f", GENEROUS) as program:
        assert program.call([4]).value == (6, 0.5, True)


def test_descriptors_of_this_process_do_not_reach_a_program(backend, tmp_path):
    (tmp_path / "secret").write_text(CANARY)
    held = [os.open(tmp_path / "secret", os.O_RDONLY) for _ in range(1100)]  # select() would refuse those above 1023
    try:
        os.set_inheritable(held[0], True)
        with backend.script("import os; print(os.listdir('/proc/self/fd'))", GENEROUS) as program:
            assert program.run("").stdout == "['0', '1', '2', '3']\n"
    finally:
        for fd in held:
            os.close(fd)


def test_an_exception_in_the_caller_ends_the_program(backend):
    before = processes()
    with pytest.raises(ZeroDivisionError), backend.function("def f(): return 1", "f", GENEROUS) as program:
        assert program.call([]).value == 1
        raise ZeroDivisionError
    assert processes() <= before


def test_a_sandbox_outlives_the_thread_that_started_it_and_no_longer_than_asked(backend):
    before = processes()
    program = backend.function("def f(x): return x", "f", GENEROUS)
    thread = threading.Thread(target=program.__enter__)
    thread.start()
    thread.join()
    time.sleep(0.1)
    started = processes() - before
    assert program.call([1]).value == 1
    assert processes() - before == started | processes() - before
    program.close()
    assert processes() <= before


def test_many_threads_share_a_sandbox(backend):
    def square(n: int) -> str:
        with backend.script("print(int(input()) ** 2)", GENEROUS) as program:
            return program.run(str(n)).stdout

    before = processes()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(square, range(8))) == [f"{n * n}\n" for n in range(8)]
    assert processes() <= before


CALLER = """
import sys
from trd_ray.sandbox import Limits, Sandbox
source = '''
import ctypes, os, signal, time
libc = ctypes.CDLL(None)
os.fork()
os.setsid() if os.getpid() > 2 else None
signal.signal(signal.SIGINT, signal.SIG_IGN)
libc.prctl(15, b"{token}")
time.sleep(1000)
'''
with Sandbox("{backend}").script(source, Limits(time_s=100)) as program:
    print("started", flush=True)
    program.run("")
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_the_death_of_the_caller_ends_the_program(ending, backend):
    token = "trd" + secrets.token_hex(6)
    source = CALLER.format(token=token, backend=backend.backend)
    caller = subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        process_group=0,
        cwd=REPO,
    )
    try:
        assert caller.stdout and caller.stdout.readline() == "started\n"
        assert _within(20, lambda: len(named(token)) == 2)
        os.killpg(caller.pid, ending)  # as a terminal does: to the group, which the sandbox has left
        caller.wait(20)
        assert _within(20, lambda: not named(token))
    finally:
        caller.kill()
        caller.wait()
        caller.stdout.close()


def _within(seconds: float, condition) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_the_session_of_a_sandbox_is_its_own(backend):
    before = processes()
    with backend.script("pass", GENEROUS):
        assert all(os.getsid(pid) != os.getsid(0) for pid in processes() - before)


def test_a_killed_harness_is_a_death_and_the_next_case_runs(backend):
    before = processes()
    with backend.script("print(input())", GENEROUS) as program:
        for pid in processes() - before:
            os.kill(pid, signal.SIGKILL)
        assert program.run("x").status == "died"
        assert program.run("x").stdout == "x\n"


def test_who_ended_a_sandbox_is_told_but_only_where_no_program_inside_can_kill_it(backend):
    with backend.script("print(input())", GENEROUS) as program:
        signal.pidfd_send_signal(program._process._pidfd, signal.SIGKILL)
        outcome = program.run("x")
        assert outcome.status == "died" and outcome.killed is (backend.backend != "unsafe_no_sandbox")
        assert program.run("x").stdout == "x\n"
    with backend.function("import os\ndef f(): os._exit(1)", "f", GENEROUS) as program:
        outcome = program.call([])
        assert outcome.status == "died" and not outcome.killed


@pytest.fixture
def fresh_choice():
    backends._complaint.cache_clear()
    yield
    backends._complaint.cache_clear()


def test_auto_refuses_with_the_remedy_and_never_picks_the_unsafe_one(monkeypatch, fresh_choice):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match="apt install bubblewrap.*verify.sandbox=unsafe_no_sandbox"):
        Sandbox("auto")


def test_auto_passes_over_a_tool_that_is_installed_but_not_allowed(monkeypatch, fresh_choice, tmp_path):
    sandbox("unshare")
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert Sandbox("auto").backend == "unshare"
    with pytest.raises(UserError, match="No permissions to create new namespace"):
        Sandbox("bubblewrap")


def test_a_start_that_the_machine_refuses_for_a_moment_is_tried_again(monkeypatch, backend, tmp_path):
    name = {"bubblewrap": "bwrap", "unshare": "unshare"}[backend.backend]
    tool = tmp_path / name
    tool.write_text(f"""#!/bin/sh
if [ ! -e {tmp_path}/refused ]; then touch {tmp_path}/refused; echo no more processes >&2; exit 1; fi
exec {shutil.which(name)} "$@"
""")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with backend.script("print(1)") as program:
        assert program.run("").stdout == "1\n"
    assert (tmp_path / "refused").exists()


def test_unknown_backend_names_the_known_ones():
    with pytest.raises(UserError, match="auto, bubblewrap, unshare, unsafe_no_sandbox"):
        Sandbox("docker")


UNSAFE = {
    "print(input()[::-1])": ("ok", "olleh\n"),
    "while True: pass": ("time", ""),
    "held = bytearray(1 << 40)": ("memory", ""),
    "while True: print('x' * 1000)": ("output", None),
    "import os; print(os.environ.get('TRD_CANARY')); open('left', 'w').close()": ("ok", "None\n"),
    "import os, time\nif os.fork() == 0:\n    os.setsid()\n    os.fork() or time.sleep(1000)\n    os._exit(0)": (
        "ok",
        "",
    ),
}


def test_unsafe_still_limits_and_cleans_up(monkeypatch):
    monkeypatch.setenv("TRD_CANARY", CANARY)
    before, unsafe = processes(), Sandbox("unsafe_no_sandbox")
    folders = set(Path("/tmp").glob("trd-unsafe-*"))  # of a caller that was killed, which nobody removes
    for source, (status, stdout) in UNSAFE.items():
        with unsafe.script(source, LIMITS if status == "time" else UNHURRIED) as program:
            outcome = program.run("hello")
            assert outcome.status == status, outcome
            assert stdout is None or outcome.stdout == stdout
        assert processes() <= before
    with unsafe.script("import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')", UNHURRIED) as program:
        assert program.run("").status == "ok"
    assert set(Path("/tmp").glob("trd-unsafe-*")) <= folders


Point = namedtuple("Point", "x y")
Colour = IntEnum("Colour", "RED GREEN")


@pytest.mark.parametrize(
    "value",
    [None, True, False, 0, -1, 2**62, -(2**63), 2**64, -(10**5000), 0.1, -0.0, 1e308, 5e-324, float("inf"),
     -float("inf"), "", "é\n\0\ud800", b"", b"\xff\0", bytearray(b"ab"), 1j, complex(float("inf"), -0.0), [], (), {},
     [[1], [None]], (1,), ((1, 2), [3]), set(), {1, (2,)}, frozenset({frozenset()}), {1: {2: 3}, "a": [1], (1,): 2},
     Point(1, 2), Colour.RED, Counter("aab"), OrderedDict(a=1), np.int64(-3), np.float32(0.25), np.bool_(True)],
    ids=lambda v: repr(v)[:30] if not isinstance(v, int) or abs(v) < 2**65 else "huge int",
)  # fmt: skip
def test_values_return_equal_from_json(value):
    back = values.decode(json.loads(json.dumps(values.encode(value), allow_nan=False)))
    assert back == value
    assert type(back) in (type(None), bool, int, float, str, bytes, complex, list, tuple, set, frozenset, dict)
    assert not isinstance(value, float) or str(back) == str(float(value))  # the sign of zero too


@pytest.mark.parametrize("value", [object(), deque([1]), np.arange(2), (n for n in ()), range(3), int, float("nan")])
def test_other_values_equal_nothing(value):
    back = values.decode(json.loads(json.dumps(values.encode(value))))
    assert back != value
    assert back != values.decode(values.encode(value))
    assert [back] != [values.decode(values.encode(value))]


def test_a_list_that_holds_itself_ends_in_opaque():
    knot: list = [1]
    knot.append(knot)
    assert isinstance(values.decode(values.encode(knot))[1], values.Opaque)


@pytest.mark.parametrize(
    "tree",
    [{}, {"no": 1}, {"int": 1}, {"int": "zz"}, {"float": "1"}, {"bytes": "zz"}, {"tuple": 1}, {"set": [[1]]},
     {"dict": [[1]]}, {"dict": [[[1], 2]]}, {"complex": [1.0]}, {"complex": ["a", 1.0]}, {"opaque": 1}, {"list": []},
     {"a": 1, "b": 2}, {"dict": 1}],
)  # fmt: skip
def test_trees_that_encode_does_not_make_are_refused(tree):
    with pytest.raises(ValueError):
        values.decode([tree])


def test_keys_that_collide_in_the_low_bits_of_their_hashes_are_bounded():
    with pytest.raises(ValueError, match="keys"):
        values.decode({"set": [n << 20 for n in range(values.MAX_KEYS + 1)]})
    assert len(values.decode({"dict": [[n, 0] for n in range(values.MAX_KEYS)]})) == values.MAX_KEYS


def judged(expected, got, **kind) -> bool:
    """By the rule of a case, in bounded time and memory: what a program returns is compared out here."""
    kept = {"kind": "function", "inputs": [[1]], "outputs": [expected], "compare": "humaneval_plus", "entry_point": "f"}
    tests, before = Tests(**(kept | kind)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    right = rule(tests)(0, got)
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
    return right


STDIO = {"kind": "stdio", "inputs": [""], "entry_point": ""}


@pytest.mark.parametrize("compare", ["tokens", "livecodebench"])
@pytest.mark.parametrize("got", ["1" * 10**6 + "x", "." * 10**6, "1e" * 10**5, "1" * 10**6 + ".", "1e999999999", "nan"])
def test_text_that_is_nearly_a_number_is_judged_quickly(got, compare):
    assert not judged("5.0", got, compare=compare, **STDIO)


def test_text_is_close_to_no_number_and_is_not_padded_to_the_longest():
    assert not judged([5.0], [["x" * 5000] + ["a"] * 20_000], atol=1e-6)
    assert not judged([5.0], [[b"x" * 50_000] + [b"a"] * 20_000], atol=1e-6)
    assert judged([5.0], [5.0 + 1e-9], atol=1e-6)


def test_a_list_for_a_set_builds_no_table_of_keys_that_are_not_wanted():
    class Key(int):
        hashed = 0

        def __hash__(self):
            Key.hashed += 1
            return int(self)

    kind = {"compare": "mbpp_plus", "entry_point": "similar_elements"}
    assert not judged([1, 2], [Key(n) for n in range(3, 10_000)], **kind)
    assert Key.hashed == 1
    assert judged([1, 2], [2, 1, 1], **kind)
    assert not judged([1, 2], [1, 1], **kind)


def test_deep_trees_and_keys_of_one_hash_are_refused():
    deep: list = []
    for _ in range(500):
        deep = [deep]
    with pytest.raises(ValueError, match="deep"):
        values.decode(deep)
    with pytest.raises(ValueError, match="hashes"):
        values.decode({"dict": [[n * (2**61 - 1), 0] for n in range(1, 300)]})
