"""`[api]`: who may use the API from other machines."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tunnelmgr.config import load

SSH = '[ssh]\nkey = "KEYFILE"\n'
CLIENT = '[[api.client]]\nname = "grafana"\n'


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Return a table with files that exist."""
    for name, text in (("api.pem", "x"), ("api.key", "x"), ("token", "0" * 32 + "\n"), ("short", "0" * 31)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    return f'[api]\nlisten = "10.0.0.1:9843"\ncertificate = "{tmp_path}/api.pem"\nkey = "{tmp_path}/api.key"\n'


def test_a_client_has_a_role_and_a_token(write: Callable[[str], Path], table: str, tmp_path: Path) -> None:
    """Without a role, a client may only read."""
    text = f'{SSH}{table}{CLIENT}token_file = "{tmp_path}/token"\n'

    api = load(write(text)).api

    assert api is not None
    assert [(client.name, client.role, client.token_file) for client in api.client] == [
        ("grafana", "read", tmp_path / "token")
    ]


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("", "api.client: missing"),
        (CLIENT, "api: client[0]: grafana cannot prove itself: add token_file, or client_authority to [api]"),
        (
            CLIENT + 'token_file = "FOLDER/short"\n',
            "api.client[0].token_file: FOLDER/short must hold one word of at least",
        ),
        (CLIENT + 'role = "admin"\ntoken_file = "FOLDER/token"\n', "api.client[0].role: must be 'read' or 'operate'"),
        (
            (CLIENT + 'token_file = "FOLDER/token"\n') * 2,
            "api: client[1].name: grafana is the name of an earlier client already",
        ),
    ],
)
def test_a_client_that_could_not_be_told_apart_is_refused(
    problems: Callable[[str], list[str]], table: str, tmp_path: Path, more: str, problem: str
) -> None:
    """A client without proof, a token that could be guessed, and a name that is taken are found before the start."""
    found = problems(table + more.replace("FOLDER", str(tmp_path)))

    assert [one for one in found if one.startswith(problem.replace("FOLDER", str(tmp_path)))], found
