"""The gate's own endpoint, `/.well-known/tunnelmgr`: it tells an agent who it is, and answers the controller's probe.

A probe is recognized by its exact bytes, which saves parsing it: most requests at an idle controller are probes.
"""

import re
from http import HTTPStatus
from typing import Final

from tunnelmgr.core.oci import probe_request
from tunnelmgr.errors import MalformedRequestError
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.context import ProofSource
from tunnelmgr.gate.head_parser import RequestHead
from tunnelmgr.gate.local_reply import LocalReply
from tunnelmgr.gate.traffic import MeteredChannel

_HEAD_END: Final = b"\r\n\r\n"
_NONCE: Final = re.compile(rb"[0-9A-Fa-f]{1,128}")


class IdentityEndpoint:
    """The endpoint as one channel's requests reach it."""

    __slots__ = ("_agent", "_probe_start", "_proofs")

    def __init__(self, proofs: ProofSource, agent: MeteredChannel, listener: str) -> None:
        self._proofs = proofs
        self._agent = agent
        self._probe_start = probe_request(listener, "").removesuffix(_HEAD_END)

    def probe_nonce(self, raw: bytes) -> str | None:
        """Return the nonce of a probe, None for any other head and for a probe that is written in another form."""
        if not raw.startswith(self._probe_start):
            return None
        nonce = _NONCE.fullmatch(raw, len(self._probe_start), len(raw) - len(_HEAD_END))
        return None if nonce is None else nonce[0].decode("ascii")

    def take_probe(self, data: bytes, caller: Caller) -> bool:
        """Return whether this is a probe that needs no answer, because its arrival is what was to be shown."""
        nonce = self.probe_nonce(data)
        return nonce is not None and self._proofs.note_arrival(nonce, caller.agent, caller.listener)

    def reply_to_probe(self, nonce: str, caller: Caller) -> LocalReply:
        """Reply with the proof for a probe's nonce."""
        return LocalReply(HTTPStatus.OK, self._proof(nonce, caller), close=False)

    def reply(self, head: RequestHead, caller: Caller) -> LocalReply:
        """Reply to a request; raises MalformedRequestError for an invalid nonce."""
        match [value for name, value in head.fields if name == b"tunnelmgr-nonce"]:
            case []:
                return LocalReply(HTTPStatus.OK, _identity(caller), head.ends_channel)
            case [nonce] if _NONCE.fullmatch(nonce):
                return LocalReply(HTTPStatus.OK, self._proof(nonce.decode("ascii"), caller), head.ends_channel)
        raise MalformedRequestError("invalid Tunnelmgr-Nonce: it must be one field of 1 to 128 hexadecimal digits")

    def _proof(self, nonce: str, caller: Caller) -> dict[str, object]:
        # The controller keeps this channel open from one probe to the next, so it is not one of the agent's clients.
        self._agent.uncount()
        return _identity(caller) | {"proof": self._proofs.proof(nonce, caller.agent, caller.listener)}


def _identity(caller: Caller) -> dict[str, object]:
    return {"agent": caller.agent, "group": caller.group, "controller": caller.controller}
