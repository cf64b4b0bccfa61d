"""What must hold of a cluster in which faults were caused, and whether it did."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from cluster_faults import FAULTS, Fault
from figures import percentile
from watched_cluster import WatchedCluster

from lab.listener_history import ListenerHistory

ASK_WINDOW = 0.02
"""Seconds after the beginning of a request within which its connection is established."""
HEADS = ("fault", "times", "agents", "with a gap", "p50, s", "p99, s", "longest, s", "bound, s", "verdict")


@dataclass(frozen=True)
class Occurrence:
    """One fault that was caused, from its beginning until every agent was served again; `problem` says if not."""

    fault: Fault
    began: float
    ended: float
    problem: str = ""


@dataclass(frozen=True)
class Verdict:
    """Something that must hold, and what was found."""

    what: str
    holds: bool
    found: str

    def __str__(self) -> str:
        """Return a line for the terminal."""
        return f"{'holds ' if self.holds else 'BROKEN'}  {self.what}: {self.found}"


@dataclass
class FaultFigures:
    """The gaps of all occurrences of one fault; `slack` is the factor of its bound."""

    fault: Fault
    occurrences: Sequence[Occurrence]
    history: ListenerHistory
    agents: int
    slack: float

    @cached_property
    def each(self) -> list[list[float]]:
        """The seconds of every agent's longest gap in each occurrence, 0 for an agent without one."""
        found = []
        for one in self.occurrences:
            longest = dict.fromkeys(range(self.agents), 0.0)
            for gap in self.history.gaps(one.began, one.ended):
                longest[gap.agent] = max(longest[gap.agent], gap.seconds)
            found.append(list(longest.values()))
        return found

    @property
    def bound(self) -> str:
        """What the fault may cost, in words."""
        if not self.fault.bound:
            return "no gap"
        what = "longest" if self.fault.share == 1 else f"p{self.fault.share * 100:.0f}"
        return f"{what} ≤ {self.slack * self.fault.bound:g}{' at its end' if self.fault.quiet else ''}"

    def verdict(self) -> Verdict:
        """Return whether the bound held each time, and not on the average only."""
        worst = max(percentile(seconds, self.fault.share) for seconds in self.each)
        early = [gap for one in self.occurrences for gap in self.history.gaps(one.began, one.began + self.fault.quiet)]
        found = f"{worst:.3f} s" + (f", {len(early)} gaps before its end" if self.fault.quiet else "")
        return Verdict(f"{self.fault.name}, {self.bound}", worst <= self.slack * self.fault.bound and not early, found)

    def row(self) -> list[str]:
        """Return the line of the table."""
        everyone = [gap for seconds in self.each for gap in seconds]
        counts = [len(self.occurrences), self.agents, sum(gap > 0 for gap in everyone)]
        figures = [percentile(everyone, 0.5), percentile(everyone, 0.99), max(everyone)]
        verdict = "holds" if self.verdict().holds else "BROKEN"
        return [self.fault.name, *map(str, counts), *(f"{one:.3f}" for one in figures), self.bound, verdict]


def figures(site: WatchedCluster, occurrences: Sequence[Occurrence], slack: float) -> list[FaultFigures]:
    """Return the figures of each fault that was caused."""
    history = site.history()
    return [
        FaultFigures(fault, mine, history, len(site.fleet), slack)
        for fault in FAULTS
        if (mine := [one for one in occurrences if one.fault is fault])
    ]


def verdicts(site: WatchedCluster, occurrences: Sequence[Occurrence], before: dict[str, object]) -> Iterator[Verdict]:
    """Yield what must hold of the whole run; `before` is the evidence from before the first fault."""
    history = site.history()
    yield one_listens(history)
    problems = "; ".join(one.problem for one in occurrences if one.problem)
    yield Verdict("every agent is served by the holder of its lease", not problems, problems or "after each fault")
    quarantined, wrong = site.quarantined(), [site.fleet[-1].name]
    yield Verdict("the agent with a wrong key is quarantined, and no other", quarantined == wrong, str(quarantined))
    after = site.evidence()
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    found = f"changed: {changed}" if changed else f"{len(after)} compared"
    yield Verdict("pins, quarantines and seeds are as before", not changed, found)
    yield whole_pulls(site, occurrences)
    yield agreeing_answers(site, history)


def one_listens(history: ListenerHistory) -> Verdict:
    """Return whether no two members ever listened on one agent at one time."""
    overlaps, stays = history.overlaps(), sum(1 for _ in history.stays())
    shown = [
        f"agent {one.agent}: {one.member} on {one.address} and {two.member} on {two.address} for "
        f"{min(one.until, two.until) - max(one.since, two.since):.3f} s"
        for one, two in overlaps[:3]
    ]
    found = f"{len(overlaps)} times, such as {'; '.join(shown)}" if overlaps else f"always, in {stays} listeners"
    return Verdict("one member at a time listens on an agent", not overlaps, found)


def whole_pulls(site: WatchedCluster, occurrences: Sequence[Occurrence]) -> Verdict:
    """Return whether the pulls that were under way in planned events, and in no other, arrived whole."""
    planned, broken = 0, 0
    for one in site.pulls():
        began, ended = float(str(one["began"])), float(str(one["ended"]))
        kinds = {two.fault.planned for two in occurrences if began <= two.ended and two.began <= ended}
        if kinds == {True} and one["saw"] not in {"refused", "unanswered"}:
            planned += 1
            broken += one["saw"] != "whole"
    found = f"{planned - broken} of {planned}"
    return Verdict("pulls under way in planned events arrive whole", not broken, found)


def agreeing_answers(site: WatchedCluster, history: ListenerHistory) -> Verdict:
    """Return whether each answer came from a member that listened on the agent at that time."""
    addresses = {name: ip for ip, name in site.cluster.addresses.items()}
    right, failed, wrong = 0, 0, []
    for agent, one in site.answers():
        began, saw = float(str(one["began"])), str(one["saw"])
        if not site.started <= began <= history.now - ASK_WINDOW:
            continue
        if saw not in addresses:
            failed += 1
        elif addresses[saw] in history.members(agent, began, began + ASK_WINDOW):
            right += 1
        else:
            wrong.append(f"agent {agent}: {saw}")
    found = f"{right} agree, {len(wrong)} do not {wrong[:3] or ''}; {failed} requests were refused or cut"
    return Verdict("answers come from the member that listens", not wrong and right > 0, found)
