"""`pinned`: the host key in the configuration."""

import pytest

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyUnknownError
from tunnelmgr.trust.pinned import PinnedKeys

AGENT = Agent(AgentId("cloud:a"), "1", "cloud", "ci", "a", ("10.0.0.1",))
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43


async def test_the_pinned_method_returns_the_configured_key() -> None:
    """The method returns the configured key, and no evidence for an agent without one."""
    keys = PinnedKeys({AGENT.id: KEY})

    assert await keys.trust_for(AGENT) == HostTrust(Method.PINNED, (KEY,))
    with pytest.raises(HostKeyUnknownError, match="the configuration has no host_key for it"):
        await PinnedKeys({}).trust_for(AGENT)
