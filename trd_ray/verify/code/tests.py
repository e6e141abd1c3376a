"""The tests of one programming problem, as they travel in the `tests` column of a row.

    a data set's cases  ->  Tests(...).pack()  ->  bytes (compressed JSON)  ->  Tests.unpack()  ->  CodeVerifier

Values keep their Python types on the way (`trd_ray.sandbox.values`): a tuple that a task expects arrives as a tuple.
Nothing is ever pickled.
"""

import json
import lzma
import zlib
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import pyarrow as pa

from trd_ray.sandbox.values import decode, encode

FORMAT = 1
# At this level zstd packs 300 MB a second: a data set of code has gigabytes of tests, all of which are packed first.
_ZSTD = pa.Codec("zstd", 1)
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# Bytes of JSON from which lzma packs. HumanEval/15 has 138 MB of nearly equal outputs: 5 MB with lzma, 42 with zlib.
_LARGE = 4 << 20
_LZMA_MAGIC = b"\xfd7zXZ\x00"

Kind = Literal["stdio", "function"]
Compare = Literal["tokens", "livecodebench", "humaneval_plus", "mbpp_plus", "equal"]

# What the graders of LiveCodeBench and TACO import before a program, which may rely on it. The built-ins come last of
# the star imports (math.pow and io.open would hide theirs), modules after them (datetime.datetime hides its module).
_STARS = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
)
IMPORTS = "\n".join(
    [f"from {module} import *" for module in [*_STARS.split(), "typing", "builtins"]]
    + [f"import {module}" for module in [*_STARS.split(), "time", "fractions", "typing"]]
    + ["sys.setrecursionlimit(50000)\n"]
)


@dataclass(frozen=True)
class Tests:
    """Cases and the rule that judges them; `inputs[i]` and `outputs[i]` are case i.

    "stdio": an input is the text on standard input, an output the text expected on standard output.
    "function": an input is the list of positional arguments, an output the value that `entry_point` returns for them.
    A limit that is None is the configuration's.
    """

    kind: Kind
    inputs: list[Any]
    outputs: list[Any]
    compare: Compare
    entry_point: str = ""  # "f", or "Solution.f" for a method
    time_limit_s: float | None = None  # of a case
    memory_mib: int | None = None
    prelude: str = ""  # Python that runs before the program: IMPORTS where the data set's grader does that
    epilogue: str = ""  # Python after a function program, for what its grader does to a value before it compares
    task_id: str = ""
    # For HumanEval+ and MBPP+ alone:
    atol: float = 0.0
    base: int | None = None  # the first `base` cases are the original benchmark's, the rest are evalplus's own
    case_time_limits_s: list[float] | None = None  # a limit for each case, in place of time_limit_s

    __test__ = False  # not a class of tests to pytest

    def __post_init__(self):
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is one of {', '.join(get_args(Kind))}, not {self.kind!r}")
        if self.compare not in get_args(Compare):
            raise ValueError(f"compare is one of {', '.join(get_args(Compare))}, not {self.compare!r}")
        if not self.inputs:
            raise ValueError("tests without a case, which every program would pass")
        if len(self.inputs) != len(self.outputs):
            raise ValueError(f"{len(self.inputs)} inputs but {len(self.outputs)} outputs")
        if self.kind == "function" and not self.entry_point:
            raise ValueError("tests of a function need its name in entry_point")
        if self.kind == "stdio" and not all(isinstance(text, str) for text in [*self.inputs, *self.outputs]):
            raise ValueError("inputs and outputs of a stdio test are text")
        if self.kind == "function" and not all(isinstance(args, list) for args in self.inputs):
            raise ValueError("an input of a function test is the list of its arguments")

    def __len__(self) -> int:
        return len(self.inputs)

    def pack(self) -> bytes:
        """Equal tests give equal bytes."""
        kept = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        if self.kind == "function":
            kept |= {"inputs": encode(self.inputs), "outputs": encode(self.outputs)}
        text = json.dumps({"format": FORMAT, **kept}, sort_keys=True, separators=(",", ":")).encode()
        return _ZSTD.compress(text, asbytes=True) if len(text) < _LARGE else lzma.compress(text, preset=0)

    @classmethod
    def unpack(cls, packed: bytes) -> "Tests":
        """ValueError when the bytes are not packed tests of this format."""
        try:
            kept = json.loads(_unpacked(packed))
            known = kept.pop("format") == FORMAT
        except (zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"not packed tests ({type(e).__name__})") from e
        if not known:
            raise ValueError(f"packed tests of another format than {FORMAT}")
        if kept["kind"] == "function":
            kept |= {"inputs": decode(kept["inputs"]), "outputs": decode(kept["outputs"])}
        return cls(**kept)


def _unpacked(packed: bytes) -> bytes:
    if packed.startswith(_ZSTD_MAGIC):
        return pa.CompressedInputStream(pa.BufferReader(packed), "zstd").read()
    # What earlier versions packed is in caches.
    return lzma.decompress(packed) if packed.startswith(_LZMA_MAGIC) else zlib.decompress(packed)
