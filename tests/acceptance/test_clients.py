"""Real clients through a real tunnel: permitted actions work with equal digests, and clients print refusals.

The large blob has 256 MiB, or as many MiB as in BIG: `BIG=5120 pytest tests/acceptance/test_clients.py -k flat -s`.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING

import pytest

from lab.agents import LabAgent
from lab.docker import dockerd_on
from lab.images import digest_of, make_image, skopeo_copy
from lab.processes import until

if TYPE_CHECKING:
    from tests.acceptance.conftest import Field

pytestmark = pytest.mark.acceptance

BIG = int(os.environ.get("BIG", "256"))
MIB = 1024 * 1024
BASE = "http://localhost:5000"
APP = "localhost:5000/team/app:1"
SECRET = "localhost:5000/secret/app:1"  # noqa: S105 (the name of a repository)
MAY_NOT_PULL = "tunnelmgr: group builders may not pull secret/app"
MAY_NOT_PUSH = "tunnelmgr: group builders may not push other/app"

GROUPS = """
[[group]]
name = "builders"
pull = ["**"]
push = ["team/*"]
deny = ["secret/**"]
"""


@pytest.fixture
def builder(field: "Field") -> LabAgent:
    """Return an agent that is up, may not pull secret/**, and may push only to team/*."""
    agent = field.boot("builder")
    field.up(agent, groups=GROUPS)
    return agent


def push_image(field: "Field", agent: LabAgent, layers: int = 3) -> str:
    """Push an image with skopeo; return its digest."""
    layout = make_image(field.folder / "image", layers=layers)
    pushed = skopeo_copy(agent, layout, f"docker://{APP}")
    assert pushed.returncode == 0, pushed.stderr
    return digest_of(None, layout)


def served_digest(field: "Field", repository: str = "team/app", tag: str = "1") -> str:
    """Return a tag's digest from the registry itself, not through the tunnel."""
    return digest_of(field.lab.controller, f"docker://localhost:5000/{repository}:{tag}")


def containers_policy(folder: Path) -> str:
    """Write the policy file that podman and buildah require; return its path."""
    place = folder / "policy.json"
    place.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    return str(place)


@pytest.fixture
def storage() -> Iterator[list[str]]:
    """Return options for a storage folder of podman or buildah; podman requires a short path."""
    with tempfile.TemporaryDirectory(prefix="images-") as place:
        yield ["--root", f"{place}/root", "--runroot", f"{place}/run", "--storage-driver", "vfs"]


def test_skopeo_copies_both_ways(field: "Field", builder: LabAgent) -> None:
    """Skopeo pushes and pulls with the same digest, and prints both refusals."""
    pushed = push_image(field, builder)
    pulled = skopeo_copy(builder, f"docker://{APP}", f"oci:{field.folder / 'pulled'}:1")
    no_push = skopeo_copy(builder, f"docker://{APP}", "docker://localhost:5000/other/app:1")
    no_pull = skopeo_copy(builder, f"docker://{SECRET}", f"oci:{field.folder / 'secret'}:1")

    assert pulled.returncode == 0
    assert digest_of(None, f"oci:{field.folder / 'pulled'}:1") == pushed == served_digest(field)
    assert MAY_NOT_PUSH in no_push.stderr
    assert MAY_NOT_PULL in no_pull.stderr


def test_podman_pulls(field: "Field", builder: LabAgent, storage: list[str]) -> None:
    """The image that podman stores has the digest that was pushed."""
    pushed = push_image(field, builder)
    podman = ["podman", *storage, "--cgroup-manager=cgroupfs", "--events-backend=none"]
    pull = [*podman, "pull", "--tls-verify=false", f"--signature-policy={containers_policy(field.folder)}"]

    pulled = builder.run([*pull, f"docker://{APP}"], timeout=60)
    shown = builder.run([*podman, "image", "inspect", APP], timeout=60)
    refused = builder.run([*pull, f"docker://{SECRET}"], timeout=60)

    assert pulled.returncode == 0, pulled.stderr
    assert json.loads(shown.stdout)[0]["Digest"] == pushed
    assert MAY_NOT_PULL in refused.stderr


def test_buildah_builds_and_pushes(field: "Field", builder: LabAgent, storage: list[str]) -> None:
    """Buildah builds an image from scratch and pushes it; the registry has the digest that buildah reports."""
    buildah = ["buildah", *storage]
    policy = f"--signature-policy={containers_policy(field.folder)}"
    (field.folder / "file").write_bytes(os.urandom(300_000))
    reported = field.folder / "digest"

    made = builder.run([*buildah, "from", "scratch"], check=True).stdout.strip()
    builder.run([*buildah, "copy", made, str(field.folder / "file"), "/file"], check=True)
    builder.run([*buildah, "commit", policy, made, "built"], check=True, timeout=60)
    push = [*buildah, "push", policy, "--tls-verify=false", f"--digestfile={reported}", "built"]
    pushed = builder.run([*push, f"docker://{APP}"], timeout=60)
    refused = builder.run([*push, "docker://localhost:5000/other/app:1"], timeout=60)

    assert pushed.returncode == 0, pushed.stderr
    assert reported.read_text().strip() == served_digest(field)
    assert MAY_NOT_PUSH in refused.stderr


def test_dockerd_pulls_and_pushes_twenty_layers_at_once(field: "Field", builder: LabAgent) -> None:
    """`docker pull localhost:5000/…` and `docker push` work without any configuration."""
    pushed = push_image(field, builder, layers=20)

    with dockerd_on(builder) as docker:
        pulled = docker("pull", APP)
        docker("tag", APP, "localhost:5000/team/copy:1")
        docker("tag", APP, "localhost:5000/other/app:1")
        again = docker("push", "localhost:5000/team/copy:1")
        no_push = docker("push", "localhost:5000/other/app:1")
        no_pull = docker("pull", SECRET)

    assert pulled.returncode == 0, pulled.stderr
    assert f"Digest: {pushed}" in pulled.stdout
    assert again.returncode == 0, again.stderr
    reported = re.search(r"digest: (sha256:[0-9a-f]{64})", again.stdout)
    assert reported is not None
    assert reported[1] == served_digest(field, "team/copy")
    assert MAY_NOT_PUSH in no_push.stderr + no_push.stdout
    assert MAY_NOT_PULL in no_pull.stderr


def test_python_dxf_pushes_and_pulls(field: "Field", builder: LabAgent) -> None:
    """`python-dxf` pushes and pulls; of a refusal it prints the status line, which contains our message."""
    dxf, environment = str(Path(sys.executable).with_name("dxf")), {"DXF_HOST": "localhost:5000", "DXF_INSECURE": "1"}
    content = os.urandom(200_000)
    file = field.folder / "blob"
    file.write_bytes(content)

    def run(*words: str) -> CompletedProcess[str]:
        return builder.run([dxf, *words], env=environment, timeout=60)

    pushed = run("push-blob", "team/app", str(file))
    named = run("set-alias", "team/app", "1", pushed.stdout.strip())
    listed = run("list-aliases", "team/app")
    shown = run("get-alias", "team/app", "1")
    no_push = run("push-blob", "other/app", str(file))
    no_pull = run("get-alias", "secret/app", "1")

    assert pushed.stdout.strip() == f"sha256:{hashlib.sha256(content).hexdigest()}", pushed.stderr
    assert named.returncode == 0, named.stderr
    assert (listed.stdout.strip(), shown.stdout.strip()) == ("1", pushed.stdout.strip())
    assert 0 not in {no_push.returncode, no_pull.returncode}
    assert f"403 Client Error: {MAY_NOT_PUSH}" in no_push.stderr
    assert f"403 Client Error: {MAY_NOT_PULL}" in no_pull.stderr


ORAS = """
import sys
from oras.client import OrasClient
from oras.logger import setup_logger

backend, verb, target, place = sys.argv[1:]
setup_logger()
client = OrasClient(hostname="localhost:5000", insecure=True, auth_backend=backend)
client.auth.set_basic_auth("anybody", "")
if verb == "push":
    print(client.push(target=target, files=[place], disable_path_validation=True).status_code)
else:
    print(client.pull(target=target, outdir=place)[0])
"""
"""A build's use of ORAS's Python SDK, with logging: otherwise it prints the reason only after minutes of retries."""


def test_oras_pushes_and_pulls_an_artifact(field: "Field", builder: LabAgent) -> None:
    """An artifact that is not an image is pushed and pulled, and the SDK prints our message of a refusal.

    The SDK's default backend treats every 403 as a missing login; with `basic` it reads the message. It retries for
    minutes, so the test ends it after the message.
    """
    content = os.urandom(200_000)
    file, back = field.folder / "artifact.bin", field.folder / "back"
    file.write_bytes(content)

    def run(*words: str) -> CompletedProcess[str]:
        return builder.run([sys.executable, "-c", ORAS, "token", *words], env={"HOME": str(field.folder)}, timeout=60)

    def prints(message: str, *words: str) -> None:
        log = field.folder / f"{words[0]}.log"
        command = [sys.executable, "-c", ORAS, "basic", *words]
        client = builder.popen(command, env={"HOME": str(field.folder)}, log=log)
        until(lambda: message in log.read_text(), f"oras prints {message!r}", timeout=30)
        client.end()

    pushed = run("push", "localhost:5000/team/artifact:1", str(file))
    pulled = run("pull", "localhost:5000/team/artifact:1", str(back))

    assert pushed.stdout.split()[-1:] == ["201"], pushed.stderr
    assert pulled.returncode == 0, pulled.stderr
    assert next(path for path in back.rglob("*") if path.is_file()).read_bytes() == content
    prints(MAY_NOT_PUSH, "push", "localhost:5000/other/app:1", str(file))
    prints(MAY_NOT_PULL, "pull", SECRET, str(back))


class Curl:
    """curl on an agent."""

    def __init__(self, agent: LabAgent) -> None:
        self._agent = agent

    def __call__(self, method: str, url: str, *options: str, timeout: float = 120.0) -> tuple[int, Mapping[str, str]]:
        """Send one request; return status and header fields."""
        shown = ["-I"] if method == "HEAD" else ["-X", method, "-D", "-", "-o", "/dev/null"]
        done = self._agent.run(["curl", "-sS", *shown, *options, url], timeout=timeout)
        assert done.returncode == 0, done.stderr
        status, *lines = [block for block in done.stdout.split("\r\n\r\n") if block][-1].splitlines()
        fields = (line.partition(": ") for line in lines)
        return int(status.split()[1]), {name.lower(): value.strip() for name, _, value in fields}

    def begin(self) -> str:
        """Start an upload; return its location."""
        status, fields = self("POST", f"{BASE}/v2/team/app/blobs/uploads/")
        assert status == 202
        return fields["location"]


CHUNKED = ("-H", "Transfer-Encoding: chunked", "-H", "Content-Type: application/octet-stream")


def test_a_chunked_upload_is_resumed_after_its_tunnel_was_lost(field: "Field", builder: LabAgent) -> None:
    """The uploaded half stays; the same agent asks for the offset and sends the other half."""
    curl = Curl(builder)
    content = os.urandom(3 * MIB)
    first, rest = field.folder / "first", field.folder / "rest"
    first.write_bytes(content[:MIB])
    rest.write_bytes(content[MIB:])

    location = curl.begin()
    halted = curl("PATCH", location, *CHUNKED, "-T", str(first))
    builder.restart_sshd()
    until(lambda: field.reaches(builder), "the tunnel is up again", timeout=30)
    asked = curl("GET", halted[1]["location"])
    resumed = curl("PATCH", asked[1]["location"], "-T", str(rest), "-H", f"Content-Range: {MIB}-{3 * MIB - 1}")
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    ended = curl("PUT", f"{resumed[1]['location']}&digest={digest}")
    there = curl("HEAD", f"{BASE}/v2/team/app/blobs/{digest}")

    assert [halted[0], asked[0], resumed[0], ended[0]] == [202, 204, 202, 201]
    assert asked[1]["range"] == f"0-{MIB - 1}"
    assert there[1]["content-length"] == str(3 * MIB)


def resident(pid: int) -> int:
    """Return the bytes that a process holds in memory (proc(5), VmRSS)."""
    return int(re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) * 1024


@contextmanager
def peak_of(pid: int) -> Iterator[list[int]]:
    """Watch a process's memory; yields a list whose one item is the peak so far."""
    peak, ended = [resident(pid)], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            peak[0] = max(peak[0], resident(pid))

    watching = threading.Thread(target=watch, name="memory watch")
    watching.start()
    try:
        yield peak
    finally:
        ended.set()
        watching.join()


def write_noise(file: Path, mib: int) -> str:
    """Write random bytes; return their digest."""
    noise, digest = os.urandom(MIB), hashlib.sha256()
    with file.open("wb") as out:
        for number in range(mib):
            piece = number.to_bytes(8, "big") + noise[8:]
            out.write(piece)
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


@pytest.mark.timeout(120 + BIG)
def test_a_large_blob_leaves_the_controllers_memory_flat(
    field: "Field", builder: LabAgent, capsys: pytest.CaptureFixture[str]
) -> None:
    """During an upload and a download, the daemon holds only a few windows of the blob."""
    curl = Curl(builder)
    big, small = field.folder / "big", field.folder / "small"
    digests = {file: write_noise(file, mib) for file, mib in ((small, 8), (big, BIG))}
    pid = field.controller.pid

    def up_and_down(file: Path) -> str:
        status, _ = curl("PUT", f"{curl.begin()}&digest={digests[file]}", "-T", str(file), timeout=BIG + 60)
        assert status == 201
        down = f"curl -fsS {BASE}/v2/team/app/blobs/{digests[file]} | sha256sum"
        return builder.run(["sh", "-c", down], timeout=BIG + 60).stdout.split()[0]

    up_and_down(small)  # what is loaded once does not count as growth
    before = resident(pid)
    with peak_of(pid) as peak:
        pulled = up_and_down(big)
    grown = (peak[0] - before) / MIB

    with capsys.disabled():
        print(f"\n{BIG} MiB up and down: {before / MIB:.1f} MiB resident before, {grown:+.1f} MiB at most")  # noqa: T201
    assert f"sha256:{pulled}" == digests[big]
    assert grown <= 32
