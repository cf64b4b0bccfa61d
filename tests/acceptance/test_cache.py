"""`[cache]` with the real daemon, registry, tunnels and clients."""

import json
import re
import sys
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Final

import pytest

from lab.processes import until
from tests.acceptance.conftest import GROUPS

if TYPE_CHECKING:
    from tests.acceptance.conftest import Field

pytestmark = pytest.mark.acceptance

BLOBS: Final = re.compile(r'"GET /v2/team/app/blobs/\S+ HTTP/1\.1" 200')
LAYERS: Final = 3


def cache_in(field: "Field") -> str:
    """Return the table `[cache]` with a folder of the field."""
    return f'[cache]\npath = "{field.folder / "cache"}"\nmin_free = "1MiB"\n'


def test_the_second_agents_pull_reads_no_blob_from_the_registry(field: "Field") -> None:
    """One pull fills the cache; another agent then gets the image from it, and `status` counts that."""
    first, second = field.boot("first"), field.boot("second")
    field.up(first, second, groups=cache_in(field) + GROUPS)
    pushed = field.push(first, layers=LAYERS)

    assert field.pull(first) == pushed
    until(lambda: field.controller.client.status()["cache"]["blobs"] == LAYERS, "the cache has the layers")
    read = len(BLOBS.findall(field.registry.log()))
    pulled = field.pull(second)
    cache = json.loads(field.controller.command("status", "--json").stdout)["cache"]

    assert pulled == pushed
    # The configuration too, though its record may be newer than the last pull's.
    assert (read, len(BLOBS.findall(field.registry.log()))) == (LAYERS + 1, LAYERS + 1)
    assert cache["hits"] >= LAYERS
    assert cache["bytes"] > LAYERS * 256 * 1024
    assert cache["path"] == str(field.folder / "cache")


def on_a_read_only_disk(field: "Field", command: str) -> CompletedProcess[str]:
    """Run a command of the command line while the cache's folder is empty, on a disk that cannot be written."""
    folder = field.folder / "cache"
    folder.mkdir(exist_ok=True)
    program = f"{sys.executable} -m tunnelmgr -c {field.controller.file} {command}"
    script = f"mount -t tmpfs -o ro none {folder} && exec {program}"
    return field.controller.machine.run(["unshare", "--mount", "sh", "-c", script], timeout=30)


def test_a_folder_that_cannot_be_written_is_found(field: "Field") -> None:
    """`check` names a cache folder on a read-only disk, and the daemon does not start with it."""
    field.static(groups=cache_in(field) + GROUPS)

    checked, started = (on_a_read_only_disk(field, command) for command in ("check", "run"))

    assert checked.returncode != 0
    assert re.search(rf"cache .*cannot write to {field.folder}/cache", " ".join(checked.stdout.split())), checked.stdout
    assert started.returncode != 0
    assert f"cache.path: {field.folder}/cache/lock: Read-only file system" in started.stderr, started.stderr
