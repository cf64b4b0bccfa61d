"""The wait script, run by real shells with real HTTP clients against real ports."""

from __future__ import annotations

import json
import shutil
import subprocess
from itertools import chain, repeat
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.hooks.conftest import Hook, Localhost

READY, STRANGER, LATE, REFUSED, MISCONFIGURED = 0, 69, 75, 77, 78
IDENTITY = {"agent": "ec2:i-0abc", "group": "ci", "controller": "registry-1"}


def http(status: str, content: object) -> list[bytes]:
    """Return a complete answer."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return [f"{head}Connection: close\r\n\r\n".encode() + body]


def denied(message: str) -> dict[str, object]:
    """Return the gate's refusal."""
    return {"errors": [{"code": "DENIED", "message": f"tunnelmgr: {message}"}]}


def gate(path: str) -> list[bytes]:
    """Answer as the gate does with a registry behind it."""
    return http("200 OK", IDENTITY if path == "/.well-known/tunnelmgr" else {})


def test_a_tunnel_that_is_up_is_ready_at_once(hook: Hook, localhost: Localhost, shell: list[str], client: str) -> None:
    """The script exits 0 in any shell with any client, and prints on stderr alone which controller answered."""
    hook.shell, hook.client = shell, client
    localhost.v4.open(gate)
    localhost.v6.open(gate)

    outcome = hook.run()

    assert outcome.code == READY, outcome.err
    assert outcome.out == ""
    assert "ready (agent ec2:i-0abc, group ci, controller registry-1)" in outcome.err
    assert outcome.err.count("\n") == 1
    assert outcome.took < 5


def test_localhost_on_ipv4_alone_is_enough(hook: Hook, localhost: Localhost) -> None:
    """The second address of localhost need not have a listener."""
    localhost.v4.open(gate)

    outcome = hook.run()

    assert outcome.code == READY, outcome.err


def test_a_literal_address_is_the_only_one_asked(hook: Hook, localhost: Localhost) -> None:
    """TUNNELMGR_REGISTRY may name one address, also of IPv6, and only that is requested."""
    hook.registry = f"[::1]:{localhost.v6.port}"
    localhost.v4.open(lambda _path: http("404 Not Found", {}))
    localhost.v6.open(gate)

    outcome = hook.run()

    assert outcome.code == READY, outcome.err
    assert localhost.v4.asked == []


def test_a_tunnel_that_comes_later_is_waited_for(
    hook: Hook, localhost: Localhost, shell: list[str], client: str
) -> None:
    """The script waits while nothing listens, and exits 0 when the tunnel is up."""
    hook.shell, hook.client = shell, client

    with hook.start() as process:
        assert process.stderr
        said = process.stderr.readline()
        localhost.v4.open(gate)
        localhost.v6.open(gate)
        out, err = process.communicate(timeout=30)

    assert said == f"tunnelmgr: waiting up to 20 s for {localhost.registry}\n"
    assert process.returncode == READY, err
    assert out == ""


def test_without_a_tunnel_it_ends_in_time(hook: Hook, shell: list[str]) -> None:
    """The script exits 75 within the limit, and says what to do next."""
    hook.shell, hook.wait = shell, "1"

    outcome = hook.run()

    assert outcome.code == LATE, outcome.err
    assert outcome.out == ""
    assert outcome.took < 1.5
    assert "not ready after 1 s: nothing listens there yet" in outcome.err
    assert "tunnelmgr list" in outcome.err


def test_soft_continues_without_a_tunnel(hook: Hook) -> None:
    """`--soft` exits 0 instead of 75, and says so."""
    hook.wait = "1"

    outcome = hook.run("--soft")

    assert outcome.code == READY, outcome.err
    assert "Continuing without it" in outcome.err


def test_another_web_server_is_refused(hook: Hook, localhost: Localhost, shell: list[str], client: str) -> None:
    """The script exits 69 if a plain registry or any web server answers, also with `--soft`."""
    hook.shell, hook.client = shell, client
    hook.hurry()
    localhost.v4.open(lambda _path: http("404 Not Found", {"errors": []}))

    outcome = hook.run("--soft")

    assert outcome.code == STRANGER, outcome.err
    assert outcome.out == ""
    assert "Do not pull from it" in outcome.err
    assert len(localhost.v4.asked) >= 3


@pytest.mark.parametrize(
    "content", [b"<html>agent group controller</html>", {"agent": "a", "group": "g"}, b"", b"\0\x1b[2J"], ids=repr
)
def test_a_200_that_is_not_the_gates_is_refused(hook: Hook, localhost: Localhost, content: object, client: str) -> None:
    """Only an answer with all three names is the gate's, and no text of a foreign one reaches the log."""
    hook.client = client
    hook.hurry()
    localhost.v4.open(lambda _path: http("200 OK", content))

    outcome = hook.run()

    assert outcome.code == STRANGER, outcome.err
    assert "\x1b" not in outcome.err


def test_a_foreign_403_is_not_the_gates_refusal(hook: Hook, localhost: Localhost, client: str) -> None:
    """Other programs on port 5000 answer 403 too, such as AirPlay."""
    hook.client = client
    hook.hurry()
    localhost.v4.open(lambda _path: http("403 Forbidden", b""))

    outcome = hook.run()

    assert outcome.code == STRANGER, outcome.err


def test_a_squatter_on_ipv6_alone_is_found(hook: Hook, localhost: Localhost) -> None:
    """Docker may use ::1 for localhost first, so a correct 127.0.0.1 is not enough."""
    hook.hurry()
    localhost.v4.open(gate)
    localhost.v6.open(lambda _path: http("200 OK", {}))

    outcome = hook.run()

    assert outcome.code == STRANGER, outcome.err
    assert "[::1]" in outcome.err


def test_a_foreign_listener_is_tolerated_for_a_moment(hook: Hook, localhost: Localhost) -> None:
    """A foreign listener that ends within three seconds does not end the wait."""
    first = iter([http("404 Not Found", {})] * 3)
    localhost.v4.open(lambda path: next(first, None) or gate(path))

    outcome = hook.run()

    assert outcome.code == READY, outcome.err


def test_a_foreign_listener_at_the_limit_is_still_refused(hook: Hook, localhost: Localhost) -> None:
    """A short limit does not turn 69 into 75."""
    hook.wait = "1"
    localhost.v4.open(lambda _path: http("404 Not Found", {}))

    outcome = hook.run("--soft")

    assert outcome.code == STRANGER, outcome.err
    assert outcome.took < 1.5


def test_a_server_that_does_not_speak_http_is_refused(hook: Hook, localhost: Localhost, client: str) -> None:
    """The script exits 69 for any TCP service."""
    hook.client = client
    hook.hurry()
    localhost.v4.open(lambda _path: [b"220 mail.example ESMTP\r\n"])

    outcome = hook.run()

    assert outcome.code == STRANGER, outcome.err
    assert outcome.out == ""


def test_a_port_that_only_hangs_up_is_refused_later(hook: Hook, localhost: Localhost, client: str) -> None:
    """The sshd of a lost tunnel hangs up for a while too, so such a port is tolerated for longer."""
    hook.client = client
    hook.hurry()
    localhost.v4.open(lambda _path: [])

    outcome = hook.run()

    assert outcome.code == STRANGER, outcome.err
    assert "accepts connections but never answers" in outcome.err


def test_a_silent_port_is_not_judged_early(hook: Hook, localhost: Localhost) -> None:
    """A silent port within the limit is only late, so `--soft` continues."""
    hook.wait = "1"
    localhost.v4.open(lambda _path: [])

    outcome = hook.run()

    assert outcome.code == LATE, outcome.err
    assert "accepts connections" in outcome.err


def test_a_registry_that_is_away_is_waited_for(hook: Hook, localhost: Localhost, shell: list[str], client: str) -> None:
    """While the gate answers 503, the script waits for the registry."""
    hook.shell, hook.client = shell, client
    away = iter(range(2))

    def answer(path: str) -> Iterable[bytes]:
        if path == "/v2/" and next(away, None) is not None:
            return http("503 Service Unavailable", denied("the registry does not answer"))
        return gate(path)

    localhost.v4.open(answer)

    outcome = hook.run()

    assert outcome.code == READY, outcome.err
    assert localhost.v4.asked.count("/v2/") == 3


def test_a_registry_that_stays_away_is_named(hook: Hook, localhost: Localhost) -> None:
    """The last line says that the tunnel is up and the registry is not."""
    hook.wait = "1"
    localhost.v4.open(
        lambda path: gate(path) if path != "/v2/" else http("503 Service Unavailable", denied("registry away"))
    )

    outcome = hook.run()

    assert outcome.code == LATE, outcome.err
    assert "the tunnel is up, but the registry is not ready: HTTP 503, registry away" in outcome.err


def test_a_refusal_ends_the_wait_at_once(hook: Hook, localhost: Localhost, shell: list[str], client: str) -> None:
    """The script exits 77 at once, because waiting would not change a rule."""
    hook.shell, hook.client = shell, client
    message = "group ci may not pull anything"
    localhost.v4.open(lambda path: gate(path) if path != "/v2/" else http("403 Forbidden", denied(message)))

    outcome = hook.run("--soft")

    assert outcome.code == REFUSED, outcome.err
    assert outcome.out == ""
    assert outcome.took < 5
    if client != "busybox":  # which does not show the body of an error
        assert message in outcome.err


def test_a_refusal_may_come_with_the_first_answer(hook: Hook, localhost: Localhost) -> None:
    """A 403 with the gate's message is a refusal at either request."""
    localhost.v4.open(lambda _path: http("403 Forbidden", denied("agent unknown")))

    outcome = hook.run()

    assert outcome.code == REFUSED, outcome.err
    assert "agent unknown" in outcome.err


def test_without_curl_and_wget_it_is_misconfigured(hook: Hook, shell: list[str]) -> None:
    """The script exits 78 and names the programs that it can use."""
    hook.shell, hook.client = shell, ""

    outcome = hook.run("--soft")

    assert outcome.code == MISCONFIGURED, outcome.err
    assert outcome.out == ""
    assert "neither curl nor wget" in outcome.err


@pytest.mark.parametrize("wait", ["0", "-1", "1.5", "010", "1e3", "two", "86401", "99999999999999999999", "1;id", " 5"])
def test_an_invalid_limit_is_misconfigured(hook: Hook, shell: list[str], wait: str) -> None:
    """The script exits 78 before any request."""
    hook.shell, hook.wait = shell, wait

    outcome = hook.run()

    assert outcome.code == MISCONFIGURED, outcome.err
    assert outcome.out == ""
    assert "TUNNELMGR_WAIT must be" in outcome.err


@pytest.mark.parametrize(
    "registry",
    ["localhost", "http://localhost:5000", "localhost:5000/x", ":5000", "localhost:", "localhost:05", "a b:1",
     "-K/etc/passwd:5000", "[::1:5000", "[]:5000", "[x]:5000", "u@h:5000", "localhost:123456", "*:5000"],
)  # fmt: skip
def test_an_invalid_registry_is_misconfigured(hook: Hook, shell: list[str], registry: str) -> None:
    """The script exits 78, so that no invalid value reaches the command line of a client."""
    hook.shell, hook.registry = shell, registry

    outcome = hook.run()

    assert outcome.code == MISCONFIGURED, outcome.err
    assert "TUNNELMGR_REGISTRY must be" in outcome.err


def test_empty_settings_are_the_defaults(hook: Hook, localhost: Localhost) -> None:
    """An empty variable counts as unset."""
    hook.wait = ""
    localhost.v4.open(gate)

    outcome = hook.run()

    assert outcome.code == READY, outcome.err


def test_an_unknown_option_is_misconfigured(hook: Hook) -> None:
    """The script exits 78 and prints its usage."""
    outcome = hook.run("--hard")

    assert outcome.code == MISCONFIGURED
    assert "usage: tunnelmgr-wait" in outcome.err


def test_help_goes_to_stderr(hook: Hook) -> None:
    """Even the help leaves stdout unused."""
    outcome = hook.run("--help")

    assert outcome.code == READY
    assert outcome.out == ""
    assert "usage: tunnelmgr-wait" in outcome.err


def test_stdin_is_left_alone(
    hook: Hook,
    localhost: Localhost,
    told_input: tuple[int, Callable[[], str]],
    shell: list[str],
    client: str,
) -> None:
    """A program that runs after the script can still read the whole stdin."""
    hook.shell, hook.client = shell, client
    stdin, what_is_left = told_input
    localhost.v4.open(gate)

    outcome = hook.run(stdin=stdin)

    assert outcome.code == READY, outcome.err
    assert what_is_left() == "for another program\n"


def test_it_runs_from_a_pipe(hook: Hook, localhost: Localhost, shell: list[str]) -> None:
    """`tunnelmgr hook wait | ssh agent sh` works, although stdin is the script."""
    localhost.v4.open(gate)

    done = subprocess.run(
        shell, input=hook.text, capture_output=True, text=True, timeout=30, check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TUNNELMGR_REGISTRY": localhost.registry},
    )  # fmt: skip

    assert done.returncode == READY, done.stderr
    assert done.stdout == ""


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
    localhost.v4._socket.listen(16)  # connections are taken by the kernel, and nobody reads them

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
