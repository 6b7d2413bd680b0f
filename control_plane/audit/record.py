"""An audit record and its hashes.

leaf = SHA-256 of the canonical JSON of the record's fields (keys sorted, no white space, UTF-8);
hash = SHA-256(previous hash ‖ leaf), beginning with 32 zero bytes (Haber and Stornetta, "How to time-stamp a digital
document", 1991).
"""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

GENESIS = bytes(32)
"""The hash before the first record."""


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """What is on record of a call, or of `count` like calls."""

    record_id: str
    created_at: datetime
    principal: str
    method: str
    project: str
    object: str
    code: str
    reason: str
    request_id: str
    trace_id: str
    peer: str
    count: int = 1

    def leaf(self) -> bytes:
        """SHA-256 of the canonical form, 32 bytes."""
        fields = {
            "code": self.code,
            "count": self.count,
            "method": self.method,
            "object": self.object,
            "peer": self.peer,
            "principal": self.principal,
            "project": self.project,
            "reason": self.reason,
            "record_id": self.record_id,
            "request_id": self.request_id,
            # Microseconds are what the database keeps.
            "time": self.created_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "trace_id": self.trace_id,
        }
        return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).digest()


@dataclass(frozen=True, slots=True)
class Entry:
    """What a record tells, before it has an id and a time; the fields are those of `AuditRecord`."""

    method: str
    code: str
    reason: str
    principal: str = ""
    project: str = ""
    object: str = ""
    request_id: str = ""
    trace_id: str = ""
    peer: str = ""
    count: int = 1

    def at(self, now: datetime) -> AuditRecord:
        """The record, as of now."""
        return AuditRecord(
            record_id=new_record_id(),
            created_at=now,
            principal=self.principal,
            method=self.method,
            project=self.project,
            object=self.object,
            code=self.code,
            reason=self.reason,
            request_id=self.request_id,
            trace_id=self.trace_id,
            peer=self.peer,
            count=self.count,
        )


def chained(previous: bytes, leaf: bytes) -> bytes:
    """The hash of the link that adds `leaf`, 32 bytes."""
    return hashlib.sha256(previous + leaf).digest()


def new_record_id() -> str:
    """A UUID for a record."""
    return str(uuid.uuid4())
