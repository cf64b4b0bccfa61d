"""What a session gets from its context: the current policy, and the request log."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lab.gate_stand_ins import ListenerProofs, OnePolicy
from tests.gate.conftest import CALLER, Records
from tests.until import until
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.oci import probe_request
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.deadline import Deadline
from tunnelmgr.gate.context import GateContext
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.uploads import UploadProofs

if TYPE_CHECKING:
    from tests.gate.conftest import Talk
    from tests.gate.docker_registry import Registry
ACCEPT = "Accept: application/vnd.docker.distribution.manifest.v2+json"
Grants = Callable[..., Gate]


async def test_a_new_policy_applies_to_the_next_request(talk: "Talk", registry: "Registry") -> None:
    """A new policy applies to the next request on an open channel."""
    policies = OnePolicy(GroupPolicy.build("ci"))
    gate = Gate(GateContext(policies=policies, proofs=ListenerProofs(), uploads=UploadProofs(b"secret")))

    async with talk(gate, registry.endpoint) as agent:
        before = await agent.ask("GET", "/v2/team/app/tags/list")
        policies.policy = GroupPolicy.build("ci", deny=("team/**",))
        after = await agent.ask("GET", "/v2/team/app/tags/list")

    assert (before.status, after.status) == (200, 403)


async def test_the_policy_is_that_of_the_agents_current_group(talk: "Talk", registry: "Registry") -> None:
    """An agent that is moved to another group gets its policy on open channels, and is recorded under it."""
    policies, records = OnePolicy(GroupPolicy.build("builders")), Records()
    gate = Gate(
        GateContext(policies=policies, proofs=ListenerProofs(), uploads=UploadProofs(b"secret"), requests=records)
    )

    async with talk(gate, registry.endpoint) as agent:
        before = await agent.ask("GET", "/v2/team/app/tags/list")
        policies.policy = GroupPolicy.build("ci", pull=())
        after = await agent.ask("GET", "/v2/team/app/tags/list")
        identity = await agent.ask("GET", "/.well-known/tunnelmgr")

    assert (before.status, after.status) == (200, 403)
    assert json.loads(identity.body)["group"] == "ci"
    assert [record.caller.group for record in records.all] == ["builders", "ci", "ci"]


async def test_every_request_is_recorded(talk: "Talk", gate_for: Grants, registry: "Registry") -> None:
    """Each request leaves one record, which has no header values and no state of an upload."""
    records = Records()
    gate = Gate(replace(gate_for().context, requests=records))

    async with talk(gate, registry.endpoint) as agent:
        await agent.ask("GET", "/v2/", "Authorization: Basic hidden")
        await agent.ask("GET", "/v2/team/app/manifests/v1", ACCEPT)
        await agent.ask("PATCH", "/v2/team/app/blobs/uploads/1?state=open", "Cookie: hidden")

    assert "hidden" not in repr(records.all)
    assert all(0 < record.took < 1 for record in records.all), "a clock that counts milliseconds has none for some"
    assert [(record.verdict, record.rule) for record in records.all] == [
        ("allowed", "always"),
        ("allowed", "pull **"),
        ("refused", "default"),
    ]
    assert records.all[1].bytes_to_agent > 0
    assert records.all[1].bytes_from_agent > 0


async def test_the_request_log_can_throttle_the_agent_after_each_request(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """After each request, the session waits until the request log lets the agent cause more records."""
    records = Records()
    gate = Gate(replace(gate_for().context, requests=records))

    async with talk(gate, registry.endpoint) as agent:
        await agent.ask("GET", "/v2/")
        await agent.ask("GET", "/v2/none/such/manifests/v1")

    assert records.throttled == [record.caller.agent for record in records.all]
    assert len(records.throttled) == 2


async def test_a_tls_handshake_is_refused_and_not_recorded(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """A TLS handshake gets a refusal, so that the client continues in plain HTTP, and leaves no record."""
    records = Records()
    gate = Gate(replace(gate_for().context, requests=records))

    async with talk(gate, registry.endpoint) as agent:
        agent.channel.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")
        refused = await agent.answer("GET")

    assert refused.status == 400
    assert b"plain HTTP" in refused.body
    assert records.all == []


async def test_an_outage_of_the_request_log_refuses_all_but_the_probe(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """During an outage of the request log, an allowed request gets 503 with the reason, and a probe is answered."""
    records = Records()
    records.failure = "the audit log cannot be written"
    gate = Gate(replace(gate_for().context, requests=records))

    async with talk(gate, registry.endpoint) as agent:
        refused = await agent.ask("GET", "/v2/team/app/manifests/v1", ACCEPT)
        probed = await agent.ask("GET", "/.well-known/tunnelmgr")

    assert refused.status == 503
    assert b"the audit log cannot be written" in refused.body
    assert probed.status == 200


class Arrivals(ListenerProofs):
    """Proofs that notes arrivals; probes with an even nonce wait for that."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, AgentId, str]] = []

    def note_arrival(self, nonce: str, agent: AgentId, listener: str) -> bool:
        """Note the arrival; returns whether the nonce is even."""
        self.noted.append((nonce, agent, listener))
        return int(nonce, 16) % 2 == 0


async def test_a_probe_whose_arrival_was_expected_gets_no_answer(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """After the first probe of a channel, those that only need to arrive cost no answer and no record."""
    proofs, records = Arrivals(), Records()
    gate = Gate(replace(gate_for().context, proofs=proofs, requests=records))

    async with talk(gate, registry.endpoint) as agent:
        assert (await agent.ask("GET", "/v2/")).status == 200
        agent.channel.send(probe_request(CALLER.listener, "02"))
        first = await agent.answer()
        await until(lambda: agent.channel.takes is not None)
        agent.channel.send(probe_request(CALLER.listener, "04"))
        agent.channel.send(probe_request(CALLER.listener, "05"))
        other = await agent.answer()
        assert (await agent.ask("GET", "/v2/")).status == 200
        assert agent.channel.takes is None

    assert b"02@127.0.0.1:5000" in first.body
    assert b"05@127.0.0.1:5000" in other.body
    assert proofs.noted == [(nonce, CALLER.agent, CALLER.listener) for nonce in ("04", "05")]
    assert [record.action for record in records.all] == ["base", "well-known", "well-known", "base"]


async def test_an_expected_arrival_moves_the_deadline_of_its_channel(
    talk: "Talk", gate_for: Grants, registry: "Registry", monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that needs no answer counts like a request: the channel stays open for `idle` seconds after it."""
    moved: list[float] = []
    monkeypatch.setattr(Deadline, "extend", lambda _, seconds: moved.append(seconds))
    gate = Gate(replace(gate_for().context, proofs=Arrivals()))

    async with talk(gate, registry.endpoint) as agent:
        agent.channel.send(probe_request(CALLER.listener, "02"))
        await agent.answer()
        await until(lambda: agent.channel.takes is not None)
        agent.channel.send(probe_request(CALLER.listener, "04"))

    assert moved == [gate.context.timeouts.idle]


async def test_a_channel_that_is_kept_for_probes_is_not_counted(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """A channel that the controller keeps for probes is not counted as a client's."""
    async with talk(gate_for(), registry.endpoint) as client, talk(gate_for(), registry.endpoint) as probe:
        for _ in range(2):
            assert (await probe.ask("GET", "/.well-known/tunnelmgr", "Tunnelmgr-Nonce: 0123")).status == 200
            assert (await client.ask("GET", "/.well-known/tunnelmgr")).status == 200
            assert (probe.traffic.channels, client.traffic.channels) == (0, 1)
