"""Identity: events, certificates, seeds and labels, both clouds, and the controller's own keys."""

import json
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lab.ec2 import host_key_console
from lab.hetzner.client import HetznerService
from lab.images import make_image, skopeo_copy
from lab.processes import until
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.ssh.key_files import make_key, public_line

if TYPE_CHECKING:
    from lab.agents import LabAgent
    from lab.processes import Process
    from tests.acceptance.conftest import CloudField, Field

pytestmark = pytest.mark.acceptance

CERTIFICATE = "/etc/ssh/lab_host_key-cert.pub"


# --- events ---


def slow_pull(field: "Field", agent: "LabAgent") -> "Process":
    """Push a layer of 24 MiB and start to pull it at 2 MiB/s; return when bytes arrive."""
    layout = make_image(field.folder / "big", layers=1, kib_per_layer=24 * 1024)
    pushed = skopeo_copy(agent, layout, "docker://localhost:5000/team/big:1")
    assert pushed.returncode == 0, pushed.stderr
    blobs = (field.folder / "big" / "layout" / "blobs" / "sha256").iterdir()
    url = f"http://localhost:5000/v2/team/big/blobs/sha256:{max(blobs, key=lambda blob: blob.stat().st_size).name}"
    target = field.folder / "slow"
    pull = agent.popen(["curl", "-fsS", "--limit-rate", "2M", "-o", str(target), url])
    until(lambda: target.exists() and target.stat().st_size > 100_000, "bytes arrive")
    return pull


def sockets(machine: Any, *chosen: str) -> int:  # noqa: ANN401
    """Count the established TCP connections of a machine."""
    shown = machine.run(["ss", "-Htn", "state", "established", *chosen], check=True).stdout
    return len(shown.splitlines())


def test_a_terminated_event_ends_a_transfer_within_seconds(
    cloud_field: "CloudField", capsys: pytest.CaptureFixture[str]
) -> None:
    """The listener, the connection and the upstream sockets are gone within 5 s, although no poll is due."""
    field = cloud_field
    queue = field.cloud.queue("changes")
    agent, id_ = field.launch("builder")
    field.believe("console", poll="60s", queue=queue)
    field.controller.start()
    field.controller.wait_phase(id_, "up")
    pull = slow_pull(field, agent)
    calls_before = field.cloud.calls("DescribeInstances")
    before = sockets(agent, "sport = :22"), sockets(field.lab.controller, "dport = :5000")

    started = time.monotonic()
    field.cloud.event("changes", id_.removeprefix("ec2:"), "shutting-down")
    until(lambda: not agent.listeners(5000), "the listener is closed", timeout=5)
    no_channel = time.monotonic() - started
    until(lambda: not sockets(agent, "sport = :22"), "the SSH connection is gone", timeout=5)
    no_connection = time.monotonic() - started
    until(lambda: not sockets(field.lab.controller, "dport = :5000"), "the upstream sockets are gone", timeout=5)
    no_upstream = time.monotonic() - started
    until(lambda: pull.poll() is not None, "curl ends", timeout=5)

    with capsys.disabled():
        print(  # noqa: T201
            f"\n  terminated in mid-transfer: no new channel after {no_channel:.2f} s, no connection after "
            f"{no_connection:.2f} s, no upstream socket after {no_upstream:.2f} s, curl over after "
            f"{time.monotonic() - started:.2f} s"
        )
    assert before[0] >= 1
    assert before[1] >= 1
    assert pull.returncode != 0
    assert no_channel < 1
    assert max(no_connection, no_upstream) < 5
    assert field.controller.client.agents() == []
    # The event ended it, not a poll: the listing still has it as running.
    assert field.cloud.calls("DescribeInstances") <= calls_before + 3
    assert field.cloud.left("changes") == 0


def test_a_reload_revokes_a_grant_during_a_transfer_while_the_cloud_is_down(cloud_field: "CloudField") -> None:
    """If a source moves to a group that may not pull, the pull in progress is cut and the next one is refused."""
    field = cloud_field
    agent, id_ = field.launch("builder")
    field.believe("console")
    field.controller.start()
    field.controller.wait_phase(id_, "up")
    field.cloud.fault("DescribeInstances", [("InternalError", 500)], forever=True)
    until(lambda: not field.controller.client.status()["sources"][0]["ok"], "the cloud is down", timeout=60)
    pull = slow_pull(field, agent)

    text = field.controller.file.read_text().replace('group = "builders"', 'group = "idle"')
    field.controller.file.write_text(text + '[[group]]\nname = "idle"\npull = ["nothing/here"]\n')
    reloaded = field.controller.command("reload")
    until(lambda: pull.poll() is not None, "curl ends", timeout=5)

    assert reloaded.returncode == 0, reloaded.stderr
    assert pull.returncode != 0
    assert field.controller.wait_phase(id_, "up")["group"] == "idle"
    refused = agent.run(["curl", "-sS", "-m", "5", "http://localhost:5000/v2/team/big/tags/list"], timeout=10)
    assert "group idle may not pull team/big" in refused.stdout
    assert not field.controller.client.status()["sources"][0]["ok"]


def test_invalid_messages_are_deleted_and_a_failing_queue_is_shown(cloud_field: "CloudField") -> None:
    """Foreign and invalid messages have no effect; while the queue fails, `status` shows it and polling discovers."""
    field = cloud_field
    queue = field.cloud.queue("changes")
    first = field.launch("one")[1]
    field.believe("console", queue=queue)
    field.controller.start()
    field.controller.wait_phase(first, "up")

    for body in ("", "{", "[]", "null", "[" * 20_000, '{"detail-type": 7}'):
        field.cloud.send("changes", body or " ")
    field.cloud.event("changes", "i-0123456789abcdef0", "terminated")
    until(lambda: field.cloud.left("changes") == 0, "the queue is empty", timeout=15)
    field.cloud.fault("ReceiveMessage", [("AccessDenied", 403)], forever=True)
    field.cloud.send("changes", "completes the receive call in progress")
    until(lambda: not events(field)["ok"], "the failing queue is shown", timeout=30)
    second = field.launch("two")[1]
    field.controller.wait_phase(second, "up")
    shown = field.controller.command("status")
    field.cloud.clear_faults()
    field.cloud.send("changes", "the first message after the failure")
    until(lambda: events(field)["ok"], "the queue is ok again", timeout=30)

    assert "its event queue fails, polling continues: AccessDenied: the permission sqs:ReceiveMessage" in shown.stdout
    assert shown.returncode == 1
    assert steps(field, first).count("dialled") == 1


def events(field: "Field") -> dict[str, Any]:
    """Return the state of the source's queue from `status --json`."""
    status: dict[str, Any] = json.loads(field.controller.command("status", "--json").stdout)
    found: dict[str, Any] = status["sources"][0]["events"]
    return found


def steps(field: "Field", id_: str) -> list[str]:
    """Return the steps of an agent's history."""
    return [moment["step"] for moment in field.controller.agent(id_)["history"]]


# --- certificates ---


def certified(field: "Field", agent: "LabAgent", id_: str) -> None:
    """Sign an agent's host key for an id, and configure its sshd to present the certificate."""
    public = field.folder / f"{agent.name}.pub"
    public.write_text(agent.host_key)
    words = ("authority", "sign", "images", str(public), "--id", id_, "--folder", str(field.folder / "authorities"))
    signed = field.controller.command(*words)
    assert signed.returncode == 0, signed.stderr
    agent.run(["tee", CERTIFICATE], feed=signed.stdout, check=True)
    agent.restart_sshd()


def test_a_certificate_for_the_agents_id_brings_it_up_until_it_is_revoked(cloud_field: "CloudField") -> None:
    """An agent with a certificate for another id gets no login, and a reload applies a revocation at once."""
    field = cloud_field
    folder = field.folder / "authorities"
    made = field.controller.command("authority", "create", "images", "--folder", str(folder), "--json")
    agents = [field.boot(name, None, f"HostCertificate {CERTIFICATE}") for name in ("right", "wrong")]
    ids = [field.listed(agent) for agent in agents]
    certified(field, agents[0], ids[0])
    certified(field, agents[1], "ec2:i-somebody-else")
    field.believe("authority", more=json.loads(made.stdout)["config"])

    field.controller.start()
    up = field.controller.wait_phase(ids[0], "up")
    refused = field.controller.wait_phase(ids[1], "quarantined")
    shown = field.controller.command("show", ids[0]).stdout
    revoke = ("authority", "revoke", "images", "--authority", "--folder", str(folder))
    assert field.controller.command(*revoke).returncode == 0
    standing = agents[0].listeners(5000)
    assert field.controller.command("reload").returncode == 0
    until(lambda: not agents[0].listeners(5000), "the tunnel is closed")
    revoked = field.controller.wait_phase(ids[0], "quarantined")

    assert (up["trust"], up["fingerprints"]) == ("authority", [fingerprint(agents[0].host_key)])
    assert "authority (certificate of authority images, serial" in shown
    assert "presented a certificate for ec2:i-somebody-else" in refused["message"]
    assert "user tunnel" not in agents[1].log()
    assert standing
    assert "which authority images has revoked" in revoked["message"]


# --- seeds and labels ---


def test_a_seed_proves_one_machine_only(cloud_field: "CloudField") -> None:
    """A second machine with the same seed gets no tunnel, and the private key is stored nowhere."""
    field = cloud_field
    field.believe("seeded")
    field.controller.start()
    made = json.loads(field.controller.command("provision", "--json").stdout)
    private = yaml.safe_load(made["user_data"])["ssh_keys"]["ed25519_private"]
    key = field.folder / "from-user-data"
    key.write_text(private)
    name, _, seed = made["label"].partition("=")

    first = field.boot("first", host_key=key)
    first_id = field.listed(first, **{name: seed})
    up = field.controller.wait_phase(first_id, "up")
    second_id = field.listed(field.boot("second", host_key=key), **{name: seed})
    waiting = field.controller.wait(
        second_id, lambda facts: facts["error"] is not None, "the second one shows its error"
    )

    assert (up["trust"], up["evidence"]) == ("seeded", f"seed {seed}")
    assert f"seed {seed} was used by {first_id} already" in waiting["message"]
    assert waiting["phase"] == "awaiting-identity"
    assert field.controller.agent(first_id)["phase"] == "up"
    secret = private.splitlines()[2].encode()
    folder = field.controller.folder
    kept = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and "id_" not in file.name}
    assert {"state.db", "tunnelmgr.log", "tunnelmgr.toml"} <= set(kept)
    assert not [file for file, content in kept.items() if secret in content or b"PRIVATE KEY" in content]
    outputs = [
        field.controller.command(*words, "--json").stdout for words in (("status",), ("list",), ("show", first_id))
    ]
    assert not [text for text in outputs if secret.decode() in text]
    assert secret not in Path(f"/proc/{field.controller.pid}/cmdline").read_bytes()


def test_a_label_proves_the_key_with_its_fingerprint(cloud_field: "CloudField") -> None:
    """The key with the label's fingerprint is accepted as evidence by `label`; another key is refused."""
    field = cloud_field
    right, wrong = field.boot("right"), field.boot("wrong")
    label = {"tunnelmgr:host-key": fingerprint(right.host_key)}
    ids = [field.listed(agent, **label) for agent in (right, wrong)]
    field.believe("label")

    field.controller.start()

    up = field.controller.wait_phase(ids[0], "up")
    refused = field.controller.wait_phase(ids[1], "quarantined")
    assert (up["trust"], up["evidence"]) == ("label", "fingerprint in a label")
    assert fingerprint(wrong.host_key) in refused["message"]
    assert "user tunnel" not in wrong.log()


def test_evidence_below_minimum_trust_is_not_used(cloud_field: "CloudField") -> None:
    """A higher `minimum_trust` closes tunnels with weaker evidence, and stronger evidence opens them again."""
    field = cloud_field
    agent, id_ = field.launch("builder", console=False)
    field.believe("console", "tofu")
    field.controller.start()
    before = field.controller.wait_phase(id_, "up")

    text = field.controller.file.read_text()
    field.controller.file.write_text(
        text.replace('name = "builders"', 'name = "builders"\nminimum_trust = "console"', 1)
    )
    assert field.controller.command("reload").returncode == 0
    until(lambda: not agent.listeners(5000), "the tunnel is closed")
    waiting = field.controller.wait(
        id_, lambda facts: facts["error"] == "host-key-unknown", "it waits for stronger evidence"
    )
    field.cloud.console(id_.removeprefix("ec2:"), host_key_console([agent.host_key]))
    field.controller.command("retry", id_)
    after = field.controller.wait_phase(id_, "up", timeout=30)

    assert (before["trust"], waiting["trust"], after["trust"]) == ("tofu", None, "console")
    assert waiting["message"] == "console: no host key block yet"


# --- Hetzner ---


def test_a_hetzner_server_comes_is_rebuilt_and_goes(field: "Field") -> None:
    """A rebuilt server is a new incarnation, for which no evidence of the old one remains."""
    with HetznerService(field.lab.controller, 4011, field.folder / "hetzner") as cloud:
        token = field.folder / "hetzner.token"
        token.write_text(cloud.token)
        token.chmod(0o600)
        field.controller.configure(
            f'[[source]]\nname = "hetzner"\ntype = "hetzner"\ntrust = ["tofu"]\npoll = "500ms"\n'
            f'token_file = "{token}"\nlabel_selector = "role=ci"\nendpoint_url = "{cloud.endpoint}"\n',
            probe_interval="1s",
        )
        agent = field.boot("ci-1")
        field.controller.start()
        server = cloud.launch("ci-1", agent.ip, {"role": "ci"})
        first = field.controller.wait_phase("ci-1", "up")

        cloud.rebuild(server)
        until(lambda: not agent.listeners(5000), "the old machine's tunnel is closed")
        agent.kill()
        rebuilt = field.boot("ci-1", agent.ip)
        while_rebuilding = field.controller.agent("ci-1")
        cloud.state(server, "running")
        second = field.controller.wait_phase("ci-1", "up")
        cloud.delete(server)
        until(lambda: not field.controller.client.agents(), "the server is gone", timeout=15)

        assert (first["agent"], second["agent"]) == (f"hetzner:hetzner:{server}",) * 2
        assert while_rebuilding["trust"] is None
        assert second["fingerprints"] == [fingerprint(rebuilt.host_key)] != first["fingerprints"]
        assert steps(field, first["agent"])[-2:] == ["left", "closed"]
        assert "quarantined" not in steps(field, first["agent"])
        assert not rebuilt.listeners(5000)


# --- our own keys ---


def test_a_rotation_shows_which_agents_accept_the_next_key(field: "Field") -> None:
    """If one of two agents accepts the next key, `show` and `check` show it, and neither loses its tunnel."""
    following = field.controller.folder / "next"
    make_key(following, "tunnelmgr@next")
    line = field.controller.authorized_keys
    ready, late = field.boot("ready"), field.boot("late")
    ready.authorize(line + "\n" + line.rpartition("ssh-ed25519")[0] + public_line(following))
    field.static(ready, late)
    text = field.controller.file.read_text()
    field.controller.file.write_text(text.replace("[ssh]\n", f'[ssh]\nnext_key = "{following}"\n', 1))

    field.controller.start()
    for agent in (ready, late):
        field.controller.wait_phase(agent.name, "up")
    took = {
        agent.name: json.loads(field.controller.command("show", agent.name, "--json").stdout) for agent in (ready, late)
    }
    checked = field.controller.command("check")

    assert took["ready"]["login_key"] == fingerprint(public_line(following))
    assert took["late"]["login_key"] == fingerprint(public_line(field.controller.folder / "id_ed25519"))
    assert "next key accepted by 1 of 2 agents; not yet: static:late" in checked.stdout
    assert checked.returncode == 0, checked.stdout


def test_a_users_certificate_is_enough_for_an_agent(field: "Field") -> None:
    """An agent that trusts the authority of the controller's certificate needs no line in authorized_keys."""
    folder = field.controller.folder
    make_key(folder / "user_ca", "user authority")
    (folder / "id_ed25519.pub").write_text(public_line(folder / "id_ed25519") + "\n")
    sign = ["ssh-keygen", "-q", "-s", folder / "user_ca", "-I", "controller", "-n", "tunnel", "-V", "+1h"]
    subprocess.run([*sign, folder / "id_ed25519.pub"], check=True, timeout=10)
    agent = field.boot("builder", None, "TrustedUserCAKeys /etc/ssh/user_ca.pub", "AuthorizedKeysFile none")
    agent.run(["tee", "/etc/ssh/user_ca.pub"], feed=public_line(folder / "user_ca") + "\n", check=True)
    field.static(agent)
    text = field.controller.file.read_text()
    certificate = folder / "id_ed25519-cert.pub"
    field.controller.file.write_text(text.replace("[ssh]\n", f'[ssh]\ncertificate = "{certificate}"\n', 1))

    field.controller.start()

    field.controller.wait_phase("builder", "up")
    assert "ED25519-CERT" in agent.log()
