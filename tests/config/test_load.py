"""Loading the configuration: every key is read, and any file is read or refused."""

from __future__ import annotations

import random
import socket
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunnelmgr.config import DEFAULT_FILE, SourceConfig, config_file, load, source_type
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.oci import RegistryAction
from tunnelmgr.core.policy import judge
from tunnelmgr.core.rules import Grouping
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
DEFAULT_LISTEN = (Endpoint("127.0.0.1", 5000), Endpoint("::1", 5000))


CONTRACT = f"""
[controller]
name    = "registry-1"
state   = "sqlite:////var/lib/tunnelmgr/state.db"
socket  = "/run/tunnelmgr/tunnelmgr.sock"
metrics = "127.0.0.1:9750"
audit   = "/var/log/tunnelmgr/audit.jsonl"

[ssh]
user = "tunnel"
key  = "KEYFILE"
connect_timeout = "10s"
probe_interval  = "15s"

[[forward]]
name     = "registry"
listen   = ["127.0.0.1:5000", "[::1]:5000"]
target   = "127.0.0.1:5000"
protocol = "registry"

[[group]]
name   = "ci"
pull   = ["**"]
push   = []
delete = []
deny   = []
minimum_trust = "console"

[[source]]
name = "jenkins-ec2"
type = "ec2"
group = "ci"
regions = ["eu-west-1"]
filters = {{ "tag:jenkins_slave_type" = ["demand", "spot"] }}
address = "private"
trust   = ["authority", "console"]
poll    = "15s"
events_queue = "https://sqs.eu-west-1.amazonaws.com/1/q"
endpoint_url = "http://127.0.0.1:5556"

[[source]]
name = "office"
type = "static"
trust = ["pinned"]
  [[source.agent]]
  name = "builder-1"
  address = "192.0.2.7"
  port = 22
  group = "builders"
  host_key = "{KEY}"
"""


def test_every_documented_key_is_read(write: Callable[[str], Path]) -> None:
    """A file with every documented key loads, with the values that it has."""
    config = load(write(CONTRACT))

    assert config.controller.name == "registry-1"
    assert config.controller.metrics == Endpoint("127.0.0.1", 9750)
    assert config.controller.audit == Path("/var/log/tunnelmgr/audit.jsonl")
    assert (config.ssh.connect_timeout, config.ssh.probe_interval) == (10.0, 15.0)
    assert config.forwards() == (Forward("registry", DEFAULT_LISTEN, Endpoint("127.0.0.1", 5000)),)
    assert config.rules().trust == {
        "jenkins-ec2": (Method.AUTHORITY, Method.CONSOLE),
        "office": (Method.PINNED,),
    }
    assert config.rules().minimum == {"ci": Method.CONSOLE}
    assert config.policies().groups == {"ci", "builders"}


def test_a_minimal_file_has_the_defaults(write: Callable[[str], Path]) -> None:
    """A file with only a key has one forward to the registry, the host's name, and no metrics."""
    config = load(write('[ssh]\nkey = "KEYFILE"\n'))

    assert config.forwards() == (Forward("registry", DEFAULT_LISTEN, Endpoint("127.0.0.1", 5000)),)
    assert config.controller.name == socket.gethostname().split(".")[0]
    assert config.controller.metrics is None
    assert config.ssh.user == "tunnel"


def test_a_forward_to_a_replica_says_where_pushes_go(write: Callable[[str], Path]) -> None:
    """Each forward may send its pushes to another registry, or name that registry to those who try."""
    head = '[[forward]]\nname = "{}"\nlisten = ["127.0.0.1:{}"]\ntarget = "127.0.0.1:5500"\n{}\n'
    config = load(
        write(
            head.format("registry", 5000, 'push_target = "[::1]:5000"')
            + head.format("mirror", 5001, 'writer = "registry-1"')
            + '[ssh]\nkey = "KEYFILE"\n'
        )
    )

    assert [(forward.push_target, forward.writer) for forward in config.forwards()] == [
        (Endpoint("::1", 5000), ""),
        (None, "registry-1"),
    ]


@pytest.mark.parametrize(
    ("grants", "pulls", "pushes"),
    [
        ("", True, False),
        ("pull = []", False, False),
        ('push = ["team/*"]', True, True),
        ('pull = ["x/*"]', False, False),
    ],
)
def test_a_group_without_grants_may_pull_everything_and_nothing_else(
    write: Callable[[str], Path], grants: str, pulls: bool, pushes: bool
) -> None:
    """A group without any grant may pull everything; with one, it has only what is granted."""
    policy = load(write(f'[ssh]\nkey = "KEYFILE"\n[[group]]\nname = "ci"\n{grants}\n')).policies().of("ci", "registry")

    assert judge(RegistryAction.PULL, "team/app", policy).allowed is pulls
    assert judge(RegistryAction.PUSH, "team/app", policy).allowed is pushes


def test_a_group_without_a_table_has_the_default_policy(write: Callable[[str], Path]) -> None:
    """A source without a group belongs to `default`, whose agents may pull."""
    config = load(write('[ssh]\nkey = "KEYFILE"\n[[source]]\nname = "office"\ntype = "static"\n'))

    assert judge(RegistryAction.PULL, "team/app", config.policies().of("default", "registry")).allowed


@pytest.mark.parametrize("method", list(Method))
def test_every_trust_method_can_be_configured(write: Callable[[str], Path], method: Method) -> None:
    """Every trust method is accepted by its name."""
    text = f'[ssh]\nkey = "KEYFILE"\n[[source]]\nname = "o"\ntype = "static"\ntrust = ["{method}"]\n'

    assert load(write(text)).source[0].trust == [method]


def test_no_chacha_unless_it_is_configured(write: Callable[[str], Path]) -> None:
    """ChaCha20 is not offered by default, and a configured list keeps its order."""
    usual = load(write('[ssh]\nkey = "KEYFILE"\n')).ssh.ciphers
    assert usual[:2] == ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"]
    assert not any("chacha" in name for name in usual)

    chosen = write('[ssh]\nkey = "KEYFILE"\nciphers = ["chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com"]')
    assert load(chosen).ssh.ciphers == ["chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com"]


def test_a_source_type_can_be_looked_up() -> None:
    """A source type is found by its name, and an unknown name yields None."""
    assert source_type("static") is not None
    assert source_type("gcp") is None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[controller", "not valid TOML"),
        (b"\xff\xfe", "cannot read the file"),
        (b"x = " + b"9" * 5000, "not valid TOML"),
        (b"x = " + b"[" * 20_000, "not valid TOML"),
    ],
    ids=["half a table", "no UTF-8", "huge number", "deeply nested"],
)
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    """A file that is not TOML is one problem with the reason, without a traceback."""
    file = tmp_path / "x.toml"
    file.write_bytes(content)

    with pytest.raises(ConfigError, match=why):
        load(file)


def test_a_missing_file_is_answered_with_init(tmp_path: Path) -> None:
    """The error for a missing file names the command that writes one."""
    file = tmp_path / "none.toml"

    with pytest.raises(ConfigError, match=f"no such file; `tunnelmgr init -c {file}` writes one"):
        load(file)


def test_a_folder_is_not_a_configuration(tmp_path: Path) -> None:
    """A folder in the place of the file is refused."""
    with pytest.raises(ConfigError, match="cannot read the file"):
        load(tmp_path)


def test_metrics_beyond_loopback_need_a_second_key(write: Callable[[str], Path]) -> None:
    """Metrics beyond loopback are accepted only together with metrics_public."""
    text = '[controller]\nmetrics = "10.0.0.1:9750"\nmetrics_public = true\n[ssh]\nkey = "KEYFILE"\n'

    assert load(write(text)).controller.metrics == Endpoint("10.0.0.1", 9750)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("500ms", 0.5), ("15s", 15.0), ("1.5s", 1.5), ("2m", 120.0), ("1h", 3600.0), ("1d", 86400.0)],
)
def test_durations_have_a_unit(write: Callable[[str], Path], written: str, seconds: float) -> None:
    """A duration is a number with a unit."""
    config = load(write(f'[controller]\ndrain = "{written}"\n[ssh]\nkey = "KEYFILE"\n'))

    assert config.controller.drain == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("written", "octets"), [("1048576KiB", 2**30), ("1500MiB", 1500 * 2**20), ("50GiB", 50 * 2**30), ("2TiB", 2**41)]
)
def test_sizes_have_a_unit(write: Callable[[str], Path], written: str, octets: int) -> None:
    """A size is a whole number with a unit of powers of 1024."""
    cache = load(write(f'[cache]\nsize = "{written}"\n[ssh]\nkey = "KEYFILE"\n')).cache

    assert cache is not None
    assert cache.size == octets


def test_nothing_is_cached_unless_configured(write: Callable[[str], Path]) -> None:
    """Without [cache] there is no cache; the table alone has the documented defaults."""
    without, alone = (load(write(f'{table}[ssh]\nkey = "KEYFILE"\n')).cache for table in ("", "[cache]\n"))

    assert without is None
    assert alone is not None
    assert (str(alone.path), alone.size, alone.min_free) == ("/var/cache/tunnelmgr", 20 * 2**30, 5 * 2**30)


values = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(10**30), 10**30),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["127.0.0.1:5000", "15s", "console", "static", "ec2", "/etc/passwd", "**", "name"]),
        st.datetimes(),
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "type", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = [
    "name",
    "state",
    "socket",
    "metrics",
    "drain",
    "user",
    "key",
    "probe_interval",
    "max_channels",
    "ciphers",
    "listen",
    "target",
]
KEYS += [
    "push_target",
    "writer",
    "protocol",
    "pull",
    "deny",
    "minimum_trust",
    "type",
    "group",
    "trust",
    "poll",
    "regions",
    "filters",
    "agent",
]


def random_document(dice: random.Random, values: list[object]) -> dict[str, object]:
    """Return a document of tables and lists of tables, any of which may be a value instead."""

    def table() -> object:
        names = dice.sample(KEYS, dice.randint(0, 5))
        return {name: dice.choice(values) for name in names} if dice.random() < 0.7 else dice.choice(values)

    def several() -> object:
        return [table() for _ in range(dice.randint(0, 3))] if dice.random() < 0.7 else dice.choice(values)

    parts = dict.fromkeys(("controller", "ssh", "extra"), table) | dict.fromkeys(
        ("forward", "group", "source"), several
    )
    return {name: part() for name, part in parts.items() if dice.random() < 0.5}


@settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(values=st.lists(values, min_size=1, max_size=20), seed=st.integers(0, 2**32))
def test_any_document_is_read_or_refused_with_places(values: list[object], seed: int) -> None:
    """Random documents raise no other exception than ConfigError, and every problem has a place."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    for _ in range(20):
        document = random_document(dice, values)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(import_module("tunnelmgr.config.load"), "_parse", lambda *_, document=document: document)
            try:
                found: tuple[str, ...] = load(Path("any.toml")) and ()
            except ConfigError as wrong:
                found = wrong.problems
        assert all(": " in problem for problem in found), document


@settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=60) | st.text(alphabet='[]{}=."\n\\u0123aé', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    """Random bytes raise no other exception than ConfigError."""
    file = tmp_path / "x.toml"
    file.write_bytes(content)

    with pytest.raises(ConfigError):
        load(file)


def test_the_option_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The option goes before TUNNELMGR_CONFIG, which goes before the default file."""
    monkeypatch.setenv("TUNNELMGR_CONFIG", "/from/environment.toml")

    assert config_file(Path("/from/option.toml")) == Path("/from/option.toml")
    assert config_file(None) == Path("/from/environment.toml")


@pytest.mark.parametrize("value", [None, ""])
def test_without_either_it_is_the_default_file(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """An empty TUNNELMGR_CONFIG counts as unset."""
    monkeypatch.delenv("TUNNELMGR_CONFIG", raising=False)
    if value is not None:
        monkeypatch.setenv("TUNNELMGR_CONFIG", value)

    assert config_file(None) == DEFAULT_FILE


def test_the_rules_say_which_group_each_agent_is_in(write: Callable[[str], Path]) -> None:
    """A source's group is that of all its agents except those with a group of their own."""
    entry = 'name = "{}"\naddress = "192.0.2.7"\n'
    rules = load(
        write(
            '[ssh]\nkey = "KEYFILE"\n[[source]]\nname = "office"\ntype = "static"\ngroup = "ci"\n'
            f'[[source.agent]]\n{entry.format("one")}[[source.agent]]\ngroup = "builders"\n{entry.format("two")}'
        )
    ).rules()

    def group(name: str, source: str = "office") -> str:
        return rules.group_of(Agent(AgentId(f"static:{name}"), "", source, "before", name, ()))

    assert (group("one"), group("two")) == ("ci", "builders")
    assert group("one", source="gone") == "before"


def test_a_plug_in_can_assign_groups_itself() -> None:
    """Agents that a plug-in assigned to one of its other groups stay there after a reload."""

    class Choosing(SourceConfig):
        def groups(self) -> set[str]:
            return {"day", "night", self.group}

    grouping = Choosing(name="x", type="x", group="ci", trust=["tofu"]).grouping()

    assert grouping == Grouping("ci", chosen=frozenset({"day", "night"}))
