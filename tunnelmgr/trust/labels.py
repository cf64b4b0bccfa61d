"""`label`: a tag or label of the agent holds its key's fingerprint. Anyone who may write labels is trusted."""

from dataclasses import dataclass

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.sanitize import sanitize
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyMismatchError, HostKeyUnknownError, UnreachableError
from tunnelmgr.trust.lookups import HostKeyScanner

HOST_KEY_LABELS = ("tunnelmgr:host-key", "tunnelmgr-host-key")
"""The tag's name on EC2, and the label's on Hetzner, where a name has no colon."""


@dataclass(frozen=True, slots=True)
class LabelKeys:
    """Scans the agent for its host key, and compares the key with the label."""

    scanner: HostKeyScanner

    async def trust_for(self, agent: Agent) -> HostTrust:
        """Return the key with the label's fingerprint; raises HostKeyMismatchError if the agent's key has another."""
        wanted = next((value for name, value in agent.labels if name in HOST_KEY_LABELS), None)
        if wanted is None:
            raise HostKeyUnknownError(f"it has no label {' or '.join(HOST_KEY_LABELS)}")
        try:
            key = await self.scanner.host_key(agent)
        except UnreachableError as unreachable:
            raise HostKeyUnknownError(str(unreachable)) from unreachable
        if as_label(fingerprint(key)) != as_label(wanted):
            raise HostKeyMismatchError(
                f"host key mismatch: {agent.address} presented {fingerprint(key)}, its label expects "
                f"{sanitize(wanted)}; another machine may have taken this address, or the label is wrong. "
                f'Investigate, then run: tunnelmgr release {agent.id} --reason "…"'
            )
        return HostTrust(Method.LABEL, (key,), "fingerprint in a label")


def as_label(print_: str) -> str:
    """Return a fingerprint in the form that the labels of every cloud allow: `sha256.`, base64url and `.0`.

    Hetzner's label values consist of letters, digits, `-`, `_` and `.`, and end in a letter or digit.
    """
    body = print_.removeprefix("SHA256:").removeprefix("sha256.").removesuffix(".0")
    return f"sha256.{body.translate(str.maketrans('+/', '-_')).rstrip('=')}.0"
