"""What a registry's access log may contain if every request passed a gate with the policy below.

It is written from the log's side and does not know how the gate parses a request. It is stricter than necessary: a
request outside of the policy must not even reach the registry, regardless of how the registry would respond.
"""

import re
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs, unquote, urlsplit

PULL, PUSH, DELETE, DENY = "open/**", "open/own/*", "open/own/*", "open/secret/**"
IMMUTABLE = "v1"
"""The tag that is written once; in open/own/app it exists from the start."""

_LINE = re.compile(r'\S+ - \S+ \[[^\]]*\] "(\S+) (.*) (HTTP/[0-9.]+)" ([0-9]{3}) [0-9]+ "[^"]*" "(.*)"')
# As greedy as the registry's own routes.
_PLACE = re.compile(r"/v2/(.+)/(manifests/[^/]+|blobs/uploads/[^/]*|blobs/[^/]+|tags/list|referrers/[^/]+)")


@dataclass(frozen=True)
class LoggedRequest:
    """One line of the access log."""

    method: str
    target: str
    status: int
    agent: str


def parse_log(log: str) -> list[LoggedRequest]:
    """Parse an access log in the combined format; raises ValueError for an invalid line."""
    found = []
    for line in log.splitlines():
        matched = _LINE.fullmatch(line)
        if matched is None:
            raise ValueError(line)
        found.append(LoggedRequest(matched[1], matched[2], int(matched[4]), matched[5]))
    return found


@dataclass(frozen=True)
class Forbidden:
    """What no request may touch: uploads of other agents, by the registry's own ids, and the manifest of a release."""

    uploads: frozenset[str]
    release: str


def violation(served: LoggedRequest, forbidden: Forbidden) -> str | None:  # noqa: PLR0911 (one for each rule)
    """Return what the policy does not allow in this line, or None."""
    parts = urlsplit(served.target)
    path = unquote(parts.path)
    if path in {"/v2/", "/v2/_catalog"}:
        return None if served.method in {"GET", "HEAD"} else "a method that these endpoints do not have"
    place = _PLACE.fullmatch(path)
    if place is None or ".." in path or "//" in path:
        return "not an endpoint"
    name, what = place[1], place[2]
    if not may_pull(name):
        return f"{name} is hidden"
    if what.startswith("blobs/uploads/"):
        others = what.removeprefix("blobs/uploads/") in forbidden.uploads
        wrong = "another agent's upload" if others else _wrong_mount(served, parts.query)
        return wrong if may_push(name) else f"{name} may not be pushed"
    if "ns" in parse_qs(parts.query, keep_blank_values=True):
        return "a parameter for the gate"
    if served.method in {"GET", "HEAD"}:
        return None
    return _wrong_write(served.method, name, what, parts.query, forbidden.release)


def may_pull(name: str) -> bool:
    """Return whether the policy allows to pull a repository."""
    return name.startswith("open/") and not name.startswith("open/secret/")


def may_push(name: str) -> bool:
    """Return whether the policy allows to push to a repository."""
    return may_pull(name) and re.fullmatch(r"open/own/[^/]+", name) is not None


def _wrong_mount(served: LoggedRequest, query: str) -> str | None:
    parameters = parse_qs(query, keep_blank_values=True)
    sources = parameters.get("from", [])
    if not all(map(may_pull, sources)) or len(sources) > 1:
        return f"a mount from {sources}"
    if served.method == "POST" and served.status == HTTPStatus.CREATED and not ("mount" in parameters and sources):
        return "a mount that the query does not ask for"
    return None


def _wrong_write(method: str, name: str, what: str, query: str, release: str) -> str | None:
    if not may_push(name):
        return f"{method} is not granted there"
    reference = what.partition("/")[2]
    if method == "DELETE":
        kept = name == "open/own/app" and reference in {IMMUTABLE, release}
        return "a release is deleted" if kept or reference == IMMUTABLE else None
    if method != "PUT" or not what.startswith("manifests/"):
        return f"{method} is not granted there"
    tags = {reference, *parse_qs(query).get("tag", [])}
    return "a release is overwritten" if name == "open/own/app" and IMMUTABLE in tags else None
