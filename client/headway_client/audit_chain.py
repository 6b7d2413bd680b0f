"""Checking the audit log without believing its server: every hash is computed anew from what the records say.

leaf = SHA-256 of the canonical JSON of the record (keys sorted, no white space, UTF-8); hash = SHA-256(previous hash ‖ leaf),
beginning with 32 zero bytes. docs/reference/audit.md gives the canonical form.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from headway.audit.v1.audit_service_pb2 import AuditRecord

GENESIS = bytes(32)
"""The hash before the first record."""


@dataclass(frozen=True, slots=True)
class Head:
    """A link of the chain: how many records there are up to it, and the hash over them."""

    position: int
    hash: str
    """In hex."""

    def __str__(self) -> str:
        return f"{self.position}:{self.hash}"


class BrokenChainError(Exception):
    """The log is not what was written; the message says where and how."""


def leaf_of(record: AuditRecord) -> bytes:
    """SHA-256 of what the record says, 32 bytes."""
    microseconds = record.time.nanos // 1_000
    fields = {
        "code": record.code,
        "count": record.count,
        "method": record.method,
        "object": record.object,
        "peer": record.peer,
        "principal": record.principal,
        "project": record.project,
        "reason": record.reason,
        "record_id": record.record_id,
        "request_id": record.request_id,
        "time": f"{record.time.ToDatetime():%Y-%m-%dT%H:%M:%S}.{microseconds:06}Z",
        "trace_id": record.trace_id,
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).digest()


def verify(records: Iterable[AuditRecord], expected: Iterable[Head] = ()) -> Head:
    """The head of the chain, once every record has been found to be in its place and unchanged.

    Args:
        records: all of them, in the order of the chain; records that are not linked yet are passed over.
        expected: heads that were noted earlier, or that the server states; the chain must hold each.

    Raises:
        BrokenChainError: a record was changed, removed, added or moved, or the chain is shorter than it was.
    """
    wanted: dict[int, set[str]] = {}
    for noted in expected:
        wanted.setdefault(noted.position, set()).add(noted.hash)
    head = Head(0, GENESIS.hex())
    _compare(head, wanted)
    previous = GENESIS
    for record in records:
        if record.position == 0:
            continue
        if record.position != head.position + 1:
            raise BrokenChainError(
                f"position {head.position + 1} is followed by {record.position}: a record is missing, or is not shown to you; "
                "expected every position from 1 on"
            )
        leaf = leaf_of(record)
        if leaf.hex() != record.leaf:
            raise BrokenChainError(f"the record at position {record.position} was changed: its content has another hash")
        previous = hashlib.sha256(previous + leaf).digest()
        if previous.hex() != record.hash:
            raise BrokenChainError(
                f"the chain breaks at position {record.position}: a record up to there was changed, removed or moved"
            )
        head = Head(record.position, record.hash)
        _compare(head, wanted)
    if missing := [position for position in wanted if position > head.position]:
        raise BrokenChainError(f"the chain ends at position {head.position}, but it once had {max(missing)}")
    return head


def _compare(head: Head, wanted: Mapping[int, Set[str]]) -> None:
    if others := wanted.get(head.position, frozenset()) - {head.hash}:
        raise BrokenChainError(
            f"position {head.position} has the hash {head.hash}, but was noted with {min(others)}: the log was written anew"
        )
