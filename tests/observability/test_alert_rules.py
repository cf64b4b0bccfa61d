"""The files for Prometheus, judged by Prometheus' own promtool; and the alerts against the document about them."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "packaging/prometheus"
ROLE = ROOT / "ansible/roles/prometheus"


def load(file: Path) -> dict[str, Any]:
    """Return the content of a YAML file."""
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


RULES: list[dict[str, Any]] = load(PROMETHEUS / "rules.yml")["groups"][0]["rules"]
NAMES = [rule["alert"] for rule in RULES]
DOCUMENT = (ROOT / "docs/alerts.md").read_text(encoding="utf-8")


def promtool(*words: str | Path) -> str:
    """Run promtool and return what it prints; fails if it finds a fault."""
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.acceptance
def test_the_rules_pass_their_unit_tests() -> None:
    """Each alert fires when it should, with its whole text, and neither before nor for anything else."""
    assert "SUCCESS" in promtool("test", "rules", PROMETHEUS / "rules_test.yml")


@pytest.mark.acceptance
def test_the_rules_are_valid_and_unique() -> None:
    """Promtool finds neither an invalid rule nor one that is there twice."""
    assert f"SUCCESS: {len(RULES)} rules found" in promtool("check", "rules", "--lint-fatal", PROMETHEUS / "rules.yml")


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_is_tested_firing_and_not_firing(name: str) -> None:
    """The unit tests have a time at which the alert fires, and one at which it does not, although series exist."""
    steps = [
        step
        for test in load(PROMETHEUS / "rules_test.yml")["tests"]
        for step in test["alert_rule_test"]
        if step["alertname"] == name
    ]

    assert {bool(step["exp_alerts"]) for step in steps} == {True, False}


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_each_alert_says_how_bad_it_is_and_where_its_section_is(rule: dict[str, Any]) -> None:
    """An alert has a severity, a summary, a description, and a runbook that is a section of the document."""
    name, severity = rule["alert"], rule["labels"]["severity"]

    assert severity in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"
    assert re.search(rf"^## {name}\n\n\*\*Means:\*\* .+\n\n\*\*Do:\*\* .+", DOCUMENT, re.MULTILINE)
    assert f"| [{name}](#{name.lower()}) | {severity} |" in DOCUMENT


def test_the_document_has_no_other_alerts() -> None:
    """The sections of the document and the rows of its table are the alerts, in the order of the rules."""
    assert re.findall(r"^## (\w+)$", DOCUMENT, re.MULTILINE) == NAMES
    assert re.findall(r"^\| \[(\w+)\]", DOCUMENT, re.MULTILINE) == NAMES


def test_the_document_names_panels_and_commands_that_exist() -> None:
    """Each panel that it sends a reader to is in the dashboard, and each command in docs/commands.md."""
    dashboard = json.loads((ROOT / "packaging/grafana/tunnelmgr.json").read_text(encoding="utf-8"))
    panels = {
        name for text in re.findall(r"panels? ((?:\"[^\"]+\"(?: and )?)+)", DOCUMENT) for name in text.split('"')[1::2]
    }
    headings = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"`tunnelmgr ([a-z-]+)", DOCUMENT))

    assert len(panels) > 3
    assert panels - {panel["title"] for panel in dashboard["panels"]} == set()
    assert len(commands) > 5
    assert commands - set(re.findall(r"^### `tunnelmgr ([a-z-]+)", headings, re.MULTILINE)) == set()


@pytest.mark.acceptance
def test_prometheus_accepts_the_documented_configuration(tmp_path: Path) -> None:
    """The files, installed and named as docs/operations.md says, are a valid configuration with all rules."""
    operations = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"### Alerts\n.*?```yaml\n(.*?)```", operations, re.DOTALL)
    configuration = yaml.safe_load(shown)
    (tmp_path / "tunnelmgr").mkdir()
    for name in ("rules.yml", "scrape.yml"):
        (tmp_path / "tunnelmgr" / name).write_bytes((PROMETHEUS / name).read_bytes())
    # As the document says for a Prometheus before 2.43, which Debian 12 has.
    (jobs,) = configuration.pop("scrape_config_files")
    configuration["scrape_configs"] = load(tmp_path / jobs)["scrape_configs"]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")

    assert f"{len(RULES)} rules found" in promtool("check", "config", tmp_path / "prometheus.yml")
    assert "SUCCESS" in promtool("check", "config", tmp_path / "tunnelmgr/scrape.yml")


def test_ansible_installs_the_same_rules() -> None:
    """The role's file is a link to the one file with the rules."""
    assert (ROLE / "files/rules.yml").resolve() == PROMETHEUS / "rules.yml"


def test_ansible_writes_the_same_job() -> None:
    """With its default targets, the role's template is the file with the job."""
    template = jinja2.Environment(autoescape=False).from_string(  # noqa: S701 - YAML
        (ROLE / "templates/scrape.yml.j2").read_text(encoding="utf-8").replace("to_json", "tojson")
    )
    targets = load(ROLE / "defaults/main.yml")["prometheus_targets"]
    written = template.render(ansible_managed="Ansible managed", prometheus_targets=targets)

    assert yaml.safe_load(written) == load(PROMETHEUS / "scrape.yml")
