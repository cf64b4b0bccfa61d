"""What the lab's registry has, pushed from beside it."""

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
ask("PUT", ask("POST", "/v2/bench/app/blobs/uploads/") + "&digest=" + digest, content)
print("/v2/bench/app/blobs/" + digest)
"""


def push(lab: Lab, url: str, octets: int) -> str:
    """Push a blob from beside the registry; returns what to ask for."""
    words = [sys.executable, "-c", PUSH, url.removeprefix("http://"), str(octets)]
    return lab.controller.run(words, timeout=120, check=True).stdout.strip()


def push_manifest(lab: Lab, folder: Path) -> str:
    """Push a small image, which is made in `folder`; returns what to ask for to get its manifest."""
    layout = make_image(folder / "image", layers=1)
    skopeo_copy(lab.controller, layout, "docker://localhost:5000/team/app:1").check_returncode()
    return "/v2/team/app/manifests/1"
