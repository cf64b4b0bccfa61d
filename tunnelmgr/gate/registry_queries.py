"""The gate's own requests to the registry, whose responses it reads whole and does not forward."""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from tunnelmgr.core.oci import is_digest
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.manifest import TaggedManifest, media_type
from tunnelmgr.gate.registry_connection import RegistryConnection

MAX_PAGE_BYTES: Final = 1024 * 1024
"""Bytes of a page of the catalog or of a list of tags."""
# docker-registry answers 404 for a manifest whose type the client does not accept, so all that it can store are named.
_ANY_MANIFEST: Final = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.docker.distribution.manifest.v1+prettyjws, application/vnd.docker.distribution.manifest.v1+json, "
    "*/*"
)


@dataclass(frozen=True, slots=True)
class RegistryPage:
    """A page of a list: its status, its body, and whether the registry links to a next page."""

    status: int
    body: bytes
    has_next: bool


@dataclass(frozen=True, slots=True)
class RegistryQueries:
    """Queries on one channel's connection to the registry; `timeout` bounds the time for a page, in seconds."""

    connection: RegistryConnection
    timeout: float

    async def fetch_page(self, host: str, target: str) -> RegistryPage:
        """Get a page of the catalog or of a list of tags; raises RegistryUnavailableError."""
        try:
            return await self._fetch_page(host, target)
        except BaseException:
            self.connection.abort()  # what is left of this response must not be read as the next one
            raise

    async def resolve_tag(self, host: str, repository: str, tag: str) -> TaggedManifest | None:
        """Return what a tag points to, None if there is no such tag; raises RegistryUnavailableError."""
        request = f"HEAD /v2/{repository}/manifests/{tag} HTTP/1.1\r\nHost: {host}\r\nAccept: {_ANY_MANIFEST}\r\n\r\n"
        response = await self.connection.round_trip("HEAD", request.encode())
        self.connection.finish(response)
        if response.status == HTTPStatus.NOT_FOUND:
            return None
        if response.status != HTTPStatus.OK:
            raise RegistryUnavailableError(f"the registry answered {response.status} when asked for tag {tag}")
        named = dict(response.fields)
        digest = named.get(b"docker-content-digest", b"").decode("latin-1")
        return TaggedManifest(digest if is_digest(digest) else "", media_type(named.get(b"content-type", b"")))

    async def _fetch_page(self, host: str, target: str) -> RegistryPage:
        request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\n\r\n"
        response = await self.connection.round_trip("GET", request.encode())
        body = bytearray()
        try:
            async with asyncio.timeout(self.timeout), aclosing(self.connection.stream_body(response)) as feeds:
                async for pieces in feeds:
                    body += b"".join(pieces)
                    if len(body) > MAX_PAGE_BYTES:
                        raise RegistryUnavailableError(f"a page of the registry is longer than {MAX_PAGE_BYTES} bytes")
        except TimeoutError as late:
            raise RegistryUnavailableError(
                f"the registry did not send a page of {target.partition('?')[0]} within {self.timeout:g} s"
            ) from late
        return RegistryPage(response.status, bytes(body), any(name == b"link" for name, _ in response.fields))
