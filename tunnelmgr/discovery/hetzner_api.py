"""The API of Hetzner Cloud: one client with every timeout set, checked answers, and errors as sentences.

Rules:
- hcloud sends the requests, but does not retry: its own five retries of a timeout take longer than a poll, and those
  of a 429 use up more of the budget. A broken connection, which it never retries, is retried here.
- The rate-limit headers of every answer are recorded, also those of refusals; see `RequestBudget`.
- The token is read again at each poll, so that a new one needs no restart; no message and no log line contains it.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Interface
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from hcloud import APIException, Client
from pydantic import AwareDatetime, BaseModel
from requests.exceptions import ChunkedEncodingError, RequestException, Timeout
from requests.exceptions import ConnectionError as Broken

from tunnelmgr import __version__
from tunnelmgr.config import private_key_file_error
from tunnelmgr.core.loopback import is_loopback
from tunnelmgr.core.sanitize import sanitize
from tunnelmgr.discovery.hetzner_request_budget import RequestBudget
from tunnelmgr.errors import DiscoveryError

ENDPOINT = "https://api.hetzner.cloud/v1"
PAGE = 50
"""The maximum of servers on a page (docs.hetzner.cloud, "Pagination")."""
TIMEOUT = (5.0, 20.0)
"""Seconds to connect, and to wait for the next byte."""
BACKOFF = (0.5, 1.0, 2.0)
"""Seconds before each retry after the connection broke."""


class _V4(BaseModel):
    ip: IPv4Address


class _V6(BaseModel):
    ip: IPv6Interface  # the network that the server owns, such as 2001:db8::/64


class _PublicNet(BaseModel):
    ipv4: _V4 | None = None
    ipv6: _V6 | None = None


class Server(BaseModel):
    """The fields of a server that are used (docs.hetzner.cloud, "Servers"); others are ignored."""

    id: int
    name: str
    status: str
    created: AwareDatetime
    labels: dict[str, str]
    public_net: _PublicNet
    private_net: list[_V4]

    def public_addresses(self) -> tuple[str, ...]:
        """Return its IPv4 address and the first host address of its IPv6 network, if it has them.

        In the IPv6 network, Hetzner's images configure `::1` (docs.hetzner.com/cloud/servers/static-configuration).
        """
        v4, v6 = self.public_net.ipv4, self.public_net.ipv6
        return (*([str(v4.ip)] if v4 else []), *([str(v6.ip.network[1])] if v6 else []))

    def private_addresses(self) -> tuple[str, ...]:
        """Return its address in the first private network that it is in."""
        return tuple(str(net.ip) for net in self.private_net[:1])


class _Pagination(BaseModel):
    next_page: int | None
    total_entries: int | None


class _Meta(BaseModel):
    pagination: _Pagination


class Page(BaseModel):
    """One page of a listing, and the total of the listing that this page states."""

    servers: list[Server]
    meta: _Meta

    @property
    def total(self) -> int | None:
        """The number of servers on all pages, None if the page does not state it."""
        return self.meta.pagination.total_entries


class _One(BaseModel):
    server: Server


@dataclass(slots=True)
class HetznerApi:
    """Sends requests about one project; blocks, and is used by one thread at a time. Raises DiscoveryError."""

    source: str
    token_file: Path
    endpoint: str = ENDPOINT
    budget: RequestBudget = field(default_factory=RequestBudget)
    timeout: tuple[float, float] = TIMEOUT
    sleep: Callable[[float], None] = time.sleep
    _token: str = field(default="", repr=False)
    _client: Client | None = field(default=None, repr=False)
    _status: int = 0

    def pages(self, selector: str) -> Iterator[Page]:
        """Request the servers with these labels, page by page, the oldest server first.

        New servers then come at the end, where they do not move others to another page.
        """
        number = 1
        asked: dict[str, str | int] = {"sort": "id:asc", "per_page": PAGE}
        if selector:
            asked["label_selector"] = selector
        while True:
            with self._explained():
                page = Page.model_validate(self._ask("/servers", asked | {"page": number}))
            yield page
            following = page.meta.pagination.next_page
            if following is None:
                return
            if following != number + 1:
                raise DiscoveryError(self.source, f"Hetzner returned page {following} as the page after {number}")
            number = following

    def server(self, id_: int) -> Server | None:
        """Request one server; None if Hetzner reports that it does not exist."""
        with self._explained():
            try:
                return _One.model_validate(self._ask(f"/servers/{id_}", {})).server
            except APIException as refused:
                # Any web server can answer 404; only the API's own error is proof.
                if self._status == HTTPStatus.NOT_FOUND and refused.code == "not_found":
                    return None
                raise

    def _ask(self, path: str, params: Mapping[str, str | int]) -> dict[str, Any]:
        client = self._opened()
        for wait in BACKOFF:
            try:
                return self._ask_once(client, path, params)
            except (Broken, ChunkedEncodingError):
                self.sleep(wait)
        return self._ask_once(client, path, params)

    def _ask_once(self, client: Client, path: str, params: Mapping[str, str | int]) -> dict[str, Any]:
        self.budget.spent += 1
        self._status = 0
        return client.request("GET", path, params=params, hooks={"response": self._record}, auth=_keep_token)

    def _record(self, response: requests.Response, *_: object, **__: object) -> None:
        """Record the headers of an answer, which hcloud does not pass on."""
        self._status = response.status_code
        self.budget.record(response.status_code, response.headers)

    def _opened(self) -> Client:
        """Return the client; a new one if the file has a new token."""
        token = self._read_token()
        if self._client is None or token != self._token:
            self._client = Client(token, self.endpoint.rstrip("/"), "tunnelmgr", __version__, timeout=self.timeout)
            _stop_retries(self._client)
            self._token = token
        return self._client

    def _read_token(self) -> str:
        wrong = private_key_file_error(self.token_file)
        if wrong is not None:
            raise DiscoveryError(self.source, wrong)
        try:
            content = self.token_file.read_bytes()[:4096].strip()
        except OSError as denied:
            raise DiscoveryError(self.source, f"cannot read {self.token_file}: {denied.strerror}") from denied
        if not re.fullmatch(rb"[!-~]{1,512}", content):
            # Anything else would break the header, and the error about it would contain the token.
            raise DiscoveryError(
                self.source, f"{self.token_file} does not contain an API token; write the token alone into it"
            )
        return content.decode("ascii")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except APIException as refused:
            raise DiscoveryError(self.source, self._refusal(refused)) from refused
        except RequestException as failed:
            host = urlsplit(self.endpoint).netloc
            raise DiscoveryError(self.source, f"no answer from {host}: {_cause(failed, self.timeout)}") from failed
        except (ValueError, TypeError, KeyError) as invalid:
            reason = f"invalid answer from {self.endpoint}; check that endpoint_url is Hetzner's API"
            raise DiscoveryError(self.source, reason) from invalid

    def _refusal(self, refused: APIException) -> str:
        """Return the refusal of the API as a sentence, with what to do."""
        match self._status:
            case HTTPStatus.UNAUTHORIZED:
                return f"401, the token is not accepted: put a valid API token of the project into {self.token_file}"
            case HTTPStatus.FORBIDDEN:
                return f"403, the token may not list servers: {self.token_file} needs one that has read permission"
            case HTTPStatus.TOO_MANY_REQUESTS:
                return (
                    "429, the project's requests of this hour are used up, so polling is paused; "
                    "check which other program uses them up"
                )
            case status if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                return f"{status}, a fault at Hetzner; see https://status.hetzner.com"
            case status if status < HTTPStatus.BAD_REQUEST:
                return f"{self.endpoint} does not answer with JSON; check endpoint_url"
            case status:
                words = sanitize(f"{refused.code}, {refused.message}".removeprefix(f"{status}, "))
                return f"{status}, {words}; check label_selector and endpoint_url"


def secure_endpoint(url: str) -> str:
    """Return the URL of an API that the token may be sent to; raises ValueError if others could read it."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError(f'write a URL such as "{ENDPOINT}"')
    if parts.scheme == "http" and not (parts.hostname == "localhost" or is_loopback(parts.hostname)):
        raise ValueError("the token would be sent unencrypted; write https://")
    return url


def _stop_retries(client: Client) -> None:
    """Keep hcloud from retrying; it has no public setting for that, so a test watches this attribute."""
    client._client._retry_max_retries = 0  # noqa: SLF001


def _keep_token(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keep `requests` from replacing the token by credentials in ~/.netrc."""
    return request


def _cause(failed: RequestException, timeout: tuple[float, float]) -> str:
    """Return the innermost reason; the message of `requests` is long and different each time."""
    if isinstance(failed, Timeout):
        return f"no answer within {timeout[0 if isinstance(failed, Broken) else 1]:g} s"
    found = "the connection broke"
    link: BaseException | None = failed
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            found = link.strerror
        link = link.__cause__ or link.__context__
    return found
