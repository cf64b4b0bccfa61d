"""`seeded`: a label names the seed, and the seed names the key."""

import pytest

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyUnknownError
from tunnelmgr.trust.seeded import SEED_LABELS, SeededKeys

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIAGkZnzWcWDkVGJCSmtWFcZOcmXJ9vSVP6sHJqMF5kP"


def launched(*labels: tuple[str, str]) -> Agent:
    """Return an agent with these labels."""
    return Agent(AgentId("cloud:a"), "1", "cloud", "ci", "a", ("10.0.0.1",), labels=labels)


class FakeSeeds(dict[str, Seed]):
    """The stored seeds, by id."""

    def seed(self, id_: str) -> Seed | None:
        """Return a seed."""
        return self.get(id_)


def known(*seeds: Seed) -> SeededKeys:
    """Return the method with these seeds."""
    return SeededKeys(FakeSeeds({seed.id: seed for seed in seeds}))


@pytest.mark.parametrize("name", SEED_LABELS)
async def test_the_seed_that_a_label_names_is_evidence_of_its_key(name: str) -> None:
    """The label may have EC2's or Hetzner's name, and the evidence names the seed."""
    trust = await known(Seed("abc", KEY, 200.0)).trust_for(launched(("role", "ci"), (name, "abc")))

    assert trust == HostTrust(Method.SEEDED, (KEY,))
    assert trust.detail == "seed abc"


async def test_its_holder_has_the_same_evidence_again() -> None:
    """The machine that used a seed gets the same evidence again, such as after a release."""
    taken = Seed("abc", KEY, 200.0, AgentId("cloud:a"), "1")

    assert await known(taken).trust_for(launched((SEED_LABELS[0], "abc")))


@pytest.mark.parametrize(("holder", "incarnation"), [("cloud:b", "1"), ("cloud:a", "0")])
async def test_a_used_seed_is_not_evidence_for_another_machine(holder: str, incarnation: str) -> None:
    """A used seed is not evidence for another machine, nor for the same server after a rebuild."""
    taken = Seed("abc", KEY, 200.0, AgentId(holder), incarnation)

    with pytest.raises(HostKeyUnknownError, match=f"seed abc was used by {holder} already"):
        await known(taken).trust_for(launched((SEED_LABELS[0], "abc")))


async def test_a_seed_that_is_not_known_is_not_evidence() -> None:
    """A seed that another controller made, or that has expired, is not evidence."""
    with pytest.raises(HostKeyUnknownError, match="seed abc is unknown here or has expired"):
        await known().trust_for(launched((SEED_LABELS[0], "abc")))


async def test_an_agent_without_the_label_has_none() -> None:
    """The reason for an agent without the label names the label."""
    with pytest.raises(HostKeyUnknownError, match="no label tunnelmgr:seed or tunnelmgr-seed"):
        await known(Seed("abc", KEY, 200.0)).trust_for(launched(("seed", "abc")))
