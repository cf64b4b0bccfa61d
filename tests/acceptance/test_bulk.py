"""Bulk data through a real sshd arrives byte for byte, also while either side repeatedly exchanges keys."""

import hashlib
import random
import sys
from pathlib import Path

import pytest

from lab.network import Lab
from lab.processes import until
from tunnelmgr.ssh.key_files import make_key, public_line

pytestmark = pytest.mark.acceptance

IP = "10.77.0.11"
SIZE = 48 * 1024 * 1024
ADJUST = 36
"""Bytes of a WINDOW_ADJUST packet, from its length to its tag."""

# In the controller's network: a source of known bytes, and a tunnel whose channels are relayed to it.
CONTROLLER = """
import asyncio, random, sys, asyncssh
from pathlib import Path
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Endpoint, TunnelSpec
from tunnelmgr.dataplane.channel import NoOwner
from tunnelmgr.gate.relay import relay
from tunnelmgr.gate.traffic import Traffic
from tunnelmgr.dataplane import asyncssh_internals, pump
from tunnelmgr.ssh.login import Login
from tunnelmgr.ssh.client import dial

folder, address, host_key, size, ours = sys.argv[1:]
content = random.Random(7).randbytes(int(size))
bypassing_asyncssh = {"sent": 0, "received": 0}
account, process_known = pump.account, asyncssh_internals._process_known

def accounted(channel, count):
    bypassing_asyncssh["sent"] += count
    account(channel, count)

def counted(connection, cipher, wire, out_of_time):
    taken = process_known(connection, cipher, wire, out_of_time)
    bypassing_asyncssh["received"] += taken
    return taken

pump.account, asyncssh_internals._process_known = accounted, counted

async def answer(reader, writer):
    writer.write(content)
    await writer.drain()
    writer.close()

async def main():
    source = await asyncio.start_server(answer, "127.0.0.1", 7000)
    trust = HostTrust(Method.PINNED, (host_key,))
    spec = TunnelSpec(AgentId("static:bulk"), "1", "bulk", "ci", (address,), 22, (), trust)
    key = asyncssh.read_private_key(Path(folder) / "id_ed25519")
    connection = await dial(spec, Login("tunnel", key, 5.0))
    connection._conn._rekey_bytes = int(ours)
    await connection.disable_nagle()
    async with asyncio.TaskGroup() as tasks:
        async def serve(channel):
            await relay(channel, Endpoint("127.0.0.1", 7000), Traffic())
            print(bypassing_asyncssh["sent"], bypassing_asyncssh["received"], flush=True)

        class Owner(NoOwner):
            def admit_channel(self):
                pass

            def channel_opened(self, channel):
                tasks.create_task(serve(channel), name="channel")

        await connection.listen(Endpoint("127.0.0.1", 5000), Owner())
        await connection.lost.wait()

asyncio.run(main())
"""

# On the agent: three pulls at once, each digest printed.
AGENT = """
import hashlib, socket
from concurrent.futures import ThreadPoolExecutor
def pull(_):
    digest = hashlib.sha256()
    with socket.create_connection(("127.0.0.1", 5000), timeout=30) as connection:
        while piece := connection.recv(65536):
            digest.update(piece)
    return digest.hexdigest()
with ThreadPoolExecutor(3) as pool:
    print(*pool.map(pull, range(3)))
"""


@pytest.mark.parametrize(("theirs", "ours"), [("default", 1 << 30), ("5M", 1 << 30), ("default", 3_000_000)])
def test_every_byte_arrives_through_a_real_sshd(tmp_path: Path, theirs: str, ours: int) -> None:
    """Three concurrent pulls are whole: without rekeying, with sshd's every 5 MB, and with ours every 3 MB."""
    with Lab(tmp_path) as lab:
        make_key(tmp_path / "id_ed25519", "bulk")
        agent = lab.agent(
            "agent", IP, public_line(tmp_path / "id_ed25519"), sshd_options=[f"RekeyLimit {theirs}", "LogLevel DEBUG1"]
        )
        argv = [sys.executable, "-c", CONTROLLER, str(tmp_path), IP, agent.host_key, str(SIZE), str(ours)]
        lab.controller.popen(argv, log=tmp_path / "controller.log")
        until(lambda: agent.listeners(5000), "the tunnel is up", timeout=20)

        digests = agent.run([sys.executable, "-c", AGENT], timeout=90, check=True).stdout.split()

        log = agent.log()
        exchanges = log.count("SSH2_MSG_NEWKEYS received")
        until(lambda: (tmp_path / "controller.log").read_text().count("\n") == 3, "all three have ended")
        sent, received = map(int, (tmp_path / "controller.log").read_text().split()[-2:])

    expected = hashlib.sha256(random.Random(7).randbytes(SIZE)).hexdigest()  # noqa: S311 - known bytes
    assert digests == [expected] * 3
    assert "Starting session: forced-command" in log  # what has sshd set TCP_NODELAY
    assert exchanges == 1 if (theirs, ours) == ("default", 1 << 30) else exchanges > 5
    # We seal all of it except what asyncssh sends to start a key exchange; the window adjusts are read by us too. How
    # many there are depends on how much sshd has read at a time.
    assert 3 * SIZE - exchanges * 3 * 32768 <= sent <= 3 * SIZE
    assert received > 20 * ADJUST
