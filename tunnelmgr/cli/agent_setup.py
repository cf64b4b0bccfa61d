"""The texts that set up an agent for this controller."""

from dataclasses import dataclass
from enum import StrEnum

from tunnelmgr import hooks
from tunnelmgr.config import Config
from tunnelmgr.ssh.key_files import public_lines


class AgentText(StrEnum):
    """A text that sets up an agent, which `init --print` prints alone."""

    AUTHORIZED_KEYS = "authorized-keys"
    SSHD = "sshd"
    CLOUD_INIT = "cloud-init"


@dataclass(frozen=True, slots=True)
class AgentSetup:
    """What an agent needs from this controller: the user, the line for its authorized_keys, and the public key."""

    user: str
    authorized_keys: str
    public_key: str

    @classmethod
    def of(cls, config: Config) -> "AgentSetup":
        """Return what the configuration asks of an agent; raises ConfigError without a key file."""
        listen = [endpoint for forward in config.forwards() for endpoint in forward.listen]
        public = public_lines(config.ssh)[0]
        return cls(config.ssh.user, hooks.authorized_keys_line(listen, public), public)

    def text(self, wanted: AgentText) -> str:
        """Return one of the texts, with a trailing newline."""
        match wanted:
            case AgentText.AUTHORIZED_KEYS:
                return self.authorized_keys + "\n"
            case AgentText.SSHD:
                return hooks.sshd_settings(self.user)
            case AgentText.CLOUD_INIT:
                return hooks.cloud_init(self.authorized_keys, self.user)
