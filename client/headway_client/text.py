"""Values as text for people: times, durations, numbers, and text from elsewhere made safe for a terminal."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp


def printable(text: str) -> str:
    """`text` with control characters shown instead of sent: text from a job must not steer the reader's terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def one_line(text: str, width: int = 0) -> str:
    """`text` on one line, cut to `width` characters if that is above 0."""
    line = printable(" ".join(text.split()))
    return line if not 0 < width < len(line) else f"{line[: width - 1]}…"


def duration(seconds: float) -> str:
    """Such as "4.2 s", "3:05" or "2:00:01"."""
    if seconds < 59.95:
        return f"{max(seconds, 0.0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def local_time(timestamp: Timestamp, with_date: bool = False) -> str:
    """In the reader's time zone."""
    moment = timestamp.ToDatetime(tzinfo=UTC).astimezone()
    return f"{moment:%Y-%m-%d %H:%M:%S}" if with_date else f"{moment:%H:%M:%S}"


def seconds_between(start: Timestamp, end: Timestamp) -> float:
    """From `start` to `end`."""
    return (end.ToNanoseconds() - start.ToNanoseconds()) / 1e9


def seconds_since(start: Timestamp) -> float:
    """From `start` until now, by this machine's clock."""
    return datetime.now(UTC).timestamp() - start.ToNanoseconds() / 1e9


def size(count: float) -> str:
    """Bytes, such as "98.1 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("the loop returns")


def money(micros: int) -> str:
    """Millionths of the currency to a hundredth of it, such as "1,234.50"."""
    return f"{micros / 1_000_000:,.2f}"


def hours(milliseconds: int) -> str:
    """Accelerator-milliseconds as hours, such as "12.50"."""
    return f"{milliseconds / 3_600_000:,.2f}"
