"""The client's own check of the audit log: it computes what the server computes, and finds every kind of tampering."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.audit import record as server
from headway.audit.v1 import audit_service_pb2 as pb
from headway_client import audit_chain
from headway_client.audit_chain import BrokenChainError, Head, verify

_TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)
_RECORDS = st.builds(
    server.AuditRecord,
    record_id=st.uuids().map(str),
    created_at=st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC)),  # noqa: DTZ001  hypothesis wants them so
    **dict.fromkeys(("principal", "method", "project", "object", "code", "reason", "request_id", "trace_id", "peer"), _TEXT),
    count=st.integers(1, 2**60),
)


def message(record: server.AuditRecord) -> pb.AuditRecord:
    found = pb.AuditRecord(
        principal=record.principal,
        method=record.method,
        project=record.project,
        object=record.object,
        code=record.code,
        reason=record.reason,
        request_id=record.request_id,
        trace_id=record.trace_id,
        peer=record.peer,
        count=record.count,
        record_id=record.record_id,
        leaf=record.leaf().hex(),
    )
    found.time.FromDatetime(record.created_at)
    return found


@given(_RECORDS)
def test_client_and_server_compute_the_same_hash(record: server.AuditRecord) -> None:
    assert audit_chain.leaf_of(message(record)) == record.leaf()


def chain(length: int) -> list[pb.AuditRecord]:
    """Records linked as the server links them."""
    linked: list[pb.AuditRecord] = []
    previous = server.GENESIS
    for number in range(length):
        record = server.AuditRecord(
            f"id-{number}", datetime(2026, 1, 1, 0, 0, number, tzinfo=UTC), *("who", "m", "p", "o", "OK", "", "", "", "peer")
        )
        previous = server.chained(previous, record.leaf())
        found = message(record)
        found.position, found.hash = number + 1, previous.hex()
        linked.append(found)
    return linked


def test_a_whole_chain_is_verified_up_to_its_head() -> None:
    records = chain(5)
    head = verify([*records, pb.AuditRecord(principal="not linked yet")], [Head(3, records[2].hash), Head(5, records[4].hash)])
    assert head == Head(5, records[4].hash)
    assert verify([]) == Head(0, "0" * 64) == Head(0, server.GENESIS.hex())


def test_a_changed_record_is_found() -> None:
    records = chain(5)
    records[2].principal = "somebody else"
    with pytest.raises(BrokenChainError, match="position 3 was changed"):
        verify(records)


def test_a_changed_record_with_a_fitting_leaf_is_found() -> None:
    records = chain(5)
    records[2].principal = "somebody else"
    records[2].leaf = audit_chain.leaf_of(records[2]).hex()
    with pytest.raises(BrokenChainError, match="breaks at position 3"):
        verify(records)


def test_a_removed_record_is_found() -> None:
    records = chain(5)
    del records[1]
    with pytest.raises(BrokenChainError, match="position 2 is followed by 3"):
        verify(records)


def test_records_that_changed_places_are_found() -> None:
    records = chain(5)
    records[1].position, records[2].position = 3, 2
    with pytest.raises(BrokenChainError, match="breaks at position 2"):
        verify([records[0], records[2], records[1], *records[3:]])


def test_a_shortened_chain_is_found_by_a_head_noted_before() -> None:
    records = chain(5)
    assert verify(records[:3]).position == 3
    with pytest.raises(BrokenChainError, match="ends at position 3, but it once had 5"):
        verify(records[:3], [Head(5, records[4].hash)])


def test_a_log_that_was_written_anew_is_found_by_a_head_noted_before() -> None:
    noted = Head(4, chain(5)[3].hash)
    records = chain(2)
    for _ in range(3):
        record = pb.AuditRecord(position=len(records) + 1, principal="forged")
        leaf = audit_chain.leaf_of(record)
        record.leaf, record.hash = leaf.hex(), server.chained(bytes.fromhex(records[-1].hash), leaf).hex()
        records.append(record)
    assert verify(records).position == 5
    with pytest.raises(BrokenChainError, match="written anew"):
        verify(records, [noted])
    # What the server states of the same place does not outweigh what was noted.
    with pytest.raises(BrokenChainError, match="written anew"):
        verify(records, [noted, Head(4, records[3].hash)])
