"""`plan`: what a reload would change."""

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from tests.control.fake_daemon import FakeDaemon
from tunnelmgr.cli.command import Exit
from tunnelmgr.config.changes import ConfigChange, Preview
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.preview import AgentEffect, Effect

Run = Callable[..., Result]


def test_plan_shows_what_would_change(run: Run, socket: Path, daemon: FakeDaemon, tmp_path: Path) -> None:
    """`plan` prints keys and agents, and its exit status says that something would change."""
    file = tmp_path / "new.toml"
    file.write_text("[ssh]\n")
    moves = AgentEffect(AgentId("static:builder-1"), "builder-1", Effect.MOVES, "ci", "release")
    changes = (
        ConfigChange("group ci: pull", ["**"], ["team/**"]),
        ConfigChange("group new", None, {"name": "new", "push": ["x/*"]}),
        ConfigChange("cache: size", 5, None),
    )
    daemon.plan = Preview(changes, (moves,), ("cache has changed and takes effect at the next start",))

    result = run("plan", "--config", file, "--socket", socket)

    assert result.exit_code == Exit.CHANGES
    assert daemon.previewed == ("[ssh]\n", str(file))
    moves_from_ci = "moves from group ci to release; its tunnel is closed with all transfers and comes back"
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines == [
        "Configuration",
        '~ group ci: pull ["**"] → ["team/**"]',
        '+ group new push = ["x/*"]',
        "- cache: size 5",
        "Agents: 1 agent affected",
        f"~ static:builder-1 builder-1 {moves_from_ci}",
        "note: cache has changed and takes effect at the next start",
    ]


def test_plan_says_if_nothing_changes(run: Run, socket: Path, tmp_path: Path) -> None:
    """Without a change the exit status is 0; a file that cannot be read is an invalid configuration."""
    file = tmp_path / "same.toml"
    missing = run("plan", "--config", file, "--socket", socket)
    file.write_text("[ssh]\n")
    result = run("plan", "--config", file, "--socket", socket)
    as_json = run("plan", "--config", file, "--socket", socket, "--json")

    assert (missing.exit_code, result.exit_code, as_json.exit_code) == (2, 0, 0)
    assert "No such file" in missing.stderr
    assert result.stdout == "nothing changes\n"
    assert json.loads(as_json.stdout) == {"changes": [], "agents": [], "remarks": []}


def test_plan_shows_changes_that_affect_no_agent(run: Run, socket: Path, daemon: FakeDaemon, tmp_path: Path) -> None:
    """The output says that no agent is affected."""
    file = tmp_path / "new.toml"
    file.write_text("[ssh]\n")
    daemon.plan = Preview((ConfigChange("group ci: pull", ["**"], ["a"]),), (), ())

    assert "Agents: none is affected" in run("plan", "--config", file, "--socket", socket).stdout
