"""A scripted registry with tags, and requests to push to it and delete from it."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.gate.docker_registry import MANIFEST_TYPE
from tunnelmgr.core.agent import AgentId

if TYPE_CHECKING:
    from tests.gate.conftest import Conversation, Reply


KIND = f"Content-Type: {MANIFEST_TYPE}"
OTHER = AgentId("static:other")
HEX = "0123456789abcdef" * 4


async def push(agent: "Conversation", repository: str, tag: str, manifest: bytes, *lines: str) -> "Reply":
    """Push a manifest under a tag."""
    return await agent.ask("PUT", f"/v2/{repository}/manifests/{tag}", *(lines or (KIND,)), body=manifest)


async def delete(agent: "Conversation", repository: str, reference: str, kind: str = "manifests") -> "Reply":
    """Delete a manifest or a blob."""
    return await agent.ask("DELETE", f"/v2/{repository}/{kind}/{reference}")


@dataclass
class Tags:
    """A registry of one repository that responds by a script, and keeps the requests."""

    pages: list[bytes] = field(default_factory=lambda: [b'{"tags": ["release-1"]}'])
    status: int = 200
    head_response: bytes = b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n"
    requests: list[str] = field(default_factory=list)
    held: asyncio.Event | None = None
    started: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve each request on one connection."""
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, target, _ = head.split(" ", 2)
            self.requests.append(f"{method} {target}")
            self.started.set()
            if self.held is not None:
                await self.held.wait()
            if length := head.lower().partition("content-length: ")[2].partition("\r\n")[0]:
                await reader.readexactly(int(length))
            writer.write(self._answer(method))

    def _answer(self, method: str) -> bytes:
        if method == "HEAD":
            return self.head_response
        if method == "GET":
            page = self.pages.pop(0)
            link = b"Link: </v2/next>; rel=next\r\n" if self.pages else b""
            return b"HTTP/1.1 %d OK\r\n%bContent-Length: %d\r\n\r\n%b" % (self.status, link, len(page), page)
        status = b"202 Accepted" if method == "DELETE" else b"201 Created"
        return b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status


def pointing_to(digest: str, kind: str = MANIFEST_TYPE) -> bytes:
    """Return the response to a HEAD of a tag."""
    return (
        f"HTTP/1.1 200 OK\r\nDocker-Content-Digest: {digest}\r\nContent-Type: {kind}\r\nContent-Length: 9\r\n\r\n"
    ).encode()


DIGEST = f"sha256:{HEX}"
