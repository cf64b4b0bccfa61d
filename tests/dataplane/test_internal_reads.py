"""Contract tests: what is read past asyncssh leaves its private attributes as its own reads would."""

import asyncio
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from asyncssh.crypto.cipher import GCMCipher
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataplane.channel_pair import ChannelPair, open_channel_pair
from tunnelmgr.dataplane.asyncssh_internals import process_packets

DEAF = [
    ("_auth_final", False),
    ("_kex", object()),
    ("_kex_complete", False),
    ("_recv_handler", lambda: False),
    ("_decompressor", object()),
    ("_recv_encryption", None),
]
"""States in which only asyncssh may read."""


def sealed(pair: ChannelPair, *payloads: bytes) -> bytes:
    """Return packets sealed as the agent's next ones; asyncssh's own code makes them."""
    cipher, wire = pair.conn._recv_encryption._cipher, b""
    agents = GCMCipher("aes128-gcm", cipher._key, cipher._iv)
    for payload in payloads:
        padding = 16 - (1 + len(payload)) % 16
        padding += 16 if padding < 4 else 0
        packet = bytes([padding]) + payload + os.urandom(padding)
        body, tag = agents.encrypt_and_sign(len(packet).to_bytes(4, "big"), packet)
        wire += body + tag
    return wire


def adjust(pair: ChannelPair, room: int, channel: int | None = None) -> bytes:
    """Return a window adjust for our channel."""
    return struct.pack(">BII", 93, pair.chan._recv_chan if channel is None else channel, room)


def data(pair: ChannelPair, content: bytes, channel: int | None = None) -> bytes:
    """Return data for our channel."""
    number = pair.chan._recv_chan if channel is None else channel
    return struct.pack(">BII", 94, number, len(content)) + content


def sealed_adjust(pair: ChannelPair, room: int, channel: int | None = None) -> bytes:
    """Return a window adjust, sealed as the agent's next packet."""
    return sealed(pair, adjust(pair, room, channel))


IGNORE = struct.pack(">BI", 2, 0)


@contextmanager
def asyncsshs_own(pair: ChannelPair, *, swallow: bool = True) -> Iterator[list[bytes]]:
    """Record what is left to asyncssh, and keep it from asyncssh if it is to be dropped."""
    own: list[bytes] = []
    receive = pair.conn.data_received

    def received(wire: bytes) -> None:
        own.append(wire)
        if not swallow:
            receive(wire)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair.conn, "data_received", received)
        yield own


def processed(pair: ChannelPair, wire: bytes) -> bytes:
    """Process bytes from the agent; returns those that remain."""
    return wire[process_packets(pair.conn, memoryview(wire), lambda: False)[0] :]


def heard_state(pair: ChannelPair) -> tuple[int, int, int, int]:
    """Return what a packet changes."""
    cipher = pair.conn._recv_encryption._cipher
    counter = int.from_bytes(cipher._iv[4:], "big")
    return counter, pair.conn._recv_seq, pair.chan._send_window, pair.chan._recv_window


@pytest.mark.parametrize("kind", ["adjust", "data"])
async def test_a_processed_packet_leaves_the_connection_as_asyncssh_would(kind: str) -> None:
    """Processing a packet changes nonce, sequence number and windows as asyncssh would, and the data arrives."""
    async with open_channel_pair() as pair:

        def from_agent() -> bytes:
            return sealed(pair, adjust(pair, 1000) if kind == "adjust" else data(pair, b"x" * 1000))

        def moved(before: tuple[int, ...]) -> list[int]:
            return [now - then for now, then in zip(heard_state(pair), before, strict=True)]

        before = heard_state(pair)
        pair.conn.data_received(from_agent())
        by_asyncssh = moved(before)
        before = heard_state(pair)
        with asyncsshs_own(pair) as own:
            assert processed(pair, from_agent()) == b""
        by_us = moved(before)

        assert own == []
        assert by_us == by_asyncssh
        assert by_us[:2] == [1, 1]
        if kind == "data":
            assert [await pair.ours.read(), await pair.ours.read()] == [b"x" * 1000] * 2


KEEPALIVE = b"\0\0\0\x15keepalive@openssh.com\1"


async def test_a_keepalive_is_answered_as_asyncssh_would() -> None:
    """A keepalive gets a failure as its answer, as from asyncssh but without its IGNORE."""
    async with open_channel_pair() as pair:

        def from_agent() -> bytes:
            return sealed(pair, struct.pack(">BI", 98, pair.chan._recv_chan) + KEEPALIVE)

        def state() -> tuple[int, ...]:
            cipher = pair.conn._send_encryption._cipher
            counter = int.from_bytes(cipher._iv[4:], "big")
            return *heard_state(pair), counter, pair.conn._send_seq, pair.conn._rekey_bytes_sent

        def moved(before: tuple[int, ...]) -> list[int]:
            return [now - then for now, then in zip(state(), before, strict=True)]

        agents = pair.writer.channel  # that waits for both answers
        agents._request_waiters += [asyncio.get_running_loop().create_future() for _ in range(2)]
        before = state()
        pair.conn.data_received(from_agent())
        by_asyncssh = moved(before)
        before = state()
        with asyncsshs_own(pair) as own:
            assert processed(pair, from_agent()) == b""
        by_us = moved(before)
        pair.chan.write(b"and the connection stands")
        assert await pair.reader.readexactly(25) == b"and the connection stands"

        assert own == []
        assert by_us == [
            *by_asyncssh[:4],
            *(step - more for step, more in zip(by_asyncssh[4:], (1, 1, 16), strict=True)),
        ]


@pytest.mark.parametrize(
    ("whose", "attribute", "value"),
    [
        ("chan", "_request_queue", [("earlier", None, True)]),
        ("chan", "_send_state", "closed"),
        ("chan", "_recv_state", "closed"),
        ("conn", "_rekey_bytes", 0),
        ("conn", "_compressor", object()),
    ],
)
async def test_a_keepalive_that_cannot_be_answered_now_is_left_to_asyncssh(
    whose: str, attribute: str, value: object
) -> None:
    """A keepalive is left to asyncssh if it must not be answered now, or not with a failure."""
    async with open_channel_pair() as pair:
        wire = sealed(pair, struct.pack(">BI", 98, pair.chan._recv_chan) + KEEPALIVE)
        with pytest.MonkeyPatch.context() as patch, asyncsshs_own(pair) as own:
            patch.setattr(getattr(pair, whose), attribute, value)
            assert processed(pair, wire) == b""
        assert own == [wire]


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["adjust", "data", "ignore", "long"]), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 1 << 20), max_size=8),
)
def test_any_mixture_of_packets_is_processed_in_order(kinds: list[str], cuts: list[int]) -> None:
    """Packets of all kinds, split anywhere, are each processed once, here or by asyncssh."""

    async def run() -> None:
        async with open_channel_pair() as pair:
            contents = [os.urandom(30_000 if kind == "long" else 100) for kind in kinds if kind in {"data", "long"}]
            coming = iter(contents)
            payloads = [
                adjust(pair, 10) if kind == "adjust" else IGNORE if kind == "ignore" else data(pair, next(coming))
                for kind in kinds
            ]
            before, wire, tail = heard_state(pair), sealed(pair, *payloads), b""
            places = sorted({cut % len(wire) for cut in cuts} | {0, len(wire)})
            with asyncsshs_own(pair, swallow=False) as own:
                for start, end in pairwise(places):
                    tail = processed(pair, tail + wire[start:end])

            counter, sequence, window_, _ = heard_state(pair)
            assert tail == b""
            assert len(own) == kinds.count("ignore")
            assert (counter - before[0], sequence - before[1]) == (len(kinds), len(kinds))
            assert window_ - before[2] == 10 * kinds.count("adjust")
            got = b""
            while len(got) < sum(map(len, contents)):
                got += await pair.ours.read()
            assert got == b"".join(contents)

    asyncio.run(run())


@pytest.mark.parametrize("within", [3, 20, 40])
async def test_a_packet_that_asyncssh_has_begun_is_left_to_it(within: int) -> None:
    """If asyncssh holds the beginning of a packet, it gets the remainder; the next packet is processed here."""
    async with open_channel_pair() as pair:
        wire = sealed(pair, data(pair, b"x" * 100), adjust(pair, 10))
        first = len(sealed(pair, data(pair, b"x" * 100)))
        before, tail = heard_state(pair), b""
        pair.conn.data_received(wire[:within])
        with asyncsshs_own(pair, swallow=False) as own:
            for place in range(within, len(wire), 7):
                tail = processed(pair, tail + wire[place : place + 7])

        assert tail == b""
        assert b"".join(own) == wire[within:first]
        assert heard_state(pair)[1:3] == (before[1] + 2, before[2] + 10)
        assert await pair.ours.read() == b"x" * 100


@pytest.mark.parametrize(("attribute", "value"), DEAF)
async def test_in_any_other_state_receiving_is_left_to_asyncssh(attribute: str, value: object) -> None:
    """In every state in which only asyncssh may receive, it gets all bytes, and nothing is changed."""
    async with open_channel_pair() as pair:
        wire, before = sealed_adjust(pair, 1), heard_state(pair)[1:]

        with pytest.MonkeyPatch.context() as patch, asyncsshs_own(pair) as own:
            patch.setattr(pair.conn, attribute, value)
            assert processed(pair, wire) == b""

        assert own == [wire]
        assert heard_state(pair)[1:] == before


@pytest.mark.parametrize(
    ("whose", "attribute", "value"),
    [
        ("adjust", "_recv_state", "closed"),
        ("data", "_recv_state", "eof"),
        ("data", "_recv_window", 3),
        ("data", "_encoding", "utf-8"),
    ],
)
async def test_a_packet_that_a_channel_does_not_accept_is_left_to_asyncssh(
    whose: str, attribute: str, value: object
) -> None:
    """Data or adjusts that a channel does not accept now are left to asyncssh, which knows the response."""
    async with open_channel_pair() as pair:
        wire = sealed(pair, adjust(pair, 1) if whose == "adjust" else data(pair, b"data"))
        with pytest.MonkeyPatch.context() as patch, asyncsshs_own(pair) as own:
            patch.setattr(pair.chan, attribute, value)
            assert processed(pair, wire) == b""
        assert own == [wire]


async def test_invalid_packets_are_left_to_asyncssh() -> None:
    """Packets for unknown channels, with another key, or of excessive length are left to asyncssh."""
    async with open_channel_pair() as pair:
        for wire in (
            sealed(pair, adjust(pair, 1, channel=99)),
            sealed(pair, data(pair, b"data", channel=99)),
            sealed(pair, data(pair, b"")),
            b"\0\0\0\x10" + bytes(32),
        ):
            with asyncsshs_own(pair) as own:
                assert processed(pair, wire) == b""
            assert own == [wire]
        with asyncsshs_own(pair) as own:
            assert processed(pair, b"\xff" * 10) == b""
        assert own == [b"\xff" * 10]


async def test_nothing_is_processed_once_the_connection_is_over() -> None:
    """Bytes that follow a packet which ends the connection are dropped."""
    async with open_channel_pair() as pair:
        wire = sealed(pair, adjust(pair, 1))
        with pytest.MonkeyPatch.context() as patch, asyncsshs_own(pair) as own:
            patch.setattr(pair.conn, "_transport", None)
            assert processed(pair, wire) == b""
        assert own == []
