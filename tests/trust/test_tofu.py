"""`tofu`: trust on first use."""

import pytest

from tests.trust.fake_scanner import FakeScanner
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyUnknownError, UnreachableError
from tunnelmgr.trust.tofu import FirstKey

AGENT = Agent(AgentId("cloud:a"), "1", "cloud", "ci", "a", ("10.0.0.1",))
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43


async def test_the_first_key_seen_is_that_of_the_agent_itself() -> None:
    """The evidence is the key that the agent presents; an agent that cannot be reached has none."""
    scanner = FakeScanner(keys={AGENT: KEY})
    unreachable = FakeScanner(keys={AGENT: UnreachableError(AGENT.address, "refused")})

    assert await FirstKey(scanner).trust_for(AGENT) == HostTrust(Method.TOFU, (KEY,))
    with pytest.raises(HostKeyUnknownError, match=r"cannot reach 10\.0\.0\.1:22: refused"):
        await FirstKey(unreachable).trust_for(AGENT)
