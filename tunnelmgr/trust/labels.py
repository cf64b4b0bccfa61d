"""`label`: a tag or label on the agent tells its key's fingerprint. It is the word of whoever may write labels."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.sanitize import sanitize
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyMismatchError, HostKeyUnknownError, UnreachableError

NAMES = ("tunnelmgr:host-key", "tunnelmgr-host-key")
"""The tag's name on EC2, and the label's on Hetzner, where a name has no colon."""


@dataclass(frozen=True, slots=True)
class LabelKeys:
    """Asks the agent itself through `scan(agent)` for its key, and compares it with the label."""

    scan: Callable[[Agent], Awaitable[str]]

    async def trust_for(self, agent: Agent) -> HostTrust:
        """Return the key that has the label's fingerprint; raises HostKeyMismatchError where the agent's has not."""
        wanted = next((value for name, value in agent.labels if name in NAMES), None)
        if wanted is None:
            raise HostKeyUnknownError(f"it has no label {' or '.join(NAMES)}")
        try:
            key = await self.scan(agent)
        except UnreachableError as away:
            raise HostKeyUnknownError(str(away)) from away
        if as_label(fingerprint(key)) != as_label(wanted):
            raise HostKeyMismatchError(
                f"the machine at {agent.address} shows {fingerprint(key)}, its label says {sanitize(wanted)}; "
                "look, then `tunnelmgr release`"
            )
        return HostTrust(Method.LABEL, (key,), "fingerprint in a label")


def as_label(print_: str) -> str:
    """Return a fingerprint in the form that every cloud's labels can hold: `sha256.` and base64url, ended by `.0`.

    Hetzner's label values consist of letters, digits, `-`, `_` and `.`, and end in a letter or digit.
    """
    body = print_.removeprefix("SHA256:").removeprefix("sha256.").removesuffix(".0")
    return f"sha256.{body.translate(str.maketrans('+/', '-_')).rstrip('=')}.0"
