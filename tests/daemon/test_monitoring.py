"""Monitoring as operators have it: a real Prometheus scrapes a real daemon on which everything is switched on.

What both say is compared with the alert rules, the dashboard and the table of metrics in docs/operations.md.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.postgres import Postgres
from lab.processes import Processes
from tests.daemon.conftest import running_site
from tests.daemon.running_daemon import daemon, fetch
from tests.ssh.ssh_server import free_port
from tests.store.conftest import empty_database, server
from tests.until import until_elsewhere

__all__ = ["server"]

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "packaging/prometheus"
DASHBOARD = ROOT / "packaging/grafana/tunnelmgr.json"
VARIABLES = {"$__rate_interval": "1m", "$group": ".*", "$instance": ".*"}
"""What Grafana puts into the dashboard's expressions, with every group and every controller selected."""
DIALS = "tunnelmgr_dial_duration_seconds_count"
NAME = re.compile(r"\b(?:tunnelmgr|process)_[a-z_]+")

pytestmark = pytest.mark.acceptance


def dashboard_expressions() -> dict[str, str]:
    """Return the expressions of the dashboard's panels, as Grafana sends them, by panel and legend."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    found = {
        f"{panel['title']}: {target.get('legendFormat', '')}": target["expr"]
        for row in panels
        for panel in (row, *row.get("panels", []))
        for target in panel.get("targets", [])
    }
    for variable, value in VARIABLES.items():
        found = {place: expression.replace(variable, value) for place, expression in found.items()}
    return found


@dataclass(frozen=True)
class Monitored:
    """What Prometheus knows of a daemon whose agent has lost its tunnel and got it again.

    `scrape` is the text that the daemon serves, `answers` are Prometheus' answers to the dashboard's expressions,
    `rules` the alert rules with their states, and `exemplars` those of the latency of requests.
    """

    scrape: str
    answers: dict[str, dict[str, Any]]
    rules: list[dict[str, Any]]
    exemplars: list[dict[str, Any]]

    @property
    def families(self) -> set[str]:
        """The names of all metrics."""
        return set(re.findall(r"^# TYPE (\S+) ", self.scrape, re.MULTILINE))

    @property
    def series(self) -> set[str]:
        """The names of all metrics and, of the histograms, of their parts."""
        histograms = re.findall(r"^# TYPE (\S+) histogram", self.scrape, re.MULTILINE)
        return self.families | {f"{name}_{part}" for name in histograms for part in ("bucket", "count", "sum")}


def get(url: str) -> str:
    """Return what an address of this machine answers."""
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own
        return str(answer.read().decode())


@dataclass(frozen=True)
class PrometheusServer:
    """A running Prometheus."""

    url: str

    def query(self, expression: str) -> dict[str, Any]:
        """Return its answer to an expression, also if that is an error."""
        try:
            return dict(json.loads(get(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")))
        except urllib.error.HTTPError as refused:
            with refused:
                return dict(json.loads(refused.read()))

    def exemplars(self, selector: str) -> list[dict[str, Any]]:
        """Return the exemplars of the last minutes for the series that a selector finds."""
        now = time.time()
        question = urllib.parse.urlencode({"query": selector, "start": now - 300, "end": now + 60})
        return list(json.loads(get(f"{self.url}/api/v1/query_exemplars?{question}"))["data"])

    def rules(self) -> list[dict[str, Any]]:
        """Return its alert rules with their states."""
        (group,) = json.loads(get(f"{self.url}/api/v1/rules"))["data"]["groups"]
        return list(group["rules"])

    def has_scraped(self) -> bool:
        """Return whether it has what every expression needs: several scrapes, and each rule evaluated."""
        try:
            found = self.query("count_over_time(tunnelmgr_uptime_seconds[1m]) >= 4")
            return bool(found["data"]["result"]) and all(rule["health"] == "ok" for rule in self.rules())
        except (OSError, KeyError, ValueError):
            return False


@asynccontextmanager
async def running_prometheus(folder: Path, target: str) -> AsyncIterator[PrometheusServer]:
    """Run Prometheus with the files of packaging/, except that it scrapes one daemon, and does so often."""
    (job,) = yaml.safe_load((PROMETHEUS / "scrape.yml").read_text(encoding="utf-8"))["scrape_configs"]
    job |= {"scrape_interval": "300ms", "scrape_timeout": "300ms", "static_configs": [{"targets": [target]}]}
    configuration = {
        "global": {"evaluation_interval": "300ms"},
        "rule_files": [str(PROMETHEUS / "rules.yml")],
        "scrape_configs": [job],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    address, processes = f"127.0.0.1:{free_port()}", Processes()
    words = [
        *("prometheus", "--log.level=warn", "--enable-feature=exemplar-storage", f"--web.listen-address={address}"),
        *(f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"),
    ]
    processes.start(words, log=folder / "prometheus.log")
    try:
        yield PrometheusServer(f"http://{address}")
    finally:
        processes.end_all()


async def monitor(folder: Path, url: str) -> Monitored:
    """Run everything, cut the tunnel once, and return what can be seen of it."""
    metrics = f"127.0.0.1:{free_port()}"
    async with running_site(folder) as site:
        site.state = url
        site.controller = [f'metrics = "{metrics}"', f'audit = "{folder}/audit.jsonl"']
        site.more = (
            f'[[group]]\nname = "{site.group}"\n[group.limits]\nrequests_per_second = 100\n'
            f'[cache]\npath = "{folder}/cache"\nsize = "1GiB"\n'
            f'[tracing]\nurl = "http://127.0.0.1:{free_port()}/v1/traces"\nsample_ratio = 1.0\n'
            f'[[audit_forward]]\nname = "collector"\nurl = "http://127.0.0.1:{free_port()}/"\n'
        )
        async with daemon(site) as process, running_prometheus(folder, metrics) as prometheus:
            await process.phase("up")
            site.sshd.cut()
            dials = f'{DIALS}{{group="{site.group}"}} 2.0'
            await until_elsewhere(lambda: dials in get(f"http://{metrics}/metrics"), "the agent is dialled again", 20)
            await process.phase("up")
            assert await fetch(site) == b"HTTP/1.1 200 OK"
            await until_elsewhere(prometheus.has_scraped, "Prometheus has scraped and judged", 20)
            scrape = await asyncio.to_thread(get, f"http://{metrics}/metrics")
            answers = {
                place: await asyncio.to_thread(prometheus.query, expression)
                for place, expression in dashboard_expressions().items()
            }
            rules = await asyncio.to_thread(prometheus.rules)
            latencies = 'tunnelmgr_request_latency_seconds_bucket{action="base"}'
            exemplars = await asyncio.to_thread(prometheus.exemplars, latencies)
            return Monitored(scrape, answers, rules, exemplars)


@pytest.fixture(scope="module")
def monitored(server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Monitored:
    """Run a daemon with a database, a cache, an audit log and metrics, and Prometheus beside it."""
    with empty_database(server, "monitored") as url:
        return asyncio.run(monitor(tmp_path_factory.mktemp("monitored"), url))


def test_the_metrics_keep_prometheus_conventions(monitored: Monitored) -> None:
    """Promtool's check of names, units and help texts has no complaint about a scrape."""
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=monitored.scrape, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_document_lists_exactly_the_metrics(monitored: Monitored) -> None:
    """The table in docs/operations.md has every metric that a scrape has, and no other."""
    operations = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"### Metrics\n.*?\n\n(\|.*?)\n\n", operations, re.DOTALL)
    documented = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}

    assert documented == monitored.families


def test_histograms_and_counters_have_the_tunnel_that_was_cut(monitored: Monitored) -> None:
    """Two dials and at least two probes were measured, one new agent, and one tunnel that was lost while it was up."""
    group = '{group="default"}'

    assert f"{DIALS}{group} 2.0" in monitored.scrape
    assert f"tunnelmgr_time_to_up_seconds_count{group} 1.0" in monitored.scrape
    assert 'tunnelmgr_tunnels_ended_total{code="connection-lost",group="default",phase="up"} 1.0' in monitored.scrape
    (probes,) = re.findall(rf"^tunnelmgr_probe_duration_seconds_count{group} (\S+)$", monitored.scrape, re.MULTILINE)
    assert float(probes) >= 2
    latency, duration = (
        float(value)
        for value in re.findall(
            r'^tunnelmgr_request_(?:latency|duration)_seconds_sum{action="base"} (\S+)$', monitored.scrape, re.MULTILINE
        )
    )
    assert 0 < latency <= duration


def test_a_traced_request_is_an_exemplar_of_its_latency(monitored: Monitored) -> None:
    """Prometheus has the identifier of the request's trace beside its latency."""
    (series,) = monitored.exemplars
    (exemplar,) = series["exemplars"]

    assert re.fullmatch("[0-9a-f]{32}", exemplar["labels"]["trace_id"])
    assert 0 < float(exemplar["value"]) < 10


def test_no_sample_names_an_agent(monitored: Monitored) -> None:
    """Neither the agent's name nor its id or address is in any label."""
    assert re.findall(r".*(?:builder-1|static:|127\.0\.0\.1).*", monitored.scrape) == []


def test_the_rules_use_metrics_that_exist(monitored: Monitored) -> None:
    """Each metric in an alert rule is one that a scrape has."""
    text = (PROMETHEUS / "rules.yml").read_text(encoding="utf-8")
    used = {
        name
        for expression in re.findall(r"expr: (.*?)\n +(?:for|labels):", text, re.DOTALL)
        for name in NAME.findall(expression)
    }

    assert len(used) > 10
    assert used - monitored.series == set()


def test_a_healthy_daemon_fires_no_alert(monitored: Monitored) -> None:
    """Prometheus evaluates every rule without an error, and none of them fires."""
    assert {rule["name"]: rule["state"] for rule in monitored.rules if rule["state"] == "firing"} == {}
    assert {rule["health"] for rule in monitored.rules} == {"ok"}


def test_the_dashboard_uses_metrics_that_exist(monitored: Monitored) -> None:
    """Each metric in an expression of the dashboard is one that a scrape has."""
    used = {name for expression in dashboard_expressions().values() for name in NAME.findall(expression)}

    assert len(used) > 20
    assert used - monitored.series == set()


def test_prometheus_answers_every_expression_of_the_dashboard(monitored: Monitored) -> None:
    """Each expression is valid PromQL, and has data, except those of events that have not happened."""
    refused = {place: answer for place, answer in monitored.answers.items() if answer["status"] != "success"}
    empty = {place.partition(":")[0] for place, answer in monitored.answers.items() if not answer["data"]["result"]}

    assert refused == {}
    assert empty <= {"Failed dials", "Refusals", "Server errors"}


def test_the_dashboard_is_what_the_script_makes(tmp_path: Path) -> None:
    """The file in packaging/grafana was not changed by hand, and the script was not changed without it."""
    made = tmp_path / "tunnelmgr.json"
    subprocess.run([sys.executable, ROOT / "packaging/dashboard.py", made], check=True, timeout=60)

    assert made.read_text(encoding="utf-8") == DASHBOARD.read_text(encoding="utf-8"), "run `make dashboard`"
