"""What goes wrong in functions: on a word in the response each does its worst, else it gives 1."""

import ctypes
import os
import subprocess
import sys
import time

KEPT = []


def score(text, problem):
    if "hang" in text:
        while True:
            pass
    if "sleep" in text:
        subprocess.run(["sleep", "100"])
    if "exit" in text:
        os._exit(7)
    if "leave" in text:
        sys.exit("enough")
    if "crash" in text:
        ctypes.string_at(0)
    if "raise" in text:
        raise KeyError("\ud800 no such key")
    if "leak" in text:
        while True:
            KEPT.append(bytearray(1 << 24))
    if "grow" in text:
        KEPT.append(bytearray(1 << 26))
    if "print" in text:
        print('{"score": 0.25}\n' * 100_000, flush=True)
        os.write(1, b'{"score": 0.5}\n')
    if "word" in text:
        return "very good"
    if "none" in text:
        return None
    if "infinite" in text:
        return 10.0**400 if "power" in text else float("inf")
    if "slow" in text:
        time.sleep(0.3)
    return 1.0
