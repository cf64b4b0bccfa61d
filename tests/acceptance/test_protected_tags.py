"""Real clients and immutable tags: the same push succeeds twice, and no other request changes a release."""

import os
import sys
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import TYPE_CHECKING

import pytest

from lab.agents import LabAgent
from lab.images import digest_of, make_image, skopeo_copy
from tests.acceptance.test_clients import ORAS

if TYPE_CHECKING:
    from tests.acceptance.conftest import Field

pytestmark = pytest.mark.acceptance

APP = "localhost:5000/team/app"
GROUPS = """
[[group]]
name = "builders"
push = ["team/*"]
delete = ["team/*"]
immutable_tags = ["*"]
"""


@pytest.fixture
def builder(field: "Field") -> LabAgent:
    """Return an agent that is up and may push and delete in team/*, with immutable tags."""
    agent = field.boot("builder")
    field.up(agent, groups=GROUPS)
    return agent


@pytest.fixture
def copy(field: "Field", builder: LabAgent) -> Callable[[str, str], CompletedProcess[str]]:
    """Return a function that pushes an image of the given name under a tag; images of different names differ."""
    layouts: dict[str, str] = {}

    def push(image: str, tag: str) -> CompletedProcess[str]:
        if image not in layouts:
            layouts[image] = make_image(field.folder / image, layers=2)
        return skopeo_copy(builder, layouts[image], f"docker://{APP}:{tag}")

    return push


def test_skopeo_pushes_the_same_release_twice_and_cannot_change_or_delete_it(
    field: "Field", builder: LabAgent, copy: Callable[[str, str], CompletedProcess[str]]
) -> None:
    """`skopeo copy` overwrites a tag and `skopeo delete` deletes its digest; both are refused and print the reason."""
    pushed = [copy("first", "v1").returncode for _ in "12"]
    known = digest_of(field.lab.controller, f"docker://{APP}:v1")
    changed = copy("second", "v1")
    deleted = builder.run(["skopeo", "delete", "--tls-verify=false", f"docker://{APP}:v1"], timeout=60)

    assert pushed == [0, 0]
    assert f"tunnelmgr: team/app:v1 points to {known} and may not be overwritten (immutable_tags *)" in changed.stderr
    assert f"tunnelmgr: {known} may not be deleted: team/app:v1 points to it (immutable_tags *)" in deleted.stderr
    assert 0 not in {changed.returncode, deleted.returncode}
    assert digest_of(field.lab.controller, f"docker://{APP}:v1") == known


def test_oras_and_cosign_add_referrers_to_a_release(
    field: "Field", builder: LabAgent, copy: Callable[[str, str], CompletedProcess[str]]
) -> None:
    """Tags of the form `sha256-<hex>`, which change with each referrer, stay writable although `*` protects all tags.

    The Python SDK of ORAS writes the fallback tag here. cosign is in none of Debian, PyPI and npm; a second `cosign
    sign` pushes another manifest under `sha256-<hex>.sig`, which skopeo does in its place.
    """
    assert copy("first", "v1").returncode == 0
    fallback = digest_of(field.lab.controller, f"docker://{APP}:v1").replace(":", "-")
    attached = []
    for number in range(2):
        file = field.folder / f"attachment-{number}"
        file.write_bytes(os.urandom(1000))
        words = ["basic", "push", f"{APP}:{fallback}", str(file)]
        pushed = builder.run([sys.executable, "-c", ORAS, *words], env={"HOME": str(field.folder)}, timeout=60)
        attached.append(pushed.stdout.split()[-1:])

    signed = [copy(image, f"{fallback}.sig").returncode for image in ("one", "two")]

    assert attached == [["201"], ["201"]]
    assert signed == [0, 0]
