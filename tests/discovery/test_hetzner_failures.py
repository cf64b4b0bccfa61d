"""Refusals, broken connections and stalls of Hetzner Cloud: the errors help, and never contain the token."""

import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import ValidationError

from lab.hetzner import HetznerCloud
from tests.discovery.hetzner_project import Make, Time, ids, launch_many, write
from tunnelmgr.errors import DiscoveryError


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (403, "403, the token may not list servers"),
        (429, "429, the project's requests of this hour are used up"),
        (500, "500, a fault at Hetzner"),
        (502, "502, a fault at Hetzner"),
        (503, "503, a fault at Hetzner"),
        (504, "504, a fault at Hetzner"),
        (200, "does not answer with JSON; check endpoint_url"),
    ],
)
def test_a_refusal_says_what_to_do(cloud: HetznerCloud, make: Make, status: int, words: str) -> None:
    """Each refusal names what to do, and none is retried within the poll, which would make it worse."""
    cloud.fault("list", status=status)
    source = make()

    with pytest.raises(DiscoveryError) as failed:
        source.discover()

    assert words in failed.value.reason
    assert len(cloud.requests) == 1


def test_a_token_that_is_not_accepted_can_be_replaced_while_running(
    cloud: HetznerCloud, make: Make, token_file: Path
) -> None:
    """The error for 401 names the token's file, and the next poll reads it again."""
    cloud.launch("ci-1", "192.0.2.7")
    write(token_file, "outdated")
    source = make()

    with pytest.raises(DiscoveryError, match=r"401, the token is not accepted: put a valid .* into .*hetzner\.token"):
        source.discover()
    write(token_file, cloud.token)

    assert len(source.discover().agents) == 1


def test_a_wrong_endpoint_is_named(make: Make, cloud: HetznerCloud) -> None:
    """A 404 for the listing itself means that endpoint_url is wrong."""
    with pytest.raises(DiscoveryError, match="404, Not Found; check label_selector and endpoint_url"):
        make(endpoint_url=f"{cloud.endpoint}/v1").discover()


def test_an_invalid_answer_is_refused(make: Make, cloud: HetznerCloud) -> None:
    """JSON that is not Hetzner's is a failure that names endpoint_url."""
    cloud.launch("ci-1", "no address")

    with pytest.raises(DiscoveryError, match=r"invalid answer from .*; check that endpoint_url is Hetzner's API"):
        make().discover()


@pytest.mark.parametrize("cut", [0, 0.5])
def test_a_broken_connection_is_retried(cloud: HetznerCloud, make: Make, clock: Time, cut: float) -> None:
    """A connection that breaks before or within the answer is retried, and the listing is complete."""
    launched = launch_many(cloud, 60)
    cloud.fault("list", cut=cut, times=2)

    snapshot = make().discover()

    assert ids(snapshot) == launched
    assert snapshot.failures == ()
    assert clock.slept == [0.5, 1.0]


def test_a_connection_that_always_breaks_fails_after_three_retries(
    cloud: HetznerCloud, make: Make, clock: Time
) -> None:
    """Partial answers do not count, and the poll fails after three retries."""
    launch_many(cloud, 1)
    cloud.fault("list", cut=0.5, forever=True)

    with pytest.raises(DiscoveryError, match=r"no answer from 127\.0\.0\.1:[0-9]+: the connection broke"):
        make().discover()

    assert (len(cloud.requests), clock.slept) == (4, [0.5, 1.0, 2.0])


def test_a_refused_connection_is_retried(cloud: HetznerCloud, make: Make, clock: Time) -> None:
    """An API that is back within seconds causes no failure."""
    launched = launch_many(cloud, 2)
    source = make()
    cloud.stop()
    clock.on_sleep = lambda: cloud.start() if len(clock.slept) == 2 else None

    assert ids(source.discover()) == launched
    assert clock.slept == [0.5, 1.0]


def test_an_unreachable_api_is_named_with_the_reason(cloud: HetznerCloud, make: Make) -> None:
    """The error is the same at each poll, so that it is logged once."""
    source = make()
    cloud.stop()

    reasons = set()
    for _ in range(2):
        with pytest.raises(DiscoveryError) as failed:
            source.discover()
        reasons.add(failed.value.reason)

    assert reasons == {f"no answer from 127.0.0.1:{cloud.port}: Connection refused"}


def test_a_stall_ends_the_poll_after_one_timeout(cloud: HetznerCloud, make: Make) -> None:
    """A stall is not retried; hcloud alone would retry five times, so this fails if its setting moves."""
    cloud.fault("list", stall=30, forever=True)
    started = time.monotonic()

    with pytest.raises(DiscoveryError, match=r"no answer from .*: no answer within 0\.2 s"):
        make(timeout=(0.2, 0.2)).discover()

    assert len(cloud.requests) == 1
    assert time.monotonic() - started < 5


# --- the token -----------------------------------------------------------------------------------------------------


def test_the_token_is_in_no_error_and_no_log_line(
    cloud: HetznerCloud, make: Make, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No error, log line or description of an object contains the token."""
    caplog.set_level(logging.DEBUG)
    source = make(timeout=(0.2, 0.2))
    faults: list[dict[str, Any]] = [{"status": status} for status in (200, 400, 401, 403, 404, 429, 500, 502)]
    faults += [{"cut": 0.5, "times": 4}, {"cut": 0, "times": 4}, {"stall": 30}]
    errors = []

    with structlog.testing.capture_logs() as lines:
        for fault in faults:
            cloud.fault("list", **fault)
            with pytest.raises(DiscoveryError) as failed:
                source.discover()
            errors.append(str(failed.value))
        for broken in (f"{cloud.token}\nmore", f"{cloud.token}\x00", f"a {cloud.token}"):
            write(token_file, broken)
            with pytest.raises(DiscoveryError, match="does not contain an API token") as failed:
                source.discover()
            errors.append(str(failed.value))

    everything = "\n".join([*errors, str(lines), caplog.text, repr(source._api), repr(source.config)])
    assert len(errors) == 14
    assert cloud.token not in everything


def test_a_token_that_others_can_read_is_refused(make: Make, token_file: Path, cloud: HetznerCloud) -> None:
    """The token's file is checked like a private key, before any request."""
    token_file.chmod(0o644)

    with pytest.raises(DiscoveryError, match=r"can be read by others \(mode 0644\); run `chmod 600"):
        make().discover()

    assert cloud.requests == []


def test_a_token_behind_a_symlink_is_refused(make: Make, token_file: Path, tmp_path: Path) -> None:
    """As with private keys, token_file has to name the file itself."""
    (tmp_path / "link").symlink_to(token_file)

    with pytest.raises(DiscoveryError, match="is a symlink"):
        make(token_file=str(tmp_path / "link")).discover()


def test_a_netrc_does_not_replace_the_token(
    cloud: HetznerCloud, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`requests` would use credentials of ~/.netrc for the host instead of the token."""
    launched = launch_many(cloud, 1)
    netrc = write(tmp_path / "netrc", "machine 127.0.0.1 login other password other\n")
    monkeypatch.setitem(os.environ, "NETRC", str(netrc))

    assert ids(make().discover()) == launched


@pytest.mark.parametrize("url", ["http://api.example.com/v1", "ftp://api.example.com", "https://", "https://a@b.c/v1"])
def test_a_token_is_not_sent_unencrypted(make: Make, url: str) -> None:
    """Plain HTTP is accepted for loopback only."""
    with pytest.raises(ValidationError, match=r"endpoint_url\n.*(unencrypted|write a URL)"):
        make(endpoint_url=url)
