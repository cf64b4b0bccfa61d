"""Handles pushes, beyond what a group's rules decide: uploads, protected tags and mounts.

- Only the agent whose POST began an upload may continue it (see `uploads.py`).
- A protected tag is written once. Its manifest is read whole before it is forwarded, so that its digest is known: the
  same manifest may be pushed again, since CI jobs run twice.
- A mount from a repository that the group may not pull becomes an ordinary upload (OCI distribution spec, end-11).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from tunnelmgr.core.locations import parse_reference, upload_location
from tunnelmgr.core.oci import RegistryRequest, Route, at_location, without_mount
from tunnelmgr.core.policy import Verdict, may_mount, protected_tags
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate.authorized_request import AuthorizedRequest
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.concurrency_limit import Slots
from tunnelmgr.gate.head_parser import RequestHead, ResponseHead
from tunnelmgr.gate.local_reply import LocalReply
from tunnelmgr.gate.location_rewrite import UnusableLocationError, location_of
from tunnelmgr.gate.manifest import ManifestTooLargeError, PushedManifest
from tunnelmgr.gate.registry_queries import RegistryQueries
from tunnelmgr.gate.tag_locks import TAGGING, LockKey, TagLocks
from tunnelmgr.gate.uploads import Upload, UploadProofs, new_id

_UPLOAD_ENDED: Final = frozenset({HTTPStatus.CREATED, HTTPStatus.NO_CONTENT})
_UPLOAD_CONTINUES: Final = frozenset({HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT})
MAX_BUFFERED_MANIFESTS: Final = 4
"""Manifests of one agent that are read into memory at the same time; further ones wait unread."""
_UNKNOWN_UPLOAD: Final = Verdict(
    allowed=False, rule="upload", reason="tunnelmgr: this agent has no such upload open: start the upload again"
)


@dataclass(frozen=True, slots=True)
class PushHandler:
    """Carries out one agent's pushes to one registry; `buffered` limits the manifests that it has in memory."""

    uploads: UploadProofs
    tag_locks: TagLocks
    buffered: Slots
    queries: RegistryQueries
    caller: Caller
    target: Endpoint

    async def handle(self, push: AuthorizedRequest) -> LocalReply | None:
        """Forward a push and its response, or return the refusal."""
        request = push.request
        if request.route is Route.UPLOAD:
            location = self.uploads.location(self._upload(request, request.reference), request.upload_state)
            if location is None:
                return push.refuse(_UNKNOWN_UPLOAD, HTTPStatus.NOT_FOUND, "BLOB_UPLOAD_UNKNOWN")
            request = at_location(request, location.path, location.query)
        elif rules := protected_tags(request, push.policy):
            return await self._push_protected(push, rules)
        elif not may_mount(request, push.policy):
            request = without_mount(request)
        response = await push.exchange.forward_request(push.head, request)
        own_location = self._upload_location(push.head, push.request, response)
        await push.exchange.forward_response(push.head, push.request, response, location=own_location)
        return None

    async def _push_protected(self, push: AuthorizedRequest, rules: Mapping[str, str]) -> LocalReply | None:
        """Push a manifest to tags that are protected by `rules`, unless they point to another manifest."""
        # No deadline: this waits only for requests of the same agent, and each of their steps has one.
        async with self.buffered:
            try:
                manifest = await push.exchange.read_manifest(push.head)
            except ManifestTooLargeError as large:
                too_large = Verdict(allowed=False, rule="manifest size", reason=str(large))
                return push.refuse(too_large, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "MANIFEST_INVALID")
            with self.tag_locks.try_lock(self._locks(push.request, rules, manifest)) as locked:
                refused = await self._changed_tag(push, rules, manifest) if locked else _conflict(push.request, rules)
                if refused is not None:
                    return push.refuse(refused, body_read=True)
                response = await push.exchange.forward_manifest(push.head, push.request, manifest)
            await push.exchange.forward_response(push.head, push.request, response)
        return None

    def _locks(
        self, request: RegistryRequest, rules: Mapping[str, str], manifest: PushedManifest
    ) -> dict[LockKey, str]:
        """Return the locks for a push: each tag for this manifest, and the manifest against being deleted."""
        repository = (self.target, request.repository)
        tags = {(*repository, tag): manifest.digest for tag in rules}
        return tags | {(*repository, digest): TAGGING for digest in (manifest.digest, *request.digests)}

    async def _changed_tag(
        self, push: AuthorizedRequest, rules: Mapping[str, str], manifest: PushedManifest
    ) -> Verdict | None:
        """Return the refusal if a protected tag points to another manifest, None if the push changes no tag."""
        repository = push.request.repository
        for tag, rule in rules.items():
            current = await self.queries.resolve_tag(push.head.host, repository, tag)
            if current is not None and not manifest.is_same(current):
                found = (
                    f"points to {current.digest}" if current.digest else "exists, with a digest that is not reported,"
                )
                reason = f"tunnelmgr: {repository}:{tag} {found} and may not be overwritten ({rule}); push another tag"
                return Verdict(allowed=False, rule=rule, reason=reason)
        return None

    def _upload_location(self, head: RequestHead, request: RegistryRequest, response: ResponseHead) -> str | None:
        """Return the location with which the agent continues an upload, None if the response has none.

        Raises UnusableLocationError if the registry continues the upload outside of the repository's uploads.
        """
        if request.route not in {Route.UPLOADS, Route.UPLOAD}:
            return None
        if request.method in {"PUT", "DELETE"} and response.status in _UPLOAD_ENDED:
            return None
        value = location_of(response)
        if value is None or HTTPStatus.MULTIPLE_CHOICES <= response.status < HTTPStatus.BAD_REQUEST:
            return None
        reference = parse_reference(value)
        location = upload_location(reference, request.repository) if reference is not None else None
        if location is None:
            if response.status in _UPLOAD_CONTINUES:
                raise UnusableLocationError(response.status, value, request.repository)
            return None
        upload = self._upload(request, request.reference if request.route is Route.UPLOAD else new_id())
        state = self.uploads.state(upload, location)
        return f"http://{head.host}/v2/{upload.repository}/blobs/uploads/{upload.id}?state={state}"

    def _upload(self, request: RegistryRequest, id_: str) -> Upload:
        return Upload(self.caller.agent, self.caller.incarnation, self.target, request.repository, id_)


def _conflict(request: RegistryRequest, rules: Mapping[str, str]) -> Verdict:
    tag, rule = next(iter(rules.items()))
    name = f"{request.repository}:{tag}"
    reason = (
        f"tunnelmgr: another push of {name}, or a delete of its manifest, is in progress ({rule}); push again later"
    )
    return Verdict(allowed=False, rule=rule, reason=reason)
