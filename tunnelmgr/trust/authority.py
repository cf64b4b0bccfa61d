"""`authority`: the agent shows a host certificate, signed for its id by an authority that the file names.

The certificate is looked at before anything is offered, and what counts as evidence is the very key that it
certifies; it is asked for anew for each life of a tunnel, so an expired one carries no further than its tunnel.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.host_key import is_certificate
from tunnelmgr.core.sanitize import sanitize
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyMismatchError, HostKeyUnknownError, UnreachableError
from tunnelmgr.trust.certificate import Authority, HostCertificate, is_revoked, parse, refusal


@dataclass(frozen=True, slots=True)
class AuthorityKeys:
    """Asks the agent through `show(agent)` for the blob of its host key or certificate, its signature checked."""

    authorities: Sequence[Authority]
    show: Callable[[Agent], Awaitable[bytes]]
    clock: Callable[[], float]

    async def trust_for(self, agent: Agent) -> HostTrust:
        """Return the certified key.

        Raises HostKeyUnknownError where there is no good certificate, and HostKeyMismatchError where there is one of
        ours that is for another machine, or that was taken back.
        """
        if not self.authorities:
            raise HostKeyUnknownError("the file names no [[authority]]")
        try:
            blob = await self.show(agent)
        except UnreachableError as away:
            raise HostKeyUnknownError(str(away)) from away
        try:
            certificate = parse(blob) if is_certificate(blob) else None
        except ValueError as odd:
            raise HostKeyUnknownError(str(odd)) from odd
        if certificate is None:
            raise HostKeyUnknownError("it shows no host certificate")
        return self._judge(agent, certificate)

    def _judge(self, agent: Agent, certificate: HostCertificate) -> HostTrust:
        authority = next((known for known in self.authorities if known.key == certificate.authority), None)
        if authority is None:
            raise HostKeyUnknownError("its certificate is signed by an authority that the file does not name")
        if is_revoked(certificate, authority):
            raise HostKeyMismatchError(f"{agent.id} shows a certificate that authority {authority.name} has revoked")
        why = refusal(certificate, authority, self.clock())
        if why is not None:
            raise HostKeyUnknownError(why)
        if agent.id not in certificate.principals:
            named = sanitize(", ".join(certificate.principals))
            raise HostKeyMismatchError(
                f"the machine at {agent.address} shows a certificate for {named}, "
                f"not for {agent.id}; look, then `tunnelmgr release`"
            )
        key_id = sanitize(certificate.key_id)
        detail = f"certificate of authority {authority.name}, serial {certificate.serial}, key id {key_id!r}"
        return HostTrust(Method.AUTHORITY, (certificate.key,), detail)
