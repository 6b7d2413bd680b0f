"""Checking the chain anew, record by record, from nothing but the records and a head that was kept elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from control_plane.audit.record import GENESIS, AuditRecord, chained


@dataclass(frozen=True, slots=True)
class Link:
    """A record in its place, as the log shows it."""

    position: int
    record: AuditRecord
    leaf: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """A place in the chain and the hash there; the beginning is 0 and 32 zero bytes."""

    position: int = 0
    hash: bytes = GENESIS


BEGINNING = Head()


@dataclass(frozen=True, slots=True)
class Fault:
    """Where the log does not hold, and why."""

    position: int
    problem: str


def verify(links: Iterable[Link], *, start: Head = BEGINNING, expected: Head | None = None) -> Fault | None:
    """The first fault of a chain; None: it holds.

    Finds a record that was edited, removed, added or moved; with `expected`, also an end that was cut off, or a history that
    was written anew from some point on.

    Args:
        links: by position, beginning after `start`.
        start: what is taken for granted.
        expected: a head that was noted earlier, outside the database.
    """
    position, previous = start.position, start.hash
    for link in links:
        if link.position != position + 1:
            return Fault(position + 1, f"is missing or out of order: after {position} comes {link.position}")
        position = link.position
        if link.record.leaf() != link.leaf:
            return Fault(position, f"was changed: record {link.record.record_id} does not have the hash written with it")
        previous = chained(previous, link.leaf)
        if previous != link.hash:
            return Fault(position, "does not follow from the records before it: one of them was changed, or the hash itself")
        if expected is not None and position == expected.position and previous != expected.hash:
            return Fault(position, "is not the record that stood here when the head was noted: history was written anew")
    if expected is not None and position < expected.position:
        return Fault(
            position + 1, f"is missing: the log ends at {position}, and had {expected.position} when the head was noted"
        )
    return None
