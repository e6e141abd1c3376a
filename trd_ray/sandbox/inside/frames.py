"""Messages between the two sides of the wall: a JSON header and a body of bytes, each with its length in front."""

import json
import os
import struct

LENGTHS = struct.Struct(">II")


def packed(header: dict, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return LENGTHS.pack(len(text), len(body)) + text + body


def send(fd: int, header: dict, body: bytes = b"") -> None:
    """Send a message from inside. It may block, because the outside has a deadline."""
    rest = memoryview(packed(header, body))
    while rest:
        rest = rest[os.write(fd, rest) :]


def receive(fd: int) -> tuple[dict, bytes]:
    """Receive a message inside. EOFError when the outside has gone."""
    header_bytes, body_bytes = LENGTHS.unpack(_exactly(fd, LENGTHS.size))
    return json.loads(_exactly(fd, header_bytes)), _exactly(fd, body_bytes)


def _exactly(fd: int, count: int) -> bytes:
    pieces = []
    while count:
        piece = os.read(fd, min(count, 1 << 20))
        if not piece:
            raise EOFError
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)
