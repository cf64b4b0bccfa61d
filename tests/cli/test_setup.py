"""The commands that prepare the controller and its agents: `init`, `check` and `hook`."""

import asyncio
import json
import os
import re
import socket as sockets
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tunnelmgr import hooks
from tunnelmgr.config import load

Run = Callable[..., Result]


@contextmanager
def registry(host: str) -> Iterator[int]:
    """Answer `GET /v2/` as a registry does, on a free port of this address."""
    listener = sockets.create_server((host, 0))
    port = listener.getsockname()[1]
    started, stop = threading.Event(), threading.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()
        await writer.wait_closed()

    async def serve() -> None:
        server = await asyncio.start_server(answer, sock=listener)
        started.set()
        await asyncio.to_thread(stop.wait)
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="registry")
    thread.start()
    assert started.wait(10)
    try:
        yield port
    finally:
        stop.set()
        thread.join(10)


def rewrite(config: Path, pattern: str, replacement: str) -> None:
    """Change the configuration."""
    text, found = re.subn(pattern, replacement, config.read_text())
    assert found
    config.write_text(text)


def checks(result: Result) -> dict[str, dict[str, Any]]:
    """Return the findings of `check --json` by name."""
    return {found["check"]: found for found in json.loads(result.stdout)["checks"]}


# --- init ---


def test_init_writes_a_valid_configuration_and_a_private_key(run: Run, tmp_path: Path) -> None:
    """`init` creates the folder, a configuration that loads and a key that only its owner can read."""
    file = tmp_path / "etc" / "tunnelmgr.toml"
    result = run("init", "-c", file)

    assert result.exit_code == 0
    key = file.with_name("id_ed25519")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    loaded = load(file)
    assert loaded.ssh.key == key
    assert loaded.controller.socket.parent == file.parent


def test_init_prints_the_line_and_the_user_data_that_agents_need(run: Run, tmp_path: Path) -> None:
    """The line restricts the key to the listeners, and the user-data has the same line."""
    answer = json.loads(run("init", "-c", tmp_path / "tunnelmgr.toml", "--json").stdout)
    line = answer["authorized_keys"]

    assert line == (
        'restrict,port-forwarding,permitlisten="127.0.0.1:5000",permitlisten="[::1]:5000",'
        f'permitopen="127.0.0.1:5000",permitopen="[::1]:5000" {answer["public_key"]}'
    )
    assert line in answer["cloud_init"]
    assert answer["cloud_init"].startswith("#cloud-config\n")
    assert line in run("init", "-c", tmp_path / "tunnelmgr.toml").stdout


def test_inits_one_needed_line_and_the_next_steps_fit_a_screen(run: Run, tmp_path: Path) -> None:
    """The line for authorized_keys does not scroll away, and each next command names the configuration just used."""
    file = tmp_path / "my site" / "tunnelmgr.toml"

    shown = run("init", "-c", file).stdout

    assert len(shown.splitlines()) <= 24
    assert f"wrote  {file}" in shown
    assert "\nrestrict,port-forwarding,permitlisten=" in shown
    for command in ("init", "check", "run"):
        assert f"tunnelmgr {command} -c '{file}'" in shown


def test_inits_next_steps_name_no_configuration_that_is_the_default(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the environment names is found by the next command too."""
    monkeypatch.setenv("TUNNELMGR_CONFIG", str(tmp_path / "tunnelmgr.toml"))

    shown = run("init").stdout

    assert "tunnelmgr check && tunnelmgr run" in shown
    assert " -c " not in shown


@pytest.mark.parametrize(
    ("text", "beginning"),
    [("authorized-keys", "restrict,port-forwarding,"), ("sshd", "# "), ("cloud-init", "#cloud-config\n")],
)
def test_init_prints_one_text_for_agents_alone(run: Run, tmp_path: Path, text: str, beginning: str) -> None:
    """`init --print` writes nothing else to stdout, so that it can be redirected into a file."""
    file = tmp_path / "tunnelmgr.toml"
    answer = json.loads(run("init", "-c", file, "--json").stdout)

    shown = run("init", "-c", file, "--print", text).stdout

    assert shown.startswith(beginning)
    assert shown.endswith("\n")
    if text != "sshd":
        assert shown.strip() == answer[text.replace("-", "_")].strip()


def test_a_second_init_keeps_both_files_and_prints_the_same(run: Run, tmp_path: Path) -> None:
    """A second `init` changes no file."""
    file = tmp_path / "tunnelmgr.toml"
    first = json.loads(run("init", "-c", file, "--json").stdout)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    second = json.loads(run("init", "-c", file, "--json").stdout)

    assert len(first.pop("made")) == 2
    assert second.pop("made") == []
    assert first == second
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert run("init", "-c", file).stdout.count("kept ") == 2


def test_init_follows_an_existing_configuration(run: Run, config: Path) -> None:
    """The line is for the forwards of the existing configuration, not for the default ones."""
    rewrite(config, r"127\.0\.0\.1:5000", "127.0.0.1:5050")

    line = json.loads(run("init", "-c", config, "--json").stdout)["authorized_keys"]
    assert 'permitlisten="127.0.0.1:5050"' in line
    assert "::1" not in line


def test_init_names_the_path_that_it_cannot_write(run: Run, tmp_path: Path) -> None:
    """`init` in a place that cannot be written ends with an error that names the path."""
    (tmp_path / "file").write_text("")
    result = run("init", "-c", tmp_path / "file" / "tunnelmgr.toml")

    assert result.exit_code == 1
    assert str(tmp_path / "file") in result.stderr


# --- check ---


def test_check_of_a_healthy_site_is_0(run: Run, config: Path) -> None:
    """`check` lists every check and ends with exit status 0."""
    with registry("127.0.0.1") as port:
        rewrite(config, r"127\.0\.0\.1:1\b", f"127.0.0.1:{port}")
        result = run("check", "-c", config, "--json")
        plain = run("check", "-c", config)

    assert result.exit_code == plain.exit_code == 0, plain.output
    found = checks(result)
    assert json.loads(result.stdout)["ok"] is True
    assert {found[name]["result"] for name in ("ssh key", "state", "socket", "registry", "source office")} == {"ok"}
    assert found["registry on loopback only"]["result"] == "ok"
    assert "\x1b" not in plain.output
    assert "✔" in plain.stdout


def test_check_finds_a_registry_that_does_not_answer(run: Run, config: Path) -> None:
    """`check` ends with exit status 1 and names the target of the registry that does not answer."""
    result = run("check", "-c", config, "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["ok"] is False
    assert "127.0.0.1:1" in checks(result)["registry"]["message"]


def test_check_finds_a_registry_that_listens_beyond_loopback(run: Run, config: Path) -> None:
    """A registry that answers but listens on every address is a failed check."""
    with registry("0.0.0.0") as port:  # noqa: S104 - what is to be found
        rewrite(config, r"127\.0\.0\.1:1\b", f"127.0.0.1:{port}")
        result = run("check", "-c", config, "--json")

    found = checks(result)
    assert result.exit_code == 1
    assert found["registry"]["result"] == "ok"
    assert found["registry on loopback only"]["result"] == "failed"
    assert "0.0.0.0" in found["registry on loopback only"]["message"]  # noqa: S104


def test_check_finds_a_key_that_others_can_read(run: Run, config: Path) -> None:
    """`check` names the command that makes the key private."""
    config.with_name("id_ed25519").chmod(0o644)
    result = run("check", "-c", config, "--json")

    assert result.exit_code == 1
    assert "chmod 600" in checks(result)["ssh key"]["message"]


def test_check_of_an_invalid_configuration_prints_every_problem(run: Run, config: Path) -> None:
    """`check` ends with exit status 2 and prints each problem with its place on stderr."""
    rewrite(config, "trust = .*", 'trust = ["hope"]\npoll = "soon"\nnonsense = 1')
    result = run("check", "-c", config)

    assert result.exit_code == 2
    assert result.stdout == ""
    for place in ("source[0].trust[0]", "source[0].poll", "source[0].nonsense"):
        assert place in result.stderr


def test_check_without_a_configuration_says_how_to_write_one(run: Run, tmp_path: Path) -> None:
    """Without a configuration, `check` names `tunnelmgr init`."""
    result = run("check", "-c", tmp_path / "none.toml")

    assert result.exit_code == 2
    assert "tunnelmgr init" in result.stderr


# --- hook ---


@pytest.mark.parametrize("kind", hooks.KINDS)
def test_every_kind_of_hook_can_be_redirected_to_a_file(run: Run, config: Path, kind: str) -> None:
    """`hook` prints nothing but the script to stdout."""
    result = run("hook", kind, "-c", config)

    assert result.exit_code == 0
    assert result.stdout.startswith(("#!/bin/sh\n", "#cloud-config\n"))
    assert result.stdout.endswith("\n")
    assert json.loads(run("hook", kind, "-c", config, "--json").stdout) == {"kind": kind, "script": result.stdout}


@pytest.mark.parametrize("kind", sorted(set(hooks.KINDS) - hooks.NEED_KEY))
def test_a_hook_without_a_key_needs_no_configuration(run: Run, tmp_path: Path, kind: str) -> None:
    """A hook that contains no key can be printed on any machine."""
    assert run("hook", kind, "-c", tmp_path / "none.toml").exit_code == 0


def test_a_hook_with_a_key_follows_the_configuration(run: Run, config: Path, tmp_path: Path) -> None:
    """A hook with a key has the listeners and the public key of the configuration, and needs one."""
    rewrite(config, r"127\.0\.0\.1:5000", "127.0.0.1:5050")

    assert 'permitlisten="127.0.0.1:5050"' in run("hook", "cloud-init", "-c", config).stdout
    assert run("hook", "cloud-init", "-c", tmp_path / "none.toml").exit_code == 2
    assert os.environ.get("TUNNELMGR_CONFIG") is None
