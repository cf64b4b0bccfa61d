"""Contract tests: asyncssh's private attributes mean what is assumed.

A release of asyncssh is verified once these tests, `test_internal_reads.py`, `test_internal_sends.py` and those of the
pump pass with it.
"""

import os

import asyncssh
import pytest
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import GCMEncryption

from tests.dataplane.channel_pair import open_channel_pair
from tunnelmgr.dataplane.asyncssh_attributes import ATTRIBUTES, Channel, Cipher, Connection, Encryption
from tunnelmgr.dataplane.fast_path import VERIFIED_RELEASES, attribute_problems


def test_this_release_of_asyncssh_is_verified() -> None:
    """A release is added to `VERIFIED_RELEASES` once this whole file passes with it."""
    if os.environ.get("TRY_NEWEST_ASYNCSSH"):
        pytest.skip("this run is to find out")
    assert asyncssh.__version__ in VERIFIED_RELEASES


async def test_every_private_attribute_has_its_declared_type_on_an_open_connection() -> None:
    """The declared types also hold after the handshake, when many attributes are no longer None."""
    async with open_channel_pair() as pair:
        encryption = pair.conn._send_encryption
        samples = {Connection: pair.conn, Channel: pair.chan, Encryption: encryption, Cipher: encryption._cipher}

        assert list(attribute_problems(ATTRIBUTES, samples)) == []


async def test_every_private_attribute_means_what_is_assumed() -> None:
    """On an idle connection, every attribute has the value by which the fast path recognises it as idle."""
    async with open_channel_pair() as pair:
        conn, chan = pair.conn, pair.chan
        for encryption in (conn._send_encryption, conn._recv_encryption):
            assert type(encryption) is GCMEncryption
            assert type(encryption._cipher) is GCMCipher
            assert (type(encryption._cipher._key), type(encryption._cipher._iv)) == (bytes, bytes)
            assert len(encryption._cipher._iv) == 12
        assert (conn._auth_complete, conn._auth_final, conn._kex_complete) == (True, True, True)
        assert (conn._kex, conn._deferred_packets, conn._inpbuf) == (None, [], b"")
        assert (conn._compressor, conn._decompressor) == (None, None)
        assert conn._recv_handler == conn._recv_pkthdr
        for counter in (conn._send_seq, conn._recv_seq, conn._rekey_bytes_sent, conn._rekey_bytes):
            assert type(counter) is int
        for counter in (chan._send_window, chan._send_chan, chan._send_pktsize):
            assert type(counter) is int
        assert type(conn._rekey_seconds) in {int, float}
        assert type(conn._rekey_time) is float
        assert (chan._send_state, chan._recv_state) == ("open", "open")
        assert (chan._send_buf, chan._encoding, chan._send_paused) == ([], None, False)
        assert chan._conn is conn
        assert conn._channels[chan._recv_chan] is chan
        assert (conn._recv_blocksize, chan._request_queue) == (16, [])
        assert (conn._send_enchdrlen, conn._send_blocksize) == (1, 16)
