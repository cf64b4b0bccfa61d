"""Why an agent has no tunnel, and what a person can do about it, in words: for the status page.

The message of an error says what happened; most say what to do. The sentences here name the part to look at first, for
each code of `errors.py`.
"""

from typing import Final

from tunnelmgr.core.failure import INTERNAL
from tunnelmgr.core.tunnel import Phase

PHASES: Final = {
    Phase.AWAITING_IDENTITY: "There is no evidence of its host key yet, so the controller does not dial it.",
    Phase.CONNECTING: "The controller dials it now, logs in and asks its sshd to listen.",
    Phase.UP: "A probe came back through the agent's own listener.",
    Phase.DRAINING: "Its listeners are closed; transfers in progress may finish.",
    Phase.DOWN: "It has no tunnel; the controller tries again by itself.",
    Phase.QUARANTINED: "The controller refuses it until an operator releases it.",
}
"""What each phase means."""
MARKS: Final = {
    "up": "●",
    "connecting": "◐",
    "draining": "◑",
    "awaiting-identity": "○",
    "down": "▽",
    "quarantined": "✖",
    "gone": "·",
}
"""A shape for each phase, so that none is told by its colour alone."""
GONE: Final = "Its source does not list it any longer. It is remembered for 7 days and needs nothing."

_SAME_MACHINE: Final = (
    "Find out which machine has this address now. If it is the right one and its key has changed for a reason that you "
    "know, release it; otherwise terminate the machine that should not be there."
)
CURES: Final = {
    "unreachable": (
        "Check that the machine runs, that its sshd listens at this address and port, and that firewalls and security "
        "groups let this controller in. If the address is the wrong one of private and public, correct the source."
    ),
    "connection-lost": (
        "If the reason names a setting, correct it on the agent. Otherwise the controller dials it again by itself; if "
        "this repeats, look at the agent's `journalctl -u ssh`, its load, and its network."
    ),
    "probe-timeout": (
        "The controller dials it again by itself. If this repeats, the path loses packets or the agent is overloaded."
    ),
    "listen-refused": (
        "If the reason names a setting, compare it with `tunnelmgr init --print sshd` and `tunnelmgr init --print "
        "authorized-keys`. Otherwise `ss -ltnp 'sport = :5000'` on the agent shows what holds the port."
    ),
    "key-too-powerful": (
        "Put the line of `tunnelmgr init --print authorized-keys` and the settings of `tunnelmgr init --print sshd` "
        "on the agent."
    ),
    "held-elsewhere": (
        "Wait about 15 seconds, until the agent's sshd has ended the session of the other controller. If it stays, set "
        "ClientAliveInterval and tcp_retries2 as docs/agents.md describes."
    ),
    "listener-not-ours": "On the agent, `ss -ltnp 'sport = :5000'` shows the other process. Stop it.",
    "abusive": "Look at the machine, because its sshd was probably changed, or terminate it.",
    "authentication": (
        "Put the line of `tunnelmgr init --print authorized-keys` into the agent's file of authorized keys. It must be "
        "readable for the login user and writable for root only. The agent's `journalctl -u ssh` shows what is wrong."
    ),
    "login-key": "Start the ssh-agent and add the key, or set ssh.key; then run `tunnelmgr check`.",
    "host-key-unknown": (
        "The message has the answer of each trust method of its source. A console may take minutes after the boot. "
        "Otherwise supply what one of them lacks, or add another method to the source's `trust`."
    ),
    "host-key-mismatch": _SAME_MACHINE,
    "host-key-shared": (
        "Several agents claim one key. Usually their image contains host keys: build it again without them. Remove all "
        "but the right agent, then release that one."
    ),
    "exposed-listener": (
        "Set `GatewayPorts no` for the tunnel's user in the agent's sshd_config and reload its sshd, then release it."
    ),
    INTERNAL: "This is a bug in tunnelmgr. Report it with the traceback from the log.",
}
"""What to do, by the code of an agent's error."""


def cure(phase: str, code: str | None) -> str:
    """Return what to do about an agent in this phase with this error; empty if there is nothing to do."""
    if code is not None:
        return CURES.get(code, "The message above says what happened.")
    if phase == Phase.AWAITING_IDENTITY:
        return "Its evidence is being looked for; this takes seconds, and for a console minutes."
    return ""
