"""Settings for all tests: which run on both event loops, and which do not run beside others.

`make test` runs the tests on three processes, file by file, and then those marked `serial` on one. Acceptance tests may
run beside others, because each lab has namespaces and folders of its own.
"""

import asyncio
from collections.abc import Callable, Mapping

import hypothesis
import pytest
import uvloop

hypothesis.settings.register_profile("busy machine", deadline=None)
hypothesis.settings.load_profile("busy machine")  # an example that takes long beside other tests is not a failure

ON_BOTH_LOOPS = (
    "tests/dataplane/",
    "tests/ssh/",
    "tests/tunnel/",
    "tests/gate/test_target_socket.py",
    "tests/gate/test_relay.py",
)

SERIAL = (
    "tests/abuse/",
    "tests/acceptance/test_cluster_run.py",
    "tests/acceptance/test_flood.py",
    "tests/acceptance/test_kills.py",
    "tests/acceptance/test_starvation.py",
    "tests/daemon/test_loop_lag.py",
    "tests/tunnel/",
)
"""Tests whose assertions depend on time or load."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that do not run beside others."""
    for item in items:
        if item.nodeid.startswith(SERIAL):
            item.add_marker(pytest.mark.serial)


def pytest_asyncio_loop_factories(
    config: pytest.Config,  # noqa: ARG001 - pytest-asyncio's form
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return the loops that a test runs on, by their names."""
    own = {"asyncio": asyncio.new_event_loop}
    return {**own, "uvloop": uvloop.new_event_loop} if item.nodeid.startswith(ON_BOTH_LOOPS) else own
