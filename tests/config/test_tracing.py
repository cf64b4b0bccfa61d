"""`[tracing]`: what is accepted, and what each error says to write instead."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tunnelmgr.config import load

SSH = '[ssh]\nkey = "KEYFILE"\n'
URL = "http://127.0.0.1:4318/v1/traces"


def test_tracing_is_off_by_default(write: Callable[[str], Path]) -> None:
    """Nothing is sent anywhere unless the file says where."""
    assert load(write(SSH)).tracing is None


@pytest.mark.parametrize(
    "url", [URL, "http://[::1]:4318/v1/traces", "https://collector.example/otlp/v1/traces?team=ci"]
)
def test_a_collector_has_a_url(write: Callable[[str], Path], url: str) -> None:
    """One request in a hundred is traced unless the file says otherwise."""
    tracing = load(write(f'{SSH}[tracing]\nurl = "{url}"\n')).tracing

    assert tracing is not None
    assert (tracing.url, tracing.sample_ratio) == (url, 0.01)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("", "tracing.url: missing"),
        ('url = "collector:4317"', 'tracing.url: write "http://127.0.0.1:4318/v1/traces" or "https://'),
        ('url = "grpc://collector:4317"', 'tracing.url: write "http://127.0.0.1:4318/v1/traces" or "https://'),
        ('url = "https://collector:4318"', "tracing.url: add the path at which the collector takes traces"),
        ('url = "https://collector:4318/"', "tracing.url: add the path at which the collector takes traces"),
        ('url = "http://192.0.2.9/v1/traces"', "tracing.url: 192.0.2.9 is not a loopback address; write https"),
        ('url = "https://me:secret@h/v1/traces"', "tracing.url: must not hold a password"),
        (f'url = "{URL}"\nsample_ratio = 1.5', "tracing.sample_ratio: "),
        (f'url = "{URL}"\nsample_ratio = -0.1', "tracing.sample_ratio: "),
        (f'url = "{URL}"\nca_file = "KEYFILE"', "tracing.ca_file: http has no TLS"),
        (f'url = "{URL}"\ntoken_file = "/none"', "tracing.token_file: no such file: /none"),
        (f'url = "{URL}"\nsample = 1', "tracing.sample: unknown key"),
    ],
)
def test_a_collector_that_cannot_work_is_refused(problems: Callable[[str], list[str]], keys: str, problem: str) -> None:
    """The problem names the key and what to write, and no secret."""
    found = problems(f"{SSH}[tracing]\n{keys}\n")

    assert any(one.startswith(problem) for one in found), found
    assert "secret@" not in str(found)
