"""Programs that a sandbox must survive: a source, the status it must get and what it may print.

`$PORT`, `$ABSTRACT`, `$REPO`, `$SHOWN`, `$CANARY` and `$TOKEN` are replaced: a server of the test that listens on
loopback, an abstract socket of it, this repository, what the sandbox may show, a secret in the test's environment, a
name for processes that try to live on.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hostile:
    name: str
    status: str
    source: str
    stdout: str | None = ""  # None: whatever it prints
    detail: str = ""  # part of it
    exit_code: int | None = None  # None: whatever it is
    stdin: str = ""
    value: object = None  # of a function
    args: list = field(default_factory=lambda: [1])
