"""Reads message bodies: received bytes in, the body's own bytes out, and where it ends. No I/O.

A counted body is forwarded as it arrived, without a copy; only the bytes that hold its end are split. A chunked body is
decoded by h11 and encoded again: the chunk sizes are new, and chunk extensions and trailers are dropped.
"""

from collections.abc import Sequence
from typing import Protocol, assert_never

import h11

from tunnelmgr.errors import GateError
from tunnelmgr.gate.head_parser import BodyFraming, Coding

LAST_CHUNK = b"0\r\n\r\n"
MAX_PIECES = 32
"""Pieces that one `feed` of a chunked body decodes at most, which takes about a millisecond for any chunk size."""
_CHUNKED_HEAD = b"POST / HTTP/1.1\r\nHost: gate\r\nTransfer-Encoding: chunked\r\n\r\n"

Piece = bytes | memoryview


class BodyReader(Protocol):
    """Finds the end of one body in the bytes fed to it."""

    done: bool
    rest: bytes
    """The bytes that arrived after the body's end."""
    ends_with_stream: bool
    """Whether the body is complete when the stream ends."""
    more: bool
    """Whether some of the bytes fed are not decoded yet, so that `feed(b"")` returns more pieces."""

    def feed(self, data: bytes) -> Sequence[Piece]:
        """Return the body's bytes within `data`, as far as they are decoded; must not be called once `done`."""
        ...


class CountedBody:
    """A body of known length (RFC 9112, section 6.2); a body of length 0 is `done` from the start."""

    __slots__ = ("_left", "done", "rest")
    ends_with_stream = False
    more = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.rest = b""
        self.done = not length

    def feed(self, data: bytes) -> Sequence[Piece]:
        """Return the part of `data` that belongs to the body."""
        if len(data) > self._left:
            self.rest = data[self._left :]
            piece: Piece = memoryview(data)[: self._left]
        else:
            piece = data
        self._left -= len(piece)
        self.done = not self._left
        return (piece,) if piece else ()


class ChunkedBody:
    """A chunked body (RFC 9112, section 7.1); raises `error` for invalid chunks."""

    __slots__ = ("_connection", "_error", "done", "more", "rest")
    ends_with_stream = False

    def __init__(self, error: type[GateError]) -> None:
        self._error = error
        # Chunks are the same in requests and responses, so h11's server side decodes both.
        self._connection = h11.Connection(h11.SERVER)
        self._connection.receive_data(_CHUNKED_HEAD)
        self._connection.next_event()
        self.done = False
        self.rest = b""
        self.more = False

    def feed(self, data: bytes) -> Sequence[Piece]:
        """Decode up to `MAX_PIECES` pieces of what was fed; a piece is a chunk, or the part of it that has arrived."""
        if not data and not self.more:
            return ()
        pieces: list[Piece] = []
        event: object = None
        try:
            if data:
                self._connection.receive_data(data)
            while len(pieces) < MAX_PIECES and isinstance(event := self._connection.next_event(), h11.Data):
                pieces.append(event.data)
        except h11.RemoteProtocolError as refused:
            raise self._error(f"invalid chunks in the body: {refused}") from refused
        self.more = isinstance(event, h11.Data)
        if isinstance(event, h11.EndOfMessage):
            self.done = True
            self.rest = self._connection.trailing_data[0]
        return pieces


class BodyUntilClose:
    """A response that ends where its connection ends (RFC 9112, section 6.3, rule 8)."""

    __slots__ = ("done", "rest")
    ends_with_stream = True
    more = False

    def __init__(self) -> None:
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> Sequence[Piece]:
        """Return `data`."""
        return (data,) if data else ()


def body_reader(framing: BodyFraming, error: type[GateError]) -> BodyReader:
    """Return the reader for a body; it raises `error` if the body is invalid."""
    match framing.coding:
        case Coding.NONE | Coding.COUNTED:
            return CountedBody(framing.length)
        case Coding.CHUNKED:
            return ChunkedBody(error)
        case Coding.UNTIL_CLOSE:
            return BodyUntilClose()
        case _:
            assert_never(framing.coding)


def encode_pieces(pieces: Sequence[Piece], *, chunked: bool) -> Piece:
    """Join the pieces of one feed into bytes to send, as one chunk if `chunked`."""
    if chunked:
        size = sum(map(len, pieces))
        return b"".join((b"%x\r\n" % size, *pieces, b"\r\n")) if size else b""
    if len(pieces) == 1:
        return pieces[0]
    return b"".join(pieces)
