"""Generates requests to the gate: mostly valid ones, mutated in ways that parsers disagree about.

A case is the bytes that an agent sends on one channel. It depends on a seed and a number only, so a failure can be
reproduced.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

Random = random.Random
Choice = TypeVar("Choice")

READABLE = ("open/app", "open/own/app", "open/a/b")
WRITABLE = ("open/own/app", "open/own/new", "open/own/x1")
FORBIDDEN = ("open/secret/app", "hidden/app", "open/secret/app/tags/list", "hidden/blobs/uploads", "open/../hidden/app")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
FORM = "application/x-www-form-urlencoded"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass
class RegistryContents:
    """What the registry holds: digests, and locations of uploads as path and query."""

    open_digests: Sequence[str]  # of manifests and layers; those of open/own/app:v1 are a release, one is of no tag
    secret_digests: Sequence[str]
    manifest: bytes
    own_uploads: list[str] = field(default_factory=list)
    foreign_uploads: Sequence[str] = ()


def make_case(seed: str, number: int, contents: RegistryContents) -> bytes:
    """Return the case with this number."""
    rng = Random(f"{seed}/{number}")  # the same case for the same number
    count = rng.choices((1, 2, 3), (80, 15, 5))[0]
    return b"".join(_RequestBuilder(rng, contents, number).encode() for _ in range(count))


class _RequestBuilder:
    """One request as it is made: each part is drawn, and then some are mutated."""

    def __init__(self, rng: Random, contents: RegistryContents, number: int) -> None:
        self.rng = rng
        self.contents = contents
        self.method = "GET"
        self.version = "HTTP/1.1"
        self.query: list[str] = []
        self.body = b""
        self.headers = [f"Host: {self.pick('localhost:5000', '127.0.0.1:5000', '[::1]:5000', 'registry.example')}"]
        self.headers.append(f"User-Agent: case/{number}")
        self.target = self.pick(
            _manifest, _blob, _tags, _start_upload, _continue_upload, _write_manifest, _other_endpoint
        )(self)
        if self.query:
            self.target += "?" + "&".join(self.query)

    def pick(self, *choices: Choice) -> Choice:
        return self.rng.choice(choices)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def name(self, good: Sequence[str]) -> str:
        return self.pick(*good) if self.chance(0.6) else self.pick(*FORBIDDEN)

    def digest(self) -> str:
        digest = self.pick(*self.contents.open_digests, *self.contents.secret_digests)
        return digest.replace(":", self.pick(":", "%3A", "%3a")) if self.chance(0.2) else digest

    def mirror(self) -> None:
        """Add the registry behind a mirror to some requests."""
        if self.chance(0.2):
            self.query = [f"ns={self.pick('docker.io', 'localhost:5000', '%5B::1%5D:5000', 'a/b', '')}"]

    def encode(self) -> bytes:
        framed = self.frame()
        mutations = self.rng.choices((0, 1, 2, 3), (60, 25, 10, 5))[0]
        for _ in range(mutations):
            self.pick(
                _mutate_target,
                _mutate_target,
                _mutate_query,
                _mutate_headers,
                _mutate_headers,
                _mutate_line,
                _mutate_method,
            )(self)
        end = "\r\n"
        if self.chance(0.03):
            end = self.pick("\n", "\r", "\n\r", "\r\n ", "\r\n\t")
        head = end.join((f"{self.method} {self.target} {self.version}", *self.headers, "", ""))
        return head.encode("latin-1", "replace") + framed

    def frame(self) -> bytes:
        """Add the framing of the body, mostly a valid one."""
        if not self.body and not self.chance(0.05):
            return b""
        style = self.rng.choices(
            ("counted", "chunked", "short", "long", "both", "none", "odd"), (50, 25, 5, 5, 6, 4, 5)
        )[0]
        size = len(self.body)
        chunked = b"%x%b\r\n%b\r\n" % (size, self.pick(b"", b";x=y", b" "), self.body) if size else b""
        chunked += b"0\r\n" + self.pick(b"", b"", b"X-Forwarded-Host: evil\r\n") + b"\r\n"
        match style:
            case "counted":
                self.headers.append(f"Content-Length: {size}")
            case "short":
                self.headers.append(f"Content-Length: {self.rng.randrange(size + 1)}")
            case "long":
                self.headers.append(f"Content-Length: {size + self.rng.randrange(1, 99)}")
            case "chunked":
                self.headers.append("Transfer-Encoding: chunked")
                return chunked
            case "both":
                lines = ["Transfer-Encoding: chunked", f"Content-Length: {self.pick(size, 0, len(chunked))}"]
                self.rng.shuffle(lines)
                self.headers += lines
                return self.pick(chunked, self.body)
            case "odd":
                self.headers.append(self.pick(*INVALID_FRAMING).format(size=size))
                return self.pick(chunked, self.body)
        return self.body


INVALID_FRAMING = (
    *("Transfer-Encoding: xchunked", "Transfer-Encoding : chunked", "Transfer-Encoding: chunked, identity"),
    *("Transfer-Encoding:\x0bchunked", "Transfer-Encoding: identity", "transfer-encoding: CHUNKED", "TE: chunked"),
    *("Content-Length: +{size}", "Content-Length: {size}, {size}", "Content-Length: 0{size}", "Content-Length: 0x1"),
    *("Content-Length: {size}\r\nContent-Length: 0", "Content-Length : {size}", "X: y\r\n Content-Length: {size}"),
)
UNUSUAL_HEADERS = (
    *("X-Forwarded-Host: evil", "X-Forwarded-Proto: https", "X-Forwarded-Prefix: /v2/hidden", "Forwarded: host=evil"),
    *("X-Original-URL: /v2/hidden/app/manifests/v1", "X-Rewrite-URL: /v2/hidden/app/manifests/v1"),
    *("X-HTTP-Method-Override: DELETE", "X-HTTP-Method: DELETE", "X-Method-Override: PUT", "Authorization: Basic eDp5"),
    *("Connection: close", "Connection: keep-alive, X-A", "Connection: user-agent", "Connection: host", "Upgrade: h2c"),
    *("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", "Host: evil"),
    *("Expect: 100-continue", "Expect: 100-Continue, x", "Range: bytes=0-9", "Range: bytes=0-,0-", "If-None-Match: *"),
    *(f"Accept: {MANIFEST}", "Accept: */*", f"Content-Type: {FORM}", "Content-Type: multipart/form-data; boundary=x"),
    *(f"content-type: {FORM.upper()}", f"Content-Type: a/b\r\nContent-Type: {FORM}", f"Content-Type: a/b, {FORM}"),
    *(f"Content-Type:\t{FORM} ;x", "Content-Range: 0-9", "Cookie: a=b", "Docker-Upload-UUID: x", "OCI-Subject: x"),
    *("X: \x00", "X: \xff", "\xe9: y", "X", ": y", "X Y: z", "Content-Encoding: gzip", "Trailer: Host"),
)


def _manifest(request: _RequestBuilder) -> str:
    request.method = request.pick("GET", "GET", "HEAD", "DELETE")
    request.headers.append(f"Accept: {MANIFEST}")
    reference = request.pick("v1", "latest") if request.chance(0.7) else request.digest()
    request.mirror()
    return f"/v2/{request.name(READABLE)}/manifests/{reference}"


def _blob(request: _RequestBuilder) -> str:
    request.method = request.pick("GET", "GET", "HEAD", "DELETE")
    request.mirror()
    return f"/v2/{request.name(READABLE)}/blobs/{request.digest()}"


def _tags(request: _RequestBuilder) -> str:
    request.query = request.rng.sample(["n=1", "last=a", "n=0"], request.rng.randrange(3))
    return f"/v2/{request.name(READABLE)}/{request.pick('tags/list', 'tags/list', f'referrers/{request.digest()}')}"


def _start_upload(request: _RequestBuilder) -> str:
    request.method = "POST"
    mount = [f"mount={request.digest()}", f"from={request.name(READABLE)}"]
    match request.rng.randrange(4):
        case 0:
            request.query = mount
        case 1:
            request.query = request.rng.sample([*mount, "digest-algorithm=sha512", f"digest={request.digest()}"], 2)
        case 2:
            request.body = "&".join(mount).encode()
            request.headers.append(f"Content-Type: {request.pick(FORM, FORM + ';x=y', 'application/octet-stream')}")
    return f"/v2/{request.name(WRITABLE)}/blobs/uploads/"


def _continue_upload(request: _RequestBuilder) -> str:
    request.method = request.pick("GET", "HEAD", "PATCH", "PATCH", "PUT", "DELETE")
    own = bool(request.contents.own_uploads) and request.chance(0.5)
    location = request.pick(*(request.contents.own_uploads if own else request.contents.foreign_uploads))
    if request.contents.own_uploads and request.chance(0.1):
        location = location.partition("?")[0] + "?" + request.contents.own_uploads[0].partition("?")[2]
    if request.method in {"PATCH", "PUT"} and request.chance(0.7):
        request.body = request.rng.randbytes(request.rng.choice((1, 10, 3000)))
    if request.method == "PUT":
        location += f"&digest={request.digest()}"
    if request.chance(0.1):
        location = location.replace("open/own/app", request.name(WRITABLE))
    return str(location)


def _write_manifest(request: _RequestBuilder) -> str:
    request.method = "PUT"
    request.body = request.contents.manifest
    request.headers.append(f"Content-Type: {MANIFEST}")
    if request.chance(0.3):
        request.query = [
            f"tag={tag}" for tag in request.rng.sample(["v1", "new", "v2", "v1"], request.rng.randrange(4))
        ]
    return f"/v2/{request.name(WRITABLE)}/manifests/{request.pick('v1', 'new', request.digest())}"


def _other_endpoint(request: _RequestBuilder) -> str:
    request.method = request.pick("GET", "GET", "OPTIONS", "POST", "CONNECT", "TRACE")
    request.query = request.rng.sample(["n=2", "last=open/a", "n=9999", "last=h"], request.rng.randrange(3))
    places = ("/v2/", "/v2", "/v2/_catalog", "/", "/v2/_catalog/", "/debug/vars", "/.well-known/tunnelmgr", "/v2/token")
    return str(request.pick(*places, "/v2/hidden", "/v1/search", "*"))


def _mutate_target(request: _RequestBuilder) -> None:
    path, mark, query = request.target.partition("?")
    at = request.rng.randrange(len(path) + 1)
    insert = request.pick(
        "//", "/./", "/../", "/..%2f", "%2e%2e/", ";x", "\\", "%5c", "%00", "#", "%", "\t", "%20", "é", "%2F", "/"
    )
    mutations: tuple[Callable[[], str], ...] = (
        lambda: path[:at] + insert + path[at:],
        lambda: (
            path[:at] + "".join(f"%{ord(c):02{request.pick('x', 'X')}}" for c in path[at : at + 1]) + path[at + 1 :]
        ),
        lambda: path[:at] + quote(quote(path[at : at + 1], safe=""), safe="") + path[at + 1 :],
        lambda: path.replace("/", request.pick("%2f", "%2F", "//", "/./", "\\"), request.rng.randrange(1, 6)),
        lambda: request.pick("http://localhost:5000", "http://evil", "//evil", "https://x", "") + path,
        lambda: path + request.pick("/", "/tags/list", "/manifests/v1", "/../../../hidden/app/manifests/v1", ".json"),
        lambda: path.replace(
            "open/", request.pick("open/secret/../", "hidden/../open/", "Open/", "open%2f", "open/./"), 1
        ),
        lambda: path.replace(
            "hidden", request.pick("hid%64en", "%68idden", "HIDDEN", "hidden%00", "open/../hidden"), 1
        ),
        lambda: path.replace("secret", request.pick("%73ecret", "secre%74", "s\u0065cret", "./secret", "/secret"), 1),
    )
    request.target = request.rng.choice(mutations)() + mark + query


def _mutate_query(request: _RequestBuilder) -> None:
    path, _, query = request.target.partition("?")
    digest = request.pick(*request.contents.secret_digests)
    more = request.pick(
        *(
            f"mount={digest}",
            "from=open/secret/app",
            f"mount={digest}&from=hidden/app",
            "n=1",
            "last=x",
            "x=y",
            "",
            "%",
        ),
        *(f"mount={digest}&from=open/app&from=hidden/app", f"mount={digest};from=hidden/app", "_state=abc", "&&", "="),
        *(f"%6dount={digest}&fro%6d=hidden%2Fapp", f"Mount={digest}&From=hidden/app", "ns=evil", "from=hidden%252fapp"),
        *(
            "ns=docker.io",
            "tag=v1",
            "t%61g=v1",
            "tag=v1&tag=v1",
            "tag=../v1",
            "state=open",
            "state=x",
            f"digest={digest}",
        ),
        *(f"mount={digest}&from=open/app%00hidden/app", f"mount={digest}&from=open/app/../../hidden/app", "digest=x"),
    )
    request.target = path + "?" + request.pick("&", "&", ";", "?").join(filter(None, (query, more)))


def _mutate_headers(request: _RequestBuilder) -> None:
    request.headers.insert(request.rng.randrange(len(request.headers) + 1), request.pick(*UNUSUAL_HEADERS))


def _mutate_line(request: _RequestBuilder) -> None:
    request.version = request.pick(
        "HTTP/1.0", "HTTP/1.1 ", "HTTP/2.0", "HTTP/1.2", "http/1.1", "", "HTTP/1.1\t", " HTTP/1.1"
    )


def _mutate_method(request: _RequestBuilder) -> None:
    request.method = request.pick(*METHODS, "get", "PRI", "G\tET", " GET", "\r\nGET", "GET\n", "", "PROPFIND", "LOCK")
