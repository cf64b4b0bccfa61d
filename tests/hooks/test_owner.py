"""The owner of the listener: the script trusts the tunnel's user and root, if the kernel shows the owner."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.hooks.gate_answers import MISCONFIGURED, READY, STRANGER, gate

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hooks.conftest import Hook, Localhost

TUNNEL, OTHER_USER, ROOT = 998, 1001, 0
V4, V4_BIG_ENDIAN, V4_ANY, V4_OTHER = "0100007F", "7F000001", "00000000", "0200007F"
V6, V6_BIG_ENDIAN, V6_ANY = "0" * 24 + "01000000", "0" * 31 + "1", "0" * 32
V4_MAPPED = "0000000000000000FFFF00000100007F"
LISTENS, ESTABLISHED = "0A", "01"
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


@dataclass
class Kernel:
    """The files that the script reads in /proc: the sockets as (address, port, state, uid), and the map of uids."""

    folder: Path
    tcp: list[tuple[str, int, str, int]] = field(default_factory=list)
    tcp6: list[tuple[str, int, str, int]] = field(default_factory=list)
    uid_map: str = "         0          0 4294967295\n"

    def show(self, hook: Hook) -> None:
        """Have the script read this instead, and take the tunnel's user for `TUNNEL`."""
        tcp, tcp6, uid_map = self.folder / "tcp", self.folder / "tcp6", self.folder / "uid_map"
        for file, sockets in ((tcp, self.tcp), (tcp6, self.tcp6)):
            file.write_text(HEAD + "".join(self._line(*socket) for socket in sockets))
        uid_map.write_text(self.uid_map)
        for was, now in (("/proc/net/tcp6\n", f"{tcp6}\n"), ("/proc/net/tcp\n", f"{tcp}\n")):
            assert hook.text.count(f"read_listeners {was}") == 1
            hook.text = hook.text.replace(was, now)
        assert hook.text.count("</proc/self/uid_map") == 1
        hook.text = hook.text.replace("/proc/self/uid_map", str(uid_map))
        hook.environment.setdefault("TUNNELMGR_USER", str(TUNNEL))
        hook.hurry()

    @staticmethod
    def _line(address: str, port: int, state: str, uid: int) -> str:
        nobody = f"{'0' * len(address)}:0000"
        return (
            f"   0: {address}:{port:04X} {nobody} {state} 00000000:00000000 00:00000000 00000000 {uid:5}"
            "        0 2835020 1 0000000055c5cf2a 100 0 0 10 0\n"
        )


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """Return a kernel without sockets."""
    return Kernel(tmp_path)


@pytest.fixture
def port(localhost: Localhost) -> int:
    """Return a port on which both addresses answer as the gate does."""
    localhost.v4.open(gate)
    localhost.v6.open(gate)
    return localhost.v4.port


@pytest.mark.parametrize("addresses", [(V4, V6), (V4_BIG_ENDIAN, V6_BIG_ENDIAN)])
@pytest.mark.parametrize("uid", [TUNNEL, ROOT])
def test_listeners_of_the_tunnels_user_or_of_root_are_trusted(
    hook: Hook, kernel: Kernel, port: int, addresses: tuple[str, str], uid: int
) -> None:
    """Root can do anything on the agent, so its listener is trusted like its sshd."""
    kernel.tcp = [(addresses[0], port, LISTENS, uid)]
    kernel.tcp6 = [(addresses[1], port, LISTENS, uid)]
    kernel.show(hook)

    outcome = hook.run()

    assert outcome.code == READY, outcome.err


@pytest.mark.parametrize("address", [V4, V4_BIG_ENDIAN, V4_ANY, V4_MAPPED, V6, V6_BIG_ENDIAN, V6_ANY])
def test_a_listener_of_another_user_is_refused(
    hook: Hook, kernel: Kernel, port: int, shell: list[str], address: str
) -> None:
    """The script exits 69 and names the uid, even if the answer equals that of the gate."""
    hook.shell = shell
    (kernel.tcp if len(address) == 8 else kernel.tcp6).append((address, port, LISTENS, OTHER_USER))
    kernel.show(hook)

    outcome = hook.run("--soft")

    assert outcome.code == STRANGER, outcome.err
    assert outcome.out == ""
    assert f"uid {OTHER_USER} listens on " in outcome.err
    assert f"not {TUNNEL} (uid {TUNNEL}), the user that the controller logs in as" in outcome.err
    assert "Do not pull from it" in outcome.err


def test_a_listener_of_another_user_gets_no_request(
    hook: Hook, kernel: Kernel, localhost: Localhost, port: int
) -> None:
    """The answer of a listener of another user does not matter."""
    kernel.tcp = [(V4, port, LISTENS, OTHER_USER)]
    kernel.show(hook)

    assert hook.run().code == STRANGER
    assert localhost.v4.asked == []


def test_the_listener_for_exactly_the_address_counts(hook: Hook, kernel: Kernel, port: int) -> None:
    """The kernel prefers a listener for exactly the address to one of another user for every address."""
    kernel.tcp = [(V4, port, LISTENS, TUNNEL)]
    kernel.tcp6 = [(V6_ANY, port, LISTENS, OTHER_USER)]
    hook.registry = f"127.0.0.1:{port}"
    kernel.show(hook)

    outcome = hook.run()

    assert outcome.code == READY, outcome.err


def test_other_ports_other_addresses_and_mere_connections_do_not_count(hook: Hook, kernel: Kernel, port: int) -> None:
    """Only listeners on the address count, not other sockets of builds and channels."""
    kernel.tcp = [
        (V4, port + 1, LISTENS, OTHER_USER),
        (V4_OTHER, port, LISTENS, OTHER_USER),
        (V4, port, LISTENS, TUNNEL),
        (V4, port, ESTABLISHED, OTHER_USER),
    ]
    kernel.tcp6 = [(V6, port, LISTENS, TUNNEL)]
    kernel.show(hook)

    outcome = hook.run()

    assert outcome.code == READY, outcome.err


def test_a_listener_that_the_kernel_does_not_show_is_judged_by_its_answer(
    hook: Hook, kernel: Kernel, port: int
) -> None:
    """A listener behind a redirection has no visible owner."""
    assert port
    kernel.show(hook)

    outcome = hook.run()

    assert outcome.code == READY, outcome.err


def test_in_a_user_namespace_the_owner_is_not_judged(hook: Hook, kernel: Kernel, port: int) -> None:
    """In a container with a user namespace of its own, the tunnel's user has no uid."""
    kernel.tcp = [(V4, port, LISTENS, 65534)]
    kernel.uid_map = "         0     100000      65536\n"
    kernel.show(hook)

    outcome = hook.run()

    assert outcome.code == READY, outcome.err


@pytest.mark.parametrize("lacking", [("tcp", "tcp6"), ("uid_map",), ("tcp", "tcp6", "uid_map")])
def test_without_proc_the_owner_is_not_judged(
    hook: Hook, kernel: Kernel, port: int, shell: list[str], lacking: tuple[str, ...]
) -> None:
    """Without /proc, the script does not check the owner and does not mention it."""
    hook.shell = shell
    kernel.tcp = [(V4, port, LISTENS, OTHER_USER)]
    kernel.show(hook)
    for file in lacking:
        (kernel.folder / file).unlink()

    outcome = hook.run()

    assert outcome.code == READY, outcome.err
    assert outcome.err.count("\n") == 1


def test_without_the_tunnels_user_the_owner_is_not_judged(hook: Hook, kernel: Kernel, port: int) -> None:
    """The controller may log in as another user; TUNNELMGR_USER names that user."""
    kernel.tcp = [(V4, port, LISTENS, OTHER_USER)]
    hook.environment["TUNNELMGR_USER"] = ""
    kernel.show(hook)  # and there is no `id` on this machine

    outcome = hook.run()

    assert outcome.code == READY, outcome.err


@pytest.mark.parametrize("user", ["no-such-user-here", "-u", "a b", "$(id)", "../x"])
def test_an_unknown_user_is_misconfigured(hook: Hook, shell: list[str], user: str) -> None:
    """The script exits 78 if TUNNELMGR_USER names a user that does not exist."""
    hook.shell = shell
    hook.environment["TUNNELMGR_USER"] = user

    outcome = hook.run()

    assert outcome.code == MISCONFIGURED, outcome.err
    assert "TUNNELMGR_USER" in outcome.err


@pytest.mark.skipif(not os.access("/proc/net/tcp", os.R_OK), reason="there is no /proc/net here")
def test_the_kernels_own_tables_are_read(hook: Hook, localhost: Localhost, port: int) -> None:
    """The script reads the real files, which show the listeners of the test as those of its user."""
    assert port == localhost.v4.port
    hook.environment["TUNNELMGR_USER"] = str(os.getuid())

    outcome = hook.run()

    assert outcome.code == READY, outcome.err
