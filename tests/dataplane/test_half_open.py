"""Resetting a half-open connection, in the cases without anything to reset.

tests/acceptance/test_faults.py shows with a real sshd that a half-open connection is reset.
"""

import asyncio
import socket

from tests.ssh.ssh_server import free_port, running_tcp_server
from tunnelmgr.dataplane.half_open import Ends, reset_half_open


async def test_if_nothing_is_left_to_reset_the_new_connection_is_reset() -> None:
    """If the agent has no such connection, the new one is established and reset at once."""
    seen: asyncio.Future[bytes | OSError] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        try:
            seen.set_result(await reader.read())
        except OSError as reset:
            seen.set_result(reset)

    async with running_tcp_server(accept) as there:
        await reset_half_open(Ends(("127.0.0.1", free_port()), (there.host, there.port)))
        assert isinstance(await asyncio.wait_for(seen, 5), ConnectionResetError)


async def test_a_refused_connection_is_not_an_error() -> None:
    """If the agent refuses the connection, nothing is raised."""
    await reset_half_open(Ends(("127.0.0.1", free_port()), ("127.0.0.1", free_port())))
    await reset_half_open(Ends(("::1", free_port()), ("::1", free_port())))


async def test_a_local_port_that_is_in_use_is_left_alone() -> None:
    """If another connection uses our port, nothing is sent and nothing is raised."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        await reset_half_open(Ends(taken.getsockname(), ("127.0.0.1", free_port())))


async def test_an_agent_that_does_not_answer_costs_one_timeout() -> None:
    """If the agent does not answer, the attempt ends after `RESET_TIMEOUT`."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.create_connection(full.getsockname()):
            async with asyncio.timeout(5):
                await reset_half_open(Ends(("127.0.0.1", free_port()), full.getsockname()))
