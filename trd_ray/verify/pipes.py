"""Lines of JSON between a verifier and the processes behind it, waited for no longer than a deadline."""

import json
import os
import select
import time
from typing import Any


def receive(fileno: int, timeout_s: float) -> dict[str, Any]:
    """The next line as what its JSON says. TimeoutError when none comes, EOFError when the other side is gone.

    EOFError also where it says no JSON: whoever forks a process that goes on answering has no use any more.
    """
    pieces: list[bytes] = []
    poll = select.poll()  # select() would refuse descriptors above 1023, which a Ray worker can have
    poll.register(fileno, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    while not (pieces and pieces[-1].endswith(b"\n")):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        piece = os.read(fileno, 65536)
        if not piece:
            raise EOFError
        pieces.append(piece)
    try:
        return json.loads(b"".join(pieces))
    except ValueError as e:
        raise EOFError from e
