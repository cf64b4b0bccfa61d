"""Faults of connections, daemons, ports and addresses: the tunnel comes back, or the agent shows why it cannot."""

from typing import TYPE_CHECKING

import pytest

from lab.processes import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.agents import LabAgent
    from lab.processes import Process
    from tests.acceptance.conftest import Field

pytestmark = pytest.mark.acceptance


def steps(field: "Field", agent: "LabAgent") -> list[str]:
    """Return the steps of an agent's history."""
    return [event["step"] for event in field.controller.agent(agent.name)["history"]]


def await_loss(field: "Field", agent: "LabAgent") -> None:
    """Wait until the controller has recorded the loss of the tunnel."""
    until(lambda: "lost" in steps(field, agent), "the loss is noticed", timeout=15)


def occupy_port(agent: "LabAgent", host: str) -> "Process":
    """Let another process listen on port 5000 of one address of the agent."""
    occupant = agent.popen(["python3", "-m", "http.server", "--bind", host, "5000"])
    until(lambda: agent.listeners(5000), "the other process listens")
    return occupant


def reset_connections(agent: "LabAgent") -> None:
    """Reset the SSH connection."""
    agent.faults.reset_connections()


def restart_sshd(agent: "LabAgent") -> None:
    """Restart the agent's sshd with all its sessions."""
    agent.restart_sshd()


@pytest.mark.parametrize("fault", [reset_connections, restart_sshd])
def test_a_tunnel_comes_back(field: "Field", fault: "Callable[[LabAgent], None]") -> None:
    """After a TCP reset and after a restart of sshd, the tunnel comes back without an operator."""
    agent = field.boot("builder")
    field.up(agent)

    fault(agent)

    await_loss(field, agent)
    field.controller.wait_phase("builder", "up")
    assert field.reaches(agent)


def test_the_probe_detects_lost_packets(field: "Field") -> None:
    """If packets are lost, the unanswered probe ends the tunnel; it comes back when they pass again."""
    agent = field.boot("builder")
    field.up(agent)

    agent.faults.drop()
    await_loss(field, agent)
    agent.faults.heal()

    field.controller.wait_phase("builder", "up", timeout=30)
    assert field.reaches(agent)
    history = field.controller.agent("builder")["history"]
    assert any("did not answer the probe" in event["detail"] for event in history)


def test_a_program_that_keeps_sending_requests_does_not_keep_a_lost_port_taken(field: "Field") -> None:
    """A busy sshd does not check that its client is alive; the agent's kernel ends the dead connection."""
    agent = field.boot("builder")
    assert agent.run(["sysctl", "-n", "net.ipv4.tcp_retries2"], check=True).stdout.strip() == "5"
    field.up(agent)
    requests = "while :; do curl -s -m 1 -o /dev/null http://127.0.0.1:5000/v2/; sleep 1; done"
    agent.popen(["sh", "-c", requests])
    until(lambda: field.controller.agent("builder")["bytes_to_agent"] > 0, "the program receives answers")

    agent.faults.cut_connections()
    await_loss(field, agent)

    field.controller.wait_phase("builder", "up", timeout=60)


def test_a_port_that_a_dead_connection_holds_is_freed_by_a_reset(field: "Field") -> None:
    """If a NAT has lost its state, the controller resets the connection that sshd and the kernel would keep."""
    agent = field.boot("builder", None, "ClientAliveInterval 0")
    agent.run(["sysctl", "-q", "-w", "net.ipv4.tcp_retries2=15"], check=True)
    field.up(agent)

    agent.faults.forget_connections()
    await_loss(field, agent)

    field.controller.wait_phase("builder", "up")
    assert "reset by" in agent.log()


def test_the_probe_detects_a_frozen_session(field: "Field") -> None:
    """If sshd keeps its sockets open but does nothing, the tunnel is lost; it comes back when sshd resumes."""
    agent = field.boot("builder")
    field.up(agent)

    agent.pause_sshd_sessions()

    await_loss(field, agent)
    agent.resume_sshd_sessions()
    field.controller.wait_phase("builder", "up", timeout=30)


def test_a_listener_of_a_dead_session_is_reported_until_it_is_gone(field: "Field") -> None:
    """While a dead session holds the port, the agent is down with listen-refused; afterwards it comes up."""
    agent = field.boot("builder")
    field.up(agent)

    agent.pause_sshd_sessions()
    await_loss(field, agent)
    refused = field.controller.wait("builder", lambda facts: facts["error"] == "listen-refused", "the conflict shows")
    agent.resume_sshd_sessions()
    field.controller.wait_phase("builder", "up", timeout=40)

    assert "127.0.0.1:5000" in refused["message"]
    assert field.reaches(agent)


def test_a_port_conflict_on_the_first_address_keeps_the_tunnel_down(field: "Field") -> None:
    """An agent whose 127.0.0.1:5000 belongs to another process is not up, even if ::1:5000 is free."""
    agent = field.boot("builder")
    occupant = occupy_port(agent, "127.0.0.1")
    field.static(agent)

    field.controller.start()
    refused = field.controller.wait("builder", lambda facts: facts["error"] == "listen-refused", "the conflict shows")
    occupant.end()

    assert refused["phase"] in {"down", "connecting"}
    field.controller.wait_phase("builder", "up", timeout=30)
    assert agent.listeners(5000) == ["127.0.0.1", "::1"]


def test_a_port_conflict_on_the_second_address_is_reported_while_the_tunnel_is_up(field: "Field") -> None:
    """If ::1:5000 is taken, the tunnel is up on 127.0.0.1 and reports it; it takes the address once it is free."""
    agent = field.boot("builder")
    occupant = occupy_port(agent, "::1")
    field.static(agent)

    field.controller.start()
    up = field.controller.wait_phase("builder", "up")
    occupant.end()
    whole = field.controller.wait("builder", lambda facts: facts["error"] is None, "the address is taken")

    assert (up["error"], up["forwards"][0]["held"]) == ("listen-refused", ["127.0.0.1:5000"])
    assert "[::1]:5000" in up["message"]
    assert whole["forwards"][0]["held"] == ["127.0.0.1:5000", "[::1]:5000"]


def test_an_agent_without_ipv6_is_simply_up(field: "Field") -> None:
    """An agent without ::1 is up without an error."""
    agent = field.lab.agent("four", "10.77.0.60", field.controller.authorized_keys, ipv6=False)

    field.up(agent)

    facts = field.controller.agent("four")
    assert (facts["error"], facts["forwards"][0]["held"]) == (None, ["127.0.0.1:5000"])


def test_gateway_ports_quarantine_the_agent(field: "Field") -> None:
    """If sshd exposes the listener to its network, it is closed at once and the agent is quarantined."""
    agent = field.boot("builder", None, "GatewayPorts yes")
    field.static(agent)

    field.controller.start()
    facts = field.controller.wait_phase("builder", "quarantined")

    assert facts["error"] == "exposed-listener"
    until(lambda: not agent.listeners(5000), "the listener is gone")
    status = field.controller.command("status")
    assert status.returncode == 1
    assert "static:builder is quarantined" in status.stdout


def test_another_machine_at_an_agents_address_gets_no_login(field: "Field") -> None:
    """Another machine at the agent's address is refused before authentication, and again after a release."""
    agent = field.boot("builder")
    field.up(agent)

    agent.kill()
    stranger = field.boot("stranger", agent.ip)
    facts = field.controller.wait_phase("builder", "quarantined", timeout=30)
    field.controller.command("release", "builder", "--reason", "test")
    again = field.controller.wait_phase("builder", "quarantined", timeout=30)

    assert facts["error"] == again["error"] == "host-key-mismatch"
    # sshd logs this for each client that sends a user name, accepted or not.
    assert "user tunnel" not in stranger.log()
    assert "Accepted" not in stranger.log()
    assert not field.reaches(stranger)


def test_a_new_agent_at_the_address_of_a_removed_agent_is_verified_on_its_own(field: "Field") -> None:
    """An address keeps no evidence of its former agent: a new agent there is verified by its own key."""
    first = field.boot("first")
    field.up(first)

    first.kill()
    second = field.boot("second", first.ip)
    field.static(second)
    reloaded = field.controller.command("reload")

    assert reloaded.returncode == 0, reloaded.stderr
    field.controller.wait_phase("second", "up", timeout=30)
    assert [facts["name"] for facts in field.controller.client.agents()] == ["second"]


def test_an_agent_without_permitopen_shows_the_missing_option(field: "Field") -> None:
    """Without permitopen the probe cannot pass, and the message names the missing option."""
    agent = field.boot("builder")
    agent.authorize(field.controller.authorized_keys.replace(',permitopen="127.0.0.1:5000"', ""))
    field.static(agent)

    field.controller.start()
    facts = field.controller.wait("builder", lambda facts: facts["error"] is not None, "the error shows")

    assert 'permitopen="127.0.0.1:5000"' in facts["message"]
