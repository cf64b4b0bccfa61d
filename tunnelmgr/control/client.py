"""The client of the daemon's socket, for the command line."""

import http.client
import json
import socket
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from tunnelmgr.errors import ConfigError, ControlError, DaemonNotRunningError

PATIENCE = 30.0
"""Seconds to wait for an answer; a reload takes longest."""


class ControlClient:
    """Sends requests to the daemon, each over a connection of its own.

    Every method raises DaemonNotRunningError if nothing answers, and ControlError with the daemon's message if it
    refuses.
    """

    def __init__(self, path: Path, patience: float = PATIENCE) -> None:
        self._path = path
        self._patience = patience

    def waiting(self, patience: float) -> "ControlClient":
        """Return a client of the same daemon that waits at most this many seconds for an answer."""
        return ControlClient(self._path, patience)

    def status(self) -> dict[str, Any]:
        """Return what `status --json` prints."""
        return dict(self._ask("GET", "/v1/status"))

    def alive(self) -> bool:
        """Return True if the daemon answers."""
        status, _ = self._exchange("GET", "/healthz")
        return status == HTTPStatus.OK

    def readiness(self) -> list[dict[str, Any]]:
        """Return the checks of `/readyz`, each with `check`, `ok` and `message`."""
        status, body = self._exchange("GET", "/readyz")
        if status not in {HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE}:
            raise ControlError("the daemon has no /readyz: it is older than this command")
        try:
            return [json.loads(line) for line in body.splitlines()]
        except ValueError as invalid:
            raise ControlError(f"the daemon's /readyz is not JSON: {invalid}") from invalid

    def agents(
        self, *, departed: bool = False, phases: Iterable[str] = (), groups: Iterable[str] = ()
    ) -> list[dict[str, Any]]:
        """Return what `list --json` prints: agents in these phases and groups, by default all.

        With `departed`, also agents that left.
        """
        query = urlencode({"departed": str(departed).lower(), "phase": list(phases), "group": list(groups)}, doseq=True)
        return list(self._ask("GET", f"/v1/agents?{query}"))

    def transfers(self) -> list[dict[str, Any]]:
        """Return the requests in progress."""
        return list(self._ask("GET", "/v1/transfers"))

    def agent(self, wanted: str) -> dict[str, Any]:
        """Return one agent with its history."""
        return dict(self._ask("GET", f"/v1/agents/{quote(wanted, safe='')}"))

    def retry(self, wanted: str) -> dict[str, Any]:
        """Make the next attempt now."""
        return dict(self._ask("POST", f"/v1/agents/{quote(wanted, safe='')}/retry"))

    def release(self, wanted: str, reason: str) -> dict[str, Any]:
        """End a quarantine."""
        return dict(self._ask("POST", f"/v1/agents/{quote(wanted, safe='')}/release", {"reason": reason}))

    def explain(self, wanted: str, action: str, repository: str, forward: str = "") -> dict[str, Any]:
        """Return whether an agent may do something through a forward, by default the first, and by which rule."""
        query = urlencode({"action": action, "repository": repository, "forward": forward})
        return dict(self._ask("GET", f"/v1/agents/{quote(wanted, safe='')}/policy?{query}"))

    def seed(self, key: str, seconds: float) -> dict[str, Any]:
        """Add a seed: the public half of a host key, which expires after `seconds`; returns the seed's id."""
        return dict(self._ask("POST", "/v1/seeds", {"key": key, "seconds": seconds}))

    def drain(self, member: str, *, on: bool = True) -> dict[str, Any]:
        """Have a member of the cluster hand its agents over, or end that."""
        return dict(self._ask("POST", f"/v1/members/{quote(member, safe='')}/drain", {"on": on}))

    def rebalance(self) -> dict[str, Any]:
        """Move agents to the members that should hold them; returns how many are offered."""
        return dict(self._ask("POST", "/v1/rebalance"))

    def plan(self, text: str, file: str) -> dict[str, Any]:
        """Return what a reload of a file with this text would change; raises ConfigError if it is invalid."""
        return dict(self._ask("POST", "/v1/plan", {"text": text, "file": file}))

    def reload(self) -> dict[str, Any]:
        """Make the daemon read its configuration again; raises ConfigError if the new one is invalid."""
        return dict(self._ask("POST", "/v1/reload"))

    def _ask(self, method: str, target: str, body: dict[str, object] | None = None) -> Any:  # noqa: ANN401 - JSON
        status, text = self._exchange(method, target, body)
        try:
            answer = json.loads(text)
        except ValueError as invalid:
            raise DaemonNotRunningError(str(self._path), str(invalid)) from invalid
        if status >= HTTPStatus.BAD_REQUEST:
            raise _refusal(answer)
        return answer

    def _exchange(self, method: str, target: str, body: dict[str, object] | None = None) -> tuple[int, bytes]:
        """Return the status and the body of the answer to one request."""
        connection = _UnixConnection(self._path, self._patience)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, target, payload, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            return response.status, response.read()
        except PermissionError as denied:
            raise ControlError(
                f"{self._path}: permission denied; run this as root, or add the user to the socket's group"
            ) from denied
        except (OSError, http.client.HTTPException) as failed:
            reason = failed.strerror if isinstance(failed, OSError) and failed.strerror else str(failed)
            raise DaemonNotRunningError(str(self._path), reason) from failed
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, patience: float) -> None:
        super().__init__("localhost", timeout=patience)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a port."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _refusal(answer: dict[str, Any]) -> ControlError | ConfigError:
    error = answer.get("error", {})
    if error.get("code") == ConfigError.code:
        return ConfigError(list(error.get("problems", [])), file=str(error.get("file", "")))
    return ControlError(str(error.get("message", "the daemon refused")))
