"""Trust methods and their order, and the rules that choose among them."""

import pytest

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.trust import Method


def test_methods_are_ordered_by_strength() -> None:
    """The methods are in the documented order, strongest first."""
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
def test_a_method_reaches_every_minimum_that_is_not_stronger(method: Method, minimum: Method, enough: bool) -> None:
    """A method reaches itself and every weaker minimum, and no stronger one."""
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
    """A method is accepted only if the source names it and it reaches the group's minimum."""
    rules = Rules(trust={"cloud": (Method.CONSOLE, Method.TOFU)}, minimum={"strict": Method.CONSOLE})
    agent = Agent(AgentId("cloud:a"), "1", source, group, "a", ("10.0.0.1",))

    assert rules.accepts(agent, method) is accepted


@pytest.mark.parametrize(
    ("addresses", "written"),
    [(("10.0.0.1", "10.0.0.2"), "10.0.0.1:22"), (("2001:db8::1",), "[2001:db8::1]:22"), ((), "-:22")],
)
def test_an_agents_address_is_the_preferred_one_with_its_port(addresses: tuple[str, ...], written: str) -> None:
    """An agent's address is its first address with the port, IPv6 in brackets."""
    assert Agent(AgentId("cloud:a"), "1", "cloud", "ci", "a", addresses).address == written
