"""The state as a text that can be kept and moved: JSON Lines with a checksum (`tunnelmgr state export`).

    {"format": "tunnelmgr-state", "version": 1, "time": "2026-01-01T00:00:00.000Z"}
    {"agent": {…}}        one line for each agent that is remembered
    {"seed": {…}}         one line for each seed
    {"secret": "…"}       in hexadecimal digits; archives of states that had none yet lack it
    {"agents": 2, "seeds": 1, "sha256": "…"}    of all lines before this one

It holds what the store holds: agents, their histories, quarantines, proofs, seeds, and the secret of the proofs that
agents bring back. So it is confidential. It holds no private key.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, Final

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.persistence import StoredState
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.timestamp import timestamp
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.world import HistoryEntry, Quarantine, Record
from tunnelmgr.errors import StoreError

FORMAT: Final = "tunnelmgr-state"
VERSION: Final = 1

JsonObject = dict[str, Any]


def write_archive(memory: StoredState, now: float) -> Iterator[str]:
    """Return the lines of an archive, each with its newline; `now` is in seconds since the epoch."""
    digest = hashlib.sha256()
    head: JsonObject = {"format": FORMAT, "version": VERSION, "time": timestamp(now)}
    agents = ({"agent": _agent_object(memory.records[id_])} for id_ in sorted(memory.records))
    seeds = ({"seed": asdict(memory.seeds[id_])} for id_ in sorted(memory.seeds))
    secret = ({"secret": memory.secret.hex()},) if memory.secret else ()
    for value in (head, *agents, *seeds, *secret):
        line = _line(value)
        digest.update(line.encode())
        yield line
    yield _line({"agents": len(memory.records), "seeds": len(memory.seeds), "sha256": digest.hexdigest()})


def read_archive(lines: Iterable[str]) -> StoredState:
    """Return what an archive holds; raises StoreError, with the line, if it is damaged or incomplete."""
    reader = _Reader()
    for number, line in enumerate(lines, start=1):
        try:
            reader.read(line)
        except (KeyError, TypeError, ValueError, RecursionError) as invalid:
            raise StoreError(f"line {number} of the archive is invalid: {invalid!r}") from invalid
    return reader.result()


class _Reader:
    """Reads an archive line by line."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._records: dict[AgentId, Record] = {}
        self._seeds: dict[str, Seed] = {}
        self._secret = b""
        self._begun = False
        self._ended = False

    def read(self, line: str) -> None:
        """Read one line; raises ValueError, KeyError or TypeError if it is invalid."""
        if self._ended:
            raise ValueError("there is a line after the last one")
        value = json.loads(line)
        if not self._begun:
            self._read_head(value)
        elif "agent" in value:
            record = _record(value["agent"])
            self._records[record.agent.id] = record
        elif "seed" in value:
            self._seeds[value["seed"]["id"]] = Seed(**value["seed"])
        elif "secret" in value:
            self._secret = bytes.fromhex(value["secret"])
        else:
            self._read_end(value)
        self._digest.update(line.encode())

    def result(self) -> StoredState:
        """Return everything that was read; raises StoreError if the end is missing."""
        if not self._ended:
            raise StoreError("the archive is incomplete: its last line is missing; export the state again")
        return StoredState(self._records, self._seeds, self._secret)

    def _read_head(self, head: JsonObject) -> None:
        if head.get("format") != FORMAT:
            raise ValueError(f"expected a line with format {FORMAT!r}")
        if head["version"] != VERSION:
            raise ValueError(f"format version {head['version']} is not supported; this tunnelmgr reads {VERSION}")
        self._begun = True

    def _read_end(self, end: JsonObject) -> None:
        found = {"agents": len(self._records), "seeds": len(self._seeds), "sha256": self._digest.hexdigest()}
        for name, value in found.items():
            if end[name] != value:
                raise ValueError(f"{name} is {value}, but the archive was written with {end[name]}")
        self._ended = True


def _line(value: JsonObject) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"


def _agent_object(record: Record) -> JsonObject:
    """Return what the store keeps of a record, as JSON."""
    return {
        "id": record.agent.id,
        "incarnation": record.agent.incarnation,
        "source": record.agent.source,
        "group": record.agent.group,
        "name": record.agent.name,
        "addresses": record.agent.addresses,
        "port": record.agent.port,
        "labels": record.agent.labels,
        "first_seen": record.first_seen,
        "changed": record.changed,
        "present": record.present,
        "proved": None if record.proved is None else asdict(record.proved),
        "possessed": record.possessed,
        "quarantine": None if record.quarantine is None else asdict(record.quarantine),
        "history": [asdict(entry) for entry in record.history],
    }


def _record(value: JsonObject) -> Record:
    agent = Agent(
        id=AgentId(value["id"]),
        incarnation=value["incarnation"],
        source=value["source"],
        group=value["group"],
        name=value["name"],
        addresses=tuple(value["addresses"]),
        port=value["port"],
        labels=tuple((name, label) for name, label in value["labels"]),
    )
    proved, quarantine = value["proved"], value["quarantine"]
    if proved is not None:
        proved = HostTrust(Method(proved["method"]), tuple(proved["keys"]), proved["detail"])
    if quarantine is not None:
        quarantine = Quarantine(**{**quarantine, "disputed": tuple(quarantine["disputed"])})
    return Record(
        agent=agent,
        first_seen=value["first_seen"],
        changed=value["changed"],
        present=value["present"],
        proved=proved,
        possessed=tuple(value["possessed"]),
        quarantine=quarantine,
        history=tuple(HistoryEntry(**entry) for entry in value["history"]),
    )
