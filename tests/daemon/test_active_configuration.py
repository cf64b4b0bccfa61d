"""What the daemon says of its configuration: the policy of an agent at a forward, and why."""

from dataclasses import dataclass

import pytest

from tests.control.fake_daemon import record
from tests.daemon.conftest import Site
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.oci import RegistryAction
from tunnelmgr.core.policy import judge
from tunnelmgr.core.world import World
from tunnelmgr.daemon.active_configuration import ActiveConfiguration
from tunnelmgr.daemon.prepared import prepare

AGENT = AgentId("static:builder-1")
MORE = """
[[forward]]
name = "mirror"
listen = ["127.0.0.1:5001"]
target = "127.0.0.1:5501"
upstream = "proxy"
[[forward]]
name = "database"
listen = ["127.0.0.1:5432"]
target = "127.0.0.1:5432"
protocol = "tcp"
[[group]]
name = "default"
push = ["team/*"]
  [[group.forward]]
  name = "mirror"
  pull = ["library/*"]
"""


@dataclass(frozen=True)
class View:
    """A view of a world that does not change."""

    world: World


@pytest.fixture
def configuration(site: Site) -> ActiveConfiguration:
    """Return a configuration with a registry, a pull-through cache and a raw forward, for one agent."""
    site.more = MORE
    one = record("builder-1")
    return ActiveConfiguration(prepare(site.write()), View(World(records={one.agent.id: one})))


@pytest.mark.parametrize(
    ("action", "repository", "forward", "rule"),
    [
        ("push", "team/app", "", "push team/*"),
        ("pull", "team/app", "registry", "push team/*"),
        ("pull", "team/app", "mirror", "default"),
        ("pull", "library/alpine", "mirror", "pull library/*"),
        ("push", "team/app", "mirror", "upstream proxy"),
    ],
)
async def test_a_policy_is_explained_for_one_forward(
    configuration: ActiveConfiguration, action: str, repository: str, forward: str, rule: str
) -> None:
    """The verdict is the one of the named forward, or of the first one; the gate gets the same policy."""
    explained = configuration.explain(AGENT, action, repository, forward)

    assert (explained.forward, explained.verdict.rule) == (forward or "registry", rule)


async def test_a_reload_changes_the_rules_of_a_forward_at_once(configuration: ActiveConfiguration, site: Site) -> None:
    """The next request on an open channel is judged by the new rules; a forward that is gone allows nothing."""
    before = configuration.policy_of(AGENT, "mirror")
    site.more = MORE.replace('pull = ["library/*"]', 'pull = ["bitnami/*"]')
    configuration.prepared = prepare(site.write())
    after = configuration.policy_of(AGENT, "mirror")
    site.more = ""
    configuration.prepared = prepare(site.write())
    gone = configuration.policy_of(AGENT, "mirror")

    pulls = [
        [judge(RegistryAction.PULL, name, policy).allowed for name in ("library/alpine", "bitnami/redis")]
        for policy in (before, after, gone)
    ]
    assert pulls == [[True, False], [False, True], [False, False]]
    assert configuration.explain(AGENT, "pull", "bitnami/redis", "").verdict.allowed


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            ("pull", "a", "miror"),
            r"unknown forward 'miror' \(did you mean mirror\?\); forwards with a policy: registry, mirror",
        ),
        (("pull", "a", "database"), "unknown forward 'database'; forwards with a policy: registry, mirror"),
        (("fetch", "a", ""), "unknown action 'fetch'"),
        (("pull", "A", ""), "invalid repository name 'A'"),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(
    configuration: ActiveConfiguration, asked: tuple[str, str, str], message: str
) -> None:
    """The error repeats what was asked and names what exists."""
    with pytest.raises(ValueError, match=message):
        configuration.explain(AGENT, *asked)


async def test_without_a_registry_no_policy_applies(site: Site) -> None:
    """If every forward relays bytes, there is nothing to explain."""
    file = site.write()
    file.write_text(file.read_text().replace('name = "registry"\n', 'name = "registry"\nprotocol = "tcp"\n'))

    with pytest.raises(ValueError, match='every forward has protocol = "tcp"'):
        ActiveConfiguration(prepare(file), View(World())).explain(AGENT, "pull", "a", "")
