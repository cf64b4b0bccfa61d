"""What the archive for a bug report leaves out."""

import pytest

from tunnelmgr.daemon.bundle import redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('password = "hunter2"', 'password = "(redacted)"'),
        ("db_password: hunter2", 'db_password: "(redacted)"'),
        ("token='abc def'", 'token="(redacted)"'),
        ('{"secret_key": "abc"}', '{"secret_key": "(redacted)"}'),
        ("postgresql://tunnelmgr:hunter2@db/state", "postgresql://tunnelmgr:(redacted)@db/state"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----", "(private key)"),
    ],
)
def test_secrets_are_left_out(text: str, shown: str) -> None:
    """Values of keys that sound like secrets, passwords in URLs and private keys are replaced."""
    assert redacted(f"before\n{text}\nafter") == f"before\n{shown}\nafter"


@pytest.mark.parametrize(
    "text",
    [
        'token_file = "/etc/tunnelmgr/hetzner.token"',
        'state_password = "credential:state"',
        'state = "postgresql://tunnelmgr@db/state"',
        'pull = ["secret/**"]',
        "# the token is in a file",
    ],
)
def test_what_helps_is_kept(text: str) -> None:
    """Files that hold secrets are named, and a word alone is not a secret."""
    assert redacted(text) == text
