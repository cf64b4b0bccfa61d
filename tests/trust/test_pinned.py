"""`pinned`: the key that stands in the file."""

import pytest

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyUnknownError
from tunnelmgr.trust.pinned import PinnedKeys

AGENT = Agent(AgentId("cloud:a"), "1", "cloud", "ci", "a", ("10.0.0.1",))
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43


async def test_the_pinned_method_knows_the_file() -> None:
    """And only that."""
    keys = PinnedKeys({AGENT.id: KEY})

    assert await keys.trust_for(AGENT) == HostTrust(Method.PINNED, (KEY,))
    with pytest.raises(HostKeyUnknownError, match="the file has no host_key for it"):
        await PinnedKeys({}).trust_for(AGENT)
