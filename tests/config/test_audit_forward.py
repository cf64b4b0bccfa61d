"""`[[audit_forward]]` and the key for seals: what is accepted, and what each error says to write instead."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tunnelmgr.config import AuditForwardConfig, load

HEAD = '[controller]\naudit = "/var/log/tunnelmgr/audit.jsonl"\n'
SSH = '[ssh]\nkey = "KEYFILE"\n'
TABLE = '[[audit_forward]]\nname = "siem"\n'


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("syslog+tls://logs.example", ("logs.example", 6514)),
        ("syslog+tls://[2001:db8::1]:10514/", ("2001:db8::1", 10514)),
        ("https://collector.example/audit?team=ci", ("collector.example", 443)),
        ("http://127.0.0.1:8080/audit", ("127.0.0.1", 8080)),
        ("http://[::1]/audit", ("::1", 80)),
    ],
)
def test_a_collector_has_a_url(write: Callable[[str], Path], url: str, address: tuple[str, int]) -> None:
    """The URL gives host and port, with the port of its scheme as default."""
    (entry,) = load(write(f'{HEAD}{SSH}{TABLE}url = "{url}"\n')).audit_forward

    assert entry.address == address


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ('url = "logs.example:6514"', 'url: write "syslog+tls://host:6514" or "https://host/path"'),
        ('url = "syslog://logs.example"', 'url: write "syslog+tls://host:6514" or "https://host/path"'),
        ('url = "https:///path"', 'url: write "syslog+tls://host:6514" or "https://host/path"'),
        ('url = "https://a b/"', 'url: write "syslog+tls://host:6514" or "https://host/path"'),
        ('url = "https://h:99999/"', "url: not a URL: "),
        ('url = "https://me:secret@h/"', "url: must not hold a password; put a token into the file that token_file"),
        ('url = "syslog+tls://h/path"', "url: a syslog collector has no path"),
        ('url = "http://192.0.2.9/"', "url: 192.0.2.9 is not a loopback address; write https"),
        ('url = "syslog+tls://h"\ntoken_file = "KEYFILE"', "token_file: syslog has no tokens"),
        ('url = "http://127.0.0.1/"\nca_file = "KEYFILE"', "ca_file: http has no TLS"),
        ('url = "https://h/"\nkey = "KEYFILE"', "certificate and key belong together; write both or none"),
        ('url = "https://h/"\ntoken_file = "/none"', "token_file: no such file: /none"),
        ('url = "https://h/"\ntoken = "secret"', "token: unknown key"),
    ],
)
def test_a_collector_that_cannot_work_is_refused(problems: Callable[[str], list[str]], keys: str, problem: str) -> None:
    """The problem names the key and what to write, and no secret."""
    found = problems(f"{HEAD}{SSH}{TABLE}{keys}\n")

    assert any(problem in one for one in found), found
    assert all(one.startswith("audit_forward[0]") for one in found)
    assert "secret@" not in str(found)


def test_collectors_need_a_log_and_names_of_their_own(problems: Callable[[str], list[str]]) -> None:
    """Entries are forwarded from the log's file, and each collector has a cursor of its own."""
    table = f'{TABLE}url = "https://h/"\n'

    assert problems(f"{SSH}{table}") == [
        "audit_forward: controller.audit is not set, and entries are forwarded from its file; set it"
    ]
    assert problems(f"{HEAD}{SSH}{table}{table}") == [
        "audit_forward[1].name: siem is the name of audit_forward[0] already"
    ]


def test_a_key_for_seals_needs_a_log(problems: Callable[[str], list[str]]) -> None:
    """Without a file there is nothing to seal, and an interval of seals has bounds."""
    assert problems(f'[controller]\naudit_key = "KEYFILE"\n{SSH}') == [
        "controller.audit_key: without controller.audit there is no file to seal; set it too"
    ]
    (interval,) = problems(f'{HEAD}audit_seal_interval = "10ms"\n{SSH}')
    assert interval.startswith("controller.audit_seal_interval: ")


def test_a_collector_is_written_without_its_secrets() -> None:
    """The model has paths of secrets, and no secret itself."""
    entry = AuditForwardConfig(name="siem", url="https://collector.example/audit")

    assert set(type(entry).model_fields) == {"name", "url", "ca_file", "token_file", "certificate", "key"}
