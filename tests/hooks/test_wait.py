"""The wait script, run by real shells with real HTTP clients against real ports."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.hooks.gate_answers import LATE, MISCONFIGURED, READY, REFUSED, STRANGER, denied, gate, http

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.hooks.conftest import Hook, Localhost


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
    filled_stdin: tuple[int, Callable[[], str]],
    shell: list[str],
    client: str,
) -> None:
    """A program that runs after the script can still read the whole stdin."""
    hook.shell, hook.client = shell, client
    stdin, what_is_left = filled_stdin
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
