"""A configuration is prepared completely, or refused with every problem."""

import os
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import Field

from tests.daemon.conftest import Site
from tunnelmgr.config import SourceConfig, TrustOrder
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import Method
from tunnelmgr.daemon import prepared as prepared_module
from tunnelmgr.daemon.prepared import build, prepare
from tunnelmgr.discovery.static import StaticSource
from tunnelmgr.errors import ConfigError


def problems(file: Path) -> tuple[str, ...]:
    """Return why a configuration is refused."""
    with pytest.raises(ConfigError) as refused:
        prepare(file)
    assert refused.value.file == str(file)
    return refused.value.problems


def authority(site: Site, revoked: Path) -> None:
    """Add an authority with this revocation file."""
    (site.folder / "ca.pub").write_bytes(site.sshd.accepts.export_public_key())
    site.more = f'[[authority]]\nname = "images"\nfile = "{site.folder}/ca.pub"\nrevoked = "{revoked}"\n'


async def test_every_file_that_cannot_be_read_is_named_with_its_place(site: Site) -> None:
    """Problems of keys, authorities, revocations and tables are reported together."""
    authority(site, site.folder)
    site.more = site.more.replace("ca.pub", ".") + '[[group]]\nname = "ci"\npull = 7\n'
    os.chmod(site.folder / "id_ed25519", 0o644)  # noqa: PTH101 - a mistake on purpose

    found = problems(site.write())

    assert any(problem.startswith("ssh.key: ") and "chmod 600" in problem for problem in found)
    assert f"authority[0].file: cannot read {site.folder}: Is a directory" in found
    assert f"authority[0].revoked: cannot read {site.folder}: Is a directory" in found
    assert any(problem.startswith("group[0].pull: ") for problem in found)


async def test_a_revocation_file_that_is_not_text_is_a_problem(site: Site) -> None:
    """A revocation file that is not UTF-8 is refused."""
    (site.folder / "revoked").write_bytes(b"serial:1\n\xff\n")
    authority(site, site.folder / "revoked")

    assert problems(site.write()) == (f"authority[0].revoked: {site.folder}/revoked is not UTF-8 text",)


async def test_a_prepared_configuration_reads_no_file_again(site: Site) -> None:
    """A revocation file that disappears after the configuration was prepared changes nothing."""
    revoked = site.folder / "revoked"
    revoked.write_text("# lost in transit\nserial:7\n\n")
    authority(site, revoked)

    ready = prepare(site.write())
    revoked.unlink()

    assert ready.config.authority[0].revocations == {"serial:7"}
    assert "serial:7" in str(ready.rules.authorities["office"])


async def test_an_unchanged_source_is_kept_and_a_changed_one_is_made(site: Site) -> None:
    """A reload keeps the client of an unchanged source, and so requests no new credentials."""
    first = prepare(site.write())
    running = {source.config.name: source for source in first.sources}

    assert prepare(site.file, running).sources[0] is first.sources[0]
    site.agents = ("builder-2",)
    assert prepare(site.write(), running).sources[0] is not first.sources[0]


class Broken:
    """A plug-in whose parts fail."""

    class Config(SourceConfig):
        """Its configuration."""

        trust: TrustOrder = Field(default=[Method.TOFU])

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        if config.name == "broken":
            raise KeyError("REGION")

    def discover(self) -> Snapshot:
        """Find no agents."""
        return Snapshot(frozenset())

    def queue(self) -> None:
        """Fail."""
        raise PermissionError("no queue for you")


@pytest.mark.parametrize(
    ("name", "why"), [("broken", "KeyError('REGION')"), ("deaf", "PermissionError('no queue for you')")]
)
async def test_a_plug_in_that_fails_is_a_problem_with_its_place(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    """A plug-in that raises anything is a configuration problem with its place in the file."""
    known = prepared_module.source_type
    for module in (prepared_module, import_module("tunnelmgr.config.load")):
        monkeypatch.setattr(module, "source_type", lambda kind: Broken if kind == "broken" else known(kind))
    site.more = f'[[source]]\nname = "{name}"\ntype = "broken"\n'

    assert problems(site.write()) == (f"source[1]: source '{name}' of type broken failed to start: {why}",)


async def test_a_source_is_made_by_its_type(site: Site) -> None:
    """A source's class is found by its entry point; an unknown type is a configuration problem."""
    assert isinstance(prepare(site.write()).sources[0].source, StaticSource)
    with pytest.raises(ConfigError, match="unknown source type 'moon'"):
        build(SourceConfig(name="x", type="moon", trust=[Method.TOFU]))
