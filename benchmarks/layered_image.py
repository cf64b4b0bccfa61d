"""An image of random layers of a given number and size, pushed straight to a registry of the lab.

The layers are gzip files that contain a tar archive each, as docker makes them. Random bytes do not compress, so an
image has the same size on the wire and on the disk, and unpacking it is as cheap as it can be.
"""

import hashlib
import http.client
import io
import json
import os
import tarfile
import zlib
from dataclasses import dataclass

from lab.namespaces import Machine
from lab.registry import Registry

MIB = 1024 * 1024
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
GZIP = 16 + zlib.MAX_WBITS
"""The window size by which zlib makes a gzip file."""


@dataclass(frozen=True)
class LayeredImage:
    """An image by the number and the size of its layers."""

    repository: str
    layers: int
    mib_per_layer: int

    def push(self, machine: Machine, registry: Registry) -> None:
        """Push it, with the tag `1`, from the registry's machine."""
        connection = http.client.HTTPConnection("127.0.0.1", registry.port, timeout=60)
        connection.sock = machine.connect("127.0.0.1", registry.port, timeout=60)
        uploads = Uploads(connection, self.repository)
        layers, contents = [], []
        for number in range(self.layers):
            content = archive(f"layer-{number}", self.mib_per_layer * MIB)
            contents.append(digest(content))
            layers.append(uploads.blob(gzipped(content), LAYER))
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": contents}}
        uploads.manifest("1", uploads.blob(json.dumps(config).encode(), CONFIG), layers)
        connection.close()


class Uploads:
    """Uploads to one repository, over one connection."""

    def __init__(self, connection: http.client.HTTPConnection, repository: str) -> None:
        self._connection = connection
        self._base = f"/v2/{repository}"

    def blob(self, content: bytes, kind: str) -> dict[str, object]:
        """Upload a blob; return its descriptor (OCI image spec, "Content Descriptors")."""
        name = digest(content)
        location = self._ask("POST", f"{self._base}/blobs/uploads/").partition(self._base)
        self._ask("PUT", f"{self._base}{location[2]}&digest={name}", content, "application/octet-stream")
        return {"mediaType": kind, "size": len(content), "digest": name}

    def manifest(self, tag: str, config: dict[str, object], layers: list[dict[str, object]]) -> None:
        """Upload the manifest under a tag."""
        content = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
        self._ask("PUT", f"{self._base}/manifests/{tag}", json.dumps(content).encode(), MANIFEST)

    def _ask(self, method: str, target: str, body: bytes = b"", kind: str = "") -> str:
        """Send a request and return the Location of its answer."""
        self._connection.request(method, target, body, {"Content-Type": kind} if kind else {})
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= http.HTTPStatus.BAD_REQUEST:
            raise SystemExit(f"{method} {target}: {answer.status} {text[:200]!r}")
        return answer.getheader("Location", "")


def archive(name: str, octets: int) -> bytes:
    """Return a tar archive of one file of random bytes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        entry = tarfile.TarInfo(name)
        entry.size = octets
        made.addfile(entry, io.BytesIO(os.urandom(octets)))
    return file.getvalue()


def gzipped(content: bytes) -> bytes:
    """Return a gzip file; without compression, as zlib stores random bytes in any case."""
    packer = zlib.compressobj(0, wbits=GZIP)
    return packer.compress(content) + packer.flush()


def digest(content: bytes) -> str:
    """Return the digest of a blob (OCI image spec, "Digests")."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
