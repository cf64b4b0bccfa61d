"""Tracing as operators have it: a daemon, an agent's real sshd, and a collector that gets the traces of both."""

import builtins
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.daemon.conftest import running_site
from tests.daemon.running_daemon import daemon, fetch
from tests.observability.trace_collector import TraceCollector, attributes
from tests.ssh.ssh_server import free_port
from tests.until import until_elsewhere
from tunnelmgr.config import Config, TracingConfig, load
from tunnelmgr.daemon.checks import Finding, check
from tunnelmgr.daemon.tracing import make_tracing, tracing_error
from tunnelmgr.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.daemon.conftest import Site


async def test_a_pull_is_traced_through_tunnel_gate_and_registry(tmp_path: "Path") -> None:
    """The request's trace has a stage for the registry, and is linked to the start of the agent's tunnel."""
    collector = TraceCollector()
    async with running_site(tmp_path) as site:
        with collector.serving():
            site.more = f'[tracing]\nurl = "{collector.url}"\nsample_ratio = 1.0\n'
            async with daemon(site) as process:
                await process.phase("up")
                assert await fetch(site) == b"HTTP/1.1 200 OK"
                await until_elsewhere(lambda: collector.named("GET base"), "the request's trace arrives")
                status = await process.ask(process.client.status)
                process.child.terminate()
                assert await process.end() == 0

    (tunnel,) = collector.named("tunnel start")
    assert [span.name for span in collector.children(tunnel)] == ["dial", "listen", "probe"]
    (request,) = collector.named("GET base")
    assert [span.name for span in collector.children(request)] == ["read head", "decide", "registry", "respond"]
    assert [(link.trace_id, link.span_id) for link in request.links] == [(tunnel.trace_id, tunnel.span_id)]
    assert attributes(request)["tunnelmgr.agent"] == attributes(tunnel)["tunnelmgr.agent"]
    assert status["tracing"]["ok"]
    # The controller's own probes are not traced.
    assert not collector.named("GET well-known")


async def test_a_collector_that_is_away_delays_no_one(tmp_path: "Path") -> None:
    """Requests are served, `status` says what is wrong, and the daemon stops in time."""
    async with running_site(tmp_path) as site:
        site.more = f'[tracing]\nurl = "http://127.0.0.1:{free_port()}/v1/traces"\nsample_ratio = 1.0\n'
        async with daemon(site) as process:
            await process.phase("up")
            assert await fetch(site) == b"HTTP/1.1 200 OK"
            await until_elsewhere(lambda: not process.client.status()["tracing"]["ok"], "the failure is reported", 30)
            process.child.terminate()
            assert await process.end() == 0


@pytest.fixture
def without_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the imports of OpenTelemetry fail, as they do if the extra is not installed."""
    plain: Callable[..., object] = builtins.__import__

    def without(name: str, *more: object, **options: object) -> object:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return plain(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "tunnelmgr.observability.span_export", raising=False)


@pytest.mark.usefixtures("without_sdk")
def test_the_missing_extra_is_an_error_with_its_cure(config: Config) -> None:
    """A start and `check` say what to install; without `[tracing]` nothing is missing."""
    settings = TracingConfig(url="http://127.0.0.1:4318/v1/traces")

    with pytest.raises(ConfigError, match=r"tracing: OpenTelemetry's SDK is not installed; install the packages"):
        make_tracing(config.model_copy(update={"tracing": settings}))
    assert "requirements.lock" in (tracing_error(settings) or "")
    assert make_tracing(config).health() is None


async def test_check_asks_the_collector(config: Config) -> None:
    """`check` says whether the collector takes traces, and why not."""
    collector = TraceCollector()
    with collector.serving():
        settings = TracingConfig(url=collector.url)
        good = await check(config.model_copy(update={"tracing": settings}))
        collector.status = 401
        bad = await check(config.model_copy(update={"tracing": settings}))

    assert Finding("tracing", "ok", collector.url) in good
    assert Finding("tracing", "failed", "the collector answered 401") in bad


@pytest.fixture
def config(site: "Site") -> Config:
    """Load the configuration of a site."""
    return load(site.file)
