"""Records as rows: what both kinds of store keep in the same columns, with lists as JSON texts."""

import json
import secrets
from collections.abc import Iterable
from dataclasses import astuple
from typing import Any, Final, Protocol

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.persistence import StoredState
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.world import HistoryEntry, Quarantine, Record

Values = tuple[Any, ...]


class Row(Protocol):
    """A row of either database, read by the names of its columns."""

    def __getitem__(self, name: str, /) -> Any: ...  # noqa: ANN401 - any SQL value


SELECT_AGENTS: Final = """
SELECT agent.*, pin.method, pin.keys, pin.detail, pin.possessed, pin.incarnation AS pinned,
       quarantine.since, quarantine.code, quarantine.message, quarantine.disputed, quarantine.examined
FROM agent LEFT JOIN pin ON pin.agent = agent.id LEFT JOIN quarantine ON quarantine.agent = agent.id
"""
"""Each agent with its pin and its quarantine, for `stored_state`."""
SELECT_SEEDS: Final = "SELECT * FROM seed"
"""Each seed, for `stored_state`."""
SELECT_SECRET: Final = "SELECT value FROM secret"  # noqa: S105 (a statement)
"""The secret, for `stored_state`."""
SECRET_SCHEMA: Final = 2
"""The first version of the schema with a secret; a state that no daemon has migrated yet can be exported too."""


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


def new_secret() -> bytes:
    """Return a secret for a state that has none."""
    return secrets.token_bytes(32)


def stored_state(agents: Iterable[Row], seeds: Iterable[Row], secret: Iterable[Row] = ()) -> StoredState:
    """Return the state that the rows of `SELECT_AGENTS` and `SELECT_SEEDS` hold, and of `SELECT_SECRET` if wanted."""
    return StoredState(
        {record.agent.id: record for record in map(_record, agents)},
        {row["id"]: _seed(row) for row in seeds},
        next((bytes(row["value"]) for row in secret), b""),
    )


def _record(row: Row) -> Record:
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


def _seed(row: Row) -> Seed:
    return Seed(row["id"], row["key"], row["expires"], row["holder"], row["incarnation"])


def storable(text: str) -> str:
    """Return a text with `?` for what a database cannot hold.

    That is lone surrogates, which JSON may hold (RFC 8259, section 8.2) and UTF-8 may not, and NUL, which PostgreSQL
    refuses (https://www.postgresql.org/docs/current/datatype-character.html).
    """
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")


def _quarantine(row: Row) -> Quarantine:
    return Quarantine(
        row["since"], row["code"], row["message"], tuple(json.loads(row["disputed"])), bool(row["examined"])
    )
