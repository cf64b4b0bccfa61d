"""Times as all outputs have them: RFC 3339 in UTC, with milliseconds."""

from datetime import UTC, datetime


def timestamp(at: float) -> str:
    """Return seconds since the epoch as RFC 3339 in UTC, with milliseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
