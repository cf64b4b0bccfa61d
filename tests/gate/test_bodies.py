"""Bodies are decoded piece by piece, and never so many pieces at once that other agents would wait."""

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.gate_stand_ins import gate_with
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.errors import MalformedRequestError
from tunnelmgr.gate.bodies import MAX_PIECES, ChunkedBody

if TYPE_CHECKING:
    from tests.gate.conftest import Scripted, Talk

END = b"0\r\n\r\n"


def chunked(sizes: list[int]) -> bytes:
    """Return a body in chunks of these sizes."""
    return b"".join(b"%x\r\n%b\r\n" % (size, b"x" * size) for size in sizes) + END


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 4096))
def test_a_chunked_body_is_decoded_whole_with_few_pieces_per_feed(sizes: list[int], read: int) -> None:
    """However a body is cut into chunks and reads, all of it is decoded, with at most `MAX_PIECES` pieces per feed."""
    reader, wire, found = ChunkedBody(MalformedRequestError), chunked(sizes) + b"after", b""

    for start in range(0, len(wire), read):
        pieces = reader.feed(wire[start : start + read])
        while True:
            assert len(pieces) <= MAX_PIECES
            found += b"".join(pieces)
            if reader.done or not reader.more:
                break
            pieces = reader.feed(b"")
        if reader.done:
            break

    assert reader.done
    assert found == b"x" * sum(sizes)
    assert b"after".startswith(reader.rest)


def test_feeding_no_bytes_to_a_decoded_body_returns_nothing() -> None:
    """An empty feed of a body whose received bytes are all decoded returns nothing and does not end the body."""
    reader = ChunkedBody(MalformedRequestError)
    assert list(reader.feed(b"3\r\nabc")) == [b"abc"]

    assert reader.feed(b"") == ()
    assert not reader.done


async def test_an_upload_in_tiny_chunks_lets_others_run(talk: "Talk", scripted: "Scripted") -> None:
    """An upload in tiny chunks has a checkpoint between two feeds, and the registry gets the whole body."""
    count = 10 * MAX_PIECES
    uploaded = asyncio.get_running_loop().create_future()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        uploaded.set_result(await reader.readuntil(b"\r\n" + END))
        writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    policy = GroupPolicy.build("ci", push=("**",))
    gate = gate_with(policy)
    async with scripted(script) as registry, talk(gate, registry.endpoint) as agent:
        agent.channel.send(
            b"POST /v2/team/app/blobs/uploads/ HTTP/1.1\r\nHost: localhost:5000\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunked([1] * count)
        )
        answer = await agent.answer("POST")

    assert answer.status == 202
    assert (await uploaded).count(b"x") == count
    assert agent.channel.checkpoints >= count // MAX_PIECES


@pytest.mark.parametrize("count", [1, 5 * MAX_PIECES])
async def test_a_response_in_tiny_chunks_arrives_whole(talk: "Talk", scripted: "Scripted", count: int) -> None:
    """A response that the registry cuts into tiny chunks arrives whole."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked([1] * count))
        await reader.read()

    policy = GroupPolicy.build("ci")
    gate = gate_with(policy)
    async with scripted(script) as registry, talk(gate, registry.endpoint) as agent:
        answer = await agent.ask("GET", "/v2/team/app/tags/list")

    assert answer.body == b"x" * count
