"""What holds for all tests: those that touch sockets run on both of the loops that the daemon may run on."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

ON_BOTH_LOOPS = (
    "tests/dataplane/",
    "tests/ssh/",
    "tests/tunnel/",
    "tests/gate/test_registry_socket.py",
    "tests/gate/test_relay.py",
)


def pytest_asyncio_loop_factories(
    config: pytest.Config,  # noqa: ARG001 - pytest-asyncio's form
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return the loops that a test runs on, by their names."""
    own = {"asyncio": asyncio.new_event_loop}
    return {**own, "uvloop": uvloop.new_event_loop} if item.nodeid.startswith(ON_BOTH_LOOPS) else own
