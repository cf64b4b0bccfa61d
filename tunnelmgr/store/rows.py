"""Records as rows: what both kinds of store keep in the same columns, with lists as JSON texts."""

import json
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.world import HistoryEntry, Quarantine, Record

Values = tuple[Any, ...]


def agent_values(record: Record) -> Values:
    """Return the columns of table `agent`, in the order of its definition."""
    agent = record.agent
    return (
        agent.id,
        agent.incarnation,
        agent.source,
        agent.group,
        storable(agent.name),
        json.dumps(agent.addresses),
        agent.port,
        json.dumps(agent.labels),
        record.first_seen,
        record.changed,
        int(record.present),
        json.dumps([astuple(entry) for entry in record.history]),
    )


def pin_values(record: Record) -> Values | None:
    """Return the columns of table `pin`; None if the agent is not proved."""
    proof, agent = record.proved, record.agent
    if proof is None:
        return None
    keys, possessed = json.dumps(proof.keys), json.dumps(record.possessed)
    return agent.id, agent.incarnation, proof.method.value, keys, storable(proof.detail), possessed


def quarantine_values(record: Record) -> Values | None:
    """Return the columns of table `quarantine`; None if the agent is not in quarantine."""
    mark = record.quarantine
    if mark is None:
        return None
    disputed = json.dumps(mark.disputed)
    return record.agent.id, mark.since, mark.code, storable(mark.message), disputed, int(mark.examined)


def seed_values(seed: Seed) -> Values:
    """Return the columns of table `seed`."""
    return seed.id, seed.key, seed.expires, seed.holder, seed.incarnation


def record_of(row: Mapping[str, Any]) -> Record:
    """Return the record of a row of `agent` joined with `pin` and `quarantine`."""
    agent = Agent(
        id=AgentId(row["id"]),
        incarnation=row["incarnation"],
        source=row["source"],
        group=row["group"],
        name=row["name"],
        addresses=tuple(json.loads(row["addresses"])),
        port=row["port"],
        labels=tuple((name, value) for name, value in json.loads(row["labels"])),
    )
    pinned = row["method"] is not None and row["pinned"] == row["incarnation"]
    return Record(
        agent=agent,
        first_seen=row["first_seen"],
        changed=row["changed"],
        present=bool(row["present"]),
        proved=HostTrust(Method(row["method"]), tuple(json.loads(row["keys"])), row["detail"]) if pinned else None,
        possessed=tuple(json.loads(row["possessed"])) if pinned else (),
        quarantine=_quarantine(row) if row["code"] else None,
        history=tuple(HistoryEntry(*entry) for entry in json.loads(row["history"])),
    )


def seed_of(row: Mapping[str, Any]) -> Seed:
    """Return the seed of a row."""
    return Seed(row["id"], row["key"], row["expires"], row["holder"], row["incarnation"])


def storable(text: str) -> str:
    """Return a text with `?` for what a database cannot hold.

    That is lone surrogates, which JSON may hold (RFC 8259, section 8.2) and UTF-8 may not, and NUL, which PostgreSQL
    refuses (https://www.postgresql.org/docs/current/datatype-character.html).
    """
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")


def _quarantine(row: Mapping[str, Any]) -> Quarantine:
    return Quarantine(
        row["since"], row["code"], row["message"], tuple(json.loads(row["disputed"])), bool(row["examined"])
    )
