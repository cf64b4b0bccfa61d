"""What differs between two configurations."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tunnelmgr.config import load
from tunnelmgr.config.changes import ConfigChange, changes

SSH = '[ssh]\nkey = "KEYFILE"\n'
SOURCE = '[[source]]\nname = "office"\ntype = "static"\ntrust = ["tofu"]\n'

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBugwjI50hmeTnPsDzyoOSa8VvIDmN3V+EkTy/JnjgUF"
"""A public key of nobody."""

Differences = Callable[[str, str], list[ConfigChange]]


@pytest.fixture
def differences(write: Callable[[str], Path]) -> Differences:
    """Return a function that loads two texts and compares them."""
    return lambda before, after: changes(load(write(SSH + before)), load(write(SSH + after)))


def test_an_equal_configuration_has_no_changes(differences: Differences) -> None:
    """A key with its default is the same as no key, and the order of tables does not matter."""
    one, two = '[[group]]\nname = "a"\n', '[[group]]\nname = "b"\npush = ["x/*"]\n'

    assert differences(one + two, two + one) == []
    assert differences("", "[controller]\naudit_required = false\n") == []


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ("", '[controller]\nmetrics = "127.0.0.1:9000"\n', ("controller: metrics", None, "127.0.0.1:9000")),
        ('[cache]\nsize = "2GiB"\n', '[cache]\nsize = "3GiB"\n', ("cache: size", 2 * 2**30, 3 * 2**30)),
        ('[cache]\nsize = "2GiB"\n', "", ("cache: size", 2 * 2**30, None)),
        ("", '[[group]]\nname = "ci"\npush = ["x/*"]\n', ("group ci", None, {"name": "ci", "push": ["x/*"]})),
        (
            '[[group]]\nname = "ci"\npull = ["a/*"]\n',
            '[[group]]\nname = "ci"\npull = ["b/*"]\n',
            ("group ci: pull", ["a/*"], ["b/*"]),
        ),
        (
            '[[group]]\nname = "ci"\n',
            '[[group]]\nname = "ci"\nlimits = { concurrent_pulls = 3 }\n',
            ("group ci: limits: concurrent_pulls", None, 3),
        ),
        ('[[group]]\nname = "ci"\n', '[[group]]\nname = "ci"\npull = []\n', ("group ci: pull", None, [])),
        ('[[group]]\nname = "ci"\npull = ["a/*"]\n', '[[group]]\nname = "ci"\n', ("group ci: pull", ["a/*"], None)),
        ("", "[cache]\n", ("cache", None, {})),
        (
            SOURCE + '[[source.agent]]\nname = "x"\naddress = "10.0.0.1"\n',
            SOURCE,
            ("source office: agent x", {"name": "x", "address": "10.0.0.1"}, None),
        ),
        (SOURCE, SOURCE + 'poll = "1m"\n', ("source office: poll", None, 60.0)),
    ],
)
def test_each_key_that_differs_is_named(
    differences: Differences, before: str, after: str, change: tuple[str, object, object]
) -> None:
    """A table with a name is compared with the one of the same name; None stands for what is not there.

    `pull = []` grants nothing, and without `pull` everything may be pulled: the difference is never left out.
    """
    assert differences(before, after) == [ConfigChange(*change)]


def test_the_contents_of_the_files_of_an_authority_count(write: Callable[[str], Path], tmp_path: Path) -> None:
    """A revocation that was added to the file is a change, and a set has one order."""
    revoked = tmp_path / "revoked"
    key = tmp_path / "authority.pub"
    key.write_text(KEY)
    text = f'{SSH}[[authority]]\nname = "ours"\nfile = "{key}"\nrevoked = "{revoked}"\n'
    revoked.write_text("serial:2\n")
    before = load(write(text))
    revoked.write_text("serial:2\nserial:1\n")

    assert changes(before, load(write(text))) == [
        ConfigChange("authority ours: revoked: entries", ["serial:2"], ["serial:1", "serial:2"])
    ]
