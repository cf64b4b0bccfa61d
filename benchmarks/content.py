"""The content of the lab's registry, pushed from the same machine."""

import sys
from pathlib import Path

from lab.images import make_image, skopeo_copy
from lab.network import Lab

PUSH = """
import hashlib, http.client, os, sys
content = os.urandom(int(sys.argv[2]))
def ask(method, target, body=b""):
    connection = http.client.HTTPConnection(sys.argv[1], timeout=60)
    connection.request(method, target, body)
    answer = connection.getresponse()
    answer.read()
    assert answer.status < 400, answer.status
    return answer.getheader("Location", "").partition(sys.argv[1])[2]
digest = "sha256:" + hashlib.sha256(content).hexdigest()
ask("PUT", ask("POST", "/v2/benchmark/app/blobs/uploads/") + "&digest=" + digest, content)
print("/v2/benchmark/app/blobs/" + digest)
"""


def push(lab: Lab, url: str, octets: int) -> str:
    """Push a blob from the registry's machine; return its path."""
    argv = [sys.executable, "-c", PUSH, url.removeprefix("http://"), str(octets)]
    return lab.controller.run(argv, timeout=120, check=True).stdout.strip()


def push_manifest(lab: Lab, folder: Path) -> str:
    """Push a small image, which is made in `folder`; return the path of its manifest."""
    layout = make_image(folder / "image", layers=1)
    skopeo_copy(lab.controller, layout, "docker://localhost:5000/team/app:1").check_returncode()
    return "/v2/team/app/manifests/1"
