"""`label`: a tag holds the fingerprint, and the agent itself presents the key."""

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trust.fake_scanner import FakeScanner
from tests.trust.keygen import Keygen
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyMismatchError, HostKeyUnknownError, UnreachableError
from tunnelmgr.trust.labels import HOST_KEY_LABELS, LabelKeys, as_label

HETZNER_VALUE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
"""docs.hetzner.cloud, "Labels": at most 63 characters, the first and the last a letter or digit."""


def labelled(*labels: tuple[str, str]) -> Agent:
    """Return an agent with these labels."""
    return Agent(AgentId("cloud:a"), "1", "cloud", "ci", "a", ("10.0.0.1",), labels=labels)


async def judged(agent: Agent, shown: str | Exception) -> HostTrust:
    """Return the evidence for an agent that presents this key."""
    return await LabelKeys(FakeScanner(keys={agent: shown})).trust_for(agent)


@pytest.mark.parametrize("name", HOST_KEY_LABELS)
async def test_a_key_with_the_labels_fingerprint_is_believed(keygen: Keygen, name: str) -> None:
    """The fingerprint may have ssh-keygen's form or the form that Hetzner's labels allow."""
    key = keygen.key("a")

    for value in (fingerprint(key), as_label(fingerprint(key)), fingerprint(key).removeprefix("SHA256:")):
        assert await judged(labelled(("role", "ci"), (name, value)), key) == HostTrust(Method.LABEL, (key,))


async def test_another_key_is_a_mismatch_that_names_both(keygen: Keygen) -> None:
    """A key with another fingerprint quarantines the agent, and the message has both fingerprints."""
    key, other = keygen.key("a"), keygen.key("b")

    with pytest.raises(HostKeyMismatchError) as refused:
        await judged(labelled((HOST_KEY_LABELS[0], fingerprint(key))), other)

    assert fingerprint(key) in str(refused.value)
    assert fingerprint(other) in str(refused.value)


@pytest.mark.parametrize("value", ["", "SHA256:", "*", "sha256..0", "MD5:aa:bb"])
async def test_a_label_that_is_not_a_fingerprint_matches_no_key(keygen: Keygen, value: str) -> None:
    """A label that is not a fingerprint matches no key."""
    with pytest.raises(HostKeyMismatchError):
        await judged(labelled((HOST_KEY_LABELS[0], value)), keygen.key("a"))


async def test_an_agent_without_the_label_is_not_asked() -> None:
    """An agent without the label is not asked for its key, and the reason names the label."""
    with pytest.raises(HostKeyUnknownError, match="no label tunnelmgr:host-key or tunnelmgr-host-key"):
        await judged(labelled(("role", "ci")), AssertionError("asked"))


async def test_an_unreachable_agent_has_no_evidence_yet() -> None:
    """An agent that cannot be reached has no evidence yet, and is asked again later."""
    with pytest.raises(HostKeyUnknownError, match="cannot reach"):
        await judged(labelled((HOST_KEY_LABELS[0], "SHA256:abc")), UnreachableError("10.0.0.1 port 22", "refused"))


@given(st.binary(min_size=32, max_size=32))
def test_every_fingerprint_fits_into_a_label_and_stays_itself(digest: bytes) -> None:
    """Every fingerprint, in each of its forms, has one label form that satisfies the clouds' rules."""
    plain = "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    assert HETZNER_VALUE.fullmatch(as_label(plain))
    assert as_label(as_label(plain)) == as_label(plain)
