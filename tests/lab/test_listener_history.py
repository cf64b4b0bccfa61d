"""What is concluded from looks at the agents' listeners."""

from lab.listener_history import Change, Gap, ListenerHistory

HERE, LOOPBACK6 = "127.0.0.1", "::1"


def test_a_gap_lasts_from_the_last_look_before_it_to_the_first_after_it() -> None:
    """The seconds without a listener are never counted too short, and nothing before the first listener is a gap."""
    history = ListenerHistory(
        [
            Change(7, HERE, None, at=0.0, last=0.0),
            Change(7, HERE, "one", at=1.0, last=0.98),
            Change(7, HERE, None, at=2.0, last=1.98),
            Change(7, HERE, "two", at=2.04, last=2.02),
        ],
        now=9.0,
    )

    assert history.gaps(1.0, 9.0) == [Gap(7, 1.98, 2.04)]
    assert history.gaps(2.0, 9.0) == []


def test_a_gap_that_has_not_ended_lasts_until_now() -> None:
    """An agent that nobody serves at the end has a gap, and is not listed as served."""
    history = ListenerHistory([Change(7, HERE, "one", 1.0, 0.98), Change(7, HERE, None, 2.0, 1.98)], now=9.0)

    assert history.gaps(0.0, 9.0) == [Gap(7, 1.98, 9.0)]
    assert history.listening() == {}


def test_a_change_of_the_listener_between_two_looks_is_not_a_gap() -> None:
    """If every look found a listener, no gap was observed, and each member's time ends with its last look."""
    history = ListenerHistory([Change(7, HERE, "one", 1.0, 0.98), Change(7, HERE, "two", 2.0, 1.98)], now=9.0)

    assert history.gaps(0.0, 9.0) == []
    assert [(stay.member, stay.since, stay.until) for stay in history.stays()] == [
        ("one", 1.0, 1.98),
        ("two", 2.0, 9.0),
    ]
    assert history.overlaps() == []


def test_two_members_on_two_addresses_of_one_agent_are_an_overlap() -> None:
    """One member on 127.0.0.1 and another one on ::1 is found; on two agents, or for a moment, it is allowed."""
    changes = [
        Change(7, HERE, "one", 1.0, 0.98),
        Change(7, LOOPBACK6, "one", 1.0, 0.98),
        Change(8, HERE, "two", 1.0, 0.98),
        Change(7, HERE, "two", 2.0, 1.98),
        Change(7, LOOPBACK6, "two", 3.02, 3.0),
    ]
    handover = [*changes[:4], Change(7, LOOPBACK6, "two", 2.04, 2.02)]

    (pair,) = ListenerHistory(changes, now=9.0).overlaps()

    assert {(stay.member, stay.address) for stay in pair} == {("two", HERE), ("one", LOOPBACK6)}
    assert ListenerHistory(changes[:3], now=9.0).overlaps() == []
    assert ListenerHistory(handover, now=9.0).overlaps() == []


def test_an_answer_fits_every_member_that_may_have_listened_then() -> None:
    """Between two looks both the former and the next listener may have answered."""
    history = ListenerHistory([Change(7, HERE, "one", 1.0, 0.98), Change(7, HERE, "two", 2.0, 1.98)], now=9.0)

    assert history.members(7, 1.5, 1.6) == {"one"}
    assert history.members(7, 1.99, 1.99) == {"one", "two"}
    assert history.members(7, 2.5, 2.6) == {"two"}
    assert history.listening() == {7: {HERE: "two"}}
