"""`[api]`: the API for other machines, over TLS."""

from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tunnelmgr.config.values import ExistingFile, Name, SecretPath, Section, Target

MIN_TOKEN: Final = 32
"""Characters of a token; 32 hexadecimal digits are 128 bits."""


def _token_file(path: SecretPath) -> SecretPath:
    """Check that a file holds a token that cannot be guessed."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as unreadable:
        raise ValueError(f"cannot read a token from {path}: {unreadable}") from unreadable
    if len(text) < MIN_TOKEN or not text.isprintable() or " " in text:
        raise ValueError(
            f"{path} must hold one word of at least {MIN_TOKEN} characters, such as of: openssl rand -hex 32"
        )
    return path


class ApiClientConfig(Section):
    """`[[api.client]]`: who may use the API from another machine, and for what.

    Without `token_file`, it is the client whose certificate has this common name.
    """

    name: Name
    role: Literal["read", "operate"] = "read"
    token_file: Annotated[SecretPath, AfterValidator(_token_file)] | None = None


class ApiConfig(Section):
    """`[api]`: where the API listens for other machines, and how both sides prove themselves."""

    listen: Target
    certificate: ExistingFile
    key: SecretPath
    client_authority: ExistingFile | None = None
    client: Annotated[list[ApiClientConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_client_can_prove_itself(self) -> Self:
        names = [client.name for client in self.client]
        for at, client in enumerate(self.client):
            if client.name in names[:at]:
                raise ValueError(f"client[{at}].name: {client.name} is the name of an earlier client already")
            if client.token_file is None and self.client_authority is None:
                raise ValueError(
                    f"client[{at}]: {client.name} cannot prove itself: add token_file, or client_authority to [api]"
                )
        return self
