"""The audit of a configuration as a whole: the log, its seals, its collectors, and what is reported of them."""

import json
from pathlib import Path

import pytest

from tests.daemon.conftest import Site
from tests.observability.collectors import HttpCollector
from tests.ssh.ssh_server import free_port
from tests.until import until
from tunnelmgr.config import AuditForwardConfig, Config, load
from tunnelmgr.control.problems import controller_problems
from tunnelmgr.control.views import status_view
from tunnelmgr.core.health import DaemonHealth, RegistryHealth
from tunnelmgr.core.world import World
from tunnelmgr.daemon.audit_setup import AuditParts, make_audit
from tunnelmgr.observability import audit_forward
from tunnelmgr.observability.audit_samples import forward_samples
from tunnelmgr.ssh.key_files import make_key


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for new entries often."""
    for name, value in {"POLL": 0.01, "RETRY_MIN": 0.02, "RETRY_MAX": 0.1}.items():
        monkeypatch.setattr(audit_forward, name, value)


@pytest.fixture
def config(site: Site, tmp_path: Path) -> Config:
    """Load a configuration with a log and a key."""
    make_key(tmp_path / "audit_ed25519", "audit")
    config = load(site.file)
    settings = {"audit": tmp_path / "audit.jsonl", "audit_key": tmp_path / "audit_ed25519"}
    return config.model_copy(update={"controller": config.controller.model_copy(update=settings)})


def audit_of(config: Config, *urls: str) -> AuditParts:
    """Return the audit with collectors at these URLs."""
    forwards = [AuditForwardConfig(name=f"c{number}", url=url) for number, url in enumerate(urls, 1)]
    return make_audit(config.model_copy(update={"audit_forward": forwards}), lambda: 1_700_000_000.0, lambda: False)


async def test_a_stop_forwards_the_last_seal(config: Config) -> None:
    """What is written until the stop, with the seal, arrives before the stop ends."""
    collector = HttpCollector()
    async with collector.serving():
        audit = audit_of(config, collector.url)
        await audit.start()
        audit.log.note("entry")
        await until(lambda: audit.health().forwards[0].sequence == 2)
        audit.log.close()
        await until(lambda: audit.health().forwards[0].sequence == 3)
        audit.close()

    assert [json.loads(line)["code"] for line in collector.lines] == ["audit-started", "entry", "audit-sealed"]


async def test_numbers_that_a_collector_has_are_not_used_again(config: Config, tmp_path: Path) -> None:
    """After the loss of the file, the numbers continue after those that were forwarded."""
    collector = HttpCollector()
    async with collector.serving():
        for _ in range(2):
            audit = audit_of(config, collector.url)
            await audit.start()
            await until(lambda audit=audit: audit.health().forwards[0].behind == 0)
            audit.log.close()
            await until(lambda audit=audit: audit.health().forwards[0].behind == 0)
            audit.close()
            (tmp_path / "audit.jsonl").unlink()

    assert [json.loads(line)["sequence"] for line in collector.lines] == [1, 2, 3, 4]


async def test_a_collector_that_fails_is_shown(config: Config) -> None:
    """Status, its list of problems and the metrics name the collector that fails, and not the other one."""
    collector = HttpCollector()
    async with collector.serving():
        audit = audit_of(config, collector.url, f"http://127.0.0.1:{free_port()}/")
        await audit.start()
        await until(lambda: audit.health().forwards[0].success_at and audit.health().forwards[1].error)
        health = audit.health()
        audit.close()

    registry = RegistryHealth(reachable=True, loopback_only=True)
    status = status_view(World(), DaemonHealth("registry-1", "1.2.3", 1.0, registry, None, health))
    good, bad = status["audit"]["forwards"]
    assert (good["name"], good["ok"], good["sequence"], good["behind"], good["dropped"]) == ("c1", True, 1, 0, 0)
    assert (bad["name"], bad["ok"], bad["behind"], bad["last_success"]) == ("c2", False, 1, None)
    assert status["audit"]["ok"]
    assert controller_problems(status) == [f"audit collector c2 fails, entries that it lacks: 1: {bad['error']}"]
    samples = {
        (sample.name, sample.labels["destination"]): sample.value
        for family in forward_samples(health.forwards)
        for sample in family.samples
    }
    assert samples == {
        ("tunnelmgr_audit_forward_ok", "c1"): 1,
        ("tunnelmgr_audit_forward_ok", "c2"): 0,
        ("tunnelmgr_audit_forward_behind", "c1"): 0,
        ("tunnelmgr_audit_forward_behind", "c2"): 1,
        ("tunnelmgr_audit_forward_dropped_total", "c1"): 0,
        ("tunnelmgr_audit_forward_dropped_total", "c2"): 0,
    }
    assert list(forward_samples(())) == []


async def test_without_a_log_there_is_nothing_to_forward(site: Site) -> None:
    """Without a file the entries go to the daemon's log, and the audit has no collectors."""
    audit = audit_of(load(site.file), "http://127.0.0.1:1/")

    assert audit.forwards == ()
    assert audit.log.written == 0
