"""`check` during a rotation of the login key: which agents accept the next one."""

from pathlib import Path
from typing import Any

import pytest

from tests.daemon.conftest import Site
from tunnelmgr.config import load
from tunnelmgr.control.client import ControlClient
from tunnelmgr.daemon.checks import Finding, check
from tunnelmgr.errors import DaemonNotRunningError
from tunnelmgr.ssh.key_files import load_key, make_key


def fleet(**took: str | None) -> list[dict[str, Any]]:
    """Return agents as the daemon reports them: the login key that each accepted."""
    return [{"agent": name, "present": True, "login_key": key} for name, key in took.items()]


def noise(file: Path) -> None:
    """Make a file that is not a key."""
    file.write_text("noise")


@pytest.fixture
def following(site: Site) -> str:
    """Configure a next key, and return its fingerprint."""
    make_key(site.folder / "next", "test")
    file = site.write()
    file.write_text(file.read_text().replace("[ssh]\n", f'[ssh]\nnext_key = "{site.folder}/next"\n'))
    return load_key(site.folder / "next").get_fingerprint()


async def rotation(
    site: Site, monkeypatch: pytest.MonkeyPatch, answer: list[dict[str, Any]] | Exception
) -> list[Finding]:
    """Run `check` with a daemon that reports these agents, and return its findings about the rotation."""

    def agents(_: ControlClient) -> list[dict[str, Any]]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ControlClient, "agents", agents)
    findings = await check(load(site.file))
    return [finding for finding in findings if finding.check == "key rotation"]


async def test_agents_that_do_not_accept_the_next_key_are_named(
    site: Site, following: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents without the next key, and agents without a login, are named in a note."""
    took = fleet(a=following, b="SHA256:old", c=None)

    assert await rotation(site, monkeypatch, took) == [
        Finding("key rotation", "note", "next key accepted by 1 of 3 agents; not yet: b, c")
    ]


async def test_a_complete_rotation_names_no_agent(site: Site, following: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that left are not counted."""
    left = {"agent": "gone", "present": False, "login_key": None}

    assert await rotation(site, monkeypatch, [*fleet(a=following), left]) == [
        Finding("key rotation", "note", "next key accepted by 1 of 1 agent")
    ]


@pytest.mark.usefixtures("following")
async def test_without_a_daemon_there_is_no_finding(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a daemon no login is known, and `check` reports nothing about the rotation."""
    assert await rotation(site, monkeypatch, DaemonNotRunningError("control.sock")) == []


async def test_without_a_next_key_the_daemon_is_not_asked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a next key there is no rotation to report."""
    site.write()

    assert await rotation(site, monkeypatch, AssertionError("asked")) == []


@pytest.mark.usefixtures("following")
async def test_an_unreadable_next_key_is_reported_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable next key is reported by the key check only."""
    config = load(site.file)
    noise(site.folder / "next")
    monkeypatch.setattr(ControlClient, "agents", lambda _: [])

    findings = await check(config)

    assert [finding.check for finding in findings if finding.result == "failed"].count("ssh key") == 1
    assert not [finding for finding in findings if finding.check == "key rotation"]
