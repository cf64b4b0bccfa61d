"""The wait script against endless answers, missing tools and unusual names."""

from __future__ import annotations

import shutil
import subprocess
from itertools import chain, repeat
from typing import TYPE_CHECKING

import pytest

from tests.hooks.gate_answers import IDENTITY, LATE, READY, STRANGER, gate, http

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.hooks.conftest import Hook, Localhost


def endless_body(_path: str) -> Iterator[bytes]:
    """Answer 200 without end."""
    return chain([b"HTTP/1.1 200 OK\r\n\r\n", b'{"agent": "a", "group": "g", "controller": "c", "x": "'],
                 repeat(b"x" * 65536))  # fmt: skip


def endless_head(_path: str) -> Iterator[bytes]:
    """Answer with header lines without end."""
    return chain([b"HTTP/1.1 200 OK\r\n"], repeat(b"X-More: yes\r\n" * 1000))


def no_end_of_line(_path: str) -> Iterator[bytes]:
    """Answer with a status line without end."""
    return chain([b"HTTP/1.1 200 "], repeat(b"\0\xff" * 30000))


@pytest.mark.parametrize("answer", [endless_body, endless_head, no_end_of_line])
def test_an_endless_answer_is_bounded(
    hook: Hook, localhost: Localhost, client: str, answer: Callable[[str], Iterator[bytes]]
) -> None:
    """An endless answer is bounded in size and time, and is not the gate's."""
    hook.client, hook.wait = client, "1"
    localhost.v4.open(answer)

    outcome = hook.run()

    assert outcome.code in {STRANGER, LATE}, outcome.err
    assert outcome.out == ""
    assert outcome.took < 1.5
    assert len(outcome.err) < 1000


def test_an_answer_that_never_comes_is_bounded(hook: Hook, localhost: Localhost, shell: list[str]) -> None:
    """A client that hangs is killed before the limit, without a message of the shell."""
    hook.shell, hook.wait = shell, "1"
    localhost.v4._socket.listen(16)  # connections are accepted by the kernel, and no program reads them

    outcome = hook.run()

    assert outcome.code == LATE, outcome.err
    assert outcome.took < 1.5
    assert all(line.startswith("tunnelmgr: ") for line in outcome.err.splitlines()), outcome.err


def test_a_truncated_answer_is_not_the_gates(hook: Hook, localhost: Localhost) -> None:
    """An answer with the right names that does not end is not the gate's."""
    hook.wait = "1"
    head = b'HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n{"agent": "a", "group": "g", "controller": "c"}'
    localhost.v4.open(lambda _path: [head])

    outcome = hook.run()

    assert outcome.code == STRANGER, outcome.err


def test_a_proxy_in_the_environment_is_not_used(hook: Hook, localhost: Localhost, client: str) -> None:
    """The registry is on this machine, so proxy settings are ignored."""
    hook.client = client
    dead = "http://127.0.0.1:9/"
    hook.environment = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), dead)
    localhost.v4.open(gate)

    outcome = hook.run()

    assert outcome.code == READY, outcome.err


def test_a_sleep_of_whole_seconds_is_enough(hook: Hook) -> None:
    """POSIX does not promise fractions of seconds, and the limit holds without them."""
    tools = hook.directory / "bin"
    tools.mkdir()
    sleep = tools / "sleep"
    sleep.write_text(f'#!/bin/sh\ncase $1 in *.*) exit 1 ;; esac\nexec {shutil.which("sleep")} "$1"\n')
    sleep.chmod(0o755)
    hook.wait = "3"

    outcome = hook.run()

    assert outcome.code == LATE, outcome.err
    assert outcome.took < 3.5


def test_a_system_without_proc_keeps_the_limit(hook: Hook) -> None:
    """Without /proc, the script uses the clock, and the limit holds."""
    assert hook.text.count("/proc/uptime") == 2
    hook.text = hook.text.replace("/proc/uptime", "/nonexistent/uptime")
    hook.wait = "2"

    outcome = hook.run()

    assert outcome.code == LATE, outcome.err
    assert outcome.took < 2.5


def test_a_machine_that_was_suspended_at_the_start_is_late(hook: Hook) -> None:
    """If the limit has passed before the first check, the status is that of a tunnel that is not up in time."""
    assert hook.text.count("    start_clock\n") == 1
    hook.text = hook.text.replace("    start_clock\n", "    start_clock\n    start_whole=$((start_whole - 100))\n")

    outcome = hook.run()

    assert outcome.code == LATE, outcome.err
    assert "is not ready after 20 s: it did not answer in time." in outcome.err


def test_both_paths_are_requested(hook: Hook, localhost: Localhost) -> None:
    """The identity is requested first, then the registry."""
    localhost.v4.open(gate)

    hook.run()

    assert localhost.v4.asked == ["/.well-known/tunnelmgr", "/v2/"]


def test_names_are_printed_safely(hook: Hook, localhost: Localhost) -> None:
    """Names with unusual characters neither break the script nor control the terminal."""
    odd = {**IDENTITY, "agent": "static:$(id)`id`%s\\n"}
    localhost.v4.open(lambda path: http("200 OK", odd) if "well-known" in path else gate(path))

    outcome = hook.run()

    assert outcome.code == READY, outcome.err
    assert "agent static:$(id)`id`%s" in outcome.err


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is a developer's tool")
def test_shellcheck_finds_nothing(hook: Hook) -> None:
    """The script is plain POSIX sh."""
    done = subprocess.run(["shellcheck", "-s", "sh", "-"], input=hook.text, capture_output=True, text=True, check=False)

    assert done.stdout == ""
