"""The configuration file: every key is read, and every problem is reported at once, with its place."""

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
    """Return a function that writes a file; `KEYFILE` in it becomes the path of a key."""
    key = tmp_path / "id_ed25519"
    key.touch(mode=0o600)

    def written(text: str) -> Path:
        file = tmp_path / "tunnelmgr.toml"
        file.write_text(text.replace("KEYFILE", str(key)))
        return file

    return written


@pytest.fixture
def problems(write: Callable[[str], Path]) -> Callable[[str], list[str]]:
    """Return a function that loads a text and returns its problems; `[ssh]` is added if it is missing."""

    def found(text: str) -> list[str]:
        file = write(text if "[ssh]" in text else f'{text}\n[ssh]\nkey = "KEYFILE"\n')
        with pytest.raises(ConfigError) as wrong:
            load(file)
        assert str(wrong.value) == "\n".join(f"{file}: {problem}" for problem in wrong.value.problems)
        return list(wrong.value.problems)

    return found


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
    assert config.policies().keys() == {"ci", "builders"}


def test_a_minimal_file_has_the_defaults(write: Callable[[str], Path]) -> None:
    """A file with only a key has one forward to the registry, the host's name, and no metrics."""
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
    """A group without any grant may pull everything; with one, it has only what is granted."""
    policy = load(write(f'[ssh]\nkey = "KEYFILE"\n[[group]]\nname = "ci"\n{grants}\n')).policies()["ci"]

    assert judge(RegistryAction.PULL, "team/app", policy).allowed is pulls
    assert judge(RegistryAction.PUSH, "team/app", policy).allowed is pushes


def test_a_group_without_a_table_has_the_default_policy(write: Callable[[str], Path]) -> None:
    """A source without a group belongs to `default`, whose agents may pull."""
    config = load(write('[ssh]\nkey = "KEYFILE"\n[[source]]\nname = "office"\ntype = "static"\n'))

    assert judge(RegistryAction.PULL, "team/app", config.policies()["default"]).allowed


def test_all_problems_are_reported_at_once_each_with_its_place(problems: Callable[[str], list[str]]) -> None:
    """One run shows every problem of a file, so that it need not be repeated for each mistake."""
    found = problems("""
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

    places = {problem.split(": ")[0] for problem in found}
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
    assert 'source[1].poll: write a duration such as "15s", "2m" or "500ms", not \'15\'' in found
    assert "unknown: unknown key" in found
    assert "source[2].regions: missing" in found


@pytest.mark.skipif(DEFAULT_KEY.exists(), reason="this host has a controller's key")
@pytest.mark.parametrize("text", ["[ssh]\n", ""])
def test_a_missing_default_key_is_a_problem(write: Callable[[str], Path], text: str) -> None:
    """The default key has to exist, too, if the file names none."""
    with pytest.raises(ConfigError, match=f"ssh.key: no such file: {DEFAULT_KEY}"):
        load(write(text))


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:5000", "10.0.0.1:5000", "[::]:5000", "localhost:5000", "*:5000", "5000", "300.0.0.1:5000"]
)
def test_an_agent_listens_on_literal_loopback_only(problems: Callable[[str], list[str]], listen: str) -> None:
    """Any other listen address could offer the registry to the agent's network, so it is refused."""
    (found,) = problems(f'[[forward]]\nname = "r"\nlisten = ["{listen}"]\ntarget = "127.0.0.1:5000"')

    assert found.startswith("forward[0].listen[0]: ")


@pytest.mark.parametrize("port", ["0", "65536", "99999", "-1"])
def test_an_invalid_port_is_refused(problems: Callable[[str], list[str]], port: str) -> None:
    """A port outside 1 to 65535 is refused; a listener on port 0 would match every channel."""
    (found,) = problems(f'[[forward]]\nname = "r"\nlisten = ["127.0.0.1:{port}"]\ntarget = "127.0.0.1:5000"')

    assert found.startswith("forward[0].listen[0]: ")


def test_one_address_belongs_to_one_forward(problems: Callable[[str], list[str]]) -> None:
    """Two forwards with one listen address are refused, and the error names the first one."""
    found = problems("""
        [[forward]]
        name = "a"
        listen = ["127.0.0.1:5000"]
        target = "127.0.0.1:5000"
        [[forward]]
        name = "b"
        listen = ["[::1]:5000", "127.0.0.1:5000"]
        target = "127.0.0.1:5001"
        """)

    assert found == ["forward[1].listen: 127.0.0.1:5000 is used by forward[0] already"]


@pytest.mark.parametrize(
    ("table", "entry"),
    [
        ("group", 'name = "x"'),
        ("source", 'name = "x"\ntype = "static"'),
    ],
)
def test_names_are_unique(problems: Callable[[str], list[str]], table: str, entry: str) -> None:
    """Two tables with one name are refused, and the error names the first one."""
    assert problems(f"[[{table}]]\n{entry}\n" * 2) == [f"{table}[1].name: x is the name of {table}[0] already"]


def test_an_invalid_source_does_not_shift_the_places_of_others(problems: Callable[[str], list[str]]) -> None:
    """The index in a problem's place is that in the file, even after an invalid source."""
    found = problems("""
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

    assert "source[2].name: x is the name of source[1] already" in found


def test_two_sources_cannot_share_a_queue(problems: Callable[[str], list[str]]) -> None:
    """Each message of a queue reaches one reader only, so two sources may not have one queue."""
    source = """
        [[source]]
        name = "{0}"
        type = "ec2"
        regions = ["eu-west-1"]
        events_queue = "https://sqs.eu-west-1.amazonaws.com/1/{1}"
        """

    found = problems(source.format("a", "one") + source.format("b", "two") + source.format("c", "one"))

    assert found == ["source[2].events_queue: used by source[0] already; only one source may use it"]


def test_trust_below_the_groups_minimum_is_refused(problems: Callable[[str], list[str]]) -> None:
    """A source none of whose methods reaches minimum_trust is refused: its agents would never get a tunnel."""
    found = problems("""
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

    assert found == ["source[0].trust: no method here reaches minimum_trust pinned of group ci"]


def test_an_unknown_source_type_is_answered_with_the_installed_ones(problems: Callable[[str], list[str]]) -> None:
    """The error for an unknown source type lists the installed ones, plug-ins included."""
    (found,) = problems('[[source]]\nname = "cloud"\ntype = "gcp"')

    assert found.startswith("source[0].type: unknown source type 'gcp'; installed: ")
    assert "ec2" in found
    assert "static" in found


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
def test_every_trust_method_can_be_configured(write: Callable[[str], Path], method: Method) -> None:
    """Every trust method is accepted by its name."""
    text = f'[ssh]\nkey = "KEYFILE"\n[[source]]\nname = "o"\ntype = "static"\ntrust = ["{method}"]\n'

    assert load(write(text)).source[0].trust == [method]


@pytest.mark.parametrize("trust", ['["guess"]', "[]", '"console"', "[1]"])
def test_an_unknown_trust_method_is_refused(problems: Callable[[str], list[str]], trust: str) -> None:
    """A value of `trust` that is not a list of methods is refused."""
    (found,) = problems(f'[[source]]\nname = "o"\ntype = "static"\ntrust = {trust}')

    assert found.startswith("source[0].trust")


def test_no_chacha_unless_it_is_configured(write: Callable[[str], Path]) -> None:
    """ChaCha20 is not offered by default, and a configured list keeps its order."""
    usual = load(write('[ssh]\nkey = "KEYFILE"\n')).ssh.ciphers
    assert usual[:2] == ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"]
    assert not any("chacha" in name for name in usual)

    chosen = write('[ssh]\nkey = "KEYFILE"\nciphers = ["chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com"]')
    assert load(chosen).ssh.ciphers == ["chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com"]


@pytest.mark.parametrize("ciphers", ['["3des-cbc"]', "[]", '"aes128-ctr"', "[1]"])
def test_an_unsupported_cipher_is_refused(problems: Callable[[str], list[str]], ciphers: str) -> None:
    """A weak cipher, an empty list and a value that is not a list are refused."""
    (found,) = problems(f'[ssh]\nkey = "KEYFILE"\nciphers = {ciphers}')

    assert found.startswith("ssh.ciphers")


def test_a_plug_in_that_cannot_be_loaded_is_a_problem(
    problems: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plug-in that fails to load is a problem of its source, not a crash."""

    class Broken:
        def load(self) -> None:
            raise ImportError("No module named 'elsewhere'")

    monkeypatch.setattr(sources, "plugins", lambda: {"elsewhere": Broken()})

    (found,) = problems('[[source]]\nname = "x"\ntype = "elsewhere"')

    assert found == "source[0].type: cannot load the plug-in elsewhere: No module named 'elsewhere'"


def test_a_source_type_can_be_looked_up() -> None:
    """A source type is found by its name, and an unknown name yields None."""
    assert source_type("static") is not None
    assert source_type("gcp") is None


@pytest.mark.parametrize("text", ["source = 3", "source = [1]", "source = {}", "controller = 3", "forward = {}"])
def test_a_value_instead_of_a_table_is_refused(problems: Callable[[str], list[str]], text: str) -> None:
    """A value in the place of a table is a problem with its place."""
    (found,) = problems(text)

    assert found.startswith(text.split(" ", maxsplit=1)[0])


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


def test_a_key_path_that_cannot_be_accessed_is_a_problem(problems: Callable[[str], list[str]]) -> None:
    """A path that is too long or not accessible is a problem like any other."""
    (found,) = problems(f'[ssh]\nkey = "/{"x" * 5000}"')

    assert found.endswith("File name too long")


@pytest.mark.parametrize("path", ['"relative/key"', '""', "3", '"/nul\\u0000"'])
def test_paths_are_absolute(problems: Callable[[str], list[str]], path: str) -> None:
    """A relative path is refused, because a daemon has no working folder of its own."""
    assert problems(f"[ssh]\nkey = {path}") == [
        f"ssh.key: write an absolute path, not {tomllib.loads(f'x = {path}')['x']!r}"
    ]


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
    "written", ['"15"', "15", '"-1s"', '"1w"', '"9999999999999999d"', '"inf s"', '"2d"', '"\u0661s"']
)
def test_an_invalid_duration_is_refused(problems: Callable[[str], list[str]], written: str) -> None:
    """A number without a unit, a negative one and one beyond the limit are refused."""
    (found,) = problems(f"[controller]\ndrain = {written}")

    assert found.startswith("controller.drain: ")


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
def test_any_document_is_read_or_refused_with_places(document: dict[str, object]) -> None:
    """Random documents raise no other exception than ConfigError, and every problem has a place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("tunnelmgr.config.load"), "_parse", lambda _: document)
        try:
            found: tuple[str, ...] = load(Path("any.toml")) and ()
        except ConfigError as wrong:
            found = wrong.problems

    assert all(": " in problem for problem in found)


@settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=60) | st.text(alphabet='[]{}=."\n\\u0123aé', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    """Random bytes raise no other exception than ConfigError."""
    file = tmp_path / "x.toml"
    file.write_bytes(content)

    with pytest.raises(ConfigError):
        load(file)


# --- which file ---


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


# --- the key file ---


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Make a private key file with safe permissions."""
    file = tmp_path / "key"
    file.touch(mode=0o600)
    return file


def test_a_key_that_only_its_owner_can_read_is_safe(key: Path) -> None:
    """A private key that only its owner can read has no error."""
    assert private_key_file_error(key) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777])
def test_a_key_that_others_can_access_is_refused(key: Path, mode: int) -> None:
    """A private key that others can access is refused with the command that corrects it, as ssh(1) does."""
    key.chmod(mode)

    assert private_key_file_error(key) == f"{key} can be read by others (mode {mode:04o}); run `chmod 600 {key}`"


def test_a_symlink_is_refused(key: Path) -> None:
    """The owner of a symlink could replace the key, so a symlink is refused."""
    link = key.with_name("link")
    link.symlink_to(key)

    assert private_key_file_error(link) == f"{link} is a symlink; name the file itself"


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    """The error for a missing key has the reason of the system."""
    assert private_key_file_error(tmp_path / "none") == f"cannot read {tmp_path / 'none'}: No such file or directory"


def test_a_folder_is_not_a_key(tmp_path: Path) -> None:
    """A folder, a pipe or a device is refused."""
    assert private_key_file_error(tmp_path) == f"{tmp_path} is not a regular file"


def test_a_key_of_another_owner_is_refused(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of another user is refused, because that user can change it; root's is accepted."""
    owner = os.stat(key).st_uid  # noqa: PTH116 - the owner as a number
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)

    found = private_key_file_error(key)

    assert found == (None if owner == 0 else f"{key} belongs to uid {owner}; `chown` it to the daemon's user")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(key: Path) -> None:
    """A key that really belongs to another user is refused."""
    os.chown(key, 12345, 12345)

    assert private_key_file_error(key) == f"{key} belongs to uid 12345; `chown` it to the daemon's user"


def test_a_key_that_cannot_be_read_is_refused(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that the daemon's user cannot read is refused with the user's id."""
    monkeypatch.setattr(os, "access", lambda *_: False)

    assert private_key_file_error(key) == f"cannot read {key}: permission denied for uid {os.geteuid()}"


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
