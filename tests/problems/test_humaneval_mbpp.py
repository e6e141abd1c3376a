"""Our verdicts on HumanEval+ and MBPP+ are evalplus's own: problems in the published schema, solutions of every kind.

The problems are written here, under the task ids and function names that evalplus treats apart. Its evaluator forks and
disarms itself, so it runs in a child of its own, on the same files and programs.
"""

import json
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from trd_ray.config import VerifyConfig
from trd_ray.errors import UserError
from trd_ray.sandbox import Sandbox
from trd_ray.sandbox.values import decode, encode
from trd_ray.verify.code.code_verifier import CodeVerifier
from trd_ray.verify.code.evalplus import evalplus_tests
from trd_ray.verify.code.outputs import rule
from trd_ray.verify.code.tests import Tests


def problem(
    task_id: str, name: str, args: str, body: str, base: list, plus: list, atol: float = 0, docs: str = ""
) -> dict:
    """One line of the published JSONL. A prompt of MBPP+ is a docstring, one of HumanEval+ has the signature too."""
    body = textwrap.indent(body, "    ")
    doc = docs or f"Task {task_id}."
    if task_id.startswith("HumanEval"):
        prompt, canonical = f'import math\n\n\ndef {name}({args}):\n    """ {doc}\n    """\n', f"\n{body}\n"
    else:
        prompt, canonical = f'"""\n{doc}\n"""\n', f"\ndef {name}({args}):\n{body}\n"
    return {
        "task_id": task_id,
        "prompt": prompt,
        "entry_point": name,
        "canonical_solution": canonical,
        "contract": "\n    assert True  # $_CONTRACT_$\n",
        "base_input": base,
        "plus_input": plus,
        "atol": atol,
    } | (
        {"test": "\ndef check(candidate):\n    pass\n"}
        if task_id.startswith("HumanEval")
        else {"assertion": "\nassert True"}
    )


HUMANEVAL = [
    problem("HumanEval/2", "fraction", "x", "return x % 1.0", [[3.5], [1.25]], [[0.1], [1e6 + 0.3], [7.0]]),
    problem("HumanEval/8", "total", "xs", "return sum(xs), len(xs)", [[[1, 2]], [[]]], [[[5] * 4], [[-1, 1, 10**20]]]),
    problem("HumanEval/21", "scaled", "xs", "return [x / 3 for x in xs]", [[[1.0, 2.0]]], [[[10.0, 0.1, 7.0]], [[]]]),
    problem(
        "HumanEval/32",
        "find_zero",
        "xs",
        "lo, hi = -100.0, 100.0\n"
        "f = lambda x: sum(c * x**i for i, c in enumerate(xs))\n"
        "while hi - lo > 1e-10:\n"
        "    mid = (lo + hi) / 2\n"
        "    lo, hi = (mid, hi) if (f(mid) > 0) == (f(lo) > 0) else (lo, mid)\n"
        "return lo",
        [[[1, 2]], [[-6, 11, -6, 1]]],
        [[[-20, 156, -32, 12]]],
        atol=1e-4,
    ),
    problem("HumanEval/15", "joined", "n", "return ' '.join(map(str, range(n)))", [[3], [0]], [[50], [200_000]]),
    problem("HumanEval/33", "first", "xs", "return xs[0] if xs else None", [[[1, 2]], [[]]], [[["a"]], [[[1]]]]),
]
MBPP = [
    problem(
        "Mbpp/2",
        "similar_elements",
        "a, b",
        "return tuple(set(a) & set(b))",
        [[[3, 4], [4, 3]]],
        [[[], [1]], [[1, 2, 9], [9, 1]]],
    ),
    problem(
        "Mbpp/124",
        "angle_complex",
        "a, b",
        "import cmath\nreturn cmath.phase(complex(a, b.imag))",
        [["0", "1j"]],
        [["2.5", "-3j"]],
        docs="Angle.",
    ),
    problem("Mbpp/581", "surface_Area", "b, s", "return 2 * b * s + b * b", [[3, 4]], [[1, 2]]),
    problem("Mbpp/295", "sum_div", "n", "return sum(i for i in range(1, n) if n % i == 0)", [[8]], [[12], [7]]),
    problem(
        "Mbpp/558",
        "digit_distance_nums",
        "a, b",
        "return sum(map(int, str(abs(a - b))))",
        [[1, 2]],
        [[23, 56], [123, 256]],
    ),
    problem("Mbpp/164", "are_equivalent", "a, b", "return a == b", [[36, 57]], [[2, 4]]),
    problem(
        "Mbpp/794",
        "text_starta_endb",
        "text",
        "import re\nreturn re.search('^a.*b$', text)",
        [["aabbbb"]],
        [["xb"], [""]],
    ),
    problem("Mbpp/98", "mixed", "n", "return n * 1.5 if n < 3 else 10**8", [[1], [2]], [[1], [5]]),
    problem("Mbpp/70", "lengths", "ts", "return [len(t) for t in ts]", [[[[1, 2], [3]]]], [[[[], []]]]),
    problem("Mbpp/106", "add_lists", "xs, t", "return t + tuple(xs)", [[[5, 6], [9]]], [[[], [1]]]),
]

SLOW = "import time\ndef {name}(*args):\n    time.sleep(30)\n"
CRASH = "def {name}(*args):\n    raise ValueError('no')\n"
EXIT = "import os\ndef {name}(*args):\n    os._exit(0)\n"
SYS_EXIT = "import sys\ndef {name}(*args):\n    sys.exit(0)\n"
NONE = "def {name}(*args):\n    pass\n"
EVERY = {
    "crash": CRASH,
    "exit": EXIT,
    "sys.exit": SYS_EXIT,
    "none": NONE,
    "undefined": "x = 1\n",
    "syntax": "def {name}(:\n",
}

SOLUTIONS = {
    "HumanEval/2": {
        "slow": SLOW,
        "other arithmetic": "def fraction(x):\n    return x - int(x)\n",
        "within 1e-6": "def fraction(x):\n    return x % 1.0 + 5e-7\n",
        "beyond 1e-6": "def fraction(x):\n    return x % 1.0 + 5e-6\n",
        "numbers as text": "def fraction(x):\n    return str(x % 1.0)\n",
        "a whole number": "def fraction(x):\n    return int(x % 1.0)\n",
        "base alone": "def fraction(x):\n    return {{3.5: 0.5, 1.25: 0.25}}[x]\n",
        "plus alone": "def fraction(x):\n    return 0.9 if x in (3.5, 1.25) else x % 1.0\n",
        "counts its calls": "n = 0\ndef fraction(x):\n    global n\n    n += 1\n    return x % 1.0 if n < 4 else 9.0\n",
        "slow at import": "import time\ntime.sleep(0.5)\ndef fraction(x):\n    return x % 1.0\n",
        "loops": "def fraction(x):\n    while True: pass\n",
        "reads input": "def fraction(x):\n    input()\n    return x % 1.0\n",
        "prints": "def fraction(x):\n    print('pass')\n    return x % 1.0\n",
    },
    "HumanEval/8": {
        "list for a tuple": "def total(xs):\n    return [sum(xs), len(xs)]\n",
        "swapped": "def total(xs):\n    return len(xs), sum(xs)\n",
        "floats": "def total(xs):\n    return float(sum(xs)), len(xs)\n",
        "mutates": "def total(xs):\n    n = len(xs)\n    s = 0\n    while xs: s += xs.pop()\n    return s, n\n",
        "a named tuple": "from collections import namedtuple\nT = namedtuple('T', 'a b')\n"
        "def total(xs):\n    return T(sum(xs), len(xs))\n",
        "generator": "def total(xs):\n    yield sum(xs)\n    yield len(xs)\n",
    },
    "HumanEval/21": {
        "tuple for a list": "def scaled(xs):\n    return tuple(x / 3 for x in xs)\n",
        "tuple, off by little": "def scaled(xs):\n    return tuple(x / 3 + 1e-9 for x in xs)\n",
        "off by little": "def scaled(xs):\n    return [x / 3 + 1e-9 for x in xs]\n",
        "off by much": "def scaled(xs):\n    return [x / 3 + 1e-3 for x in xs]\n",
        "longer": "def scaled(xs):\n    return [x / 3 for x in xs] + [0.0]\n",
        "nan": "def scaled(xs):\n    return [float('nan') for x in xs]\n",
        "columns": "def scaled(xs):\n    return [[x / 3 + 1e-9] for x in xs]\n",
        "whole": "def scaled(xs):\n    return [x // 3 for x in xs]\n",
    },
    "HumanEval/32": {
        "another way": "def find_zero(xs):\n    import math\n    x = 0.5\n    for _ in range(200):\n"
        "        f = sum(c * x**i for i, c in enumerate(xs))\n"
        "        d = sum(i * c * x**(i - 1) for i, c in enumerate(xs) if i)\n"
        "        x -= f / d\n    return x\n",
        "another root": "def find_zero(xs):\n    return {{2: -0.5, 4: 3.0}}[len(xs)] if xs[0] != -20 else 0.13158141\n",
        "no root": "def find_zero(xs):\n    return 0.0\n",
        "text": "def find_zero(xs):\n    return '0.5'\n",
        "wrong, and eats its input": "def find_zero(xs):\n    return 7.0\n",
    },
    "HumanEval/15": {
        "+": "def joined(n):\n    return ' '.join(str(i) for i in range(n + 1))\n",
        "blank": "def joined(n):\n    return ' '.join(str(i) for i in range(n)) + ' '\n",
    },
    "HumanEval/33": {
        "whole list": "def first(xs):\n    return xs\n",
        "true for one": "def first(xs):\n    return (True if xs[0] == 1 else xs[0]) if xs else None\n",
        "recursion": "def first(xs):\n    return first(xs)\n",
    },
    "Mbpp/2": {
        "list": "def similar_elements(a, b):\n    return [x for x in a if x in b]\n",
        "set": "def similar_elements(a, b):\n    return set(a) & set(b)\n",
        "generator": "def similar_elements(a, b):\n    return (x for x in a if x in b)\n",
        "filter": "def similar_elements(a, b):\n    return filter(lambda x: x in b, a)\n",
        "repeats": "def similar_elements(a, b):\n    return [x for x in a if x in b] * 2\n",
        "too many": "def similar_elements(a, b):\n    return set(a) | set(b)\n",
        "unhashable": "def similar_elements(a, b):\n    return [[x] for x in a if x in b]\n",
        "wants tuples": "def similar_elements(a, b):\n    return set(a + ()) & set(b)\n",
        "not iterable": "def similar_elements(a, b):\n    return 5\n",
    },
    "Mbpp/124": {
        "math": "import math\ndef angle_complex(a, b):\n    return math.atan2(b.imag, a)\n",
        "takes text": "def angle_complex(a, b):\n    return len(a)\n",
        "degrees": "import math\ndef angle_complex(a, b):\n    return math.degrees(math.atan2(b.imag, a))\n",
    },
    "Mbpp/581": {
        "perpendicular": "import math\ndef surface_Area(b, h):\n"
        "    return round(b * b + 2 * b * math.sqrt(b * b / 4 + h * h))\n",
        "wrong": "def surface_Area(b, s):\n    return b * s\n",
        "text": "def surface_Area(b, s):\n    return '33'\n",
    },
    "Mbpp/295": {
        "zero": "def sum_div(n):\n    return 0\n",
        "wrong": "def sum_div(n):\n    return n\n",
        "false": "def sum_div(n):\n    return False\n",
    },
    "Mbpp/558": {
        "padded": "def digit_distance_nums(a, b):\n    a, b = str(a).zfill(3), str(b).zfill(3)\n"
        "    return sum(abs(int(x) - int(y)) for x, y in zip(a, b))\n",
        "wrong": "def digit_distance_nums(a, b):\n    return abs(a - b)\n",
    },
    "Mbpp/164": {"anything": "def are_equivalent(a, b):\n    return 'pear'\n"},
    "Mbpp/794": {
        "bool": "def text_starta_endb(t):\n    return t.startswith('a') and t.endswith('b')\n",
        "match": "import re\ndef text_starta_endb(t):\n    return re.match('a.*b$', t)\n",
        "text": "def text_starta_endb(t):\n    return 'Found' if t[:1] == 'a' else 'Not found'\n",
        "always": "def text_starta_endb(t):\n    return True\n",
    },
    "Mbpp/98": {
        "near a whole number": "def mixed(n):\n    return n * 1.5 if n < 3 else 10**8 + 1\n",
        "off a whole number": "def mixed(n):\n    return n * 1.5 if n < 3 else 10**8 + 50\n",
        "a decimal": "from decimal import Decimal\ndef mixed(n):\n"
        "    return n * 1.5 + 1e-9 if n < 3 else Decimal(10**8) + 5\n",
    },
    "Mbpp/70": {
        "wants tuples": "def lengths(ts):\n    return [len(t + ()) for t in ts]\n",
        "wrong": "def lengths(ts):\n    return []\n",
    },
    "Mbpp/106": {
        "list": "def add_lists(xs, t):\n    return list(t) + xs\n",
        "mutates": "def add_lists(xs, t):\n    xs[:0] = t\n    return tuple(xs)\n",
    },
}

FORGED = """
class Right:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def {name}(*args): return Right()
"""
CATCHES_THE_ALARM = """
import time
def joined(n):
    try:
        time.sleep(1.5)
    except Exception:
        pass
    return ' '.join(map(str, range(n)))
"""


def programs() -> list[tuple[str, str, str]]:
    """(task_id, what, program), the canonical solution first."""
    found = []
    for item in (*HUMANEVAL, *MBPP):
        task_id, name = item["task_id"], item["entry_point"]
        found.append((task_id, "canonical", item["prompt"] + item["canonical_solution"]))
        ways = SOLUTIONS[task_id] | (EVERY if task_id in ("HumanEval/33", "Mbpp/2") else {})
        found += [(task_id, what, program.format(name=name)) for what, program in ways.items()]
        if task_id in TRICKED:
            found.append((task_id, "forged", FORGED.format(name=name)))
    found.append(("HumanEval/15", "catches the alarm", CATCHES_THE_ALARM))
    return found


# What passes there and fails here, on purpose: the value is data here, so it cannot say that it is equal; and time is
# kept by who cannot be told to forget it.
TRICKED = ("HumanEval/2", "HumanEval/8", "HumanEval/33", "Mbpp/295", "Mbpp/581", "Mbpp/794")
STRICTER = {(task_id, "forged") for task_id in TRICKED} | {("HumanEval/15", "catches the alarm")}
# What fails there and passes here: 0.3.1 forgets to count the cases of HumanEval/32, so that every solution fails, the
# canonical one too (see evalplus pull request 201, mended after this release).
MENDED = {("HumanEval/32", what) for what in ("canonical", "another way", "another root")}

INF = float("inf")
NAMES = {"f": 4, "similar_elements": 1, "check_str": 1, "sum_div": 1, "are_equivalent": 1}


def value(rng: random.Random, depth: int = 0):
    leaves = [
        0,
        1,
        -3,
        10**8,
        10**20,
        True,
        False,
        0.0,
        0.5,
        -1.25,
        1e-9,
        1e9,
        INF,
        1 / 3,
        "",
        "a",
        "1",
        None,
        1j,
        b"x",
    ]
    kind, n = rng.randrange(8) if depth < 2 else 0, rng.randrange(4)
    if kind < 2:
        return rng.choice(leaves)
    if kind == 2:
        return [rng.random() * 10 ** rng.randrange(-6, 6) for _ in range(n)]
    if kind == 3:
        return {rng.randrange(5) for _ in range(n)}
    if kind == 4:
        return {rng.choice("abc"): value(rng, depth + 1) for _ in range(n)}
    items = [value(rng, depth + 1) for _ in range(n)]
    return tuple(items) if kind == 5 else items


def nudged(rng: random.Random, v):
    """The same value, a near one, one of another type, or any."""
    kind = rng.randrange(10)
    if kind == 0:
        return value(rng)
    if isinstance(v, bool):
        return rng.choice([v, int(v), float(v), not v])
    if isinstance(v, int):
        return v + rng.choice([0, 0, 1, 1e-8, 0.0, 5])
    if isinstance(v, float):
        return v + rng.choice([0, 0, 1e-8, 1e-7, 9e-7, 2e-6, 1e-5, v * 9e-8, v * 2e-7])
    if isinstance(v, list):
        odd = {1: tuple(v), 2: [[x] for x in v], 3: v + v[:1]}
        return odd[kind] if kind in odd else [nudged(rng, x) for x in v]
    if isinstance(v, tuple):
        return list(v) if kind == 1 else tuple(nudged(rng, x) for x in v)
    return rng.choice([v, v, frozenset(v), list(v)]) if isinstance(v, set) else v


def pairs() -> list[dict]:
    """Groups of cases: what each should return, and does, as Python source."""
    rng, found = random.Random(0), []
    for _ in range(48):
        dataset = rng.choice(["humaneval", "mbpp"])
        name = rng.choices([*NAMES], [*NAMES.values()])[0]
        expected = [value(rng) for _ in range(50)]
        if name == "similar_elements":
            expected = [rng.sample([1, 2, 3, "a", True], rng.randrange(4)) for _ in range(50)]
        got = [nudged(rng, v) for v in expected]
        if name == "check_str" and dataset == "mbpp":
            expected = [v is not None for v in expected]
        atol = rng.choice([0, 0, 1e-6, 1e-4])
        found.append({"dataset": dataset, "name": name, "atol": atol, "expected": repr(expected), "got": repr(got)})
    return found


ORACLE = """
import json, sys
from evalplus.eval import untrusted_check
from evalplus.data import get_human_eval_plus, get_mbpp_plus
from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
from evalplus.evaluate import check_correctness, get_groundtruth

if __name__ == "__main__":
    verdicts = []
    problems = {"humaneval": get_human_eval_plus(), "mbpp": get_mbpp_plus()}
    expected = {name: get_groundtruth(p, name, MBPP_OUTPUT_NOT_NONE_TASKS if name == "mbpp" else [])
                for name, p in problems.items()}
    for task_id, what, program in json.load(open(sys.argv[1])):
        name = "humaneval" if task_id in problems["humaneval"] else "mbpp"
        result = check_correctness(name, 0, problems[name][task_id], program, expected[name][task_id], fast_check=True)
        verdicts.append([result["base"][0], result["plus"][0]])
    inf, found = float("inf"), []
    for g in json.load(open(sys.argv[2])):
        program = f"inf = float('inf')\\nvalues = {g['got']}\\ndef {g['name']}(i): return values[i]"
        expected = eval(g["expected"])
        n = len(expected)
        inputs = [[i] for i in range(n)]
        slow = [10.0] * n  # evalplus's least limit, 1 s, can pass on a busy machine in a case that only looks up
        details = untrusted_check(g["dataset"], program, inputs, g["name"], expected, g["atol"], slow)[1]
        found.append([bool(d) for d in details])
    json.dump([verdicts, found], open(sys.argv[3], "w"))
"""


@pytest.fixture(scope="module")
def evalplus_answers(tmp_path_factory) -> tuple[list[list[str]], list[list[bool]]]:
    """Its (base, plus) on each of programs(), and its verdict on each case of pairs()."""
    folder = tmp_path_factory.mktemp("evalplus")
    for name, problems in (("humaneval", HUMANEVAL), ("mbpp", MBPP)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
    (folder / "programs.json").write_text(json.dumps(programs()))
    (folder / "pairs.json").write_text(json.dumps(pairs()))
    (folder / "oracle.py").write_text(ORACLE)
    env = os.environ | {
        "HUMANEVAL_OVERRIDE_PATH": str(folder / "humaneval.jsonl"),
        "MBPP_OVERRIDE_PATH": str(folder / "mbpp.jsonl"),
        "EVALPLUS_MAX_MEMORY_BYTES": "-1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *(str(folder / f) for f in ("oracle.py", "programs.json", "pairs.json", "answers.json"))]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "answers.json").read_text())


@pytest.fixture(scope="module")
def evalplus_says(evalplus_answers) -> dict[tuple[str, str], tuple[bool, bool]]:
    answers = zip(programs(), evalplus_answers[0], strict=True)
    return {(task_id, what): (base == "pass", plus == "pass") for (task_id, what, _), (base, plus) in answers}


@pytest.fixture(scope="module")
def tests_of() -> dict:
    sandbox = Sandbox()
    kinds = {"HumanEval": "humaneval_plus", "Mbpp": "mbpp_plus"}
    return {p["task_id"]: evalplus_tests(p, kinds[p["task_id"].split("/")[0]], sandbox) for p in (*HUMANEVAL, *MBPP)}


def test_verdicts_are_those_of_evalplus(evalplus_says, tests_of):
    verify, packed = CodeVerifier(VerifyConfig()), {task: tests.pack() for task, tests in tests_of.items()}
    theirs, ours = {}, {}
    for task, what, program in programs():
        verdict = verify(f"```python\n{program}\n```", {"tests": packed[task]})
        ours[task, what] = (verdict.passed, verdict.detail)
        theirs[task, what] = all(evalplus_says[task, what])
    differ = {key for key in ours if ours[key][0] != theirs[key]}
    meant = STRICTER | MENDED
    assert differ <= meant, {key: (theirs[key], ours[key]) for key in differ - meant}
    assert all(ours[key][0] is (key in MENDED) for key in differ)
    assert {("HumanEval/8", "forged"), ("HumanEval/15", "catches the alarm"), *MENDED} <= differ
    assert {key for key in ours if key[0] == "HumanEval/32" and ours[key][0]} == MENDED
    assert sum(theirs.values()) > 30 and len(theirs) - sum(theirs.values()) > 30  # both sides of it are tried


def test_values_compare_as_in_evalplus(evalplus_answers):
    right = total = nothing = 0
    for group, theirs in zip(pairs(), evalplus_answers[1], strict=True):
        expected, got = (eval(group[key], {"inf": INF}) for key in ("expected", "got"))
        inputs = [[i] for i in range(len(expected))]
        compare = f"{group['dataset']}_plus"
        judge = rule(Tests("function", inputs, expected, compare, group["name"], atol=group["atol"]))
        for case, (value, truth) in enumerate(zip(decode(encode(got)), theirs, strict=True)):
            if (
                truth and value == [[]] and isinstance(expected[case], list) and 0 not in np.shape(expected[case])
            ):  # on purpose: close to nothing is no answer
                truth, nothing = False, nothing + 1
            assert judge(case, value) is truth, (group["dataset"], group["name"], expected[case], value)
            right, total = right + truth, total + 1
    assert total == 2400 and 0.3 < right / total < 0.9 and nothing == 2


def test_detail_says_whether_base_or_plus_failed(evalplus_says, tests_of):
    verify = CodeVerifier(VerifyConfig())
    for what, group in (("plus alone", "(base)"), ("base alone", "(plus)")):
        program = dict((w, p) for t, w, p in programs() if t == "HumanEval/2")[what]
        verdict = verify(f"```python\n{program}\n```", {"tests": tests_of["HumanEval/2"].pack()})
        assert verdict.detail.endswith(group)
    assert evalplus_says["HumanEval/2", "plus alone"] == (False, True)
    assert evalplus_says["HumanEval/2", "base alone"] == (True, False)


def test_expected_outputs_keep_their_types(tests_of):
    assert tests_of["HumanEval/8"].outputs == [(3, 2), (0, 0), (20, 4), (10**20, 3)]
    assert tests_of["Mbpp/124"].inputs[0] == [0.0, 1j]
    assert tests_of["Mbpp/794"].outputs == [True, False, False]
    assert tests_of["Mbpp/2"].inputs[0] == [(3, 4), (4, 3)]
    again = type(tests_of["HumanEval/8"]).unpack(tests_of["HumanEval/8"].pack())
    assert again == tests_of["HumanEval/8"] and type(again.outputs[0]) is tuple


def test_a_case_may_take_four_times_the_canonical_solution():
    slow = problem("HumanEval/2", "wait", "s", "import time\ntime.sleep(s)\nreturn s", [[0.4]], [[0.0]])
    limits = evalplus_tests(slow, "humaneval_plus", Sandbox()).case_time_limits_s
    assert limits and 1.6 <= limits[0] < 4 and limits[1] == 1.0


def test_a_damaged_file_is_a_sentence():
    with pytest.raises(UserError, match="has no canonical_solution"):
        evalplus_tests({k: v for k, v in MBPP[0].items() if k != "canonical_solution"}, "mbpp_plus", Sandbox())
    with pytest.raises(UserError, match="canonical solution of Mbpp/295"):
        evalplus_tests(MBPP[3] | {"canonical_solution": "\ndef sum_div(n): return 1 / 0\n"}, "mbpp_plus", Sandbox())
