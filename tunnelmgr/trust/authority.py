"""`authority`: the agent presents a host certificate, signed for its id by an authority that the configuration names.

The certificate is checked before any credential is offered, and the evidence is the key that it certifies. It is
requested again for every connection, so that an expired certificate outlasts only the tunnel it was used for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.host_key import is_certificate
from tunnelmgr.core.sanitize import sanitize
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyMismatchError, HostKeyUnknownError, UnreachableError
from tunnelmgr.trust.certificate import Authority, HostCertificate, is_revoked, parse, refusal
from tunnelmgr.trust.lookups import HostKeyScanner


@dataclass(frozen=True, slots=True)
class AuthorityKeys:
    """Scans the agent for its host certificate; `wall` is the wall clock, by which certificates are valid."""

    authorities: Sequence[Authority]
    scanner: HostKeyScanner
    wall: Callable[[], float]

    async def trust_for(self, agent: Agent) -> HostTrust:
        """Return the certified key.

        Raises HostKeyUnknownError if there is no valid certificate, and HostKeyMismatchError if a certificate of a
        trusted authority is for another machine or is revoked.
        """
        if not self.authorities:
            raise HostKeyUnknownError("the configuration has no [[authority]] for this source")
        try:
            blob = await self.scanner.certificate(agent)
        except UnreachableError as unreachable:
            raise HostKeyUnknownError(str(unreachable)) from unreachable
        try:
            certificate = parse(blob) if is_certificate(blob) else None
        except ValueError as invalid:
            raise HostKeyUnknownError(str(invalid)) from invalid
        if certificate is None:
            raise HostKeyUnknownError("it presents no host certificate")
        return self._judge(agent, certificate)

    def _judge(self, agent: Agent, certificate: HostCertificate) -> HostTrust:
        authority = next((known for known in self.authorities if known.key == certificate.authority), None)
        if authority is None:
            raise HostKeyUnknownError("its certificate is signed by an authority that the configuration does not name")
        if is_revoked(certificate, authority):
            raise HostKeyMismatchError(
                f"{agent.address} presented certificate serial {certificate.serial}, which authority {authority.name} "
                f'has revoked. Replace the machine, or investigate and run: tunnelmgr release {agent.id} --reason "…"'
            )
        why = refusal(certificate, authority, self.wall())
        if why is not None:
            raise HostKeyUnknownError(why)
        if agent.id not in certificate.principals:
            raise HostKeyMismatchError(
                f"host certificate mismatch: {agent.address} presented a certificate for "
                f"{sanitize(', '.join(certificate.principals))}, not for {agent.id}; another machine may have taken "
                f'this address. Investigate, then run: tunnelmgr release {agent.id} --reason "…"'
            )
        key_id = sanitize(certificate.key_id)
        detail = f"certificate of authority {authority.name}, serial {certificate.serial}, key id {key_id!r}"
        return HostTrust(Method.AUTHORITY, (certificate.key,), detail)
