"""What breaks on the way: connections, daemons, ports and addresses. The tunnel comes back, or says why not."""

from typing import TYPE_CHECKING

import pytest

from lab.processes import until

if TYPE_CHECKING:
    from lab.agents import LabAgent
    from lab.processes import Process
    from tests.acceptance.conftest import Field

pytestmark = pytest.mark.acceptance


def steps(field: "Field", agent: "LabAgent") -> list[str]:
    """Return the steps of an agent's history."""
    return [moment["step"] for moment in field.controller.agent(agent.name)["history"]]


def lost(field: "Field", agent: "LabAgent") -> None:
    """Wait until the controller has noticed a loss."""
    until(lambda: "lost" in steps(field, agent), "the loss is noticed", timeout=15)


def squat(agent: "LabAgent", host: str) -> "Process":
    """Let a stranger's web server hold port 5000 on one address of the agent."""
    squatter = agent.popen(["python3", "-m", "http.server", "--bind", host, "5000"])
    until(lambda: agent.listeners(5000), "the squatter listens")
    return squatter


def test_a_tunnel_comes_back_after_a_reset(field: "Field") -> None:
    """A RST on the SSH connection costs seconds, not the tunnel."""
    agent = field.boot("builder")
    field.up(agent)

    agent.faults.reset_connections()

    lost(field, agent)
    field.controller.wait_phase("builder", "up")
    assert field.reaches(agent)


def test_a_silent_drop_is_found_by_the_probe_and_mended(field: "Field") -> None:
    """When packets vanish, the unanswered probe ends the tunnel; when they come again, so does it."""
    agent = field.boot("builder")
    field.up(agent)

    agent.faults.drop()
    lost(field, agent)
    agent.faults.heal()

    field.controller.wait_phase("builder", "up", timeout=30)
    assert field.reaches(agent)
    assert any(
        "did not answer the probe" in moment["detail"] for moment in field.controller.agent("builder")["history"]
    )


def test_a_program_that_keeps_asking_does_not_keep_a_lost_port_taken(field: "Field") -> None:
    """Meanwhile sshd does not look whether its client is there; the agent's kernel ends the dead connection."""
    agent = field.boot("builder")
    assert agent.run(["sysctl", "-n", "net.ipv4.tcp_retries2"], check=True).stdout.strip() == "5"
    field.up(agent)
    asking = "while :; do curl -s -m 1 -o /dev/null http://127.0.0.1:5000/v2/; sleep 1; done"
    agent.popen(["sh", "-c", asking])
    until(lambda: field.controller.agent("builder")["bytes_to_agent"] > 0, "the program asks")

    agent.faults.cut_connections()
    lost(field, agent)

    field.controller.wait_phase("builder", "up", timeout=60)


def test_a_port_that_a_dead_connection_holds_is_freed_by_a_reset(field: "Field") -> None:
    """Where a NAT has lost its state, the controller ends the connection that sshd and the kernel keep for long."""
    agent = field.boot("builder", None, "ClientAliveInterval 0")
    agent.run(["sysctl", "-q", "-w", "net.ipv4.tcp_retries2=15"], check=True)
    field.up(agent)

    agent.faults.forget_connections()
    lost(field, agent)

    field.controller.wait_phase("builder", "up")
    assert "reset by" in agent.log()


def test_a_frozen_session_is_found_by_the_probe(field: "Field") -> None:
    """An sshd that keeps its sockets open but does nothing is no tunnel."""
    agent = field.boot("builder")
    field.up(agent)

    agent.pause_sshd_sessions()

    lost(field, agent)
    agent.resume_sshd_sessions()
    field.controller.wait_phase("builder", "up", timeout=30)


def test_a_tunnel_comes_back_after_sshd_restarts(field: "Field") -> None:
    """A restart of the agent's sshd with all its sessions is mended without a person."""
    agent = field.boot("builder")
    field.up(agent)

    agent.restart_sshd()

    lost(field, agent)
    field.controller.wait_phase("builder", "up")
    assert field.reaches(agent)


def test_a_stale_listener_is_named_and_outwaited(field: "Field") -> None:
    """While a dead session still holds the port, the agent is down with listen-refused; then it comes up."""
    agent = field.boot("builder")
    field.up(agent)

    agent.pause_sshd_sessions()
    lost(field, agent)
    refused = field.controller.wait("builder", lambda facts: facts["error"] == "listen-refused", "the port is named")
    agent.resume_sshd_sessions()
    field.controller.wait_phase("builder", "up", timeout=40)

    assert "127.0.0.1:5000" in refused["message"]
    assert field.reaches(agent)


def test_a_squatter_on_the_first_address_keeps_the_tunnel_down_and_is_named(field: "Field") -> None:
    """An agent whose 127.0.0.1:5000 belongs to another process is not up, whatever ::1 says."""
    agent = field.boot("builder")
    squatter = squat(agent, "127.0.0.1")
    field.static(agent)

    field.controller.start()
    refused = field.controller.wait("builder", lambda facts: facts["error"] == "listen-refused", "the squatter shows")
    squatter.end()

    assert refused["phase"] in {"down", "connecting"}
    field.controller.wait_phase("builder", "up", timeout=30)
    assert agent.listeners(5000) == ["127.0.0.1", "::1"]


def test_a_squatter_on_the_second_address_is_named_while_the_tunnel_is_up(field: "Field") -> None:
    """With ::1:5000 in other hands the tunnel is up on 127.0.0.1, says so, and takes the address once it is free."""
    agent = field.boot("builder")
    squatter = squat(agent, "::1")
    field.static(agent)

    field.controller.start()
    up = field.controller.wait_phase("builder", "up")
    squatter.end()
    whole = field.controller.wait("builder", lambda facts: facts["error"] is None, "the address is taken")

    assert (up["error"], up["forwards"][0]["held"]) == ("listen-refused", ["127.0.0.1:5000"])
    assert "[::1]:5000" in up["message"]
    assert whole["forwards"][0]["held"] == ["127.0.0.1:5000", "[::1]:5000"]


def test_an_agent_without_ipv6_is_simply_up(field: "Field") -> None:
    """No ::1 on the agent is no fault of anybody."""
    agent = field.lab.agent("four", "10.77.0.60", field.controller.authorized_keys, ipv6=False)

    field.up(agent)

    facts = field.controller.agent("four")
    assert (facts["error"], facts["forwards"][0]["held"]) == (None, ["127.0.0.1:5000"])


def test_gateway_ports_quarantine_the_agent_and_nothing_stays_open(field: "Field") -> None:
    """An sshd that would show the registry to its network is told to stop at once, and a person has to look."""
    agent = field.boot("builder", None, "GatewayPorts yes")
    field.static(agent)

    field.controller.start()
    facts = field.controller.wait_phase("builder", "quarantined")

    assert facts["error"] == "exposed-listener"
    until(lambda: not agent.listeners(5000), "the listener is gone")
    status = field.controller.command("status")
    assert status.returncode == 1
    assert "static:builder is quarantined" in status.stdout


def test_a_stranger_at_a_live_agents_address_gets_no_login(field: "Field") -> None:
    """Another machine on the agent's address is refused before any credential is offered; release does not help it."""
    agent = field.boot("builder")
    field.up(agent)

    agent.kill()
    stranger = field.boot("stranger", agent.ip)
    facts = field.controller.wait_phase("builder", "quarantined", timeout=30)
    field.controller.command("release", "builder", "--reason", "test")
    again = field.controller.wait_phase("builder", "quarantined", timeout=30)

    assert facts["error"] == again["error"] == "host-key-mismatch"
    # What sshd logs of a client that got as far as naming a user, whatever became of it.
    assert "user tunnel" not in stranger.log()
    assert "Accepted" not in stranger.log()
    assert not field.reaches(stranger)


def test_a_stranger_on_a_departed_agents_address_is_just_another_agent(field: "Field") -> None:
    """An address that an agent left and another got carries no memory: the new one is judged by its own key."""
    first = field.boot("first")
    field.up(first)

    first.kill()
    second = field.boot("second", first.ip)
    field.static(second)
    reloaded = field.controller.command("reload")

    assert reloaded.returncode == 0, reloaded.stderr
    field.controller.wait_phase("second", "up", timeout=30)
    assert [facts["name"] for facts in field.controller.client.agents()] == ["second"]


def test_an_agent_that_lacks_permitopen_says_which_line_it_needs(field: "Field") -> None:
    """Without permitopen the listener cannot be probed, and the message names the missing option."""
    agent = field.boot("builder")
    agent.authorize(field.controller.authorized_keys.replace(',permitopen="127.0.0.1:5000"', ""))
    field.static(agent)

    field.controller.start()
    facts = field.controller.wait("builder", lambda facts: facts["error"] is not None, "the error shows")

    assert 'permitopen="127.0.0.1:5000"' in facts["message"]
