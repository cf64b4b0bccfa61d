"""The answers of real registries about each other's uploads, and of servers that are none."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.registry import Registry
from tests.gate.test_registry_check import answering, serving
from tests.ssh.ssh_server import free_port
from tunnelmgr.core.registry_sharing import REPOSITORY, Sharing
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate import upload_check
from tunnelmgr.gate.upload_check import StartedUpload, find_upload, keep_upload, start_upload
from tunnelmgr.threads import in_thread

Start = Callable[..., Endpoint]
LAB = "lab"
"""The `http.secret` of most registries here."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a docker-registry on this machine's loopback, by default with one storage and one secret."""
    with ExitStack() as stack:

        def start(
            storage: str = "images", http_secret: str = LAB, *, read_only: bool = False, url: str = ""
        ) -> Endpoint:
            port = free_port()
            folder = tmp_path / str(port)
            options = {"storage": tmp_path / storage, "secret": http_secret, "read_only": read_only, "public_url": url}
            stack.enter_context(Registry(None, folder, port=port, **options))  # type: ignore[arg-type]
            return Endpoint("127.0.0.1", port)

        yield start


@pytest.mark.acceptance
def test_a_registry_with_the_same_storage_and_secret_has_the_upload(start: Start) -> None:
    """Another registry on the same storage has the upload, with any name and also if it is read-only."""
    location = start_upload(start()).location

    found = [find_upload(start(url="https://registry.example"), location), find_upload(start(read_only=True), location)]

    assert location.startswith(f"/v2/{REPOSITORY}/blobs/uploads/")
    assert found == [(Sharing.YES, "")] * 2


@pytest.mark.acceptance
def test_an_upload_is_used_again_as_long_as_the_registry_has_it(start: Start, tmp_path: Path) -> None:
    """A registry keeps one upload for each member; once it has removed that, another one begins."""
    registry = start()
    first = keep_upload(registry, "")

    again = keep_upload(registry, first.location)
    shutil.rmtree(tmp_path / "images")
    other = keep_upload(registry, first.location)

    assert again == first
    assert (other.sharing, other.location == first.location) == (Sharing.YES, False)


@pytest.mark.acceptance
def test_a_registry_with_another_storage_or_secret_is_found_out(start: Start) -> None:
    """Each difference has its own answer; if both differ, the secret is named first."""
    location = start_upload(start()).location

    answers = [
        find_upload(registry, location)[0]
        for registry in (start("others"), start("images", "other"), start("others", "other"))
    ]

    assert answers == [Sharing.OTHER_STORAGE, Sharing.OTHER_SECRET, Sharing.OTHER_SECRET]


@pytest.mark.acceptance
def test_a_registry_with_a_public_name_begins_uploads_that_others_find(start: Start) -> None:
    """Of the location only path and query count, so `http.host` does not matter."""
    location = start_upload(start(url="https://registry.example")).location

    assert find_upload(start(), location) == (Sharing.YES, "")


@pytest.mark.acceptance
def test_a_read_only_registry_begins_no_upload(start: Start) -> None:
    """Its member can only look for the uploads of the others, which is not a problem."""
    assert start_upload(start(read_only=True)) == StartedUpload(Sharing.READ_ONLY)


def test_a_registry_that_is_not_there_gives_no_answer() -> None:
    """The message names the address and the reason."""
    away = Endpoint("127.0.0.1", free_port())
    location = f"/v2/{REPOSITORY}/blobs/uploads/1"

    assert start_upload(away) == StartedUpload(Sharing.NO_ANSWER, error=f"{away}: Connection refused")
    assert find_upload(away, location) == (Sharing.NO_ANSWER, f"{away}: Connection refused")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 503 Away\r\nContent-Length: 0\r\n\r\n", "answers 503 to the start of an upload"),
        (b"HTTP/1.1 202 Yes\r\nContent-Length: 0\r\n\r\n", "answers 202 to the start of an upload, not 202 with a"),
        (
            b"HTTP/1.1 202 Yes\r\nLocation: /v2/x/blobs/uploads/1\r\nContent-Length: 0\r\n\r\n",
            "not 202 with a location",
        ),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "it does not speak HTTP"),
        (b"", "closed connection without response"),
    ],
)
async def test_a_server_that_begins_no_upload_is_reported(answer: bytes, error: str) -> None:
    """An error, a location in another repository, and an answer that is not HTTP are reported with the address."""
    async with answering(answer) as endpoint:
        started = await in_thread(start_upload, endpoint)

    assert (started.sharing, started.location) == (Sharing.NO_ANSWER, "")
    assert str(endpoint) in started.error
    assert error in started.error


async def test_a_registry_that_fails_gives_no_answer() -> None:
    """An error that says nothing about the upload is shown with its code."""
    body = b'{"errors":[{"code":"UNAUTHORIZED"}]}'
    async with answering(b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)) as endpoint:
        found = await in_thread(find_upload, endpoint, f"/v2/{REPOSITORY}/blobs/uploads/1")

    assert found == (Sharing.NO_ANSWER, f"{endpoint} answers 401 UNAUTHORIZED to the request for an upload")


@pytest.mark.parametrize(
    "location", ["", "//elsewhere/v2", "/v2/team/app/blobs/uploads/1", f"/v2/{REPOSITORY}/blobs/uploads/1 x"]
)
def test_a_location_in_another_repository_is_not_requested(location: str) -> None:
    """A row of the database cannot make this member request anything else of the registry."""
    nobody = Endpoint("127.0.0.1", 1)

    assert find_upload(nobody, location) == (Sharing.NO_ANSWER, "the database has an invalid location")


async def test_a_registry_that_hangs_gives_no_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request ends after `TIMEOUT` seconds without a response."""
    monkeypatch.setattr(upload_check, "TIMEOUT", 0.1)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with serving(hang) as endpoint:
        started = await in_thread(start_upload, endpoint)

    assert started == StartedUpload(Sharing.NO_ANSWER, error=f"{endpoint} does not answer within 0.1 s")
