"""The agent's script, run by real shells with real HTTP clients against real ports."""

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
    """Return one whole answer."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return [f"{head}Connection: close\r\n\r\n".encode() + body]


def denied(message: str) -> dict[str, object]:
    """Return the gate's refusal."""
    return {"errors": [{"code": "DENIED", "message": f"tunnelmgr: {message}"}]}


def gate(path: str) -> list[bytes]:
    """Answer as the gate does with a registry behind it."""
    return http("200 OK", IDENTITY if path == "/.well-known/tunnelmgr" else {})


def test_a_standing_tunnel_is_ready_at_once(hook: Hook, localhost: Localhost, shell: list[str], client: str) -> None:
    """Exit 0 in any shell with any client, telling on stderr alone who answered."""
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
    """The second listen address should hold, it need not."""
    localhost.v4.open(gate)

    outcome = hook.run()

    assert outcome.code == READY, outcome.err


def test_a_literal_address_is_the_only_one_asked(hook: Hook, localhost: Localhost) -> None:
    """TUNNELMGR_REGISTRY may name one address, also of IPv6."""
    hook.registry = f"[::1]:{localhost.v6.port}"
    localhost.v4.open(lambda _path: http("404 Not Found", {}))
    localhost.v6.open(gate)

    outcome = hook.run()

    assert outcome.code == READY, outcome.err
    assert localhost.v4.asked == []


def test_a_tunnel_that_comes_later_is_waited_for(
    hook: Hook, localhost: Localhost, shell: list[str], client: str
) -> None:
    """Nobody listens at first; once the tunnel stands the script ends well."""
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
    """Exit 75 within the limit, with what to do next."""
    hook.shell, hook.wait = shell, "1"

    outcome = hook.run()

    assert outcome.code == LATE, outcome.err
    assert outcome.out == ""
    assert outcome.took < 1.5
    assert "not ready after 1 s: nobody listens there yet" in outcome.err
    assert "tunnelmgr list" in outcome.err


def test_soft_goes_on_without_a_tunnel(hook: Hook) -> None:
    """--soft turns 75 into 0, and says so."""
    hook.wait = "1"

    outcome = hook.run("--soft")

    assert outcome.code == READY, outcome.err
    assert "Going on without it" in outcome.err


def test_another_web_server_is_somebody_else(hook: Hook, localhost: Localhost, shell: list[str], client: str) -> None:
    """Exit 69 when a plain registry or any web server answers, also with --soft."""
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
def test_a_200_that_is_not_the_gates_is_somebody_else(
    hook: Hook, localhost: Localhost, content: object, client: str
) -> None:
    """Only all three names make the answer ours; nothing of a foreign one reaches the log."""
    hook.client = client
    hook.hurry()
    localhost.v4.open(lambda _path: http("200 OK", content))

    outcome = hook.run()

    assert outcome.code == STRANGER, outcome.err
    assert "\x1b" not in outcome.err


def test_a_403_of_somebody_else_is_no_refusal(hook: Hook, localhost: Localhost, client: str) -> None:
    """Other programs on port 5000 answer 403 too (AirPlay does)."""
    hook.client = client
    hook.hurry()
    localhost.v4.open(lambda _path: http("403 Forbidden", b""))

    outcome = hook.run()

    assert outcome.code == STRANGER, outcome.err


def test_a_squatter_on_ipv6_alone_is_found(hook: Hook, localhost: Localhost) -> None:
    """Docker may take ::1 for localhost first, so a good 127.0.0.1 is not enough."""
    hook.hurry()
    localhost.v4.open(gate)
    localhost.v6.open(lambda _path: http("200 OK", {}))

    outcome = hook.run()

    assert outcome.code == STRANGER, outcome.err
    assert "[::1]" in outcome.err


def test_a_stranger_gets_the_benefit_of_doubt(hook: Hook, localhost: Localhost) -> None:
    """What goes within three seconds was no squatter. Unhurried, it takes at least those."""
    first = iter([http("404 Not Found", {})] * 3)
    localhost.v4.open(lambda path: next(first, None) or gate(path))

    outcome = hook.run()

    assert outcome.code == READY, outcome.err


def test_a_stranger_at_the_limit_is_still_a_stranger(hook: Hook, localhost: Localhost) -> None:
    """A short limit does not turn 69 into 75."""
    hook.wait = "1"
    localhost.v4.open(lambda _path: http("404 Not Found", {}))

    outcome = hook.run("--soft")

    assert outcome.code == STRANGER, outcome.err
    assert outcome.took < 1.5


def test_a_server_that_speaks_no_http_is_somebody_else(hook: Hook, localhost: Localhost, client: str) -> None:
    """Exit 69 for any TCP service."""
    hook.client = client
    hook.hurry()
    localhost.v4.open(lambda _path: [b"220 mail.example ESMTP\r\n"])

    outcome = hook.run()

    assert outcome.code == STRANGER, outcome.err
    assert outcome.out == ""


def test_a_port_that_only_hangs_up_is_somebody_else_after_longer(hook: Hook, localhost: Localhost, client: str) -> None:
    """A lost tunnel's sshd does that for a while too, so the patience is another one."""
    hook.client = client
    hook.hurry()
    localhost.v4.open(lambda _path: [])

    outcome = hook.run()

    assert outcome.code == STRANGER, outcome.err
    assert "takes connections but never answers" in outcome.err


def test_a_silent_port_is_not_judged_early(hook: Hook, localhost: Localhost) -> None:
    """Within the ordinary patience it is merely late, which --soft forgives."""
    hook.wait = "1"
    localhost.v4.open(lambda _path: [])

    outcome = hook.run()

    assert outcome.code == LATE, outcome.err
    assert "takes connections" in outcome.err


def test_a_registry_that_is_away_is_waited_for(hook: Hook, localhost: Localhost, shell: list[str], client: str) -> None:
    """A 503 passes: the tunnel stands, the registry is not there yet."""
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
    """The last line tells the tunnel's part from the registry's."""
    hook.wait = "1"
    localhost.v4.open(
        lambda path: gate(path) if path != "/v2/" else http("503 Service Unavailable", denied("registry away"))
    )

    outcome = hook.run()

    assert outcome.code == LATE, outcome.err
    assert "the tunnel stands, but the registry is not ready: HTTP 503, registry away" in outcome.err


def test_a_refusal_ends_it_at_once(hook: Hook, localhost: Localhost, shell: list[str], client: str) -> None:
    """Exit 77: waiting longer would not change a rule."""
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
    """A 403 in the gate's own words is a refusal wherever it comes."""
    localhost.v4.open(lambda _path: http("403 Forbidden", denied("agent unknown")))

    outcome = hook.run()

    assert outcome.code == REFUSED, outcome.err
    assert "agent unknown" in outcome.err


def test_without_curl_and_wget_it_is_misconfigured(hook: Hook, shell: list[str]) -> None:
    """Exit 78, and which programs would do."""
    hook.shell, hook.client = shell, ""

    outcome = hook.run("--soft")

    assert outcome.code == MISCONFIGURED, outcome.err
    assert outcome.out == ""
    assert "neither curl nor wget" in outcome.err


@pytest.mark.parametrize("wait", ["0", "-1", "1.5", "010", "1e3", "two", "86401", "99999999999999999999", "1;id", " 5"])
def test_a_bad_limit_is_misconfigured(hook: Hook, shell: list[str], wait: str) -> None:
    """Exit 78 before anything is asked."""
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
def test_a_bad_registry_is_misconfigured(hook: Hook, shell: list[str], registry: str) -> None:
    """Exit 78: nothing odd reaches a client's command line."""
    hook.shell, hook.registry = shell, registry

    outcome = hook.run()

    assert outcome.code == MISCONFIGURED, outcome.err
    assert "TUNNELMGR_REGISTRY must be" in outcome.err


def test_empty_settings_are_the_defaults(hook: Hook, localhost: Localhost) -> None:
    """An empty variable is no setting."""
    hook.wait = ""
    localhost.v4.open(gate)

    outcome = hook.run()

    assert outcome.code == READY, outcome.err


def test_an_unknown_option_is_misconfigured(hook: Hook) -> None:
    """Exit 78 with the usage."""
    outcome = hook.run("--hard")

    assert outcome.code == MISCONFIGURED
    assert "usage: tunnelmgr-wait" in outcome.err


def test_help_goes_to_stderr(hook: Hook) -> None:
    """Even help leaves stdout to whom it belongs."""
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
    """What waits on stdin is still there for the program that comes after."""
    hook.shell, hook.client = shell, client
    stdin, what_is_left = told_input
    localhost.v4.open(gate)

    outcome = hook.run(stdin=stdin)

    assert outcome.code == READY, outcome.err
    assert what_is_left() == "for somebody else\n"


def test_it_runs_from_a_pipe(hook: Hook, localhost: Localhost, shell: list[str]) -> None:
    """`tunnelmgr hook wait | ssh agent sh` works, although stdin is then the script."""
    localhost.v4.open(gate)

    done = subprocess.run(
        shell, input=hook.text, capture_output=True, text=True, timeout=30, check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TUNNELMGR_REGISTRY": localhost.registry},
    )  # fmt: skip

    assert done.returncode == READY, done.stderr
    assert done.stdout == ""


def endless_body(_path: str) -> Iterator[bytes]:
    """Answer 200 and never end."""
    return chain([b"HTTP/1.1 200 OK\r\n\r\n", b'{"agent": "a", "group": "g", "controller": "c", "x": "'],
                 repeat(b"x" * 65536))  # fmt: skip


def endless_head(_path: str) -> Iterator[bytes]:
    """Answer with header lines for ever."""
    return chain([b"HTTP/1.1 200 OK\r\n"], repeat(b"X-More: yes\r\n" * 1000))


def no_end_of_line(_path: str) -> Iterator[bytes]:
    """Answer with a status line for ever."""
    return chain([b"HTTP/1.1 200 "], repeat(b"\0\xff" * 30000))


@pytest.mark.parametrize("answer", [endless_body, endless_head, no_end_of_line])
def test_an_endless_answer_is_bounded(
    hook: Hook, localhost: Localhost, client: str, answer: Callable[[str], Iterator[bytes]]
) -> None:
    """Neither its size nor its length in time gets past the limit, and it is not ours."""
    hook.client, hook.wait = client, "1"
    localhost.v4.open(answer)

    outcome = hook.run()

    assert outcome.code in {STRANGER, LATE}, outcome.err
    assert outcome.out == ""
    assert outcome.took < 1.5
    assert len(outcome.err) < 1000


def test_an_answer_that_never_comes_is_bounded(hook: Hook, localhost: Localhost, shell: list[str]) -> None:
    """A client that hangs is killed before the limit, without a word of the shell's about it."""
    hook.shell, hook.wait = shell, "1"
    localhost.v4._socket.listen(16)  # connections are taken by the kernel, and nobody reads them

    outcome = hook.run()

    assert outcome.code == LATE, outcome.err
    assert outcome.took < 1.5
    assert all(line.startswith("tunnelmgr: ") for line in outcome.err.splitlines()), outcome.err


def test_an_answer_cut_short_is_not_ours(hook: Hook, localhost: Localhost) -> None:
    """The right words in an answer that does not end are not proof enough."""
    hook.wait = "1"
    head = b'HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n{"agent": "a", "group": "g", "controller": "c"}'
    localhost.v4.open(lambda _path: [head])

    outcome = hook.run()

    assert outcome.code == STRANGER, outcome.err


def test_a_proxy_in_the_environment_is_not_used(hook: Hook, localhost: Localhost, client: str) -> None:
    """The registry is on this machine, whatever its proxy settings say."""
    hook.client = client
    dead = "http://127.0.0.1:9/"
    hook.environment = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), dead)
    localhost.v4.open(gate)

    outcome = hook.run()

    assert outcome.code == READY, outcome.err


def test_a_sleep_of_whole_seconds_will_do(hook: Hook) -> None:
    """POSIX promises no fractions; the limit holds all the same."""
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
    """Then the clock is asked, and the limit holds all the same."""
    assert hook.text.count("/proc/uptime") == 2
    hook.text = hook.text.replace("/proc/uptime", "/nonexistent/uptime")
    hook.wait = "2"

    outcome = hook.run()

    assert outcome.code == LATE, outcome.err
    assert outcome.took < 2.5


def test_both_paths_are_asked_on_each_readiness(hook: Hook, localhost: Localhost) -> None:
    """The identity comes first, then the registry."""
    localhost.v4.open(gate)

    hook.run()

    assert localhost.v4.asked == ["/.well-known/tunnelmgr", "/v2/"]


def test_names_are_told_as_they_are(hook: Hook, localhost: Localhost) -> None:
    """Names with odd characters do not break the script, nor act on the terminal."""
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
