"""What the login key could do on an agent: when it is tried, how it is shown, and what a strict group makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tunnelmgr.core.events import LoginKeyTested, Reconfigured, TunnelEnded, TunnelProbed
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.reconcile import CloseTunnel, Manner, OpenTunnel
from tunnelmgr.errors import KeyTooPowerfulError

if TYPE_CHECKING:
    from tests.core.conftest import History
    from tunnelmgr.core.agent import Agent

EXCESS = ("run commands", "connect to other ports")
HINT = "tunnelmgr init --print authorized-keys"


def dial(history: History, agent: Agent) -> OpenTunnel:
    """Let the tunnel's next life begin, and return the action."""
    history.now += 3600
    (action,) = history.act()
    assert isinstance(action, OpenTunnel)
    assert action.agent == agent.id
    return action


def test_a_key_is_tried_in_the_first_life_on_a_machine(history: History) -> None:
    """Until there is an answer, each life tries; after that none does, until the machine is rebuilt."""
    agent = history.agent()
    history.believed(agent)

    first = dial(history, agent)
    history.ended(agent)
    second = dial(history, agent)
    history.receive(LoginKeyTested(agent.id, 2, ()))
    history.ended(agent)
    third = dial(history, agent)
    history.ended(agent)
    rebuilt = replace(agent, incarnation="2")
    history.believed(rebuilt)
    fourth = dial(history, rebuilt)

    assert [one.tests_key for one in (first, second, third, fourth)] == [True, True, False, True]
    assert not first.spec.restricted


def test_an_agent_that_is_up_shows_what_the_key_could_do(history: History) -> None:
    """The warning names it and the cure; it stays through later lives, and another problem comes first."""
    agent = history.agent()
    history.up(agent)
    before = history.status(agent).error
    history.receive(LoginKeyTested(agent.id, 1, EXCESS))
    shown = history.status(agent)
    history.ended(agent)
    dial(history, agent)
    history.receive(LoginKeyTested(agent.id, 1, ()), TunnelProbed(agent.id, 2, 0.01))

    assert before is None
    assert shown.error == "key-too-powerful"
    assert "run commands, connect to other ports" in shown.message
    assert HINT in shown.message
    assert history.status(agent).error == "key-too-powerful", "an answer from an earlier life changes nothing"
    assert history.steps(agent).count("key-too-powerful") == 1
    conflict = replace(history.status(agent).bindings, conflicts=("[::1]:5000",))
    assert replace(history.status(agent), bindings=conflict).error == "listen-refused"


def test_an_answer_before_the_first_probe_is_shown_once_the_tunnel_is_up(history: History) -> None:
    """A restricted key shows nothing."""
    weak, strong = history.agent("a"), history.agent("b")
    history.believed(weak, 1)
    history.believed(strong, 2)
    history.act()
    history.receive(LoginKeyTested(weak.id, 1, ()), LoginKeyTested(strong.id, 1, EXCESS))
    history.receive(TunnelProbed(weak.id, 1, 0.01), TunnelProbed(strong.id, 1, 0.01))

    assert (history.status(weak).error, history.status(strong).error) == (None, "key-too-powerful")


def test_a_group_that_requires_a_restricted_key_opens_its_tunnels_again(history: History) -> None:
    """Each life of its tunnels tries the key, so that a cure is noticed; one that could do more stays down."""
    agent = history.agent()
    history.up(agent)
    history.receive(LoginKeyTested(agent.id, 1, EXCESS))
    history.receive(Reconfigured(replace(history.rules, restricted=frozenset({agent.group}))))

    assert history.act() == (CloseTunnel(agent.id, 1, Manner.DRAIN),)
    history.receive(TunnelEnded(agent.id, 1, None))
    again = dial(history, agent)
    assert (again.spec.restricted, again.tests_key) == (True, True)
    refused = KeyTooPowerfulError(EXCESS)
    history.receive(LoginKeyTested(agent.id, 2, EXCESS))
    history.receive(TunnelEnded(agent.id, 2, Failure(refused.code, refused.retry, str(refused))))
    assert history.status(agent).error == "key-too-powerful"
    assert dial(history, agent).tests_key
