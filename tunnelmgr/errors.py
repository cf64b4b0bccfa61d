"""Every error that tunnelmgr raises, each with a stable code and the pace at which to retry.

Status, metrics and logs show the code. The message is for an operator: what happened, then what to do.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar


class Pace(StrEnum):
    """How soon to retry."""

    SOON = "soon"  # the cause usually passes by itself
    SLOW = "slow"  # something outside has to change first
    NEVER = "never"  # an operator decides


def release_command(agent: str) -> str:
    """Return the command that ends an agent's quarantine, for messages that ask an operator to decide."""
    return f'tunnelmgr release {agent} --reason "…"'


class TunnelmgrError(Exception):
    """Base of all errors here."""

    code: ClassVar[str] = "error"
    retry: ClassVar[Pace] = Pace.SOON


class ConfigError(TunnelmgrError):
    """The configuration is wrong; holds every problem found, each with its place."""

    code = "config"
    retry = Pace.NEVER

    def __init__(self, problems: list[str], *, file: str = "") -> None:
        self.problems = tuple(problems)
        self.file = file
        where = f"{file}: " if file else ""
        super().__init__("\n".join(f"{where}{problem}" for problem in problems))


class DiscoveryError(TunnelmgrError):
    """A source gave no complete answer; its last snapshot stays in force."""

    code = "discovery"

    def __init__(self, source: str, reason: str) -> None:
        self.source = source
        self.reason = reason
        super().__init__(f"source {source}: {reason}")


class TunnelError(TunnelmgrError):
    """A tunnel could not be opened, or has failed."""

    code = "tunnel"


class UnreachableError(TunnelError):
    """Nothing answered on the agent's SSH port in time."""

    code = "unreachable"

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"cannot reach {address}: {reason}")


class ConnectionLostError(TunnelError):
    """A tunnel that was up has ended unexpectedly."""

    code = "connection-lost"


class ProbeTimeoutError(ConnectionLostError):
    """The agent's listener did not answer a probe in time."""

    code = "probe-timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the agent's listener did not answer the probe within {seconds:g} s")


class AbusiveAgentError(TunnelError):
    """The agent floods the connection with no-op SSH messages."""

    code = "abusive"
    retry = Pace.SLOW

    def __init__(self) -> None:
        super().__init__(
            "the agent flooded the connection with no-op SSH messages, and its own probe could not get through: "
            "its sshd has probably been tampered with. Investigate the machine, or terminate it"
        )


class ListenRefusal(StrEnum):
    """Why an agent's sshd refused to listen, as far as it says so."""

    DISABLED = "disabled"  # TCP forwarding is off for the server or the key
    NOT_PERMITTED = "not-permitted"  # the key or the server permits other addresses only
    UNKNOWN = "unknown"  # OpenSSH says nothing if the address is in use


class ListenRefusedError(TunnelError):
    """The agent's sshd refused to listen on the first address: forwarding is not allowed, or the address is in use."""

    code = "listen-refused"

    def __init__(self, address: str, refusal: ListenRefusal = ListenRefusal.UNKNOWN) -> None:
        self.address = address
        reasons = {
            ListenRefusal.DISABLED: (
                "TCP forwarding is disabled. Set `AllowTcpForwarding yes` in its sshd_config, and check that the key's "
                "line in authorized_keys has `port-forwarding` (compare with `tunnelmgr init --print sshd` and "
                "`tunnelmgr init --print authorized-keys`)"
            ),
            ListenRefusal.NOT_PERMITTED: (
                f'its sshd does not permit this address. Add permitlisten="{address}" to the key\'s line in '
                "authorized_keys (`tunnelmgr init --print authorized-keys`), and check PermitListen in its sshd_config"
            ),
            ListenRefusal.UNKNOWN: (
                "another process or a stale session probably uses it. Find it on the agent with `ss -ltnp`; if nothing "
                f'uses it, check AllowTcpForwarding in sshd_config and permitlisten="{address}" in authorized_keys'
            ),
        }
        super().__init__(f"the agent refused to listen on {address}: {reasons[refusal]}")


class HeldElsewhereError(TunnelError):
    """Another controller of the cluster still listens on the agent."""

    code = "held-elsewhere"

    def __init__(self, address: str, member: str) -> None:
        super().__init__(
            f"{address} on the agent is probably still held by controller {member}; its sshd ends that session once "
            "ClientAliveInterval and ClientAliveCountMax have passed. If it stays, look with `ss -ltnp` on the agent"
        )


class ImpostorListenerError(TunnelError):
    """Another process answers on the address where our listener should."""

    code = "listener-not-ours"

    def __init__(self, address: str) -> None:
        super().__init__(
            f"something other than this tunnel answers on {address} on the agent. "
            "Find it there with `ss -ltnp`, and stop it"
        )


class AuthenticationError(TunnelError):
    """The agent's host key is verified, but the agent does not accept our login key."""

    code = "authentication"
    retry = Pace.SLOW

    def __init__(self, user: str, address: str) -> None:
        super().__init__(
            f"{address} does not accept the controller's key for user {user}. "
            "Check authorized_keys on the agent (`tunnelmgr init --print authorized-keys` prints the line)"
        )


class LoginKeyError(TunnelError):
    """The controller has no key to log in with."""

    code = "login-key"
    retry = Pace.SLOW


class KeyTooPowerfulError(TunnelError):
    """The login key could do more on the agent than a tunnel needs, and its group requires a restricted key."""

    code = "key-too-powerful"
    retry = Pace.SLOW

    def __init__(self, excess: Sequence[str]) -> None:
        super().__init__(excess_text(excess))


def excess_text(excess: Sequence[str]) -> str:
    """Return the message about a login key that could do more than it needs."""
    return (
        f"the controller's login key could also {', '.join(excess)} on the agent. Restrict its line in authorized_keys "
        "(`tunnelmgr init --print authorized-keys`) and its user in sshd_config (`tunnelmgr init --print sshd`)"
    )


class HostKeyUnknownError(TunnelError):
    """There is no evidence yet of the agent's host key, so it is not dialled."""

    code = "host-key-unknown"
    retry = Pace.SLOW


class HostKeyMismatchError(TunnelError):
    """The machine at the agent's address has another host key than the evidence says."""

    code = "host-key-mismatch"
    retry = Pace.NEVER


class HostKeySharedError(TunnelError):
    """The agent claims a host key to which another present agent has an equal or a better claim."""

    code = "host-key-shared"
    retry = Pace.NEVER


class ExposedListenerError(TunnelError):
    """The agent's sshd listens beyond loopback."""

    code = "exposed-listener"
    retry = Pace.NEVER

    def __init__(self, address: str, agent: str) -> None:
        super().__init__(
            f"the agent's sshd offers {address} to the agent's whole network (GatewayPorts yes). "
            f"Set `GatewayPorts no` in its sshd_config, then run: {release_command(agent)}"
        )


class GateError(TunnelmgrError):
    """A request could not pass the gate."""

    code = "gate"


class MalformedRequestError(GateError):
    """The agent sent something that is not one plain HTTP/1.1 request.

    `oci_code` is the code of the answer to the agent (OCI distribution spec, "Error Codes").
    """

    code = "malformed-request"
    retry = Pace.NEVER
    oci_code: ClassVar[str] = "UNSUPPORTED"


class InvalidNameError(MalformedRequestError):
    """The request's path contains an invalid repository, tag or digest."""

    oci_code = "NAME_INVALID"


class InvalidDigestError(MalformedRequestError):
    """A query parameter that must be a digest is invalid."""

    oci_code = "DIGEST_INVALID"


class GateClosedError(GateError):
    """The gate refuses every request for now; the message says what to repair."""

    code = "gate-closed"


class RegistryUnavailableError(GateError):
    """The registry did not answer, or did not answer with HTTP."""

    code = "registry-unavailable"


class CacheError(TunnelmgrError):
    """The cache's folder cannot be used, or a blob could not be downloaded into it."""

    code = "cache"


class StoreError(TunnelmgrError):
    """The state could not be read or written."""

    code = "store"


class SchemaError(StoreError):
    """The state file is not ours, or was written by a newer version."""

    code = "schema"
    retry = Pace.NEVER


class ControlError(TunnelmgrError):
    """The daemon refused or failed a command."""

    code = "control"


class DaemonNotRunningError(ControlError):
    """No daemon answers on the control socket."""

    code = "not-running"

    def __init__(self, socket: str, reason: str = "") -> None:
        detail = f" ({reason})" if reason else ""
        super().__init__(
            f"no daemon answers on {socket}{detail}: start it with `systemctl start tunnelmgr`, "
            "or with `tunnelmgr run` and the same --config"
        )
