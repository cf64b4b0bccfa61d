"""Pulls by a real dockerd, and by the containerd that it has started, with the time at which the last byte arrived."""

import http.client
import json
import socket
import time
from dataclasses import dataclass

from lab.docker import Docker

PATIENCE = 300.0
"""Seconds for a pull."""
ARRIVED = frozenset({"Verifying Checksum", "Download complete"})
"""What dockerd reports of a layer, in this order, once all of it has arrived (moby, distribution/pull_v2.go)."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


@dataclass(frozen=True)
class DockerClient:
    """A client of one Docker engine."""

    docker: Docker

    def pull(self, client: str, reference: str) -> float:
        """Pull an image by `docker` or `containerd`; return the time at which the last byte of a layer had arrived.

        containerd does not report it, but ends soon after: it has nothing to unpack.
        """
        if client == "docker":
            return self._docker_pull(reference)
        self._ctr("content", "fetch", "--plain-http", reference)
        return time.monotonic()

    def remove(self, client: str, reference: str) -> None:
        """Remove an image with all its layers."""
        if client == "docker":
            self.docker("rmi", reference).check_returncode()
        else:
            self._ctr("images", "rm", "--sync", reference)

    def _docker_pull(self, reference: str) -> float:
        """Pull through dockerd's API, whose progress says more than the command prints."""
        connection = UnixConnection(self.docker.socket.removeprefix("unix://"))
        name, _, tag = reference.rpartition(":")
        connection.request("POST", f"/images/create?fromImage={name}&tag={tag}")
        answer = connection.getresponse()
        arrived: dict[str, float] = {}
        for line in answer:
            progress = json.loads(line)
            if answer.status != http.HTTPStatus.OK or "error" in progress:
                raise SystemExit(f"docker pull {reference}: {progress}")
            if progress.get("status") in ARRIVED:
                arrived.setdefault(progress["id"], time.monotonic())
        connection.close()
        return max(arrived.values())

    def _ctr(self, *words: str) -> None:
        argv = ["ctr", "--address", self.docker.containerd, *words]
        self.docker.machine.run(argv, timeout=PATIENCE, check=True)
