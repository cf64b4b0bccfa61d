"""The events that a part under test has reported."""

from tunnelmgr.core.events import Event


class RecordedEvents(list[Event]):
    """A list of events that takes them as the controller does."""

    def report(self, event: Event) -> None:
        """Add an event."""
        self.append(event)
