"""Container images of random data, and skopeo to push and pull them."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

from lab import processes
from lab.namespaces import Machine

if TYPE_CHECKING:
    from pathlib import Path
    from subprocess import CompletedProcess

_SKOPEO = ("skopeo", "--insecure-policy")  # without this it requires /etc/containers/policy.json


def make_image(folder: Path, tag: str = "test", layers: int = 3, kib_per_layer: int = 64) -> str:
    """Build an OCI image of incompressible layers and return its reference, `oci:<layout>:<tag>`."""
    layout, bundle = folder / "layout", folder / f"bundle-{tag}"
    image = f"{layout}:{tag}"
    folder.mkdir(parents=True, exist_ok=True)
    if not layout.exists():
        _umoci("init", "--layout", str(layout))
    _umoci("new", "--image", image)
    rootless = ["--rootless"] if os.geteuid() else []
    _umoci("unpack", *rootless, "--image", image, str(bundle))
    for number in range(layers):
        (bundle / f"rootfs/layer-{number}").write_bytes(os.urandom(kib_per_layer * 1024))
        _umoci("repack", "--refresh-bundle", "--image", image, str(bundle))
    _umoci("config", "--image", image, "--config.cmd", "/bin/true", "--config.label", f"lab={tag}")
    return f"oci:{image}"


def skopeo_copy(
    machine: Machine | None, source: str, destination: str, *, timeout: float = 60.0
) -> CompletedProcess[str]:
    """Copy an image between `oci:…` and `docker://localhost:5000/…` from the given machine, over plain HTTP."""
    plain = ["--src-tls-verify=false", "--dest-tls-verify=false"]
    return (machine or Machine()).run([*_SKOPEO, "copy", *plain, source, destination], timeout=timeout)


def digest_of(machine: Machine | None, image: str) -> str:
    """Return the digest of an image's manifest: OCI image spec, "Digests"."""
    return "sha256:" + hashlib.sha256(_manifest(machine, image).encode()).hexdigest()


def layer_digests(machine: Machine | None, image: str) -> list[str]:
    """Return the digests of an image's layers, the lowest first."""
    return [str(layer["digest"]) for layer in json.loads(_manifest(machine, image))["layers"]]


def _manifest(machine: Machine | None, image: str) -> str:
    plain = ["--tls-verify=false"] if image.startswith("docker:") else []
    return (machine or Machine()).run([*_SKOPEO, "inspect", "--raw", *plain, image], check=True).stdout


def _umoci(*arguments: str) -> None:
    processes.run(["umoci", *arguments], check=True)
