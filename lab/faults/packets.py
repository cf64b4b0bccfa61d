"""Packet faults of one machine: packets to one of its TCP ports are lost or rejected, or connections are reset."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.namespaces import Machine


class PacketFaults:
    """The faults of one machine; each one replaces the one before, and `heal` ends it."""

    def __init__(self, machine: Machine, port: int) -> None:
        self._machine = machine
        self._port = port  # the port that the faults concern if the caller names none

    def drop(self, port: int | None = None) -> None:
        """Drop every packet to and from this port without notice."""
        port = port or self._port
        self._apply(f"add rule inet lab in tcp dport {port} drop", f"add rule inet lab out tcp sport {port} drop")

    def cut_off(self, *addresses: str) -> None:
        """Drop every packet to and from these addresses without notice: a partition between them and this machine."""
        rules = ("add rule inet lab in ip saddr {} drop", "add rule inet lab out ip daddr {} drop")
        self._apply(*(rule.format(address) for address in addresses for rule in rules))

    def reject(self, port: int | None = None) -> None:
        """Answer every packet to this port with a TCP reset."""
        self._apply(f"add rule inet lab in tcp dport {port or self._port} reject with tcp reset")

    def cut_connections(self, port: int | None = None) -> None:
        """Drop every packet of the connections that are established to this port now; new connections work."""
        port = port or self._port
        self._drop_established(port, f"in tcp dport {port} tcp sport", f"out tcp sport {port} tcp dport")

    def forget_connections(self, port: int | None = None) -> None:
        """Drop the packets of the connections that are established to this port now, like a NAT that lost its state.

        SYN and RST segments pass, and so do answers without data.
        """
        port = port or self._port
        self._drop_established(
            port,
            f"in tcp flags & (syn | rst) == 0x0 tcp dport {port} tcp sport",
            f"out tcp flags & psh == psh tcp sport {port} tcp dport",
        )

    def heal(self) -> None:
        """End `drop`, `cut_off`, `reject`, `cut_connections` and `forget_connections`."""
        self._machine.run(["nft", "add table inet lab; delete table inet lab"], check=True)

    def reset_connections(self, port: int | None = None) -> None:
        """Reset every TCP connection to this port, at both ends."""
        self._machine.run(["ss", "-K", f"sport = :{port or self._port}"], check=True)

    def _drop_established(self, port: int, *ways: str) -> None:
        self._apply(*(f"add rule inet lab {way} {peer} drop" for peer in self._peers(port) for way in ways))

    def _peers(self, port: int) -> list[str]:
        """Return the other end's port of each connection that is established to this port."""
        shown = self._machine.run(["ss", "-Htn", "state", "established", f"sport = :{port}"], check=True).stdout
        return [line.split()[3].rpartition(":")[2] for line in shown.splitlines()]

    def _apply(self, *rules: str) -> None:
        hook = "{{ type filter hook {}put priority 0; }}"
        chains = [f"add chain inet lab {way} {hook.format(way)}" for way in ("in", "out")]
        self.heal()
        self._machine.run(["nft", "; ".join(["add table inet lab", *chains, *rules])], check=True)
