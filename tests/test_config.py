"""The configuration file: everything of the contract is read, and everything wrong is told at once, with its place."""

from __future__ import annotations

import os
import socket
import tomllib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunnelmgr.config import DEFAULT_FILE, SourceConfig, config_file, load, private_key_file_error, source_type, sources
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
DEFAULT_KEY = Path("/etc/tunnelmgr/id_ed25519")
DEFAULT_LISTEN = (Endpoint("127.0.0.1", 5000), Endpoint("::1", 5000))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a file; `KEYFILE` in it becomes a key that exists."""
    key = tmp_path / "id_ed25519"
    key.touch(mode=0o600)

    def written(text: str) -> Path:
        file = tmp_path / "tunnelmgr.toml"
        file.write_text(text.replace("KEYFILE", str(key)))
        return file

    return written


@pytest.fixture
def problems(write: Callable[[str], Path]) -> Callable[[str], list[str]]:
    """Return a function that reads a text and returns what is wrong with it; `[ssh]` need not be in it."""

    def told(text: str) -> list[str]:
        file = write(text if "[ssh]" in text else f'{text}\n[ssh]\nkey = "KEYFILE"\n')
        with pytest.raises(ConfigError) as wrong:
            load(file)
        assert str(wrong.value) == "\n".join(f"{file}: {problem}" for problem in wrong.value.problems)
        return list(wrong.value.problems)

    return told


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


def test_every_key_of_the_contract_is_read(write: Callable[[str], Path]) -> None:
    """What the contract shows is what works."""
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
    assert config.policies().keys() == {"ci", "builders"}


def test_a_file_that_says_little_gets_the_contracts_defaults(write: Callable[[str], Path]) -> None:
    """One forward to the registry, the host's name, no metrics."""
    config = load(write('[ssh]\nkey = "KEYFILE"\n'))

    assert config.forwards() == (Forward("registry", DEFAULT_LISTEN, Endpoint("127.0.0.1", 5000)),)
    assert config.controller.name == socket.gethostname().split(".")[0]
    assert config.controller.metrics is None
    assert config.ssh.user == "tunnel"


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
    """As soon as it has any grant, it has what it was granted."""
    policy = load(write(f'[ssh]\nkey = "KEYFILE"\n[[group]]\nname = "ci"\n{grants}\n')).policies()["ci"]

    assert judge(RegistryAction.PULL, "team/app", policy).allowed is pulls
    assert judge(RegistryAction.PUSH, "team/app", policy).allowed is pushes


def test_a_group_that_is_only_mentioned_gets_the_default_policy(write: Callable[[str], Path]) -> None:
    """A source without a group belongs to `default`, which may pull."""
    config = load(write('[ssh]\nkey = "KEYFILE"\n[[source]]\nname = "office"\ntype = "static"\n'))

    assert judge(RegistryAction.PULL, "team/app", config.policies()["default"]).allowed


def test_all_problems_are_told_at_once_each_with_its_place(problems: Callable[[str], list[str]]) -> None:
    """Nobody has to run it again for each mistake."""
    told = problems("""
        unknown = 1
        [controller]
        state = "mysql:///x"
        metrics = "10.0.0.1:9750"
        [ssh]
        key = "/nowhere/id_ed25519"
        probe_interval = "soon"
        [[forward]]
        name = "registry"
        listen = ["0.0.0.0:5000", "127.0.0.1:0"]
        target = "127.0.0.1:5000"
        [[group]]
        name = "ci"
        push = ["ok/*", "UPPER"]
        [[source]]
        name = "cloud"
        type = "gcp"
        [[source]]
        name = "office"
        type = "static"
        poll = "15"
        [[source]]
        name = "ec2"
        type = "ec2"
        """)

    places = {problem.split(": ")[0] for problem in told}
    assert places == {
        "unknown",
        "controller.state",
        "controller.metrics",
        "ssh.key",
        "ssh.probe_interval",
        "forward[0].listen[0]",
        "forward[0].listen[1]",
        "group[0].push[1]",
        "source[0].type",
        "source[1].poll",
        "source[2].regions",
    }
    assert 'source[1].poll: write a duration such as "15s", "2m" or "500ms", not \'15\'' in told
    assert "unknown: unknown key" in told
    assert "source[2].regions: missing" in told


@pytest.mark.skipif(DEFAULT_KEY.exists(), reason="this host has a controller's key")
@pytest.mark.parametrize("text", ["[ssh]\n", ""])
def test_a_key_that_is_missing_is_told_even_where_it_is_not_mentioned(write: Callable[[str], Path], text: str) -> None:
    """The default has to be there too."""
    with pytest.raises(ConfigError, match=f"ssh.key: there is no file {DEFAULT_KEY}"):
        load(write(text))


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:5000", "10.0.0.1:5000", "[::]:5000", "localhost:5000", "*:5000", "5000", "300.0.0.1:5000"]
)
def test_an_agent_listens_on_literal_loopback_only(problems: Callable[[str], list[str]], listen: str) -> None:
    """Anything else would offer the registry to the agent's network, or nobody knows where."""
    (told,) = problems(f'[[forward]]\nname = "r"\nlisten = ["{listen}"]\ntarget = "127.0.0.1:5000"')

    assert told.startswith("forward[0].listen[0]: ")


@pytest.mark.parametrize("port", ["0", "65536", "99999", "-1"])
def test_a_port_is_a_port(problems: Callable[[str], list[str]], port: str) -> None:
    """Port 0 above all, whose listener would match every channel."""
    (told,) = problems(f'[[forward]]\nname = "r"\nlisten = ["127.0.0.1:{port}"]\ntarget = "127.0.0.1:5000"')

    assert told.startswith("forward[0].listen[0]: ")


def test_one_address_belongs_to_one_forward(problems: Callable[[str], list[str]]) -> None:
    """The first one keeps it, and is named."""
    told = problems("""
        [[forward]]
        name = "a"
        listen = ["127.0.0.1:5000"]
        target = "127.0.0.1:5000"
        [[forward]]
        name = "b"
        listen = ["[::1]:5000", "127.0.0.1:5000"]
        target = "127.0.0.1:5001"
        """)

    assert told == ["forward[1].listen: 127.0.0.1:5000 is used by forward[0] already"]


@pytest.mark.parametrize(
    ("table", "entry"),
    [
        ("group", 'name = "x"'),
        ("source", 'name = "x"\ntype = "static"'),
    ],
)
def test_names_are_taken_once(problems: Callable[[str], list[str]], table: str, entry: str) -> None:
    """The second one is told which was first."""
    assert problems(f"[[{table}]]\n{entry}\n" * 2) == [f"{table}[1].name: x is the name of {table}[0] already"]


def test_a_broken_source_does_not_shift_the_places_of_those_after_it(problems: Callable[[str], list[str]]) -> None:
    """An operator looks where the message points."""
    told = problems("""
        [[source]]
        name = "broken"
        type = "gcp"
        [[source]]
        name = "x"
        type = "static"
        [[source]]
        name = "x"
        type = "static"
        """)

    assert "source[2].name: x is the name of source[1] already" in told


def test_two_sources_cannot_share_a_queue(problems: Callable[[str], list[str]]) -> None:
    """Each message reaches one reader only."""
    source = """
        [[source]]
        name = "{0}"
        type = "ec2"
        regions = ["eu-west-1"]
        events_queue = "https://sqs.eu-west-1.amazonaws.com/1/{1}"
        """

    told = problems(source.format("a", "one") + source.format("b", "two") + source.format("c", "one"))

    assert told == ["source[2].events_queue: used by source[0] already; only one source may use it"]


def test_trust_that_cannot_reach_the_groups_minimum_is_a_mistake(problems: Callable[[str], list[str]]) -> None:
    """None of its agents would ever be dialled."""
    told = problems("""
        [[group]]
        name = "ci"
        minimum_trust = "pinned"
        [[source]]
        name = "cloud"
        type = "ec2"
        regions = ["eu-west-1"]
        group = "ci"
        trust = ["console", "tofu"]
        """)

    assert told == ["source[0].trust: no method here reaches minimum_trust pinned of group ci"]


def test_an_unknown_source_type_is_told_with_those_there_are(problems: Callable[[str], list[str]]) -> None:
    """Plug-ins included."""
    (told,) = problems('[[source]]\nname = "cloud"\ntype = "gcp"')

    assert told.startswith("source[0].type: unknown source type 'gcp'; installed: ")
    assert "ec2" in told
    assert "static" in told


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[[source]]\nname = "o"\ntyp = "static"', "source[0].typ: unknown key (did you mean type?)"),
        ('[[source]]\nname = "o"', "source[0].type: missing; write one of ec2, hetzner, static"),
        (
            '[[source]]\nname = "o"\ntype = "hetzer"',
            "source[0].type: unknown source type 'hetzer' (did you mean hetzner?); installed: ec2, hetzner, static",
        ),
        (
            '[ssh]\nkey = "KEYFILE"\nprob_interval = "1s"',
            "ssh.prob_interval: unknown key (did you mean probe_interval?)",
        ),
        ('[controler]\nname = "x"', "controler: unknown key (did you mean controller?)"),
        ('[controller]\nmetric = "127.0.0.1:1"', "controller.metric: unknown key (did you mean metrics?)"),
        (
            '[[forward]]\nname = "r"\nlisten = ["127.0.0.1:5000"]\ntarget = "127.0.0.1:1"\nprotocoll = "tcp"',
            "forward[0].protocoll: unknown key (did you mean protocol?)",
        ),
        ('[[group]]\nname = "ci"\npul = ["**"]', "group[0].pul: unknown key (did you mean pull?)"),
        (
            '[[source]]\nname = "o"\ntype = "static"\n[[source.agent]]\nname = "a"\naddress = "b"\nhostkey = "c"',
            "source[0].agent[0].hostkey: unknown key (did you mean host_key?)",
        ),
        (
            '[[source]]\nname = "o"\ntype = "ec2"\nregions = ["eu-west-1"]\nfilter = {}',
            "source[0].filter: unknown key (did you mean filters?)",
        ),
        ('[ssh]\nkey = "KEYFILE"\nxyzzy = 1', "ssh.xyzzy: unknown key"),
        (
            '[ssh]\nkey = "KEYFILE"\nconnect_timeout = "5m"',
            "ssh.connect_timeout: must be less than or equal to 120, not '5m'",
        ),
        ("[[group]]\nname = 7", "group[0].name: must be a valid string, not 7"),
    ],
)
def test_a_problem_names_the_nearest_key_and_the_value(
    problems: Callable[[str], list[str]], text: str, problem: str
) -> None:
    """A misspelled key is answered with the nearest known key of its table, and a wrong value is repeated."""
    assert problem in problems(text)


@pytest.mark.parametrize("method", list(Method))
def test_every_trust_method_has_a_name(write: Callable[[str], Path], method: Method) -> None:
    """Those of the contract, all of them."""
    text = f'[ssh]\nkey = "KEYFILE"\n[[source]]\nname = "o"\ntype = "static"\ntrust = ["{method}"]\n'

    assert load(write(text)).source[0].trust == [method]


@pytest.mark.parametrize("trust", ['["guess"]', "[]", '"console"', "[1]"])
def test_a_trust_method_that_does_not_exist_is_a_mistake(problems: Callable[[str], list[str]], trust: str) -> None:
    """Nothing is believed by accident."""
    (told,) = problems(f'[[source]]\nname = "o"\ntype = "static"\ntrust = {trust}')

    assert told.startswith("source[0].trust")


def test_no_chacha_unless_it_is_configured(write: Callable[[str], Path]) -> None:
    """And then in the order that is written."""
    usual = load(write('[ssh]\nkey = "KEYFILE"\n')).ssh.ciphers
    assert usual[:2] == ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"]
    assert not any("chacha" in name for name in usual)

    chosen = write('[ssh]\nkey = "KEYFILE"\nciphers = ["chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com"]')
    assert load(chosen).ssh.ciphers == ["chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com"]


@pytest.mark.parametrize("ciphers", ['["3des-cbc"]', "[]", '"aes128-ctr"', "[1]"])
def test_a_cipher_that_is_not_offered_is_a_mistake(problems: Callable[[str], list[str]], ciphers: str) -> None:
    """A weak one cannot come back by a typo, and an empty list is none."""
    (told,) = problems(f'[ssh]\nkey = "KEYFILE"\nciphers = {ciphers}')

    assert told.startswith("ssh.ciphers")


def test_a_plug_in_that_cannot_be_loaded_is_told_in_its_place(
    problems: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken plug-in is a mistake of the installation, not a crash."""

    class Broken:
        def load(self) -> None:
            raise ImportError("No module named 'elsewhere'")

    monkeypatch.setattr(sources, "plugins", lambda: {"elsewhere": Broken()})

    (told,) = problems('[[source]]\nname = "x"\ntype = "elsewhere"')

    assert told == "source[0].type: cannot load the plug-in elsewhere: No module named 'elsewhere'"


def test_a_source_type_can_be_looked_up() -> None:
    """By the name in the file."""
    assert source_type("static") is not None
    assert source_type("gcp") is None


@pytest.mark.parametrize("text", ["source = 3", "source = [1]", "source = {}", "controller = 3", "forward = {}"])
def test_what_should_be_a_table_and_is_none_is_a_mistake(problems: Callable[[str], list[str]], text: str) -> None:
    """Told with its place as all the rest."""
    (told,) = problems(text)

    assert told.startswith(text.split(" ", maxsplit=1)[0])


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
def test_a_file_that_is_no_toml_is_told_as_that(tmp_path: Path, content: bytes, why: str) -> None:
    """No trace, one line."""
    file = tmp_path / "x.toml"
    file.write_bytes(content)

    with pytest.raises(ConfigError, match=why):
        load(file)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    """`tunnelmgr init` writes it."""
    with pytest.raises(ConfigError, match="no such file; `tunnelmgr init` writes one"):
        load(tmp_path / "none.toml")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """It cannot be read, and that is told."""
    with pytest.raises(ConfigError, match="cannot read the file"):
        load(tmp_path)


def test_a_key_path_that_the_system_cannot_even_look_at_is_told(problems: Callable[[str], list[str]]) -> None:
    """A name that is too long, a folder that is closed to us: a mistake like any other."""
    (told,) = problems(f'[ssh]\nkey = "/{"x" * 5000}"')

    assert told.endswith("File name too long")


@pytest.mark.parametrize("path", ['"relative/key"', '""', "3", '"/nul\\u0000"'])
def test_paths_are_absolute(problems: Callable[[str], list[str]], path: str) -> None:
    """A daemon has no folder of its own."""
    assert problems(f"[ssh]\nkey = {path}") == [
        f"ssh.key: write an absolute path, not {tomllib.loads(f'x = {path}')['x']!r}"
    ]


def test_metrics_beyond_loopback_have_to_be_meant(write: Callable[[str], Path]) -> None:
    """Two keys say so."""
    text = '[controller]\nmetrics = "10.0.0.1:9750"\nmetrics_public = true\n[ssh]\nkey = "KEYFILE"\n'

    assert load(write(text)).controller.metrics == Endpoint("10.0.0.1", 9750)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("500ms", 0.5), ("15s", 15.0), ("1.5s", 1.5), ("2m", 120.0), ("1h", 3600.0), ("1d", 86400.0)],
)
def test_durations_have_a_unit(write: Callable[[str], Path], written: str, seconds: float) -> None:
    """A bare number could be anything."""
    config = load(write(f'[controller]\ndrain = "{written}"\n[ssh]\nkey = "KEYFILE"\n'))

    assert config.controller.drain == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written", ['"15"', "15", '"-1s"', '"1w"', '"9999999999999999d"', '"inf s"', '"2d"', '"\u0661s"']
)
def test_a_duration_that_is_none_is_a_mistake(problems: Callable[[str], list[str]], written: str) -> None:
    """Nor may it be absurd."""
    (told,) = problems(f"[controller]\ndrain = {written}")

    assert told.startswith("controller.drain: ")


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
KEYS += ["protocol", "pull", "deny", "minimum_trust", "type", "group", "trust", "poll", "regions", "filters", "agent"]
tables = st.dictionaries(st.sampled_from(KEYS), values, max_size=5) | values
documents = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("controller", "ssh", "extra"), tables),
        **{name: st.lists(tables, max_size=3) | values for name in ("forward", "group", "source")},
    },
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(document=documents)
def test_whatever_the_file_holds_it_is_read_or_refused_with_places(document: dict[str, object]) -> None:
    """Nothing but a ConfigError comes out, and every problem in it says where."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("tunnelmgr.config.load"), "_parse", lambda _: document)
        try:
            told: tuple[str, ...] = load(Path("any.toml")) and ()
        except ConfigError as wrong:
            told = wrong.problems

    assert all(": " in problem for problem in told)


@settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=60) | st.text(alphabet='[]{}=."\n\\u0123aé', max_size=60).map(str.encode))
def test_whatever_the_bytes_are_only_a_config_error_comes_out(tmp_path: Path, content: bytes) -> None:
    """A file from anywhere is no reason for a trace."""
    file = tmp_path / "x.toml"
    file.write_bytes(content)

    with pytest.raises(ConfigError):
        load(file)


# --- which file ---


def test_the_option_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the environment, then /etc."""
    monkeypatch.setenv("TUNNELMGR_CONFIG", "/from/environment.toml")

    assert config_file(Path("/from/option.toml")) == Path("/from/option.toml")
    assert config_file(None) == Path("/from/environment.toml")


@pytest.mark.parametrize("value", [None, ""])
def test_without_either_it_is_the_one_in_etc(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """An empty variable is none."""
    monkeypatch.delenv("TUNNELMGR_CONFIG", raising=False)
    if value is not None:
        monkeypatch.setenv("TUNNELMGR_CONFIG", value)

    assert config_file(None) == DEFAULT_FILE


# --- the key file ---


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Make a key file as it should be."""
    file = tmp_path / "key"
    file.touch(mode=0o600)
    return file


def test_a_key_that_only_its_owner_can_read_is_good(key: Path) -> None:
    """Nothing to say."""
    assert private_key_file_error(key) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777])
def test_a_key_that_others_can_touch_is_refused_with_the_cure(key: Path, mode: int) -> None:
    """As ssh(1) does."""
    key.chmod(mode)

    assert private_key_file_error(key) == f"{key} can be read by others (mode {mode:04o}); run `chmod 600 {key}`"


def test_a_symlink_is_refused(key: Path) -> None:
    """Whoever owns the link could change what it means."""
    link = key.with_name("link")
    link.symlink_to(key)

    assert private_key_file_error(link) == f"{link} is a symlink; name the file itself"


def test_a_missing_key_is_told(tmp_path: Path) -> None:
    """With the system's reason."""
    assert private_key_file_error(tmp_path / "none") == f"cannot read {tmp_path / 'none'}: No such file or directory"


def test_a_folder_is_no_key(tmp_path: Path) -> None:
    """Nor is a pipe or a device."""
    assert private_key_file_error(tmp_path) == f"{tmp_path} is not a regular file"


def test_a_foreign_key_is_refused(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner can change it; root's is good, for systemd hands credentials over like that."""
    owner = os.stat(key).st_uid  # noqa: PTH116 - the owner as a number
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)

    told = private_key_file_error(key)

    assert told == (None if owner == 0 else f"{key} belongs to uid {owner}; `chown` it to the daemon's user")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(key: Path) -> None:
    """The same, with a real owner."""
    os.chown(key, 12345, 12345)

    assert private_key_file_error(key) == f"{key} belongs to uid 12345; `chown` it to the daemon's user"


def test_a_key_that_we_may_not_read_is_told(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's key, an ordinary daemon."""
    monkeypatch.setattr(os, "access", lambda *_: False)

    assert private_key_file_error(key) == f"cannot read {key}: permission denied for uid {os.geteuid()}"


def test_the_rules_say_which_group_each_agent_is_in(write: Callable[[str], Path]) -> None:
    """A source's group holds for all its agents but those that have their own entry."""
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


def test_the_groups_that_a_plug_in_names_besides_its_own_are_its_choice() -> None:
    """Agents that it has put into one of them stay there when the configuration is read again."""

    class Choosing(SourceConfig):
        def groups(self) -> set[str]:
            return {"day", "night", self.group}

    grouping = Choosing(name="x", type="x", group="ci", trust=["tofu"]).grouping()

    assert grouping == Grouping("ci", chosen=frozenset({"day", "night"}))
