"""The exit status and the output of every command."""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from click.testing import Result

from tests.control.fake_daemon import FakeDaemon, record, up, world
from tunnelmgr import __version__
from tunnelmgr.cli import app, status
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import ReleaseRequested, RetryRequested
from tunnelmgr.core.health import RegistryHealth
from tunnelmgr.errors import ConfigError

Run = Callable[..., Result]

WITH_DAEMON = {
    "status": (),
    "list": (),
    "show": ("builder-1",),
    "retry": ("builder-2",),
    "release": ("builder-3", "--reason", "reinstalled"),
    "reload": (),
}
"""The commands that need a daemon, with arguments that suit the fake one."""


def commands(group: Any, *names: str) -> Iterator[tuple[str, ...]]:  # noqa: ANN401 - typer's own copy of click
    """Return every command that there is, as the words that name it."""
    if hasattr(group, "commands"):
        for name in group.list_commands(None):
            yield from commands(group.get_command(None, name), *names, name)
    else:
        yield names


# --- every command ---


@pytest.mark.parametrize("words", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_every_commands_help_ends_with_an_example(run: Run, words: tuple[str, ...]) -> None:
    """The help of every command has an example of that command."""
    result = run(*words, "--help")

    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"tunnelmgr {words[0]}" in result.stdout


def test_help_and_version_succeed(run: Run) -> None:
    """`--help`, `-h` and `--version` end with exit status 0."""
    assert run("--help").exit_code == run("-h").exit_code == 0
    assert run("--version").stdout.strip() == f"tunnelmgr {__version__}"
    assert "Exit status" in run("--help").stdout


@pytest.mark.parametrize(
    "words",
    [
        ("frobnicate",),
        ("list", "--frobnicate"),
        ("list", "--phase", "happy"),
        ("show",),
        ("retry",),
        ("hook", "frobnicate"),
        ("run", "--log-level", "loud"),
        ("run", "--log-format", "xml"),
    ],
    ids=" ".join,
)
def test_an_invalid_command_line_is_a_usage_error(run: Run, words: tuple[str, ...]) -> None:
    """An invalid command line ends with exit status 2 and prints nothing to stdout."""
    result = run(*words)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


@pytest.mark.parametrize("command", WITH_DAEMON)
def test_without_a_daemon_the_exit_status_is_3(run: Run, tmp_path: Path, command: str) -> None:
    """The error says how to start a daemon."""
    result = run(command, *WITH_DAEMON[command], "--socket", tmp_path / "none.sock")

    assert result.exit_code == 3
    assert result.stdout == ""
    assert "systemctl start tunnelmgr" in result.stderr


@pytest.mark.parametrize("command", WITH_DAEMON)
def test_json_output_is_json_alone(run: Run, socket: Path, command: str) -> None:
    """`--json` prints a JSON document and nothing else, also if the exit status is 1."""
    result = run(command, *WITH_DAEMON[command], "--json", "--socket", socket)

    assert result.exit_code == (1 if command == "status" else 0)
    assert json.loads(result.stdout)


@pytest.mark.parametrize("command", ["status", "list", "show"])
def test_output_to_a_pipe_is_plain_and_complete(run: Run, socket: Path, command: str) -> None:
    """Output to a pipe has no colours, no `…` for text that did not fit, and no blanks at the ends of lines."""
    result = run(command, *WITH_DAEMON[command], "--socket", socket)

    assert "\x1b" not in result.output
    assert "…" not in result.stdout
    assert all(line == line.rstrip() for line in result.stdout.splitlines())


@pytest.mark.parametrize("command", ["show", "retry", "release"])
@pytest.mark.parametrize(("agent", "words"), [("nobody", "no agent matches"), ("builder", "use a longer prefix")])
def test_an_unknown_or_ambiguous_agent_is_an_error(
    run: Run, socket: Path, command: str, agent: str, words: str
) -> None:
    """An agent that does not exist, or a prefix of several, ends with exit status 1 and the reason."""
    reason = ("--reason", "x") if command == "release" else ()
    result = run(command, agent, *reason, "--socket", socket)

    assert result.exit_code == 1
    assert words in result.stderr


# --- where the daemon is ---


def test_the_socket_comes_from_the_configuration(
    run: Run, socket: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration may be named before the command, after it or in the environment; --socket goes first."""
    assert socket.parent == config.parent
    assert run("list", "-c", config).exit_code == 0
    assert run("-c", config, "list").exit_code == 0
    monkeypatch.setenv("TUNNELMGR_CONFIG", str(config))
    assert run("list").exit_code == 0
    assert run("list", "--socket", config.with_name("none.sock")).exit_code == 3


def test_an_error_elsewhere_in_the_configuration_does_not_hide_the_daemon(run: Run, socket: Path, config: Path) -> None:
    """`list` works while the configuration has an error outside [controller]."""
    config.write_text(config.read_text() + '\n[[group]]\nname = 7\nnonsense = "x"\n')

    assert socket.exists()
    assert run("list", "-c", config).exit_code == 0


@pytest.mark.parametrize("text", [None, b'[controller]\nsocket = "/run', b"\xff\xfe"])
def test_a_configuration_whose_socket_cannot_be_read_is_a_usage_error(
    run: Run, tmp_path: Path, text: bytes | None
) -> None:
    """A command does not fall back to another socket than the one that the file may name."""
    file = tmp_path / "tunnelmgr.toml"
    if text is not None:
        file.write_bytes(text)

    result = run("list", "-c", file)

    assert result.exit_code == 2
    assert str(file) in result.stderr


def test_a_toml_error_does_not_hide_a_running_daemon(run: Run, socket: Path, config: Path) -> None:
    """`status` and every other command reads the socket from a file that is not valid TOML, and warns."""
    config.write_text(config.read_text() + "\n[[group\n")
    assert socket.parent == config.parent

    result = run("list", "-c", config, "--json")

    assert result.exit_code == 0
    assert len(json.loads(result.stdout)) == 4
    assert f"warning: {config}: not valid TOML" in result.stderr
    assert "at line" in result.stderr


def test_a_toml_error_in_a_file_without_a_socket_leads_to_the_default_socket(run: Run, tmp_path: Path) -> None:
    """The default socket is what the file would mean without the error, and the warning names it."""
    file = tmp_path / "tunnelmgr.toml"
    file.write_text("[controller\n# socket = '/elsewhere'\n")

    result = run("status", "-c", file)

    assert result.exit_code == 3
    assert "the daemon on /run/tunnelmgr/tunnelmgr.sock" in result.stderr


@pytest.mark.parametrize("words", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_help_shows_no_type_beside_a_flag(run: Run, words: tuple[str, ...]) -> None:
    """`--json` takes no value, so its help does not read `--json <bool>`."""
    shown = run(*words, "--help").stdout

    assert "<bool>" not in shown
    assert "<list[" not in shown
    assert "<bool>" not in run("--help").stdout


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (("explain-policy", "builder-1", "pul", "team/app"), "'pul' (did you mean pull?); use pull, push or delete"),
        (("list", "--phase", "conecting"), "did you mean connecting?"),
        (("hook", "cloudinit"), "did you mean cloud-init?"),
        (("run", "--log-level", "warn"), "did you mean warning?"),
        (("init", "--print", "ssh"), "did you mean sshd?"),
        (("provision", "--cloud", "gcp"), "'gcp'; use ec2 or hetzner"),
    ],
)
def test_an_unknown_word_is_answered_with_the_known_ones(run: Run, words: tuple[str, ...], suggestion: str) -> None:
    """A usage error names every value that is allowed, and the nearest if there is one."""
    result = run(*words)

    assert result.exit_code == 2
    shown = " ".join(re.sub(r"[│\n]", " ", result.stderr).split())
    assert suggestion in shown
    assert "Value error" not in shown


# --- status ---


def test_status_is_0_without_a_problem(run: Run, socket: Path, daemon: FakeDaemon) -> None:
    """`status` ends with 0 if every agent is up, the registry is on loopback and the state is written."""
    daemon.world = world((record("builder-1"), up()))
    result = run("status", "--socket", socket)

    assert result.exit_code == 0
    assert "✖" not in result.stdout


def test_status_is_1_and_names_each_agent_that_should_be_up(run: Run, socket: Path) -> None:
    """`status` names each agent that is not up, with the reason."""
    result = run("status", "--socket", socket)

    assert result.exit_code == 1
    for line in (
        "static:builder-2 is down: cannot reach 192.0.2.7 port 22: Connection refused",
        "static:builder-3 is quarantined: the machine at",
        "static:builder-4 is awaiting-identity",
    ):
        assert line in result.stdout
    assert "static:other-1" not in result.stdout


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"registry": RegistryHealth(reachable=False, loopback_only=None, error="refused")},
            "cannot be used: refused",
        ),
        ({"registry": RegistryHealth(reachable=True, loopback_only=False)}, "beyond loopback"),
        ({"store_error": "disk full"}, "disk full"),
    ],
)
def test_status_is_1_for_problems_of_the_registry_or_the_state(
    run: Run, socket: Path, daemon: FakeDaemon, changes: dict[str, Any], words: str
) -> None:
    """`status` ends with 1 if the registry does not answer, listens beyond loopback, or the state is not written."""
    daemon.world = world((record("builder-1"), up()))
    for name, value in changes.items():
        setattr(daemon, name, value)
    result = run("status", "--socket", socket)

    assert result.exit_code == 1
    assert words in result.stdout


# --- list and show ---


def names(result: Result) -> list[str]:
    """Return the names in a JSON list."""
    return sorted(agent["name"] for agent in json.loads(result.stdout))


def test_list_has_departed_agents_only_with_all(run: Run, socket: Path) -> None:
    """`list` shows agents that are gone only with `--all`."""
    assert "other-1" not in names(run("list", "--json", "--socket", socket))
    assert "other-1" in names(run("list", "--all", "--json", "--socket", socket))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--phase", "up"), ["builder-1"]),
        (("--phase", "up", "--phase", "down"), ["builder-1", "builder-2"]),
        (("--phase", "connecting"), []),
        (("--group", "ci"), ["builder-1", "builder-2", "builder-3", "builder-4"]),
        (("--group", "elsewhere"), []),
        (("--group", "ci", "--phase", "quarantined"), ["builder-3"]),
    ],
)
def test_list_filters_by_phase_and_group(run: Run, socket: Path, options: tuple[str, ...], expected: list[str]) -> None:
    """With both filters, an agent has to satisfy both."""
    assert names(run("list", *options, "--json", "--socket", socket)) == expected


def test_an_empty_list_is_shown_as_such(run: Run, socket: Path) -> None:
    """An empty list is a sentence for people and an empty array for scripts."""
    assert run("list", "--phase", "draining", "--socket", socket).stdout.strip() == "no agents"
    assert json.loads(run("list", "--phase", "draining", "--json", "--socket", socket).stdout) == []


@pytest.mark.parametrize("options", [("--json",), ()])
def test_watch_prints_each_change_until_it_is_interrupted(
    run: Run, socket: Path, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """To a pipe, `--watch` prints the list after each change and nothing in between, and Ctrl-C is not an error."""
    seconds = iter([None, world((record("builder-9"), up())), None])

    def second(_seconds: float) -> None:
        try:
            daemon.world = next(seconds) or daemon.world
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=second))
    result = run("list", "--watch", "--phase", "up", *options, "--socket", socket)

    assert result.exit_code == 0
    assert result.stdout.count("static:builder-1") == result.stdout.count("static:builder-9") == 1
    if options:
        assert [json.loads(line)[0]["name"] for line in result.stdout.splitlines()] == ["builder-1", "builder-9"]


def test_show_has_the_history_in_order(run: Run, socket: Path) -> None:
    """`show` prints each step on a line, the oldest first."""
    shown = run("show", "builder-1", "--socket", socket).stdout

    assert 0 < shown.index("seen") < shown.index("evidence")
    assert "pinned" in shown


# --- retry, release, reload ---


def test_retry_and_release_reach_the_daemon(run: Run, socket: Path, daemon: FakeDaemon) -> None:
    """The daemon gets the whole id of the agent, the reason and the user's id."""
    assert "static:builder-2" in run("retry", "builder-2", "--socket", socket).stdout
    assert "static:builder-3" in run("release", "builder-3", "--reason", "reinstalled", "--socket", socket).stdout

    assert daemon.events == [
        RetryRequested(AgentId("static:builder-2"), os.geteuid()),
        ReleaseRequested(AgentId("static:builder-3"), "reinstalled", os.geteuid()),
    ]


def test_a_refusal_of_the_daemon_is_passed_on(run: Run, socket: Path) -> None:
    """A command that the daemon refuses ends with exit status 1 and the daemon's message."""
    assert "is not quarantined" in run("release", "builder-1", "--reason", "x", "--socket", socket).stderr
    result = run("retry", "builder-3", "--socket", socket)

    assert result.exit_code == 1
    assert "is quarantined" in result.stderr


def test_reload_prints_what_takes_effect_at_the_next_start(run: Run, socket: Path, daemon: FakeDaemon) -> None:
    """`reload` names the changed keys that have no effect until the next start."""
    daemon.remarks = ["controller.socket has changed and takes effect at the next start"]
    result = run("reload", "--socket", socket)

    assert result.exit_code == 0
    assert "note: controller.socket has changed" in result.stdout


def test_reload_of_an_invalid_file_prints_every_problem(run: Run, socket: Path, daemon: FakeDaemon) -> None:
    """`reload` ends with exit status 2 and prints every problem that the daemon found."""
    daemon.bad = ConfigError(["source[0].poll: missing", "ssh.key: no such file"], file="tunnelmgr.toml")
    result = run("reload", "--socket", socket)

    assert result.exit_code == 2
    assert "error: tunnelmgr.toml: source[0].poll: missing" in result.stderr
    assert "error: tunnelmgr.toml: ssh.key: no such file" in result.stderr


def test_json_cannot_control_the_terminal(run: Run, socket: Path, daemon: FakeDaemon) -> None:
    """Control characters in JSON output are escaped, without a change of its meaning."""
    name = "x\x1b[2J\x9b31m\u202e\u2028z"
    one = record("builder-1")
    daemon.world = world((replace(one, agent=replace(one.agent, name=name)), up()))

    result = run("show", "builder-1", "--json", "--socket", socket)

    assert json.loads(result.stdout)["name"] == name
    assert result.stdout.replace("\n", "").isprintable()
