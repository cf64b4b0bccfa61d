"""What is wrong with the controller, as sentences made from its JSON: for `status` and for the status page."""

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]


def controller_problems(facts: Json) -> list[str]:
    """Return every problem of the controller, its registry, its cluster and its sources; agents are not looked at."""
    found = []
    registry = facts["registry"]
    if not registry["reachable"]:
        found.append(f"the registry cannot be used: {registry['error'] or 'not checked yet'}")
    if registry["loopback_only"] is False:
        found.append("the registry listens beyond loopback: anyone who can reach this machine can pull")
    if not facts["state"]["ok"]:
        found.append(f"the state cannot be written: {facts['state']['error']}")
    if facts["audit"]["error"]:
        found.append(f"the audit log cannot be written: {facts['audit']['error']}")
    elif not facts["audit"]["ok"]:
        found.append(f"the audit log lost entries in the last minutes, {facts['audit']['lost']} since the start")
    found += [
        f"audit collector {forward['name']} fails, entries that it lacks: {forward['behind']}: {forward['error']}"
        for forward in facts["audit"].get("forwards", ())
        if not forward["ok"]
    ]
    found += cluster_problems(facts.get("cluster"))
    found += [
        f"source {source['name']}: {source['error'] or 'no answer yet'}"
        for source in facts["sources"]
        if not source["ok"]
    ]
    found += [
        f"source {source['name']}: its event queue fails, polling continues: {source['events']['error']}"
        for source in facts["sources"]
        if source["events"] and not source["events"]["ok"]
    ]
    return found


def cluster_problems(cluster: Json | None) -> list[str]:
    """Return every problem of a cluster as a sentence."""
    if not cluster:
        return []
    found = []
    if not cluster["database"]["ok"]:
        found.append(f"the database does not answer, so that no agent is taken over: {cluster['database']['error']}")
    for member in cluster["members"]:
        name = member["name"]
        if not member["alive"]:
            found.append(f"member {name} is dead, last heartbeat {member['heartbeat_s']:.0f}s ago")
        elif not member["same_rules"]:
            found.append(
                f"member {name} has other sources, groups, forwards or authorities than this one; "
                "install the same configuration on both, and run: tunnelmgr reload"
            )
    return found + list(_registry_problems(cluster))


def _registry_problems(cluster: Json) -> Iterator[str]:
    """Yield what the members have found out about their registries, each pair of members once."""
    named = set()
    for member in cluster["members"]:
        registry, name = member.get("registry"), member["name"]
        if not registry:
            continue
        if registry["upload"] == "no-answer":
            yield f"the registry of member {name} begins no upload: {registry['error']}"
            continue
        for writer, said in registry["sees_uploads_of"].items():
            pair = (said, *sorted((name, writer)))
            if said == "yes" or pair in named:
                continue
            if said != "no-answer":
                named.add(pair)
            yield f"the registry of member {name} {_PROBLEMS[said].format(writer=writer, **registry)}"


_PROBLEMS = {
    "other-storage": (
        "does not have the uploads of member {writer}: another storage; pulls and pushes depend on the member that "
        "holds the agent. Configure the same storage on both"
    ),
    "other-secret": (
        "rejects the uploads of member {writer}: another http.secret; pushes break when an agent changes its member. "
        "Set the same http.secret on both"
    ),
    "no-answer": "did not answer when asked for an upload of member {writer}: {error}",
}
