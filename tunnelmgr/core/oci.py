r"""What a request means in the OCI distribution API: `classify(method, target) -> RegistryRequest`.

By these rules, every accepted target has exactly one interpretation:

- The path has ASCII letters, digits and `._:+=/-`; only the colon of a digest may be percent-encoded.
- It has no empty component, no `.` or `..`, and so no `//`, `;`, `\` or `#`.
- A repository name follows the grammar of the OCI distribution spec ("Pulling manifests"), has at most 255 characters,
  and no component that is a word of the API itself, since registries match those greedily.
- The query has only parameters that its endpoint knows, each once (`tag` may be repeated), each with a valid value.
- The target for the registry is written from the parsed parts, never copied.

A path of allowed characters that is not an endpoint of the API is not an error: it gets `RegistryAction.UNKNOWN`, which
no policy allows.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from urllib.parse import quote, unquote_plus

from tunnelmgr.errors import InvalidDigestError, InvalidNameError, MalformedRequestError

WELL_KNOWN_PATH = "/.well-known/tunnelmgr"
MAX_NAME = 255
RESERVED = frozenset({"manifests", "blobs", "tags", "referrers", "uploads"})

_PATH = re.compile(r"/[A-Za-z0-9._:+=%/-]*")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(
    r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}"
    r"|(?!sha256:|sha512:)[a-z0-9]+(?:[+._-][a-z0-9]+)*:[A-Za-z0-9=_-]{1,256}"
)
_UPLOAD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=-]{0,255}")
_NOT_IN_QUERY = re.compile(r"[^A-Za-z0-9._~:/=&%+-]")
_ENCODED_COLON = re.compile(r"%3A", re.IGNORECASE)


class RegistryAction(StrEnum):
    """What a request does; grants and denies are about actions."""

    BASE = "base"
    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"
    CATALOG = "catalog"
    WELL_KNOWN = "well-known"
    UNKNOWN = "unknown"


class BodyKind(StrEnum):
    """Which kind of body a request may have."""

    NONE = "none"
    MANIFEST = "manifest"
    BLOB = "blob"


class Route(StrEnum):
    """An endpoint of the API, with the numbers of the OCI distribution spec's table."""

    BASE = "base"  # end-1
    BLOB = "blob"  # end-2, end-10
    MANIFEST = "manifest"  # end-3, end-7, end-9
    UPLOADS = "uploads"  # end-4a, end-4b, end-11
    UPLOAD = "upload"  # end-5, end-6, end-13, end-14
    TAGS = "tags"  # end-8a, end-8b
    REFERRERS = "referrers"  # end-12a, end-12b
    CATALOG = "catalog"  # Docker's extension
    WELL_KNOWN = "well-known"  # the gate's own
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RegistryRequest:
    """One request in terms of the API; `reference` is a tag, a digest or an upload's id.

    `mount_from` is the source repository of a cross-repository mount, empty without one. `namespace` is the registry
    that a client expects behind a mirror, empty if it does not say. `registry_query` is the query
    in the location that the registry gave to an upload; the target has it first, unchanged. `upload_state` is what the
    gate put into the location that it gave to the agent.
    """

    method: str
    action: RegistryAction
    route: Route
    path: str
    repository: str = ""
    reference: str = ""
    mount_from: str = ""
    namespace: str = ""
    query: tuple[tuple[str, str], ...] = ()
    registry_query: str = ""
    upload_state: str = field(default="", repr=False)
    body: BodyKind = BodyKind.NONE

    def target(self) -> str:
        """Return the origin-form to send to the registry (RFC 9112, section 3.2.1)."""
        pairs = (f"{key}={quote(value, safe='')}" for key, value in self.query)
        query = "&".join((self.registry_query, *pairs) if self.registry_query else pairs)
        return f"{self.path}?{query}" if query else self.path

    @property
    def has_tag(self) -> bool:
        """Whether the reference is a tag, not a digest."""
        return self.route is Route.MANIFEST and ":" not in self.reference

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that the request reads, writes or deletes; a push by digest can have more than one."""
        if self.has_tag:
            return (self.reference,)
        return tuple(value for key, value in self.query if key == "tag")

    @property
    def digests(self) -> tuple[str, ...]:
        """The digest in the path, if there is one."""
        return (self.reference,) if ":" in self.reference else ()


_PULL = (RegistryAction.PULL, BodyKind.NONE)
_METHODS: Mapping[Route, Mapping[str, tuple[RegistryAction, BodyKind]]] = MappingProxyType(
    {
        Route.BASE: dict.fromkeys(("GET", "HEAD"), (RegistryAction.BASE, BodyKind.NONE)),
        Route.WELL_KNOWN: dict.fromkeys(("GET", "HEAD"), (RegistryAction.WELL_KNOWN, BodyKind.NONE)),
        Route.CATALOG: {"GET": (RegistryAction.CATALOG, BodyKind.NONE)},
        Route.TAGS: {"GET": _PULL},
        Route.REFERRERS: {"GET": _PULL},
        Route.MANIFEST: {
            "GET": _PULL,
            "HEAD": _PULL,
            "PUT": (RegistryAction.PUSH, BodyKind.MANIFEST),
            "DELETE": (RegistryAction.DELETE, BodyKind.NONE),
        },
        Route.BLOB: {"GET": _PULL, "HEAD": _PULL, "DELETE": (RegistryAction.DELETE, BodyKind.NONE)},
        Route.UPLOADS: {"POST": (RegistryAction.PUSH, BodyKind.BLOB)},
        # Reading an upload's state is a push too: only the agent that began the upload may use its location.
        Route.UPLOAD: {
            "GET": (RegistryAction.PUSH, BodyKind.NONE),
            "HEAD": (RegistryAction.PUSH, BodyKind.NONE),
            "PATCH": (RegistryAction.PUSH, BodyKind.BLOB),
            "PUT": (RegistryAction.PUSH, BodyKind.BLOB),
            "DELETE": (RegistryAction.PUSH, BodyKind.NONE),
        },
        Route.UNKNOWN: {},
    }
)


def probe_request(listener: str, nonce: str) -> bytes:
    """Return the request that probes a tunnel through `listener`, a literal address with its port."""
    return f"GET {WELL_KNOWN_PATH} HTTP/1.1\r\nHost: {listener}\r\nTunnelmgr-Nonce: {nonce}\r\n\r\n".encode()


def is_repository_name(text: str) -> bool:
    """Whether `text` may name a repository (OCI distribution spec, "Pulling manifests", and the rules above)."""
    return 0 < len(text) <= MAX_NAME and all(
        _COMPONENT.fullmatch(part) and part not in RESERVED for part in text.split("/")
    )


def is_tag(text: str) -> bool:
    """Whether `text` is a tag by the same section's grammar."""
    return _TAG.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Whether `text` is a digest (OCI image spec, "Digests"), of exact length for the registered algorithms."""
    return _DIGEST.fullmatch(text) is not None


def _matches(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern)
    return lambda text: compiled.fullmatch(text) is not None


_is_count = _matches(r"[0-9]{1,9}")
_is_media_type = _matches(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
_is_algorithm = _matches(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*")
_is_upload_state = _matches(r"[A-Za-z0-9._-]{1,8192}")
_is_host = _matches(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")

_NOT_FORWARDED = frozenset({"ns", "state"})
"""Parameters that the gate accepts and does not forward.

`ns` is the registry that a client expects behind a mirror, sent by containerd and BuildKit (OCI distribution spec,
"Registry Proxying"). They send it to every mirror, so every forward accepts it; that of a cache may refuse another
registry than its own, see `core/policy.py`. `state` is in the upload locations that the gate makes. It is in the query,
since many scripts append `&digest=…` to the location that docker-registry gives them.
"""
_REPEATED = frozenset({"tag"})
MAX_PARAMETERS = 32
"""Parameters of one query, and so tags of one push; the OCI distribution spec requires at least 10."""
_NAMESPACE: Mapping[str, Callable[[str], bool]] = MappingProxyType({"ns": _is_host})
_UPLOAD_STATE: Mapping[str, Callable[[str], bool]] = MappingProxyType({"state": _is_upload_state})
_PARAMETERS: Mapping[tuple[str, Route], Mapping[str, Callable[[str], bool]]] = MappingProxyType(
    {
        ("GET", Route.TAGS): {"n": _is_count, "last": is_tag, **_NAMESPACE},
        ("GET", Route.CATALOG): {"n": _is_count, "last": is_repository_name},
        ("GET", Route.REFERRERS): {"artifactType": _is_media_type, **_NAMESPACE},
        ("GET", Route.MANIFEST): _NAMESPACE,
        ("HEAD", Route.MANIFEST): _NAMESPACE,
        ("PUT", Route.MANIFEST): {"tag": is_tag},
        ("GET", Route.BLOB): _NAMESPACE,
        ("HEAD", Route.BLOB): _NAMESPACE,
        ("POST", Route.UPLOADS): {
            "digest": is_digest,
            "digest-algorithm": _is_algorithm,
            "mount": is_digest,
            "from": is_repository_name,
        },
        ("GET", Route.UPLOAD): _UPLOAD_STATE,
        ("HEAD", Route.UPLOAD): _UPLOAD_STATE,
        ("PATCH", Route.UPLOAD): _UPLOAD_STATE,
        ("PUT", Route.UPLOAD): {"digest": is_digest, **_UPLOAD_STATE},
        ("DELETE", Route.UPLOAD): _UPLOAD_STATE,
    }
)


@lru_cache(maxsize=1024)  # a fleet sends the same few requests
def classify(method: str, target: str) -> RegistryRequest:
    """Classify a method and an origin-form target; raises MalformedRequestError if two parsers could differ."""
    path, _, query = target.partition("?")
    _check_path(path)
    if invalid := _NOT_IN_QUERY.search(query):
        raise MalformedRequestError(f"the query contains {invalid[0]!r}, which is not allowed")
    matched = _match_path(path)
    allowed = _METHODS[matched.route].get(method)
    if allowed is None:
        return RegistryRequest(method=method, action=RegistryAction.UNKNOWN, route=Route.UNKNOWN, path=matched.path)
    action, body = allowed
    given = _parse_query(query, _PARAMETERS.get((method, matched.route), {}))
    named = dict(given)
    if "digest" in named and "mount" in named:
        raise MalformedRequestError("the query parameters digest and mount exclude each other")
    if "tag" in named and ":" not in matched.reference:
        raise MalformedRequestError("the query parameter tag is allowed only in a push by digest")
    return RegistryRequest(
        method=method,
        action=action,
        route=matched.route,
        path=matched.path,
        repository=matched.repository,
        reference=matched.reference,
        mount_from=named.get("from", "") if "mount" in named else "",
        namespace=named.get("ns", "").lower(),
        query=tuple(pair for pair in given if pair[0] not in _NOT_FORWARDED),
        upload_state=named.get("state", ""),
        body=body,
    )


def at_location(request: RegistryRequest, path: str, query: str) -> RegistryRequest:
    """Return a request that continues an upload, at the location that the registry gave to it."""
    return replace(request, path=path, registry_query=query)


def without_mount(request: RegistryRequest) -> RegistryRequest:
    """Return the same request without `mount` and `from`, with which the registry begins an ordinary upload."""
    kept = tuple((key, value) for key, value in request.query if key not in {"mount", "from"})
    return replace(request, mount_from="", query=kept)


@dataclass(frozen=True, slots=True)
class _PathMatch:
    route: Route
    path: str
    repository: str = ""
    reference: str = ""


def _check_path(path: str) -> None:
    if not _PATH.fullmatch(path):
        raise InvalidNameError("the path contains a character that is not allowed")
    components = path.split("/")
    if "" in components[1:-1] or "." in components or ".." in components:
        raise InvalidNameError("the path contains an empty component, or `.` or `..`")


def _match_path(path: str) -> _PathMatch:
    if (fixed := _FIXED.get(path)) is not None:
        return _PathMatch(fixed, path)
    if "%" in path.rpartition("/")[0]:
        raise InvalidNameError("only the colon of a digest may be percent-encoded")
    match path.split("/")[1:]:
        case ["v2", *name, "blobs", "uploads", ""]:
            return _in_repository(Route.UPLOADS, name, "blobs/uploads/", "")
        case ["v2", *name, "blobs", "uploads", upload] if _UPLOAD_ID.fullmatch(upload):
            return _in_repository(Route.UPLOAD, name, "blobs/uploads/", upload)
        case ["v2", *name, "tags", "list"]:
            return _in_repository(Route.TAGS, name, "tags/list", "")
        case ["v2", *name, "manifests" | "blobs" | "referrers" as kind, reference]:
            return _in_repository(_KINDS[kind], name, f"{kind}/", _reference(kind, reference))
    if "%" in path:
        raise InvalidNameError("only the colon of a digest may be percent-encoded")
    return _PathMatch(Route.UNKNOWN, path)


_FIXED: Mapping[str, Route] = MappingProxyType(
    {"/v2/": Route.BASE, "/v2/_catalog": Route.CATALOG, WELL_KNOWN_PATH: Route.WELL_KNOWN}
)
_KINDS: Mapping[str, Route] = MappingProxyType(
    {"manifests": Route.MANIFEST, "blobs": Route.BLOB, "referrers": Route.REFERRERS}
)


def _in_repository(route: Route, components: list[str], tail: str, reference: str) -> _PathMatch:
    name = "/".join(components)
    if not is_repository_name(name):
        raise InvalidNameError(
            "invalid repository name: it has lower-case components, separated by `/`, none of them a word of the API"
        )
    return _PathMatch(route, f"/v2/{name}/{tail}{reference}", name, reference)


def _reference(kind: str, text: str) -> str:
    decoded = _ENCODED_COLON.sub(":", text, count=1)
    if is_digest(decoded) or (kind == "manifests" and is_tag(text)):
        return decoded
    raise InvalidNameError("invalid tag or digest" if kind == "manifests" else "invalid digest")


def _parse_query(query: str, known: Mapping[str, Callable[[str], bool]]) -> tuple[tuple[str, str], ...]:
    if not query:
        return ()
    parsed: dict[tuple[str, str], None] = {}
    keys: set[str] = set()
    for pair in query.split("&"):
        key, equals, raw = pair.partition("=")
        if key not in known:
            names = ", ".join(known) or "none"
            raise MalformedRequestError(f"unknown query parameter {key[:64]!r}; known for this request: {names}")
        value = unquote_plus(raw)
        if not equals or not known[key](value):
            error = InvalidDigestError if known[key] is is_digest else MalformedRequestError
            raise error(f"invalid value for the query parameter {key}: {raw[:64]!r}")
        if (key, value) in parsed or (key in keys and key not in _REPEATED):
            raise MalformedRequestError(f"the query parameter {key} is given twice")
        if len(parsed) >= MAX_PARAMETERS:
            raise MalformedRequestError(f"a query has at most {MAX_PARAMETERS} parameters")
        keys.add(key)
        parsed[key, value] = None
    return tuple(parsed)
