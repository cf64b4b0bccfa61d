"""What two members on machines of their own do if one is cut off or lost, and if the database fails over."""

import json
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from lab.cluster import reaches_database
from lab.controller import LabController
from lab.faults.clock import skewed
from lab.network import Lab
from lab.postgres import Postgres, Replica, remote_url
from lab.processes import until
from tests.acceptance.cluster_site import ClusterSite, logins
from tunnelmgr.core.ownership import LEASE_SECONDS
from tunnelmgr.store.cluster_database import GRACE_SECONDS

pytestmark = pytest.mark.acceptance

DATABASE_IP, REPLICA_IP = "10.77.0.9", "10.77.0.10"
LEASES = "SELECT kind, id, holder, term FROM lease ORDER BY kind, id"
HOUR, SEED_SECONDS = 3600, 600


@pytest.fixture
def database_folder() -> Iterator[Path]:
    """Make a folder that the database's user can reach, with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def database(lab: Lab, database_folder: Path) -> Iterator[Postgres]:
    """Run a database on a machine of its own, which the members reach by TCP with TLS."""
    with Postgres(database_folder / "primary", lab.machine("database", DATABASE_IP)) as running:
        yield running


@pytest.fixture
def site(lab: Lab, tmp_path: Path, database: Postgres) -> Iterator[ClusterSite]:
    """Make two members that are not started; end them with the test."""
    site = ClusterSite(lab, remote_url(tmp_path / "roots.crt", database), tmp_path)
    yield site
    site.cluster.kill()


def test_a_member_that_is_cut_off_from_the_database_keeps_its_agents_and_still_revokes(
    site: ClusterSite, database: Postgres
) -> None:
    """It serves its agents alone and revokes one that has ended; after the partition the heir has the agent."""
    kept, ended = site.boot("kept"), site.boot("ended")
    cut_off = site.up(kept, ended)
    site.gather([kept, ended], cut_off)
    heir = site.other(cut_off)

    cut_off.faults.cut_off(database.ip)
    heir.wait("kept", lambda agent: agent["error"] == "held-elsewhere", "the heir asks for the port", timeout=40)
    until(lambda: not reaches_database(cut_off), "it misses the database", timeout=20)
    served = site.who_answers(kept)
    site.list_agents(kept)
    heir.client.reload()
    before = ended.listeners(5000)
    cut_off.client.reload()
    until(lambda: not ended.listeners(5000), "the agent that has ended is revoked")
    still_served = site.who_answers(kept)
    cut_off.faults.heal()

    site.wait_for_answer(kept, heir, 60)
    assert (served, still_served) == (site.cluster.name(cut_off),) * 2
    assert before == ["127.0.0.1", "::1"]
    assert not ended.listeners(5000)
    until(lambda: reaches_database(cut_off), "it is a member again", timeout=20)
    assert cut_off.agent("kept")["holder"] == site.cluster.name(heir)


def test_an_agent_of_a_lost_machine_is_served_by_another_member_with_the_same_pin(site: ClusterSite) -> None:
    """A machine that vanishes without a packet costs its agent the registry for 25 s at most, and no pin."""
    agent = site.boot("builder")
    holder = site.up(agent, trust="tofu")
    heir, pinned = site.other(holder), holder.agent("builder")["fingerprints"]

    site.cluster.lose(holder)

    site.wait_for_answer(agent, heir, 25)
    found = heir.wait_phase("builder", "up")
    assert (found["trust"], found["fingerprints"]) == ("tofu", pinned)
    site.cluster.replace(holder)
    assert site.who_answers(agent) == site.cluster.name(heir)


@pytest.mark.parametrize("loss", ["the server crashes", "its machine is lost"])
def test_a_failover_of_the_database_ends_no_tunnel(
    lab: Lab, tmp_path: Path, database: Postgres, database_folder: Path, loss: str
) -> None:
    """After the promotion of a synchronous replica all members work with it, and every agent keeps its holder."""
    with Replica(database_folder / "replica", lab.machine("replica", REPLICA_IP), database) as replica:
        database.commit_only_with(Replica.NAME)
        site = ClusterSite(lab, remote_url(tmp_path / "roots.crt", database, replica), tmp_path)
        agents = [site.boot("one"), site.boot("two")]
        try:
            site.up(*agents)
            site.spread(agents)
            leases, accepted = database.query(LEASES), [logins(agent) for agent in agents]

            lose_primary(lab, database, loss)
            until(lambda: not any(map(reaches_database, site.cluster.members)), "they miss it", timeout=30)
            replica.promote()
            wait_for_heartbeats(replica)

            assert replica.query(LEASES) == leases
            assert [site.who_answers(agent) for agent in agents] == ["member-0", "member-1"]
            assert [logins(agent) for agent in agents] == accepted
            site.gather(agents, site.cluster.members[0])
        finally:
            site.cluster.kill()


def lose_primary(lab: Lab, database: Postgres, loss: str) -> None:
    """Lose the primary in one of two ways: its port refuses connections, or nothing answers there."""
    if loss == "the server crashes":
        database.stop()
    else:
        assert database.host is not None
        lab.lose(database.host)


def wait_for_heartbeats(database: Postgres) -> None:
    """Wait until both members have renewed their heartbeats for so long that each would have been taken for dead."""
    now = database.query("SELECT now()")
    late = f"heartbeat > timestamptz '{now}' + make_interval(secs => {LEASE_SECONDS + 2 * GRACE_SECONDS})"
    until(lambda: database.query(f"SELECT count(*) FROM member WHERE {late}") == "2", "they come back", timeout=60)  # noqa: S608


def test_members_whose_clocks_are_two_hours_apart_agree(site: ClusterSite, database: Postgres) -> None:
    """The database's clock decides: one member holds the agent, another takes over, and seeds last as long as asked."""
    agent = site.boot("builder")
    skews = (HOUR, -HOUR)
    for member, seconds in zip(site.cluster.members, skews, strict=True):
        member.environment |= skewed(seconds, member.folder / "clock")
    holder = site.up(agent)
    heir = site.other(holder)
    leases = database.query(LEASES)

    wait_for_heartbeats(database)
    kept, checks = database.query(LEASES), [member.command("check").stdout for member in site.cluster.members]
    errors = [clock_error(member) for member in site.cluster.members]
    seeds = [seed_seconds(member, agent.host_key) for member in site.cluster.members]
    holder.kill()

    site.wait_for_answer(agent, heir, 25)
    assert kept == leases
    assert logins(agent) == 2
    assert errors == pytest.approx(skews, abs=60)
    assert seeds == pytest.approx([SEED_SECONDS] * 2, abs=60)
    assert "this machine's clock is 3600 s ahead of the database's" in checks[0]
    assert "this machine's clock is 3600 s behind the database's" in checks[1]


def clock_error(member: LabController) -> float:
    """Return by how many seconds the clock of a member's process is ahead, by the time of its latest log line."""
    stamp = json.loads(member.log().splitlines()[-1])["timestamp"]
    return datetime.fromisoformat(stamp).timestamp() - member.log_file.stat().st_mtime


def seed_seconds(member: LabController, key: str) -> float:
    """Store a seed at a member, and return after how many seconds it expires, by a clock that is right."""
    expires = str(member.client.seed(key, SEED_SECONDS)["expires"])
    return datetime.fromisoformat(expires).timestamp() - time.time()
