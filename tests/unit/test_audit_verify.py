"""Whatever is done to a log behind its back, verifying it finds the place; what was not touched holds."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from control_plane.audit.record import GENESIS, AuditRecord, Entry, chained
from control_plane.audit.verify import BEGINNING, Fault, Head, Link, verify

NOW = datetime(2026, 5, 4, 3, 2, 1, 987_654, UTC)


def _chain(length: int, start: Head = BEGINNING, salt: str = "") -> list[Link]:
    links: list[Link] = []
    previous = start.hash
    for position in range(start.position + 1, start.position + 1 + length):
        entry = Entry(f"headway.jobs.v1.JobService/SubmitJob{salt}", "OK", "", principal="service:a", object=f"job {position}")
        record = entry.at(NOW + timedelta(seconds=position))
        previous = chained(previous, record.leaf())
        links.append(Link(position, record, record.leaf(), previous))
    return links


def _head(links: list[Link]) -> Head:
    return Head(links[-1].position, links[-1].hash)


def test_a_log_that_was_left_alone_holds_from_any_place_on() -> None:
    links = _chain(20)
    assert verify(links) is None
    assert verify(links, expected=_head(links)) is None
    assert verify(links, expected=_head(links[:7])) is None
    assert verify(links[7:], start=_head(links[:7]), expected=_head(links)) is None
    assert verify([], expected=Head(0, GENESIS)) is None


@pytest.mark.parametrize("field", [name for name in AuditRecord.__slots__ if name not in {"created_at", "count"}])
def test_every_field_is_covered(field: str) -> None:
    links = _chain(5)
    record = replace(links[2].record, **{field: "other"})  # pyright: ignore[reportArgumentType] - the names are those of texts
    fault = verify([*links[:2], replace(links[2], record=record), *links[3:]])
    assert isinstance(fault, Fault)
    assert fault.position == 3
    # Nor does it help to write the hash that goes with it, as long as the chain is what it was.
    forged = replace(links[2], record=record, leaf=record.leaf())
    assert verify([*links[:2], forged, *links[3:]]) is not None


def test_time_and_count_are_covered_too() -> None:
    links = _chain(3)
    for changed in (
        replace(links[1].record, created_at=NOW + timedelta(microseconds=1)),
        replace(links[1].record, count=2),
    ):
        assert verify([links[0], replace(links[1], record=changed), links[2]]) is not None


@pytest.mark.parametrize("place", range(5))
def test_a_record_removed_is_missed(place: int) -> None:
    links = _chain(5)
    fault = verify(links[:place] + links[place + 1 :], expected=_head(links))
    assert fault is not None
    assert fault.position == place + 1


def test_records_that_changed_places_are_found() -> None:
    links = _chain(5)
    swapped = [*links[:1], replace(links[2], position=2), replace(links[1], position=3), *links[3:]]
    assert verify(swapped) is not None
    assert verify([links[1], links[0], *links[2:]]) is not None


def test_an_end_cut_off_is_seen_only_by_who_noted_the_head() -> None:
    links = _chain(5)
    assert verify(links[:3]) is None
    fault = verify(links[:3], expected=_head(links))
    assert fault is not None
    assert fault.position == 4


def test_a_history_written_anew_is_seen_by_who_noted_a_head() -> None:
    links = _chain(6)
    forged = links[:3] + _chain(3, _head(links[:3]), salt="!")
    assert verify(forged) is None
    assert verify(forged, expected=_head(links)) is not None
    assert verify(forged, expected=_head(links[:4])) is not None
