"""Limits of a group as real clients see them."""

from typing import TYPE_CHECKING

import pytest

from lab.docker import dockerd_on

if TYPE_CHECKING:
    from tests.acceptance.conftest import Field

pytestmark = pytest.mark.acceptance

GROUPS = """
[[group]]
name = "builders"
pull = ["**"]
push = ["team/*"]

  [group.limits]
  requests_per_second = 8
  pull_rate = "192KiB"
  push_rate = "192KiB"
  concurrent_pulls = 1
"""


def test_clients_are_slowed_down_and_not_refused(field: "Field") -> None:
    """Skopeo's push and docker's pull exceed every limit of their group: they wait, and succeed."""
    agent = field.boot("builder")
    field.up(agent, groups=GROUPS)
    pushed = field.push(agent, layers=3)
    with dockerd_on(agent) as docker:
        pulled = docker("pull", "localhost:5000/team/app:1")

    assert pulled.returncode == 0, pulled.stderr
    assert pushed in pulled.stdout
    limits = {one["limit"]: one for one in field.controller.client.status()["limits"]}
    assert set(limits) == {"requests_per_second", "pull_rate", "push_rate", "concurrent_pulls"}
    # Whether a request waits for its turn depends on how fast the machine is; the others are exceeded on any machine.
    assert all(one["waits"] > 0 and one["wait_s"] > 0 for name, one in limits.items() if name != "requests_per_second")
    assert {(one["group"], one["waiting"], one["refused"]) for one in limits.values()} == {("builders", 0, 0)}
