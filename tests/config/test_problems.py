"""The problems of a configuration: each is reported with its place and with what to write instead."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.config import load, sources
from tunnelmgr.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


DEFAULT_KEY = Path("/etc/tunnelmgr/id_ed25519")


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
    ("lines", "problem"),
    [
        (
            'protocol = "tcp"\npush_target = "127.0.0.1:5002"',
            'push_target: only a forward with protocol = "registry" can tell pushes from pulls',
        ),
        (
            'protocol = "tcp"\nwriter = "registry-1"',
            'writer: only a forward with protocol = "registry" can tell pushes from pulls',
        ),
        (
            'push_target = "127.0.0.1:5000"',
            "push_target: this is the target itself; leave it out, or name the registry that takes pushes",
        ),
        (
            'push_target = "127.0.0.1:5002"\nwriter = "registry-1"',
            "writer: pushes go to push_target, so none is refused; leave one of the two out",
        ),
        ('writer = "zur Schreibstelle: größer"', "writer: write printable ASCII characters on one line, not 'zur"),
        (f'writer = "{"x" * 201}"', "writer: string should have at most 200 characters"),
        ('push_target = "writer:5000"', "push_target: write a literal address and a port"),
    ],
)
def test_where_pushes_go_is_checked(problems: Callable[[str], list[str]], lines: str, problem: str) -> None:
    """A forward to a replica has either a registry for pushes or the writer's name, and needs the gate for both."""
    (found,) = problems(f'[[forward]]\nname = "r"\nlisten = ["127.0.0.1:5000"]\ntarget = "127.0.0.1:5000"\n{lines}')

    assert found.startswith(f"forward[0].{problem}")


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
            "ssh.connect_timeout: must be at most 2m, not '5m'",
        ),
        (
            '[[authority]]\nname = "a"\nmax_validity = "400d"',
            "authority[0].max_validity: must be at most 366d, not '400d'",
        ),
        ('[ssh]\nkey = "KEYFILE"\nprobe_interval = "10ms"', "ssh.probe_interval: must be at least 0.1s, not '10ms'"),
        ('[ssh]\nkey = "KEYFILE"\nciphers = []', "ssh.ciphers: must have at least one entry"),
        (
            '[[source]]\nname = "o"\ntype = "ec2"\nregions = ["eu-west-1"]\nrole = "x"',
            "source[0].role: must begin with arn:, not 'x'",
        ),
        ("[[group]]\nname = 7", "group[0].name: must be a valid string, not 7"),
    ],
)
def test_a_problem_names_the_nearest_key_and_the_value(
    problems: Callable[[str], list[str]], text: str, problem: str
) -> None:
    """A misspelled key is answered with the nearest known key of its table, and a wrong value is repeated."""
    assert problem in problems(text)


@pytest.mark.parametrize("trust", ['["guess"]', "[]", '"console"', "[1]"])
def test_an_unknown_trust_method_is_refused(problems: Callable[[str], list[str]], trust: str) -> None:
    """A value of `trust` that is not a list of methods is refused."""
    (found,) = problems(f'[[source]]\nname = "o"\ntype = "static"\ntrust = {trust}')

    assert found.startswith("source[0].trust")


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


@pytest.mark.parametrize("text", ["source = 3", "source = [1]", "source = {}", "controller = 3", "forward = {}"])
def test_a_value_instead_of_a_table_is_refused(problems: Callable[[str], list[str]], text: str) -> None:
    """A value in the place of a table is a problem with its place."""
    (found,) = problems(text)

    assert found.startswith(text.split(" ", maxsplit=1)[0])


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


@pytest.mark.parametrize(
    "written", ['"15"', "15", '"-1s"', '"1w"', '"9999999999999999d"', '"inf s"', '"2d"', '"\u0661s"']
)
def test_an_invalid_duration_is_refused(problems: Callable[[str], list[str]], written: str) -> None:
    """A number without a unit, a negative one and one beyond the limit are refused."""
    (found,) = problems(f"[controller]\ndrain = {written}")

    assert found.startswith("controller.drain: ")


@pytest.mark.parametrize("written", ['"20"', "20", '"20GB"', '"1.5GiB"', '"-1GiB"', "true"])
def test_an_invalid_size_is_refused(problems: Callable[[str], list[str]], written: str) -> None:
    """A number without a unit, a fraction and a unit of powers of 1000 are refused."""
    assert problems(f"[cache]\nmin_free = {written}") == [
        f'cache.min_free: write a size such as "50GiB" or "500MiB", not {tomllib.loads(f"x = {written}")["x"]!r}'
    ]


def test_a_cache_that_holds_no_image_is_refused(problems: Callable[[str], list[str]]) -> None:
    """A cache below 1 GiB is refused."""
    assert problems('[cache]\nsize = "500MiB"') == [
        "cache.size: write at least \"1GiB\": a smaller cache would not hold one usual image, not '500MiB'"
    ]
