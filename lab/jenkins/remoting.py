"""The start of a remoting channel, as `remoting.jar` and Jenkins speak it on the agent's stdin and stdout.

Source: jenkinsci/remoting, `ChannelBuilder.negotiate`, `Capability`, `Channel.Mode` and `ChunkHeader`.

1. Both sides send `<===[JENKINS REMOTING CAPACITY]===>` and their capability: a serialized Java object in Base64.
2. The agent sends four zero bytes: from then on the stream is binary. Jenkins sends them back.
3. Commands follow in chunks, each after two bytes with its size.

Jenkins reads past anything that comes before the agent's preamble, and logs it; four zero bytes in it would start the
binary stream too early. What another program reads from stdin is missing to the agent's.

In place of serialized Java commands, the chunks here contain JSON: a shell command, and its result. This file uses
nothing but the standard library, since it is also the program on the agent.
"""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import sys
from typing import IO, Final

PREAMBLE: Final = b"<===[JENKINS REMOTING CAPACITY]===>"
BINARY: Final = b"\0\0\0\0"
MASK: Final = 0x1FE
"""The capabilities of a remoting of 2019 and later."""
_CLASS: Final = b"hudson.remoting.Capability"
_SERIALIZED: Final = (
    b"\xac\xed\x00\x05"  # the stream's magic and version (Java Object Serialization, 6.4)
    b"sr"
    + struct.pack(">H", len(_CLASS))
    + _CLASS
    + struct.pack(">Q", 1)  # serialVersionUID
    + b"\x02\x00\x01J\x00\x04maskxp"  # serializable, one field: long mask
)
_MORE: Final = 0x8000
_MAX_CHUNK: Final = 0x7FFF
CAPABILITY_LENGTH: Final = len(base64.b64encode(_SERIALIZED + bytes(8)))


class HandshakeError(Exception):
    """The other side ended the stream, or sent something else than the handshake."""


def capability(mask: int = MASK) -> bytes:
    """Return the preamble with a capability."""
    return PREAMBLE + base64.b64encode(_SERIALIZED + struct.pack(">Q", mask))


def negotiate(reader: IO[bytes], writer: IO[bytes]) -> bytes:
    """Do Jenkins' part, and return what the agent's side sent besides the handshake; raises HandshakeError."""
    _send(writer, capability())
    noise = _read_until_binary(reader)
    _send(writer, BINARY)
    return noise


def serve(reader: IO[bytes], writer: IO[bytes]) -> None:
    """Do the part of `java -jar remoting.jar`, then run commands until Jenkins ends the stream."""
    _send(writer, capability() + BINARY)
    _read_until_binary(reader)
    print("channel started", file=sys.stderr, flush=True)  # noqa: T201 - as remoting does
    while (command := receive(reader)) is not None:
        done = subprocess.run(
            ["sh", "-ec", command["sh"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        send(writer, {"status": done.returncode, "output": done.stdout.decode(errors="replace")})


def send(writer: IO[bytes], message: dict[str, object]) -> None:
    """Send one message in chunks."""
    data = json.dumps(message).encode()
    for at in range(0, len(data), _MAX_CHUNK):
        chunk = data[at : at + _MAX_CHUNK]
        more = _MORE if at + _MAX_CHUNK < len(data) else 0
        writer.write(struct.pack(">H", more | len(chunk)) + chunk)
    writer.flush()


def receive(reader: IO[bytes]) -> dict[str, str] | None:
    """Return the next message, None at the end of the stream."""
    data = b""
    while True:
        head = reader.read(2)
        if len(head) < 2:  # noqa: PLR2004 - the size of a chunk's head
            return None
        (size,) = struct.unpack(">H", head)
        data += reader.read(size & _MAX_CHUNK)
        if not size & _MORE:
            return dict(json.loads(data))


def _read_until_binary(reader: IO[bytes]) -> bytes:
    """Read the handshake, byte by byte as Jenkins does, and return everything else that came before its end."""
    read, capable = b"", False
    while not read.endswith(BINARY):
        byte = reader.read(1)
        if not byte:
            raise HandshakeError(f"unexpected stream termination after {read[-200:]!r}")
        read += byte
        if read.endswith(PREAMBLE):
            _check_capability(reader.read(CAPABILITY_LENGTH))
            capable = True
    if not capable:
        # Remoting would then use its transport without chunks, which the other side does not.
        raise HandshakeError(f"the other side's capability is missing after {read[-200:]!r}")
    return read.removesuffix(BINARY).replace(PREAMBLE, b"")


def _check_capability(encoded: bytes) -> None:
    try:
        serialized = base64.b64decode(encoded, validate=True)
    except ValueError as invalid:
        raise HandshakeError(f"no capability after the preamble: {encoded!r}") from invalid
    if not serialized.startswith(_SERIALIZED):
        raise HandshakeError(f"no capability after the preamble: {encoded!r}")


def _send(writer: IO[bytes], data: bytes) -> None:
    writer.write(data)
    writer.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
