"""Numbers as people read them: bytes, times, cores. What is not known is a dash, never 0."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["UNKNOWN", "bytes_text", "cpus_text", "duration_text", "rate_text", "since_text", "uptime_text"]

UNKNOWN = "–"


def cpus_text(cpus: Sequence[int]) -> str:
    """Cores as a list of ranges, the form that `taskset -c` takes: 0-3,6."""
    if not cpus:
        return "any"
    ranges: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def bytes_text(size_bytes: float | None) -> str:
    """Three digits and a binary unit."""
    if size_bytes is None:
        return UNKNOWN
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    unit = 0
    while size_bytes >= 1000 and unit < len(units) - 1:
        size_bytes /= 1024
        unit += 1
    return f"{size_bytes:.0f} {units[unit]}" if unit == 0 or size_bytes >= 10 else f"{size_bytes:.1f} {units[unit]}"


def duration_text(duration_us: float | None) -> str:
    """Microseconds, milliseconds or seconds, whichever has the fewest digits."""
    if duration_us is None:
        return UNKNOWN
    for limit, divisor, unit in ((1e3, 1.0, "µs"), (1e6, 1e3, "ms")):
        if duration_us < limit:
            value = duration_us / divisor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{duration_us / 1e6:.1f} s"


def since_text(seconds: float | None) -> str:
    """How long something has been so."""
    if seconds is None:
        return UNKNOWN
    return uptime_text(seconds) if seconds >= 100 else duration_text(seconds * 1e6)


def rate_text(per_s: float | None) -> str:
    """Of something a second."""
    return UNKNOWN if per_s is None else f"{per_s:,.0f}"


def uptime_text(uptime_s: float) -> str:
    """Hours, minutes, seconds; hours only when there are any."""
    minutes, seconds = divmod(int(uptime_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"
