"""What all collectors have in common: the token for them."""

from pathlib import Path

import pytest
import requests

from tunnelmgr.observability.collector import TokenError, TokenFile


def test_a_token_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """A file with other bytes than those of a token is named, for example a token in UTF-16."""
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_bytes("token\n".encode("utf-16"))

    with pytest.raises(TokenError, match=f"token_file: {file} does not hold one line with a token"):
        TokenFile(file)(requests.PreparedRequest())


def test_a_token_that_cannot_be_read_is_refused() -> None:
    """A file whose disk fails is named with the error; the process's own memory has no page 0, so it fails too."""
    file = Path("/proc/self/mem")

    with pytest.raises(TokenError, match=f"token_file: cannot read {file}: Input/output error"):
        TokenFile(file)(requests.PreparedRequest())
