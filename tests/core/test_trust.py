"""Methods, their order, and what a public key looks like."""

import base64
import subprocess
from pathlib import Path

import pytest

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.events import Rules
from tunnelmgr.core.trust import HostTrust, Method, fingerprint, public_key

GOOD = "AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43


def made(kind: str, *fields: bytes) -> str:
    """Return the base64 of a blob made of these strings."""
    blob = b"".join(len(field).to_bytes(4, "big") + field for field in (kind.encode(), *fields))
    return base64.b64encode(blob).decode()


def test_methods_stand_in_the_order_of_the_contract() -> None:
    """Strongest first."""
    assert [method.value for method in Method] == ["authority", "seeded", "pinned", "console", "label", "tofu"]


@pytest.mark.parametrize(
    ("method", "minimum", "enough"),
    [
        (Method.AUTHORITY, Method.TOFU, True),
        (Method.CONSOLE, Method.CONSOLE, True),
        (Method.LABEL, Method.CONSOLE, False),
        (Method.TOFU, Method.LABEL, False),
    ],
)
def test_a_method_reaches_what_is_at_most_as_strong(method: Method, minimum: Method, enough: bool) -> None:
    """A minimum lets itself and all that is stronger pass."""
    assert method.reaches(minimum) is enough


@pytest.mark.parametrize(
    ("source", "group", "method", "accepted"),
    [
        ("cloud", "ci", Method.CONSOLE, True),
        ("cloud", "ci", Method.PINNED, False),
        ("cloud", "strict", Method.TOFU, False),
        ("elsewhere", "ci", Method.CONSOLE, False),
    ],
)
def test_rules_accept_only_what_the_source_names_and_the_group_allows(
    source: str, group: str, method: Method, accepted: bool
) -> None:
    """No method falls back to one that is not in `trust`, and a stronger one that is not named is no use either."""
    rules = Rules(trust={"cloud": (Method.CONSOLE, Method.TOFU)}, minimum={"strict": Method.CONSOLE})
    agent = Agent(AgentId("cloud:a"), "1", source, group, "a", ("10.0.0.1",))

    assert rules.accepts(agent, method) is accepted


@pytest.mark.parametrize(
    ("addresses", "written"),
    [(("10.0.0.1", "10.0.0.2"), "10.0.0.1:22"), (("2001:db8::1",), "[2001:db8::1]:22"), ((), "-:22")],
)
def test_an_agents_address_is_the_preferred_one_with_its_port(addresses: tuple[str, ...], written: str) -> None:
    """As people write it, IPv6 in brackets."""
    assert Agent(AgentId("cloud:a"), "1", "cloud", "ci", "a", addresses).address == written


def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    """An operator can compare them by eye."""
    place = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place], check=True, timeout=10)
    told = subprocess.run(["ssh-keygen", "-l", "-f", place], check=True, timeout=10, capture_output=True, text=True)
    kind, body, *_ = place.with_suffix(".pub").read_text().split()

    key = public_key(kind, body)

    assert fingerprint(key) == told.stdout.split()[1]
    assert HostTrust(Method.PINNED, (key,)).fingerprints == (fingerprint(key),)


@pytest.mark.parametrize(
    ("kind", "body", "why"),
    [
        ("ssh-dss", made("ssh-dss", b"p"), "ssh-dss is no type of host key"),
        ("ssh-ed25519", "AAA", "cut off, or no base64"),
        ("ssh-ed25519", "not base64!", "cut off, or no base64"),
        ("ssh-ed25519", GOOD[:-4], "cut off"),
        ("ssh-ed25519", GOOD[:4], "cut off"),
        ("ssh-ed25519", "", "of another type"),
        ("ssh-ed25519", made("ssh-ed25519"), "of another type"),
        ("ssh-ed25519", made("ssh-rsa", b"e", b"n"), "of another type"),
    ],
)
def test_a_key_that_is_not_whole_is_refused_with_the_reason(kind: str, body: str, why: str) -> None:
    """Half a key would be believed by nobody later, and only then be noticed."""
    with pytest.raises(ValueError, match=why):
        public_key(kind, body)
