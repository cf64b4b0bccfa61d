"""Hetzner Cloud refuses, breaks off and stalls: what is said of it helps, and never gives the token away."""

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
        (500, "500, Hetzner is out of order"),
        (502, "502, Hetzner is out of order"),
        (503, "503, Hetzner is out of order"),
        (504, "504, Hetzner is out of order"),
        (200, "is not JSON: check endpoint_url"),
    ],
)
def test_a_refusal_is_told_in_words_that_help(cloud: HetznerCloud, make: Make, status: int, words: str) -> None:
    """Each names what to do; none is retried within the poll, which would only make it worse."""
    cloud.fault("list", status=status)
    source = make()

    with pytest.raises(DiscoveryError) as failed:
        source.discover()

    assert words in failed.value.reason
    assert len(cloud.requests) == 1


def test_a_token_that_is_not_accepted_can_be_replaced_while_running(
    cloud: HetznerCloud, make: Make, token_file: Path
) -> None:
    """401 names the file; the next poll reads it again."""
    cloud.launch("ci-1", "192.0.2.7")
    write(token_file, "outdated")
    source = make()

    with pytest.raises(DiscoveryError, match=r"401, the token is not accepted: put a valid .* into .*hetzner\.token"):
        source.discover()
    write(token_file, cloud.token)

    assert len(source.discover().agents) == 1


def test_an_api_that_is_elsewhere_is_named(make: Make, cloud: HetznerCloud) -> None:
    """A 404 for the listing itself means that `endpoint_url` leads astray."""
    with pytest.raises(DiscoveryError, match="404, Not Found; check label_selector and endpoint_url"):
        make(endpoint_url=f"{cloud.endpoint}/v1").discover()


def test_an_answer_that_makes_no_sense_is_refused(make: Make, cloud: HetznerCloud) -> None:
    """JSON that is not Hetzner's is not guessed at."""
    cloud.launch("ci-1", "no address")

    with pytest.raises(DiscoveryError, match=r"cannot make sense of the answer of .*; is that Hetzner's API\?"):
        make().discover()


@pytest.mark.parametrize("cut", [0, 0.5])
def test_a_connection_that_breaks_is_tried_again(cloud: HetznerCloud, make: Make, clock: Time, cut: float) -> None:
    """Before the answer or in the middle of its JSON: the listing is whole in the end."""
    launched = launch_many(cloud, 60)
    cloud.fault("list", cut=cut, times=2)

    snapshot = make().discover()

    assert ids(snapshot) == launched
    assert snapshot.failures == ()
    assert clock.slept == [0.5, 1.0]


def test_a_connection_that_always_breaks_is_given_up_after_three_more_tries(
    cloud: HetznerCloud, make: Make, clock: Time
) -> None:
    """Half an answer is none, and the poll ends."""
    launch_many(cloud, 1)
    cloud.fault("list", cut=0.5, forever=True)

    with pytest.raises(DiscoveryError, match=r"no answer from 127\.0\.0\.1:[0-9]+: the connection broke off"):
        make().discover()

    assert (len(cloud.requests), clock.slept) == (4, [0.5, 1.0, 2.0])


def test_a_refused_connection_is_tried_again(cloud: HetznerCloud, make: Make, clock: Time) -> None:
    """What is back within seconds was never away."""
    launched = launch_many(cloud, 2)
    source = make()
    cloud.stop()
    clock.on_sleep = lambda: cloud.start() if len(clock.slept) == 2 else None

    assert ids(source.discover()) == launched
    assert clock.slept == [0.5, 1.0]


def test_an_api_that_is_away_is_named_with_the_reason(cloud: HetznerCloud, make: Make) -> None:
    """The words are the same at each poll, so that they are logged once."""
    source = make()
    cloud.stop()

    reasons = set()
    for _ in range(2):
        with pytest.raises(DiscoveryError) as failed:
            source.discover()
        reasons.add(failed.value.reason)

    assert reasons == {f"no answer from 127.0.0.1:{cloud.port}: Connection refused"}


def test_a_stall_ends_the_poll_after_one_timeout(cloud: HetznerCloud, make: Make) -> None:
    """By itself hcloud would try five times more, each with the whole timeout: this fails where its setting moves."""
    cloud.fault("list", stall=30, forever=True)
    begun = time.monotonic()

    with pytest.raises(DiscoveryError, match=r"no answer from .*: nothing within 0\.2 s"):
        make(timeout=(0.2, 0.2)).discover()

    assert len(cloud.requests) == 1
    assert time.monotonic() - begun < 5


# --- the token -----------------------------------------------------------------------------------------------------


def test_the_token_is_in_no_error_and_no_log_line(
    cloud: HetznerCloud, make: Make, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong, what is told of it is safe to paste anywhere; so are the objects' own descriptions."""
    caplog.set_level(logging.DEBUG)
    source = make(timeout=(0.2, 0.2))
    faults: list[dict[str, Any]] = [{"status": status} for status in (200, 400, 401, 403, 404, 429, 500, 502)]
    faults += [{"cut": 0.5, "times": 4}, {"cut": 0, "times": 4}, {"stall": 30}]
    told = []

    with structlog.testing.capture_logs() as lines:
        for fault in faults:
            cloud.fault("list", **fault)
            with pytest.raises(DiscoveryError) as failed:
                source.discover()
            told.append(str(failed.value))
        for broken in (f"{cloud.token}\nmore", f"{cloud.token}\x00", f"a {cloud.token}"):
            write(token_file, broken)
            with pytest.raises(DiscoveryError, match="holds no API token") as failed:
                source.discover()
            told.append(str(failed.value))

    everything = "\n".join([*told, str(lines), caplog.text, repr(source._api), repr(source.config)])
    assert len(told) == 14
    assert cloud.token not in everything


def test_a_token_that_others_can_read_is_refused(make: Make, token_file: Path, cloud: HetznerCloud) -> None:
    """The file is examined like a private key; nothing is asked before."""
    token_file.chmod(0o644)

    with pytest.raises(DiscoveryError, match=r"can be read by others \(mode 0644\); run `chmod 600"):
        make().discover()

    assert cloud.requests == []


def test_a_token_behind_a_symlink_is_refused(make: Make, token_file: Path, tmp_path: Path) -> None:
    """As with private keys, the file itself is to be named."""
    (tmp_path / "link").symlink_to(token_file)

    with pytest.raises(DiscoveryError, match="is a symlink"):
        make(token_file=str(tmp_path / "link")).discover()


def test_a_netrc_does_not_replace_the_token(
    cloud: HetznerCloud, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`requests` would prefer what a ~/.netrc has for the host."""
    launched = launch_many(cloud, 1)
    netrc = write(tmp_path / "netrc", "machine 127.0.0.1 login other password other\n")
    monkeypatch.setitem(os.environ, "NETRC", str(netrc))

    assert ids(make().discover()) == launched


@pytest.mark.parametrize("url", ["http://api.example.com/v1", "ftp://api.example.com", "https://", "https://a@b.c/v1"])
def test_a_token_is_not_sent_where_others_could_read_it(make: Make, url: str) -> None:
    """Plain HTTP is for loopback only."""
    with pytest.raises(ValidationError, match=r"endpoint_url\n.*(unencrypted|write a URL)"):
        make(endpoint_url=url)
