"""What `check` says of the members of a cluster."""

from dataclasses import replace

import pytest

from tests.daemon.conftest import Site
from tunnelmgr.config import load
from tunnelmgr.core.cluster import DatabaseFacts
from tunnelmgr.daemon.cluster_checks import MAX_SKEW, disagreements, shared_rules

AGREED = DatabaseFacts("answers", {}, 0.0)


async def test_members_with_the_same_rules_agree(site: Site) -> None:
    """The name, the socket and the key may differ from member to member; members that say nothing count as agreed."""
    own = load(site.write())
    other = load(replace(site, name="registry-2").write())
    facts = replace(AGREED, rules={"registry-2": shared_rules(other), "new": ""})

    assert list(disagreements(own, facts)) == []


async def test_a_member_with_another_group_is_named(site: Site) -> None:
    """An agent's rights must not depend on the member that holds it."""
    own = load(site.write())
    other = load(replace(site, group="builders").write())

    (problem,) = disagreements(own, replace(AGREED, rules={"registry-2": shared_rules(other)}))

    assert problem.startswith("registry-2: other sources, groups, forwards or authorities than in this file")


async def test_members_beside_a_replica_and_beside_the_writer_agree(site: Site) -> None:
    """Where a member's pushes go is its own matter: only a member beside a read-only replica sends them elsewhere."""
    own = load(site.write())
    text = site.file.read_text().replace(
        f'target = "{site.registry}"', f'target = "{site.registry}"\npush_target = "127.0.0.1:5999"'
    )
    site.file.write_text(text)
    replica = load(site.file)

    assert replica.forwards()[0].push_target is not None
    assert list(disagreements(own, replace(AGREED, rules={"registry-2": shared_rules(replica)}))) == []


@pytest.mark.parametrize(("ahead", "direction"), [(MAX_SKEW + 1, "behind"), (-MAX_SKEW - 1, "ahead of")])
async def test_a_clock_that_differs_is_named(site: Site, ahead: float, direction: str) -> None:
    """A difference of more than `MAX_SKEW` seconds is a problem, in either direction."""
    config = load(site.write())

    (problem,) = disagreements(config, replace(AGREED, clock_ahead=ahead))

    assert problem == f"this machine's clock is 31 s {direction} the database's; set it, as with NTP"
    assert list(disagreements(config, replace(AGREED, clock_ahead=MAX_SKEW))) == []
