"""Pulls one image as docker does: the manifest by its tag, then three layers at a time; discards the content.

python benchmarks/image_client.py PORT REPOSITORY TAG    # prints the bytes of the layers and the seconds
"""

import http.client
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from pull_load import MANIFESTS, MIB

AT_ONCE = 3
"""docker's and containerd's default (`max-concurrent-downloads`)."""
PATIENCE = 600
"""Seconds without a byte after which a pull has failed."""


def pull(port: int, repository: str, tag: str) -> tuple[int, float]:
    """Pull; return bytes and seconds. Raises SystemExit if a layer is not as long as the manifest says."""
    started = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", f"/v2/{repository}/manifests/{tag}", headers={"Accept": MANIFESTS})
    manifest = json.loads(connection.getresponse().read())
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sizes = list(pool.map(lambda layer: fetch(port, repository, layer), manifest["layers"]))
    return sum(sizes), time.monotonic() - started


def fetch(port: int, repository: str, layer: dict[str, int]) -> int:
    """Fetch one layer on a connection of its own, and return its size."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", f"/v2/{repository}/blobs/{layer['digest']}")
    answer, room, received = connection.getresponse(), memoryview(bytearray(MIB)), 0
    while count := answer.readinto(room):
        received += count
    connection.close()
    if answer.status != http.client.OK or received != layer["size"]:
        raise SystemExit(f"{answer.status}, {received} of {layer['size']} bytes")
    return received


if __name__ == "__main__":
    print(json.dumps(pull(int(sys.argv[1]), sys.argv[2], sys.argv[3])))
