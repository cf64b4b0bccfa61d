"""Records that the tests of every store write."""

from dataclasses import replace

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.world import HistoryEntry, Record

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
AGENT = Agent(
    AgentId("ec2:i-0a"), "i-0a", "jenkins", "ci", "böhm", ("10.0.0.1", "2001:db8::1"), 2222, (("role", "ci"),)
)
RECORD = Record(AGENT, first_seen=1.5, changed=2.5, history=(HistoryEntry(1.5, "seen", "at 10.0.0.1:2222", uid=7),))


def proved(method: Method) -> Record:
    """Return the record of an agent that was proved by this method."""
    trust = HostTrust(method, (KEY,))
    return replace(RECORD, trust=trust, proved=trust)
