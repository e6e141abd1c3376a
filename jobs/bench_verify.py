"""`python -m jobs.bench_verify --task math|code`: verdicts a second on a core, and what a sandboxed run costs.

    math   the hand-made pairs of tests/verify/math_pairs.tsv, each as a response with a box  ->  verdicts/s and latency
    code   a small stdin/stdout problem with 10 cases  ->  start-up, a further case, verdicts/s new and seen before

A verifier and its child take turns, so one verifier keeps one core busy. *First*: a new worker, whose grammar still
fills its tables; *new*: a worker that has run for a while reads answers it has not seen (the pairs with other digits);
*seen before*: what a repeated answer costs. `--ray` runs the same as Ray tasks on all cores, as the stream does, Ray's
own cost included. Hostile answers are timed apart: each costs what its deadline lets it.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from trd_ray.config import VerifyConfig
from trd_ray.errors import UserError
from trd_ray.verify import Verifier, verifier

PAIRS = Path(__file__).resolve().parents[1] / "tests" / "verify" / "math_pairs.tsv"
NUMBERS = frozenset({"integer", "big number", "fraction", "mixed number", "decimal"})
HOSTILE = (
    r"10^{10^{10}}",
    "(((9!)!)!)!",
    r"\sum_{k=1}^{10^{12}} \frac{1}{k^{1/3}}",
    "(" * 900,
    "x^{" * 35 + "2" + "}" * 35,
)
PROGRAM = "a, b = map(int, input().split())\nprint(a + b)\n"
CASES = 10
TURNS = {"all pairs": (1, 2), "numbers": (3, 4), "everything else": (5, 6)}  # no digits twice
BLOCK_ROWS, CODE_ROWS = 64, 8  # of a Ray task

Rows = list[tuple[str, dict]]  # a response, and its problem


def math_rows(keep: Callable[[dict], bool]) -> Rows:
    with PAIRS.open(newline="", encoding="utf-8") as file:
        pairs = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, restval=""))
    return [_row(p["expected"], p["written"], p["problem"]) for p in pairs if keep(p)]


def code_rows(number: int, first: int = 0) -> Rows:
    """Programs that do the same, but are not the same: a verifier runs each."""
    from trd_ray.verify.code.tests import Tests

    inputs = [f"{n} {n * n}\n" for n in range(CASES)]
    outputs = [f"{n + n * n}\n" for n in range(CASES)]
    tests = Tests(kind="stdio", inputs=inputs, outputs=outputs, compare="tokens").pack()
    problem = {"problem": "Add two numbers.", "answer": "", "tests": tests}
    return [(f"```python\n# {n}\n{PROGRAM}```", problem) for n in range(first, first + number)]


def _row(expected: str, written: str, problem: str = "") -> tuple[str, dict]:
    return f"So the answer is \\boxed{{{written}}}.", {"problem": problem, "answer": expected}


def timed(verify: Verifier, rows: Iterable[tuple[str, dict]]) -> list[float]:
    out = []
    for text, problem in rows:
        start = time.perf_counter()
        verify(text, problem)
        out.append(time.perf_counter() - start)
    return out


def repeated(verify: Verifier, rows: Rows, seconds: float) -> list[float]:
    out, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        out += timed(verify, rows)
    return out


def other_digits(rows: Rows, turn: int) -> Rows:
    """The same rows with other numbers in them; many pairs then are unequal, as many answers of a student are."""
    digits = str.maketrans("2345678", "2345678"[turn:] + "2345678"[:turn])
    return [
        (text.translate(digits), problem | {"answer": problem["answer"].translate(digits)}) for text, problem in rows
    ]


def line(name: str, seconds: list[float]) -> str:
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    rate, p50 = len(ordered) / sum(ordered), statistics.median(ordered)
    return f"| {name:<42} | {len(ordered):>8} | {rate:>10.0f} | {p50 * 1e3:>8.2f} | {p99 * 1e3:>8.2f} |"


def math_task(seconds: float) -> None:
    verify = verifier(VerifyConfig(timeout_s=1.0))
    start = time.perf_counter()
    verify(*_row("y", "x"))
    print(f"start of the process that compares: {time.perf_counter() - start:.2f} s, once a worker\n")
    print(f"| {'answers':<42} | {'verdicts':>8} | {'a second':>10} | {'p50 ms':>8} | {'p99 ms':>8} |")
    print(f"|{'-' * 44}|{'-' * 9}:|{'-' * 11}:|{'-' * 9}:|{'-' * 9}:|")
    numbers = math_rows(lambda p: p["kind"] in NUMBERS)
    others = math_rows(lambda p: p["kind"] not in NUMBERS)
    first = [timed(verify, rows) for rows in (numbers, others)]
    print(line("first: all pairs", first[0] + first[1]))
    for name, rows in (("all pairs", numbers + others), ("numbers", numbers), ("everything else", others)):
        new = [t for turn in TURNS[name] for t in timed(verify, other_digits(rows, turn))]
        print(line(f"new: {name}", new))
    print(line("seen before: all pairs", repeated(verify, numbers + others, seconds)))
    equal = [_row(problem["answer"], problem["answer"]) for _, problem in numbers + others]
    print(line("seen before: spelled as expected", repeated(verify, equal, seconds / 2)))
    print(line(f"hostile, deadline 1 s ({len(HOSTILE)} answers)", timed(verify, [_row("5", w) for w in HOSTILE])))
    verify.close()


def code_task(seconds: float) -> None:
    own = statistics.median(_seconds(lambda: subprocess.run([sys.executable, "-I", "-c", "pass"])) for _ in range(15))
    print(f"Python's own start: {own * 1e3:.0f} ms; a problem has {CASES} cases\n")
    print(f"| {'sandbox':<18} | {'start-up beyond it, ms':>22} | {'a further case, ms':>18} | ", end="")
    print(f"{'verdicts a second':>17} | {'seen before':>11} |")
    print(f"|{'-' * 20}|{'-' * 23}:|{'-' * 19}:|{'-' * 18}:|{'-' * 12}:|")
    for backend in ("bubblewrap", "unshare", "unsafe_no_sandbox"):
        try:
            print(_sandbox_line(backend, own, seconds), flush=True)
        except UserError as e:
            print(f"{backend}: {e}", file=sys.stderr)


def _sandbox_line(backend: str, own: float, seconds: float) -> str:
    from trd_ray.sandbox import Limits, Sandbox

    sandbox = Sandbox(backend)

    def run(cases: int) -> None:
        with sandbox.script(PROGRAM, Limits()) as program:
            for n in range(cases):
                outcome = program.run(f"{n} {n}\n")
                if outcome.stdout.split() != [str(2 * n)]:
                    raise UserError(f"a sum came back as {outcome.status} ({outcome.detail}): run trd doctor")

    run(1)
    one, many = [], []
    for _ in range(9):  # in turns, so that what else the machine does falls on both
        one.append(_seconds(lambda: run(1)))
        many.append(_seconds(lambda: run(1 + CASES)))
    first, further = statistics.median(one), (statistics.median(many) - statistics.median(one)) / CASES
    verify = verifier(VerifyConfig(sandbox=backend))  # pyright: ignore[reportArgumentType]
    verdicts: list[float] = []
    end = time.perf_counter() + seconds / 2
    while time.perf_counter() < end:
        verdicts += timed(verify, code_rows(1, len(verdicts)))
    again = repeated(verify, code_rows(1), seconds / 10)
    new, seen = (len(taken) / sum(taken) for taken in (verdicts, again))
    sandboxed = f"| {backend:<18} | {(first - own) * 1e3:>22.0f} | {further * 1e3:>18.1f}"
    return f"{sandboxed} | {new:>17.1f} | {seen:>11.0f} |"


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ray_task(task: str, seconds: float) -> None:
    import ray

    cores = os.cpu_count() or 1
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
    pairs = math_rows(lambda p: True) if task == "math" else code_rows(1)
    rows = [row for turn in range(7) for row in other_digits(pairs, turn)] if task == "math" else pairs
    blocks = [ray.put(rows[i : i + BLOCK_ROWS]) for i in range(0, len(rows), BLOCK_ROWS)]
    warm_up = blocks[: -(-len(pairs) // BLOCK_ROWS)]
    config = VerifyConfig()

    def block(number: int) -> Any:
        """Of code each one is new: what was seen before is not run."""
        if task == "math":
            return blocks[(len(warm_up) + number) % len(blocks)]
        return ray.put(code_rows(CODE_ROWS, first=1 + number * CODE_ROWS))

    @ray.remote(num_cpus=1)
    def verify_block(block: Rows) -> int:
        return len(timed(verifier(config), block))

    ray.get([verify_block.remote(block) for block in warm_up * 2])  # workers and their children are up
    start, done, sent = time.perf_counter(), 0, 0
    running: list = []
    while time.perf_counter() < start + seconds:
        while len(running) < 2 * cores:
            running.append(verify_block.remote(block(sent)))
            sent += 1
        ready, running = ray.wait(running)
        done += sum(ray.get(ready))
    done += sum(ray.get(running))
    elapsed = time.perf_counter() - start
    print(f"\nas Ray tasks on {cores} cores: {done} verdicts in {elapsed:.1f} s, {done / elapsed:.0f} a second")
    ray.shutdown()


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"bench_verify: {message}; see --help\n")


def main() -> int:
    parser = Parser(prog="bench_verify", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--task", choices=("math", "code"), default="math")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement; default: 5")
    parser.add_argument("--ray", action="store_true", help="also as Ray tasks on all cores")
    a = parser.parse_args()
    if a.seconds <= 0:
        parser.error(f"--seconds {a.seconds} is not positive")
    if not PAIRS.is_file():
        parser.error(f"{PAIRS} is missing: run from a checkout of the project")
    (math_task if a.task == "math" else code_task)(a.seconds)
    if a.ray:
        ray_task(a.task, a.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
