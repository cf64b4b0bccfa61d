"""What writes to a repository, where more than its grant decides.

- An upload goes on only for the agent whose POST began it (see `uploads`).
- A protected tag is written once. Its manifest is read whole before it is passed on, so that its digest is known: the
  same manifest may be pushed again, since CI jobs run twice.
- A mount that its group may not read becomes an ordinary upload (OCI distribution spec, end-11).
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.locations import parse_reference, upload_location
from tunnelmgr.core.oci import UPLOAD_STATE, RegistryRequest, Route, at_location, without_mount
from tunnelmgr.core.policy import Verdict, may_mount, protected_tags
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate.authorized_request import AuthorizedRequest
from tunnelmgr.gate.head_parser import RequestHead, ResponseHead
from tunnelmgr.gate.local_reply import LocalReply
from tunnelmgr.gate.location_rewrite import UnusableLocationError, location_of
from tunnelmgr.gate.manifest import ManifestTooLargeError, PushedManifest
from tunnelmgr.gate.tag_locks import TAGGING, Key, TagLocks
from tunnelmgr.gate.uploads import Upload, Uploads

_DONE: Final = frozenset({HTTPStatus.CREATED, HTTPStatus.NO_CONTENT})
_GOES_ON: Final = frozenset({HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT})
MAX_BUFFERED_MANIFESTS: Final = 4
"""Manifests of one agent that are read into memory at the same time; further ones wait unread."""
_NOT_BEGUN: Final = Verdict(
    allowed=False, rule="upload", reason="tunnelmgr: this agent has no such upload open: begin it again"
)


@dataclass(frozen=True, slots=True)
class PushHandler:
    """One agent's pushes to one registry."""

    uploads: Uploads
    writing: TagLocks
    reading: asyncio.Semaphore
    agent: AgentId
    target: Endpoint

    async def carry(self, push: AuthorizedRequest) -> LocalReply | None:
        """Carry a push out, or return why not."""
        request = push.request
        if request.route is Route.UPLOAD:
            place = self.uploads.find(self.agent, self._upload(request))
            if place is None:
                return push.refuse(_NOT_BEGUN, HTTPStatus.NOT_FOUND, "BLOB_UPLOAD_UNKNOWN")
            request = at_location(request, place.path, place.query)
        elif rules := protected_tags(request, push.policy):
            return await self._write_once(push, rules)
        elif not may_mount(request, push.policy):
            request = without_mount(request)
        answer = await push.exchange.ask(push.head, request)
        location = self._follow_upload(push.head, push.request, answer)
        await push.exchange.pass_back(push.head, push.request, answer, location=location)
        return None

    async def _write_once(self, push: AuthorizedRequest, rules: Mapping[str, str]) -> LocalReply | None:
        # No deadline: only this agent's own requests are in the way, and each of their steps has one.
        async with self.reading:
            try:
                manifest = await push.exchange.receive_manifest(push.head)
            except ManifestTooLargeError as large:
                too_large = Verdict(allowed=False, rule="manifest size", reason=str(large))
                return push.refuse(too_large, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "MANIFEST_INVALID")
            with self.writing.claim(self._claimed(push.request, rules, manifest)) as granted:
                refused = await self._refused(push, rules, manifest) if granted else _under_way(push.request, rules)
                if refused is not None:
                    return push.refuse(refused, body_read=True)
                answer = await push.exchange.ask_with(push.head, push.request, manifest)
            await push.exchange.pass_back(push.head, push.request, answer)
        return None

    def _claimed(self, request: RegistryRequest, rules: Mapping[str, str], manifest: PushedManifest) -> dict[Key, str]:
        """Claim each tag for this manifest, and the manifest for being tagged, which keeps it from being deleted."""
        place = (self.target, request.repository)
        tags = {(*place, tag): manifest.digest for tag in rules}
        return tags | {(*place, digest): TAGGING for digest in (manifest.digest, *request.digests)}

    async def _refused(
        self, push: AuthorizedRequest, rules: Mapping[str, str], manifest: PushedManifest
    ) -> Verdict | None:
        """Look at each protected tag; returns why one may not be written, None if all may."""
        repository = push.request.repository
        for tag, rule in rules.items():
            there = await push.exchange.look_up(push.head, repository, tag)
            if there is not None and not manifest.is_same(there):
                found = f"points to {there.digest}" if there.digest else "exists, with a digest that is not reported,"
                told = f"tunnelmgr: {repository}:{tag} {found} and may not be overwritten ({rule}); push another tag"
                return Verdict(allowed=False, rule=rule, reason=told)
        return None

    def _follow_upload(self, head: RequestHead, request: RegistryRequest, answer: ResponseHead) -> str | None:
        """Return where the agent goes on with its upload, None if the answer leads to no upload.

        It is noted before the agent is told, which may use it on another channel at once. Raises UnusableLocationError
        where the registry goes on at a place that is no upload of the repository.
        """
        if request.route not in {Route.UPLOADS, Route.UPLOAD}:
            return None
        known = self._upload(request)
        if request.method in {"PUT", "DELETE"} and answer.status in _DONE:
            self.uploads.forget(self.agent, known)
            return None
        value = location_of(answer)
        if value is None or HTTPStatus.MULTIPLE_CHOICES <= answer.status < HTTPStatus.BAD_REQUEST:
            return None
        reference = parse_reference(value)
        place = upload_location(reference, request.repository) if reference is not None else None
        if place is None:
            if answer.status in _GOES_ON:
                raise UnusableLocationError(answer.status, value, request.repository)
            return None
        if request.route is Route.UPLOAD:
            self.uploads.move(self.agent, known, place)
        else:
            known = self.uploads.begin(self.agent, self.target, request.repository, place)
        return f"http://{head.host}/v2/{known.repository}/blobs/uploads/{known.id}?state={UPLOAD_STATE}"

    def _upload(self, request: RegistryRequest) -> Upload:
        return Upload(self.target, request.repository, request.reference)


def _under_way(request: RegistryRequest, rules: Mapping[str, str]) -> Verdict:
    tag, rule = next(iter(rules.items()))
    name = f"{request.repository}:{tag}"
    told = f"tunnelmgr: another push of {name}, or a delete of its manifest, is under way ({rule}); push again later"
    return Verdict(allowed=False, rule=rule, reason=told)
