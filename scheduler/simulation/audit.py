"""The record of every round as JSON lines, and the replay that finds where a second run first differs.

The first line is the scenario; each further one a round: its virtual time, the digest of the snapshot it was given, and what
it decided. A digest depends on what is in the snapshot and not on the order in which it stands there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

from scheduler.core.planner import plan
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import Plan, QueueNode, Waiting
from scheduler.simulation.engine import Observer, Planner, Round
from scheduler.simulation.running import run_scenario
from scheduler.simulation.scenario import Scenario, scenario_of

FORMAT = 1

_DIGEST_BITS = 128


class AuditError(Exception):
    """A file is not an audit; the text names the line and what was expected."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first place where a replay differs from its record."""

    line: int
    """Of the file, from 1."""
    field: str
    """Of the record: "decisions.grants[3]"; empty: one of the two has no further round."""
    recorded: Any
    replayed: Any


class SnapshotDigest:
    """Digests snapshots of one run; what stays from one to the next is hashed once.

    The sum of the parts' hashes (Bellare and Micciancio, 1997): a fingerprint against mistakes, not against forgery.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[object, int]] = {}

    def __call__(self, snapshot: Snapshot) -> str:
        """Hexadecimal."""
        before, self._known = self._known, {}
        total = 0
        for kind, parts, name_of in _parts(snapshot):
            for part in parts:
                key = (kind, name_of(part))
                known = before.get(key)
                if known is None or known[0] is not part:
                    known = (part, _hash(kind, part))
                self._known[key] = known
                total += known[1]
        rest = (snapshot.brakes, sorted(snapshot.admitted.items()), snapshot.database_started, snapshot.carried_over)
        return f"{(total + _hash('rest', rest)) % (1 << _DIGEST_BITS):032x}"


def _parts(snapshot: Snapshot) -> Iterator[tuple[str, Iterable[Any], Callable[[Any], str]]]:
    yield "request", snapshot.requests, lambda request: request.request_id
    yield "job", snapshot.jobs, lambda job: job.job_id
    yield "lease", snapshot.leases, lambda lease: lease.lease_id
    yield "pool", snapshot.pools, lambda pool: pool.name
    yield "node", snapshot.nodes, lambda node: node.name
    yield "queue", snapshot.tree, lambda queue: queue.name


def _hash(kind: str, part: object) -> int:
    if isinstance(part, QueueNode):
        part = (sorted(part.quotas.items()), part.name, part.parent, part.weight, part.past_use, part.budget, part.demoted)
    return int.from_bytes(hashlib.sha256(f"{kind}:{part!r}".encode()).digest()[: _DIGEST_BITS // 8])


def decisions(decided: Plan) -> dict[str, Any]:
    """A plan as plain values, with what waits as codes and a digest of all numbers."""
    waiting = {
        "requests": [_waiting(group) for group in decided.waiting_requests],
        "jobs": [_waiting(group) for group in decided.waiting_jobs],
    }
    return {
        "ends": [[end.lease_id, end.cause.name] for end in decided.ends],
        "grants": [[grant.request.request_id, grant.pool, _placed(grant.placement), grant.cost] for grant in decided.grants],
        "refusals": [[refusal.request.request_id, str(refusal.reason)] for refusal in decided.refusals],
        "preemptions": [[each.lease_id, each.request_id, each.lost_ms] for each in decided.preemptions],
        "claims": [[claim.request_id, _placed(claim.placement)] for claim in decided.claims],
        "reservations": [[each.request_id, each.pool, each.starts, _placed(each.placement)] for each in decided.reservations],
        "admissions": [job.job_id for job in decided.admissions],
        "waiting": waiting,
        "carried_over": len(decided.carried_over),
    }


def _placed(placement: Iterable[tuple[str, int]]) -> list[list[str | int]]:
    return [[node, members] for node, members in placement]


def _waiting(waiting: Waiting) -> list[Any]:
    group = waiting.group
    digest = f"{_hash('waiting', (group, waiting.reasons)):032x}"
    return [group.queue, group.priority_class.name, [str(reason.code) for reason in waiting.reasons], digest[:16]]


class AuditWriter(Observer):
    """Writes each round's record as it is decided."""

    def __init__(self, scenario: Scenario, out: TextIO) -> None:
        self._out = out
        self._digest = SnapshotDigest()
        self._write({"format": FORMAT, "scenario": json.loads(scenario.model_dump_json())})

    def decided(self, past: Round) -> None:
        """As in `Observer`."""
        self._write(_record(past, self._digest))

    def _write(self, record: dict[str, Any]) -> None:
        self._out.write(json.dumps(record, separators=(",", ":")) + "\n")


def _record(past: Round, digest: SnapshotDigest) -> dict[str, Any]:
    return {
        "round": past.number,
        "virtual_micros": past.now,
        "snapshot": digest(past.snapshot),
        "decisions": decisions(past.decided),
    }


def replay(path: Path, planner: Planner = plan) -> Divergence | None:
    """Runs the scenario of an audit again and holds every round against its record. None: they are the same.

    Args:
        path: what `AuditWriter` wrote.
        planner: the production one, unless another is to be held against its record.

    Raises:
        AuditError: it is not an audit of this format.
        ScenarioError: its scenario is not one.
        OSError: it cannot be read.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    records = [_read(path, number, line) for number, line in enumerate(lines, start=1)]
    if not records or records[0].get("format") != FORMAT:
        raise AuditError(f"{path}: line 1 is not the head of an audit of format {FORMAT}")
    comparison = _Comparison(records[1:])
    run_scenario(scenario_of(records[0].get("scenario"), str(path)), (comparison,), planner)
    return comparison.result()


def _read(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise AuditError(f"{path}: line {number} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise AuditError(f"{path}: line {number} is not an object")
    return record


class _Comparison(Observer):
    def __init__(self, records: list[dict[str, Any]]) -> None:
        self._records = records
        self._rounds = 0
        self._digest = SnapshotDigest()
        self._first: Divergence | None = None

    def decided(self, past: Round) -> None:
        line = self._rounds + 2
        recorded = self._records[self._rounds] if self._rounds < len(self._records) else None
        self._rounds += 1
        if self._first is None:
            # By way of JSON, so that tuples and lists are the same.
            replayed = json.loads(json.dumps(_record(past, self._digest)))
            self._first = _first_difference(line, "", recorded, replayed)

    def result(self) -> Divergence | None:
        if self._first is None and self._rounds < len(self._records):
            return Divergence(self._rounds + 2, "", self._records[self._rounds], None)
        return self._first


def _first_difference(line: int, field: str, recorded: Any, replayed: Any) -> Divergence | None:
    if isinstance(recorded, dict) and isinstance(replayed, dict):
        pairs = [
            (f"{field}.{name}" if field else name, recorded.get(name), replayed.get(name)) for name in {**recorded, **replayed}
        ]
    elif isinstance(recorded, list) and isinstance(replayed, list):
        together = zip_longest(recorded, replayed)
        pairs = [(f"{field}[{index}]", one, other) for index, (one, other) in enumerate(together)]
    else:
        return None if recorded == replayed else Divergence(line, field, recorded, replayed)
    found = (_first_difference(line, *pair) for pair in pairs)
    return next((difference for difference in found if difference is not None), None)
