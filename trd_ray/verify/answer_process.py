"""The child of MathVerifier: one JSON line in, one JSON line out, until the pipe closes.

    {"gold": ..., "answer": ..., "timeout_s": ...}  ->  math-verify  ->  {"passed": ..., "detail": ...}

Run as a script, so that it imports math-verify and nothing else. It forks the process that compares, and a new one in
milliseconds when that one dies: by its own alarm, which the kernel delivers as death at the deadline even while the
interpreter is deep inside one multiplication, for want of memory, or by a stack overflow. The closed pipe ends both;
a comparison under way when the parent dies is still bounded by its alarm.
"""

import json
import os
import resource
import signal
import sys
from functools import lru_cache

MEMORY_BYTES = 4 << 30  # of address space, of which the libraries reserve under 1 GiB


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not mix with the replies
    try:
        compare = comparison()
    except Exception as e:
        hello = {"error": f"{type(e).__name__}: {e}"}
    else:
        hello = {}
    print(json.dumps(hello), file=replies, flush=True)
    if hello:
        return
    while (pid := os.fork()) != 0:
        status = os.waitpid(pid, 0)[1]
        if status == 0:  # the pipe is closed
            return
        late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
        why = "deadline passed" if late else "verifier process died"
        print(json.dumps({"passed": False, "detail": why}), file=replies, flush=True)
    serve(compare, replies)


def serve(compare, replies) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["timeout_s"])
        try:
            passed = compare(request["gold"], request["answer"])
            reply = {"passed": passed, "detail": "" if passed else "not equal"}
        except Exception as e:  # RecursionError, MemoryError and whatever SymPy makes of hostile input
            reply = {"passed": False, "detail": f"cannot be compared ({type(e).__name__})"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)


def comparison():
    """math-verify's equality of two LaTeX answers, warmed up."""
    import math_verify

    # LaTeX alone: the plain-expression extraction of math-verify hands text to Python's eval.
    latex = [math_verify.LatexExtractionConfig()]

    @lru_cache(maxsize=1024)  # one problem's answer is compared with many responses
    def parsed(answer: str) -> list:
        return math_verify.parse(f"\\boxed{{{answer}}}", latex, parsing_timeout=None)  # pyright: ignore

    def equal(gold: str, answer: str) -> bool:
        return bool(math_verify.verify(parsed(gold), parsed(answer), timeout_seconds=None))

    equal(r"\frac{1}{2}", "0.5")
    return equal


if __name__ == "__main__":
    main()
