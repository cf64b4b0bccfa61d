"""Trust methods and their order, and the rules that choose among them."""

import pytest

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.trust import Method


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
