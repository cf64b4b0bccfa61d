"""Bodies are decoded to the same bytes however they are cut."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelmgr.errors import MalformedRequestError, RegistryUnavailableError
from tunnelmgr.gate.bodies import body_reader, encode_pieces
from tunnelmgr.gate.head_parser import (
    BodyFraming,
    Coding,
)


def read_body(shape: BodyFraming, wire: bytes, cuts: list[int]) -> tuple[bytes, bytes, bool]:
    """Feed `wire` cut at `cuts`; return the body, the bytes after it, and whether it is complete."""
    reader = body_reader(shape, MalformedRequestError)
    edges = [0, *sorted(cuts), len(wire)]
    body, rest = b"", b""
    for start, stop in itertools.pairwise(edges):
        if reader.done:
            rest += wire[start:stop]
        else:
            body += b"".join(reader.feed(wire[start:stop]))
            rest += reader.rest
    return body, rest, reader.done


@settings(deadline=None)  # a busy machine is not a failure
@given(st.binary(min_size=1, max_size=60), st.binary(max_size=20), st.lists(st.integers(0, 80), max_size=6))
def test_a_counted_body_ends_at_its_length_however_it_is_cut(body: bytes, after: bytes, cuts: list[int]) -> None:
    """A counted body ends at its length, and the bytes after it are left for the next request."""
    wire = body + after
    cuts = [cut for cut in cuts if cut <= len(wire)]

    assert read_body(BodyFraming(Coding.COUNTED, len(body)), wire, cuts) == (body, after, True)


@settings(deadline=None)  # a busy machine is not a failure
@given(
    st.lists(st.binary(min_size=1, max_size=20), max_size=4),
    st.sampled_from([b"", b";ext=1"]),
    st.sampled_from([b"", b"X-Trailer: 1\r\n"]),
    st.binary(max_size=20),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_a_chunked_body_reads_the_same_however_it_is_cut(
    chunks: list[bytes], extension: bytes, trailer: bytes, after: bytes, cuts: list[int]
) -> None:
    """A chunked body decodes to the same bytes however it is cut, without extensions and trailers."""
    wire = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    wire += b"0\r\n" + trailer + b"\r\n" + after
    cuts = [cut for cut in cuts if cut <= len(wire)]

    assert read_body(BodyFraming(Coding.CHUNKED), wire, cuts) == (b"".join(chunks), after, True)


def test_chunks_may_arrive_after_the_head() -> None:
    """A chunked body of which nothing has arrived yet is not an error."""
    assert read_body(BodyFraming(Coding.CHUNKED), b"3\r\nabc\r\n0\r\n\r\n", [0]) == (b"abc", b"", True)


@pytest.mark.parametrize("wire", [b"x\r\n", b"-1\r\n", b"3\r\nabcd\r\n", b"3 \x00\r\nabc\r\n"])
def test_an_invalid_chunk_is_an_error(wire: bytes) -> None:
    """An invalid chunk raises the reader's error."""
    with pytest.raises(MalformedRequestError):
        read_body(BodyFraming(Coding.CHUNKED), wire, [])


def test_a_body_until_close_ends_with_the_stream() -> None:
    """A body without a length takes all bytes and ends with the stream."""
    reader = body_reader(BodyFraming(Coding.UNTIL_CLOSE), RegistryUnavailableError)

    assert b"".join(reader.feed(b"abc")) == b"abc"
    assert reader.feed(b"") == ()
    assert reader.ends_with_stream
    assert not reader.done


def test_the_pieces_of_one_feed_become_one_chunk() -> None:
    """The pieces of one feed are sent as one chunk, so tiny chunks do not become tiny writes."""
    assert encode_pieces([b"ab", b"c"], chunked=True) == b"3\r\nabc\r\n"
    assert encode_pieces([], chunked=True) == b""
    assert encode_pieces([b"ab", b"c"], chunked=False) == b"abc"
    whole = memoryview(b"abc")
    assert encode_pieces([whole], chunked=False) is whole
