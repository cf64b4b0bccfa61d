"""Every command's exit status and output, as the contract has them."""

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

ASKING = {
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
        for name, inner in group.commands.items():
            yield from commands(inner, *names, name)
    else:
        yield names


# --- every command ---


@pytest.mark.parametrize("words", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_every_commands_help_ends_with_an_example(run: Run, words: tuple[str, ...]) -> None:
    """Copied as it stands, it is a command that exists."""
    result = run(*words, "--help")

    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"tunnelmgr {words[0]}" in result.stdout


def test_help_and_version_are_no_errors(run: Run) -> None:
    """Whatever the place, and in both forms."""
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
def test_what_is_no_command_is_a_usage_error(run: Run, words: tuple[str, ...]) -> None:
    """Exit status 2, and nothing on stdout for a script to mistake."""
    result = run(*words)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


@pytest.mark.parametrize("command", ASKING)
def test_without_a_daemon_the_status_is_3(run: Run, tmp_path: Path, command: str) -> None:
    """And stderr says how to start one."""
    result = run(command, *ASKING[command], "--socket", tmp_path / "none.sock")

    assert result.exit_code == 3
    assert result.stdout == ""
    assert "systemctl start tunnelmgr" in result.stderr


@pytest.mark.parametrize("command", ASKING)
def test_every_asking_commands_json_is_json_and_only_that(run: Run, socket: Path, command: str) -> None:
    """Also where the exit status is 1."""
    result = run(command, *ASKING[command], "--json", "--socket", socket)

    assert result.exit_code == (1 if command == "status" else 0)
    assert json.loads(result.stdout)


@pytest.mark.parametrize("command", ["status", "list", "show"])
def test_output_that_is_no_terminals_is_plain_and_whole(run: Run, socket: Path, command: str) -> None:
    """No colours for a pipe, no `…` in place of what did not fit, no blanks at the ends of lines."""
    result = run(command, *ASKING[command], "--socket", socket)

    assert "\x1b" not in result.output
    assert "…" not in result.stdout
    assert all(line == line.rstrip() for line in result.stdout.splitlines())


@pytest.mark.parametrize("command", ["show", "retry", "release"])
@pytest.mark.parametrize(("agent", "words"), [("nobody", "no agent matches"), ("builder", "use a longer prefix")])
def test_an_agent_that_is_none_or_many_is_a_plain_error(
    run: Run, socket: Path, command: str, agent: str, words: str
) -> None:
    """Exit status 1: the daemon runs, the command is well formed, the agent is not there."""
    reason = ("--reason", "x") if command == "release" else ()
    result = run(command, agent, *reason, "--socket", socket)

    assert result.exit_code == 1
    assert words in result.stderr


# --- where the daemon is ---


def test_the_socket_comes_from_the_configuration_wherever_that_is_named(
    run: Run, socket: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the command, after it, or in the environment; an option for the socket itself goes first."""
    assert socket.parent == config.parent
    assert run("list", "-c", config).exit_code == 0
    assert run("-c", config, "list").exit_code == 0
    monkeypatch.setenv("TUNNELMGR_CONFIG", str(config))
    assert run("list").exit_code == 0
    assert run("list", "--socket", config.with_name("none.sock")).exit_code == 3


def test_a_configuration_that_is_wrong_elsewhere_hides_no_daemon(run: Run, socket: Path, config: Path) -> None:
    """Somebody edits it, and `list` still works."""
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


def test_status_is_0_when_all_is_as_it_should_be(run: Run, socket: Path, daemon: FakeDaemon) -> None:
    """Every agent up, the registry on loopback, the state written."""
    daemon.world = world((record("builder-1"), up()))
    result = run("status", "--socket", socket)

    assert result.exit_code == 0
    assert "✖" not in result.stdout


def test_status_is_1_and_names_each_agent_that_should_be_up(run: Run, socket: Path) -> None:
    """With the reason, so that nobody has to ask again."""
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
            "does not answer: refused",
        ),
        ({"registry": RegistryHealth(reachable=True, loopback_only=False)}, "beyond loopback"),
        ({"store_error": "disk full"}, "disk full"),
    ],
)
def test_status_is_1_for_what_is_wrong_beside_the_agents(
    run: Run, socket: Path, daemon: FakeDaemon, changes: dict[str, Any], words: str
) -> None:
    """The registry away or open to others, or the state not written."""
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


def test_list_leaves_out_agents_that_left_unless_told(run: Run, socket: Path) -> None:
    """`--all` shows what is remembered."""
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
def test_list_chooses_by_phase_and_group(run: Run, socket: Path, options: tuple[str, ...], expected: list[str]) -> None:
    """Both must fit where both are given."""
    assert names(run("list", *options, "--json", "--socket", socket)) == expected


def test_list_without_agents_says_so(run: Run, socket: Path) -> None:
    """In words for people, as an empty array for scripts."""
    assert run("list", "--phase", "draining", "--socket", socket).stdout.strip() == "no agents"
    assert json.loads(run("list", "--phase", "draining", "--json", "--socket", socket).stdout) == []


@pytest.mark.parametrize("options", [("--json",), ()])
def test_watch_prints_each_change_until_it_is_interrupted(
    run: Run, socket: Path, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """For a pipe: one line of JSON or one table a change, nothing where nothing changed; Ctrl-C is no error."""
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


def test_show_tells_the_history_in_order(run: Run, socket: Path) -> None:
    """Each step on its line, the oldest first."""
    shown = run("show", "builder-1", "--socket", socket).stdout

    assert 0 < shown.index("seen") < shown.index("evidence")
    assert "pinned" in shown


# --- retry, release, reload ---


def test_retry_and_release_reach_the_daemon(run: Run, socket: Path, daemon: FakeDaemon) -> None:
    """With the agent's whole id and the reason."""
    assert "static:builder-2" in run("retry", "builder-2", "--socket", socket).stdout
    assert "static:builder-3" in run("release", "builder-3", "--reason", "reinstalled", "--socket", socket).stdout

    assert daemon.events == [
        RetryRequested(AgentId("static:builder-2"), os.geteuid()),
        ReleaseRequested(AgentId("static:builder-3"), "reinstalled", os.geteuid()),
    ]


def test_what_the_daemon_refuses_is_1_in_its_own_words(run: Run, socket: Path) -> None:
    """Here: only what is quarantined can be released, and what is cannot be retried."""
    assert "is not quarantined" in run("release", "builder-1", "--reason", "x", "--socket", socket).stderr
    result = run("retry", "builder-3", "--socket", socket)

    assert result.exit_code == 1
    assert "is quarantined" in result.stderr


def test_reload_prints_what_waits_for_the_next_start(run: Run, socket: Path, daemon: FakeDaemon) -> None:
    """Nobody should wonder why a changed socket has no effect."""
    daemon.remarks = ["controller.socket has changed and takes effect at the next start"]
    result = run("reload", "--socket", socket)

    assert result.exit_code == 0
    assert "note: controller.socket has changed" in result.stdout


def test_reload_of_a_bad_file_is_2_with_every_problem(run: Run, socket: Path, daemon: FakeDaemon) -> None:
    """As if the command had read it itself."""
    daemon.bad = ConfigError(["source[0].poll: missing", "ssh.key: no such file"], file="tunnelmgr.toml")
    result = run("reload", "--socket", socket)

    assert result.exit_code == 2
    assert "error: tunnelmgr.toml: source[0].poll: missing" in result.stderr
    assert "error: tunnelmgr.toml: ssh.key: no such file" in result.stderr


def test_json_on_a_terminal_steers_it_no_more_than_a_table_does(run: Run, socket: Path, daemon: FakeDaemon) -> None:
    """It means the same to a script."""
    name = "x\x1b[2J\x9b31m\u202e\u2028z"
    one = record("builder-1")
    daemon.world = world((replace(one, agent=replace(one.agent, name=name)), up()))

    result = run("show", "builder-1", "--json", "--socket", socket)

    assert json.loads(result.stdout)["name"] == name
    assert result.stdout.replace("\n", "").isprintable()
