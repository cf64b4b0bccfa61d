"""The servers of one project, as the API describes them (docs.hetzner.cloud, "Servers" and "Label Selector")."""

from __future__ import annotations

import itertools
import re
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

STATUSES = frozenset(
    {"running", "initializing", "starting", "stopping", "off", "deleting", "migrating", "rebuilding", "unknown"}
)
_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?"
_SET = re.compile(rf"({_WORD})\s+(in|notin)\s*\(([^()]*)\)")
_EQUAL = re.compile(rf"({_WORD})\s*(==|=|!=)\s*((?:{_WORD})?)")
_EXISTS = re.compile(rf"(!?)\s*({_WORD})")
_SORT_KEYS = frozenset({"id", "name", "created"})

Json = dict[str, Any]


class Fleet:
    """Servers by id; thread-safe. Unknown ids raise KeyError."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids = itertools.count(42)
        self._servers: dict[int, Json] = {}

    def launch(
        self,
        name: str,
        ip: str | None,
        labels: Mapping[str, str] | None = None,
        *,
        private: str | None = None,
        ipv6: str | None = None,
    ) -> int:
        """Create a server and return its id; it is `running` at once. `ipv6` is its network, in CIDR notation."""
        with self._lock:
            if any(server["name"] == name for server in self._servers.values()):
                raise ValueError(f"the name {name} is taken")  # names are unique in a project
            id_ = next(self._ids)
            self._servers[id_] = _server(id_, name, dict(labels or {}))
            self._servers[id_]["public_net"] |= {"ipv4": _ipv4(id_, ip), "ipv6": _ipv6(id_, ipv6)}
            self._servers[id_]["private_net"] = _private(private)
        return id_

    def delete(self, id_: int) -> None:
        """Remove a server; its name and addresses are free at once."""
        with self._lock:
            del self._servers[id_]

    def state(self, id_: int, status: str) -> None:
        """Set the server's status."""
        if status not in STATUSES:
            raise ValueError(f"invalid status of a server: {status}")
        with self._lock:
            self._servers[id_]["status"] = status

    def relabel(self, id_: int, labels: Mapping[str, str]) -> None:
        """Replace the server's labels."""
        with self._lock:
            self._servers[id_]["labels"] = dict(labels)

    def get(self, id_: int) -> Json:
        """Return one server."""
        with self._lock:
            return dict(self._servers[id_])

    def select(self, selector: str, sort: Iterable[str]) -> list[Json]:
        """Return the servers that match a label selector, sorted by keys such as `id` or `name:desc`.

        Without a key Hetzner promises no order, so the newest come first here. Raises ValueError for an invalid
        selector or key.
        """
        matches = _parse(selector)
        with self._lock:
            found = [dict(server) for server in reversed(self._servers.values()) if matches(server["labels"])]
        for key, _, direction in reversed([entry.partition(":") for entry in sort]):
            if key not in _SORT_KEYS or direction not in {"", "asc", "desc"}:
                raise ValueError(f"cannot sort by {key}:{direction}")
            found.sort(key=lambda server: server[key], reverse=direction == "desc")
        return found


def _parse(selector: str) -> Callable[[Mapping[str, str]], bool]:
    terms = [_term(term.strip()) for term in re.split(r",(?![^()]*\))", selector)] if selector else []
    return lambda labels: all(term(labels) for term in terms)


def _term(term: str) -> Callable[[Mapping[str, str]], bool]:
    """Return the predicate for one requirement of a selector; a server without the key is "not equal"."""
    if match := _SET.fullmatch(term):
        key, wanted, values = match[1], match[2] == "in", {value.strip() for value in match[3].split(",")}
        return lambda labels: (labels.get(key) in values) is wanted
    if match := _EQUAL.fullmatch(term):
        key, wanted, value = match[1], match[2] != "!=", match[3]
        return lambda labels: (labels.get(key) == value) is wanted
    if match := _EXISTS.fullmatch(term):
        key, wanted = match[2], not match[1]
        return lambda labels: (key in labels) is wanted
    raise ValueError(f"invalid label selector: {term!r}")


def _ipv4(id_: int, ip: str | None) -> Json | None:
    return {"id": id_, "ip": ip, "blocked": False, "dns_ptr": f"server{id_}.example"} if ip else None


def _ipv6(id_: int, network: str | None) -> Json | None:
    return {"id": id_, "ip": network, "blocked": False, "dns_ptr": []} if network else None


def _private(ip: str | None) -> list[Json]:
    return [{"network": 4711, "ip": ip, "alias_ips": [], "mac_address": "86:00:ff:2a:7d:e1"}] if ip else []


def _server(id_: int, name: str, labels: Mapping[str, str]) -> Json:
    """Return a server without any address, with every field that the API documents."""
    location: Json = {
        "id": 1,
        "name": "fsn1",
        "description": "Falkenstein DC Park 1",
        "country": "DE",
        "city": "Falkenstein",
        "latitude": 50.47612,
        "longitude": 12.370071,
        "network_zone": "eu-central",
    }
    machine: Json = {"id": 22, "name": "cx22", "description": "CX22", "cores": 2, "memory": 4, "disk": 40}
    return {
        "id": id_,
        "name": name,
        "status": "running",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "labels": labels,
        "public_net": {"ipv4": None, "ipv6": None, "floating_ips": [], "firewalls": []},
        "private_net": [],
        "location": location,
        "server_type": machine | {"architecture": "x86", "cpu_type": "shared", "storage_type": "local", "prices": []},
        "image": None,
        "iso": None,
        "volumes": [],
        "load_balancers": [],
        "placement_group": None,
        "primary_disk_size": 40,
        "protection": {"delete": False, "rebuild": False},
        "rescue_enabled": False,
        "locked": False,
        "backup_window": None,
        "included_traffic": 21_990_232_555_520,
        "ingoing_traffic": 0,
        "outgoing_traffic": 0,
    }
