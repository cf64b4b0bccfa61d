"""What holds after every step of a walk."""

import math

from tests.core.walks.performer import Performer
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.reconcile import next_due, plan
from tunnelmgr.core.tunnel import Phase, Resting, Working
from tunnelmgr.core.world import resting_phase


def check(performer: Performer) -> None:
    """Check the invariants."""
    keys_are_held(performer)
    statuses_agree_with_records(performer)
    waiting_ends_with_something_to_do(performer)


def keys_are_held(performer: Performer) -> None:
    """No two agents that are free claim one key, and the key's holder is the one that does."""
    free: dict[str, AgentId] = {}
    for id_, record in performer.world.records.items():
        if record.present and record.quarantine is None:
            for one in record.possessed or (record.trust.keys if record.trust else ()):
                assert one not in free
                free[one] = id_
    assert free.items() <= performer.world.key_holders.items()
    for one in performer.world.key_holders.keys() - free.keys():
        record = performer.world.records[performer.world.key_holders[one]]
        assert record.present
        assert record.quarantine is not None
        assert one in {*record.possessed, *record.quarantine.disputed}


def statuses_agree_with_records(performer: Performer) -> None:
    """Require a worker or a search for each agent that does not rest in the phase that its record gives."""
    for id_, status in performer.world.tunnels.items():
        record = performer.world.records[id_]
        assert isinstance(status, Resting) == (id_ not in performer.under_way())
        if isinstance(status, Resting):
            assert record.present
            assert status.phase is resting_phase(record)
            assert record.quarantine is None or status.error == record.quarantine.code
        elif isinstance(status, Working):
            assert status.life == performer.workers[id_].life
            assert status.phase in {Phase.CONNECTING, Phase.UP, Phase.DRAINING}
    assert performer.under_way() <= performer.world.tunnels.keys()


def waiting_ends_with_something_to_do(performer: Performer) -> None:
    """Sleep only until a time that brings an action, and never past one."""
    if performer.batching:
        return
    due = next_due(performer.world)
    if due is None:
        assert plan(performer.world, math.inf) == ()
    else:
        assert plan(performer.world, max(due, performer.now)) != ()
