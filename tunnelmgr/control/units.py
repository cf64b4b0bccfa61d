"""Durations and sizes as people read them."""


def duration(seconds: float) -> str:
    """Return a duration in at most two units."""
    whole = int(seconds)
    for unit, length, inner, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= length:
            return f"{whole // length}{unit}{whole % length // part:02d}{inner}"
    return f"{whole}s"


def size(octets: int) -> str:
    """Return a number of bytes in binary units."""
    value = float(octets)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:  # noqa: PLR2004 - the step between binary units
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
