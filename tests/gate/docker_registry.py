"""A real docker-registry on loopback."""

import hashlib
import http.client
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.processes import until
from tunnelmgr.core.tunnel import Endpoint

DEADLINE = 10.0

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass
class Registry:
    """A running docker-registry, which the test can also reach directly."""

    endpoint: Endpoint
    folder: Path

    def access_log(self) -> str:
        """Return the access log, one line for each request."""
        return (self.folder / "access.log").read_text()

    def ask(self, method: str, target: str, body: bytes = b"", kind: str = "") -> tuple[int, dict[str, str], bytes]:
        """Send a request past the gate."""
        connection = http.client.HTTPConnection(self.endpoint.host, self.endpoint.port, timeout=DEADLINE)
        try:
            headers = {"Content-Type": kind} if kind else {}
            headers["Accept"] = MANIFEST_TYPE
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def push_blob(self, repository: str, content: bytes) -> str:
        """Push a blob and return its digest."""
        digest = digest_of(content)
        _, headers, _ = self.ask("POST", f"/v2/{repository}/blobs/uploads/")
        target = headers["location"].partition(str(self.endpoint))[2]
        status, _, _ = self.ask("PUT", f"{target}&digest={digest}", content, "application/octet-stream")
        assert status == http.client.CREATED
        return digest

    def push_image(self, repository: str, tag: str, layer: bytes) -> str:
        """Push an image of one layer and return its digest."""
        manifest = self.manifest(repository, layer)
        status, headers, _ = self.ask("PUT", f"/v2/{repository}/manifests/{tag}", manifest, MANIFEST_TYPE)
        assert status == http.client.CREATED
        return headers["docker-content-digest"]

    def manifest(self, repository: str, layer: bytes) -> bytes:
        """Push an image's blobs and return its manifest."""
        config = self.push_blob(repository, b"{}")
        pushed = self.push_blob(repository, layer)
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": {
                    "mediaType": "application/vnd.docker.container.image.v1+json",
                    "size": 2,
                    "digest": config,
                },
                "layers": [
                    {
                        "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                        "size": len(layer),
                        "digest": pushed,
                    }
                ],
            }
        ).encode()


def digest_of(content: bytes) -> str:
    """Return the digest of a blob."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@contextmanager
def running_registry(
    folder: Path, *, read_only: bool = False, deletes: bool = True, host: str = "", cache_of: str = ""
) -> Iterator[Registry]:
    """Run a real docker-registry on a free loopback port; `folder/access.log` has one line for each request.

    `host` is the setting `http.host`; the registry puts it into every Location. `cache_of` is `proxy.remoteurl`, which
    makes it a pull-through cache of the registry there.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = Endpoint("127.0.0.1", probe.getsockname()[1])
    settings = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": False}},
        "storage": {
            "filesystem": {"rootdirectory": str(folder / "content")},
            "delete": {"enabled": deletes},
            "maintenance": {"uploadpurging": {"enabled": False}, "readonly": {"enabled": read_only}},
        },
        "http": {"addr": str(endpoint)} | ({"host": host} if host else {}),
    } | ({"proxy": {"remoteurl": cache_of}} if cache_of else {})
    config = folder / ("read-only.json" if read_only else "registry.json")
    config.write_text(json.dumps(settings))
    with (
        (folder / "access.log").open("ab") as output,
        (folder / "error.log").open("ab") as errors,
        subprocess.Popen(
            ["docker-registry", "serve", str(config)],
            stdout=output,
            stderr=errors,
            env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
        ) as process,
    ):
        try:
            until(lambda: _accepts(endpoint, process), f"the registry listens on {endpoint}")
            yield Registry(endpoint, folder)
        finally:
            process.terminate()


def _accepts(endpoint: Endpoint, process: "subprocess.Popen[bytes]") -> bool:
    """Return whether a process accepts connections; raises OSError if it does not and has ended."""
    try:
        socket.create_connection((endpoint.host, endpoint.port), timeout=1).close()
    except OSError:
        if process.poll() is not None:
            raise
        return False
    return True
