"""`seeded`: a label names the seed, and the seed names the key."""

import pytest

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyUnknownError
from tunnelmgr.trust.seeded import NAMES, SeededKeys

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIAGkZnzWcWDkVGJCSmtWFcZOcmXJ9vSVP6sHJqMF5kP"


def launched(*labels: tuple[str, str]) -> Agent:
    """Return an agent with these labels."""
    return Agent(AgentId("cloud:a"), "1", "cloud", "ci", "a", ("10.0.0.1",), labels=labels)


def known(*seeds: Seed) -> SeededKeys:
    """Return the method with these seeds."""
    return SeededKeys({seed.id: seed for seed in seeds}.get)


@pytest.mark.parametrize("name", NAMES)
async def test_the_seed_that_a_label_names_is_evidence_of_its_key(name: str) -> None:
    """Under the name that each cloud can hold; the evidence says which seed it was."""
    trust = await known(Seed("abc", KEY, 200.0)).trust_for(launched(("role", "ci"), (name, "abc")))

    assert trust == HostTrust(Method.SEEDED, (KEY,))
    assert trust.detail == "seed abc"


async def test_its_holder_is_proved_again() -> None:
    """After a release, say."""
    taken = Seed("abc", KEY, 200.0, AgentId("cloud:a"), "1")

    assert await known(taken).trust_for(launched((NAMES[0], "abc")))


@pytest.mark.parametrize(("holder", "incarnation"), [("cloud:b", "1"), ("cloud:a", "0")])
async def test_a_seed_that_somebody_has_taken_is_nobody_elses(holder: str, incarnation: str) -> None:
    """Not even the same server's, once it is rebuilt."""
    taken = Seed("abc", KEY, 200.0, AgentId(holder), incarnation)

    with pytest.raises(HostKeyUnknownError, match=f"seed abc was used already, by {holder}"):
        await known(taken).trust_for(launched((NAMES[0], "abc")))


async def test_a_seed_that_is_not_known_is_no_evidence() -> None:
    """It was made elsewhere, or has expired."""
    with pytest.raises(HostKeyUnknownError, match="seed abc is not known here, or has expired"):
        await known().trust_for(launched((NAMES[0], "abc")))


async def test_an_agent_without_the_label_has_none() -> None:
    """It is told which label it lacks."""
    with pytest.raises(HostKeyUnknownError, match="no label tunnelmgr:seed or tunnelmgr-seed"):
        await known(Seed("abc", KEY, 200.0)).trust_for(launched(("seed", "abc")))
