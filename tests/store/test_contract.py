"""What every kind of store promises: the same content comes back from SQLite and from PostgreSQL."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store.records import AGENT, KEY, RECORD, proved
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.persistence import Changes, StoredState
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.world import Quarantine
from tunnelmgr.errors import StoreError
from tunnelmgr.store.connect import Store, open_store

Open = Callable[[], Store]
SEED = Seed("one", KEY, 9.5)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.acceptance)])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Open the state again each time that this is called."""
    place = f"sqlite:///{tmp_path}/state.db" if request.param == "sqlite" else request.getfixturevalue("url")
    return lambda: open_store(place, "registry-1")


@pytest.fixture
def store(reopen: Open) -> Iterator[Store]:
    """Open a new state."""
    with closing(reopen()) as opened:
        yield opened


@pytest.fixture
def kept(store: Store, reopen: Open) -> Callable[[], StoredState]:
    """Return what a later start finds."""

    def kept() -> StoredState:
        store.close()
        with closing(reopen()) as again:
            return again.load()

    return kept


def test_a_new_state_is_empty(store: Store) -> None:
    """A new state holds neither agents nor seeds, only its secret."""
    found = store.load()

    assert found == StoredState(secret=found.secret)


def test_the_secret_is_made_at_the_first_start_and_stays(store: Store, kept: Callable[[], StoredState]) -> None:
    """A new state makes a secret of 32 bytes, which every later start finds."""
    secret = store.load().secret

    store.write(Changes((RECORD,)))

    assert len(secret) == 32
    assert kept().secret == secret


def test_a_secret_can_be_replaced(store: Store, kept: Callable[[], StoredState]) -> None:
    """An imported secret replaces the one that the state has made."""
    store.write(Changes(secret=b"imported"))

    assert kept().secret == b"imported"


def test_the_secret_is_not_printed(store: Store) -> None:
    """Neither what is read nor what is written shows the secret, as a log or a traceback may print it."""
    state = store.load()
    changes = Changes(secret=state.secret)

    assert "secret" not in repr(state) + repr(changes)
    assert repr(state.secret) not in repr(state) + repr(changes) + repr(vars(store))


def test_a_record_comes_back_as_it_was(store: Store, kept: Callable[[], StoredState]) -> None:
    """An agent with its addresses, labels, times and history is read as it was written."""
    store.write(Changes((RECORD,)))

    assert kept().records == {AGENT.id: RECORD}


def test_a_record_is_replaced_as_a_whole(store: Store, kept: Callable[[], StoredState]) -> None:
    """A second write of an agent replaces everything that the first one wrote, but for its first appearance."""
    store.write(Changes((replace(proved(Method.CONSOLE), quarantine=Quarantine(1.0, "code", "why")),)))
    moved = replace(RECORD, agent=replace(AGENT, name="other", addresses=(), port=22, labels=()), changed=9.0)

    store.write(Changes((moved,)))

    assert kept().records == {AGENT.id: moved}


def test_an_agent_that_has_left_comes_back_as_that(store: Store, kept: Callable[[], StoredState]) -> None:
    """An agent that had left is not present after a restart."""
    store.write(Changes((replace(RECORD, present=False),)))

    assert not kept().records[AGENT.id].present


def test_a_quarantine_comes_back_and_goes_with_its_release(store: Store, kept: Callable[[], StoredState]) -> None:
    """A quarantine keeps its reason, its time, and what a handshake may still decide; a release removes it."""
    mark = Quarantine(3.5, "host-key-shared", "claimed by two", disputed=(KEY,), examined=True)
    store.write(Changes((replace(RECORD, quarantine=mark),)))
    written = store.load().records[AGENT.id].quarantine

    store.write(Changes((RECORD,)))

    assert written == mark
    assert kept().records[AGENT.id].quarantine is None


@pytest.mark.parametrize("method", [Method.CONSOLE, Method.TOFU])
def test_evidence_comes_back(store: Store, kept: Callable[[], StoredState], method: Method) -> None:
    """What proved an agent is kept with the method and the keys."""
    store.write(Changes((proved(method),)))

    assert kept().records[AGENT.id].proved == HostTrust(method, (KEY,))


def test_the_keys_that_an_agent_has_presented_come_back(store: Store, kept: Callable[[], StoredState]) -> None:
    """The keys that an agent has shown in a handshake are kept, so that a later claim cannot harm it."""
    store.write(Changes((replace(proved(Method.AUTHORITY), possessed=(KEY,)),)))

    assert kept().records[AGENT.id].possessed == (KEY,)


def test_a_pin_goes_with_a_rebuild(store: Store, kept: Callable[[], StoredState]) -> None:
    """A new incarnation has to be proved again."""
    store.write(Changes((proved(Method.CONSOLE),)))

    store.write(Changes((replace(RECORD, agent=replace(AGENT, incarnation="2")),)))

    assert kept().records[AGENT.id].proved is None


def test_a_forgotten_agent_leaves_nothing(store: Store, kept: Callable[[], StoredState]) -> None:
    """An agent that comes back after it was forgotten has neither its pin nor its quarantine."""
    store.write(Changes((replace(proved(Method.TOFU), quarantine=Quarantine(1.0, "x", "y")),)))

    store.write(Changes(forgotten=(AGENT.id,)))
    store.write(Changes((RECORD,)))

    assert kept().records == {AGENT.id: RECORD}


def test_seeds_come_back_until_they_are_spent(store: Store, kept: Callable[[], StoredState]) -> None:
    """A seed is kept with its holder, and removed when it is spent."""
    taken = replace(SEED, holder=AGENT.id, incarnation="1")
    store.write(Changes(seeds=(SEED, Seed("two", KEY, 1.0))))

    store.write(Changes(seeds=(taken,), spent=("two",)))

    assert kept().seeds == {"one": taken}


@pytest.mark.parametrize("odd", ["a\ud800b", "a\0b"])
def test_text_that_a_database_cannot_hold_is_replaced(store: Store, kept: Callable[[], StoredState], odd: str) -> None:
    """A lone surrogate or a NUL in a name, a reason or a detail does not keep the rest from being written."""
    record = replace(
        RECORD,
        agent=replace(AGENT, name=odd),
        quarantine=Quarantine(1.0, "code", odd),
        proved=HostTrust(Method.CONSOLE, (KEY,), odd),
    )

    store.write(Changes((record,)))

    found = kept().records[AGENT.id]
    assert (found.agent.name, found.quarantine and found.quarantine.message) == ("a?b", "a?b")


def test_an_id_that_a_database_cannot_hold_is_an_error(store: Store) -> None:
    """An id that is not valid Unicode is an error of the store, and the next write succeeds."""
    with pytest.raises(StoreError, match="surrogates not allowed"):
        store.write(Changes((RECORD, replace(RECORD, agent=replace(AGENT, id=AgentId("x:\ud800"))))))

    assert store.load().records == {}
    store.write(Changes((RECORD,)))


def test_a_fleet_is_written_in_one_go(store: Store, kept: Callable[[], StoredState]) -> None:
    """A thousand agents, each with a pin or a quarantine, are written by one call and come back."""
    fleet = {
        AgentId(f"ec2:i-{number}"): replace(
            proved(Method.CONSOLE) if number % 2 else replace(RECORD, quarantine=Quarantine(1.0, "x", "y")),
            agent=replace(AGENT, id=AgentId(f"ec2:i-{number}")),
        )
        for number in range(1000)
    }

    store.write(Changes(tuple(fleet.values())))

    assert kept().records == {id_: replace(record, trust=None) for id_, record in fleet.items()}
