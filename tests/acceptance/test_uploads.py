"""An upload that began before a restart of the controller continues after it, for the agent that began it."""

import hashlib
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import pytest

from lab.controller import LabController

if TYPE_CHECKING:
    from lab.agents import LabAgent
    from tests.acceptance.conftest import Field

pytestmark = pytest.mark.acceptance

UPLOADS: Final = "http://localhost:5000/v2/team/app/blobs/uploads/"
STATUS: Final = re.compile(r"^HTTP/1\.1 (?!100)(\d+)", re.MULTILINE)
LOCATION: Final = re.compile(r"^Location: (\S+)", re.MULTILINE | re.IGNORECASE)


class Uploader:
    """A client on an agent that uploads a blob in pieces with curl, each time at the latest location."""

    def __init__(self, field: "Field", agent: "LabAgent") -> None:
        self.agent = agent
        self.location = UPLOADS
        self._piece = field.folder / "piece"

    def send(self, method: str, body: bytes = b"", query: str = "") -> int:
        """Send a request to the location; returns the status, and keeps the location of the response."""
        self._piece.write_bytes(body)
        curl = ["curl", "-sS", "-X", method, "-D", "-", "-o", "/dev/null", "--data-binary", f"@{self._piece}"]
        curl += ["-H", "Content-Type: application/octet-stream", "-H", "Expect:"]
        got = self.agent.run([*curl, self.location + query], timeout=20, check=True).stdout
        if moved := LOCATION.search(got):
            self.location = moved[1]
        found = STATUS.search(got)
        assert found is not None, got
        return int(found[1])


@pytest.mark.parametrize("end", [LabController.stop, LabController.kill], ids=["SIGTERM", "SIGKILL"])
def test_an_upload_goes_on_after_a_restart(field: "Field", end: Callable[[LabController], object]) -> None:
    """The location from before the restart works after it, for its agent only, and the blob arrives whole."""
    builder, other = field.boot("builder"), field.boot("other")
    field.up(builder, other)
    pieces = os.urandom(300_000), os.urandom(200_000)
    digest = f"sha256:{hashlib.sha256(b''.join(pieces)).hexdigest()}"
    upload = Uploader(field, builder)
    before = [upload.send("POST"), upload.send("PATCH", pieces[0])]

    end(field.controller)
    field.controller.start()
    for agent in (builder, other):
        field.controller.wait_phase(agent.name, "up", timeout=30)
    stranger = Uploader(field, other)
    stranger.location = upload.location
    refused = stranger.send("PATCH", b"x")
    after = [upload.send("PATCH", pieces[1]), upload.send("PUT", query=f"&digest={digest}")]
    pull = f"curl -fsS http://localhost:5000/v2/team/app/blobs/{digest} | sha256sum"
    pulled = builder.run(["sh", "-c", pull], timeout=20, check=True)

    assert (before, refused, after) == ([202, 202], 404, [202, 201])
    assert pulled.stdout.split()[0] == digest.removeprefix("sha256:")
    assert secret_of(field) not in field.controller.log()


def secret_of(field: "Field") -> str:
    """Return the secret in the controller's state, as an export shows it."""
    exported = field.controller.command("state", "export").stdout
    found = re.search(r'{"secret":"([0-9a-f]{64})"}', exported)
    assert found is not None, exported
    return found[1]
