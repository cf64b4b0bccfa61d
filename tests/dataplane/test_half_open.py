"""Resetting a connection that is over here: what comes of it where there is nothing to reset.

That a half-open connection is reset is shown with a real sshd in tests/acceptance/test_faults.py.
"""

import asyncio
import socket

from tests.ssh.ssh_server import free_port, running_tcp_server
from tunnelmgr.dataplane.half_open import Ends, reset_half_open


async def test_where_nothing_is_left_to_reset_the_new_connection_is_reset_at_once() -> None:
    """Sshd sees a client that goes away before it has said anything."""
    seen: asyncio.Future[bytes | OSError] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        try:
            seen.set_result(await reader.read())
        except OSError as reset:
            seen.set_result(reset)

    async with running_tcp_server(accept) as there:
        await reset_half_open(Ends(("127.0.0.1", free_port()), (there.host, there.port)))
        assert isinstance(await asyncio.wait_for(seen, 5), ConnectionResetError)


async def test_nobody_there_is_no_error() -> None:
    """It is an attempt, and the port is asked for again either way."""
    await reset_half_open(Ends(("127.0.0.1", free_port()), ("127.0.0.1", free_port())))
    await reset_half_open(Ends(("::1", free_port()), ("::1", free_port())))


async def test_a_port_of_ours_that_is_taken_again_is_left_alone() -> None:
    """Another connection has it by now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        await reset_half_open(Ends(taken.getsockname(), ("127.0.0.1", free_port())))


async def test_an_agent_that_answers_nothing_is_not_waited_for() -> None:
    """The path may be cut again."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.create_connection(full.getsockname()):
            async with asyncio.timeout(5):
                await reset_half_open(Ends(("127.0.0.1", free_port()), full.getsockname()))
