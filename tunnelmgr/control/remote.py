"""The API for other machines: over TLS, for clients with a certificate or a token, each with a role.

A client may read, or also operate. Browsers send `Origin` with each request that a page of another site makes; such a
request changes nothing, because a browser adds a client certificate to it without asking.
"""

import hmac
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from tunnelmgr.control.callers import (
    MAX_BODY_BYTES,
    READS,
    ApiCaller,
    errors_as_json,
    is_foreign_request,
    set_caller,
)
from tunnelmgr.control.connections import LimitedRunner
from tunnelmgr.control.routes import Operations, RefusedChanges, audited
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import ControlError

log = structlog.get_logger(__name__)

WARN_EVERY: Final = 5.0
"""Seconds between two warnings about clients that could not prove themselves."""
CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="tunnelmgr"'}


@dataclass(frozen=True, slots=True)
class ApiClient:
    """A client; without a digest of its token, its certificate has its name as the common name."""

    name: str
    role: Literal["read", "operate"]
    token_digest: bytes | None = None

    @classmethod
    def of(cls, name: str, role: Literal["read", "operate"], token_file: Path | None) -> "ApiClient":
        """Return a client, with the token that the file holds now; raises OSError."""
        if token_file is None:
            return cls(name, role)
        return cls(name, role, sha256(token_file.read_text(encoding="ascii").strip().encode()).digest())


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The server's certificate and key, and the authority of client certificates if there are any."""

    certificate: Path
    key: Path
    client_authority: Path | None = None

    def stamps(self) -> tuple[float, ...]:
        """Return when the files have changed; raises OSError."""
        return tuple(file.stat().st_mtime for file in (self.certificate, self.key))

    def context(self) -> ssl.SSLContext:
        """Return the settings of TLS; raises ControlError if the files do not fit."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_authority is not None:
                context.load_verify_locations(self.client_authority)
                context.verify_mode = ssl.CERT_OPTIONAL  # a client with a token needs none
        except (OSError, ssl.SSLError) as invalid:
            raise ControlError(f"api: cannot use the certificate and its key: {invalid}") from invalid
        return context


class RemoteServer:
    """Serves routes on an address until closed, to clients who prove themselves."""

    def __init__(
        self,
        operations: Operations,
        clients: Sequence[ApiClient],
        files: TlsFiles,
        routes: Iterable[web.AbstractRouteDef],
    ) -> None:
        self._operations = operations
        self._refused = RefusedChanges(operations)
        self._by_token = [client for client in clients if client.token_digest is not None]
        self._by_name = {client.name: client for client in clients if client.token_digest is None}
        self._files = files
        self._stamps = files.stamps()
        self._context = files.context()
        self._warned = float("-inf")
        self._runner = LimitedRunner(routes, [errors_as_json, self._admit], MAX_BODY_BYTES)

    async def start(self, at: Endpoint) -> None:
        """Listen; raises OSError if the address is taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, at.host, at.port, ssl_context=self._context).start()

    async def close(self) -> None:
        """Stop answering."""
        await self._runner.cleanup()

    async def renew(self) -> None:
        """Use a certificate that has been renewed for new connections; an unusable one leaves the old one in use."""
        try:
            stamps = self._files.stamps()
            if stamps == self._stamps:
                return
            self._stamps = stamps
            self._files.context()  # tried on another one first
            self._context.load_cert_chain(self._files.certificate, self._files.key)
        except (OSError, ControlError, ssl.SSLError) as unusable:
            log.warning("certificate not renewed", file=str(self._files.certificate), reason=str(unusable))
        else:
            log.info("certificate renewed", file=str(self._files.certificate))

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        client = self._client_of(request)
        if client is None:
            self._warn(request)
            raise web.HTTPUnauthorized(text="send a client certificate or a token that [api] knows", headers=CHALLENGE)
        if is_foreign_request(request.headers):
            raise web.HTTPForbidden(text="the page of another site may only link to this one")
        set_caller(request, ApiCaller(client.name))
        if request.method in READS:
            return await handler(request)
        if client.role != "operate":
            reason = f"client {client.name} may only read: its role in [[api.client]] is read"
            self._refused.refuse(request, reason)
        if "Origin" in request.headers:
            self._refused.refuse(request, "a page of a browser may only read")
        log.info("operator request received", client=client.name, path=request.path)
        return await audited(request, handler, self._operations)

    def _client_of(self, request: web.Request) -> ApiClient | None:
        """Return who has proved to be a client: by a token if there is one, otherwise by a certificate."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            digest = sha256(token.strip().encode()).digest()
            # All are compared, so that the time tells nothing.
            found = [client for client in self._by_token if hmac.compare_digest(client.token_digest or b"", digest)]
            return found[0] if found else None
        certificate = request.get_extra_info("peercert")
        if not certificate:
            return None
        return self._by_name.get(_common_name(certificate))

    def _warn(self, request: web.Request) -> None:
        now = time.monotonic()
        if now - self._warned >= WARN_EVERY:
            self._warned = now
            log.warning("api client refused", remote=request.remote)


def _common_name(certificate: dict[str, object]) -> str:
    """Return the common name of a certificate in the form of `ssl.SSLSocket.getpeercert`, "" without one."""
    subject = certificate.get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]  # type: ignore[attr-defined]
    return names[0] if len(names) == 1 else ""
