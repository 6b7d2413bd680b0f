"""The record of rounds, and the replay that finds where a second run differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from scheduler.core.planner import plan
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import Limits, Micros, Plan
from scheduler.simulation.audit import AuditError, AuditWriter, Divergence, SnapshotDigest, replay
from scheduler.simulation.engine import Observer, Round
from scheduler.simulation.running import run_scenario
from scheduler.simulation.scenario import START, Scenario, load_scenario
from tests.simulation.simulated import SMALL, jobs, scenario


def _recorded(of: Scenario, path: Path) -> list[dict[str, Any]]:
    out = StringIO()
    run_scenario(of, (AuditWriter(of, out),))
    path.write_text(out.getvalue(), encoding="utf-8")
    return [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.fixture(name="audit")
def _audit(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    _recorded(load_scenario("flapping_priorities", SMALL["flapping_priorities"]), path)
    return path


def test_a_record_says_when_what_and_of_what(tmp_path: Path) -> None:
    head, first, *_ = _recorded(scenario(load=[jobs(count=2)]), tmp_path / "audit.jsonl")
    assert head["scenario"]["name"] == "test"
    assert (first["round"], first["virtual_micros"]) == (1, START + 5_000)
    assert first["decisions"]["grants"] == [[f"work:red:0000{index}.1", "gpus", [["node-0000", 1]], 0] for index in (0, 1)]
    assert len(first["snapshot"]) == 32


def test_a_replay_is_the_same(audit: Path) -> None:
    assert replay(audit) is None


def _plant(path: Path, line: int, change: Callable[[dict[str, Any]], None]) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[line - 1])
    change(record)
    lines[line - 1] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_planted_difference_is_found_where_it_is(audit: Path) -> None:
    records = [json.loads(line) for line in audit.read_text(encoding="utf-8").splitlines()]
    line = next(number for number, record in enumerate(records[1:], start=2) if record["decisions"]["preemptions"])
    was = records[line - 1]["decisions"]["preemptions"][0][0]
    _plant(audit, line, lambda record: record["decisions"]["preemptions"][0].__setitem__(0, "another"))
    assert replay(audit) == Divergence(line, "decisions.preemptions[0][0]", "another", was)


def test_another_state_is_found_by_its_digest(audit: Path) -> None:
    _plant(audit, 3, lambda record: record.__setitem__("snapshot", "0" * 32))
    found = replay(audit)
    assert found is not None
    assert (found.line, found.field, found.recorded) == (3, "snapshot", "0" * 32)


def test_another_scenario_is_found_in_the_first_round_that_it_changes(audit: Path) -> None:
    _plant(audit, 1, lambda record: record["scenario"].__setitem__("yield_after", "21s"))
    found = replay(audit)
    assert found is not None
    assert found.line > 2


def test_a_cut_or_lengthened_record_is_found(audit: Path) -> None:
    text = audit.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    audit.write_text("".join(lines[:-1]), encoding="utf-8")
    cut = replay(audit)
    assert cut is not None
    assert (cut.line, cut.recorded) == (len(lines), None)
    audit.write_text(text + lines[-1], encoding="utf-8")
    longer = replay(audit)
    assert longer is not None
    assert (longer.line, longer.replayed) == (len(lines) + 1, None)


def test_a_planner_that_decides_otherwise_is_found(audit: Path) -> None:
    def without_preemption(snapshot: Snapshot, now: Micros, limits: Limits) -> Plan:
        return plan(snapshot, now, replace(limits, run_minimum_micros=limits.run_minimum_micros * 2))

    found = replay(audit, without_preemption)
    assert found is not None
    assert found.field.startswith("decisions.")


@pytest.mark.parametrize("text", ["", "{}\n", "[]\n", "no json\n", '{"format":0}\n'])
def test_what_is_no_audit_is_refused(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "audit.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(AuditError, match="line 1 is not"):
        replay(path)


class _Snapshots(Observer):
    def __init__(self) -> None:
        self.digests: list[tuple[str, str, str]] = []
        self._kept = SnapshotDigest()

    def decided(self, past: Round) -> None:
        given = past.snapshot
        shuffled = replace(given, leases=given.leases[::-1], nodes=given.nodes[::-1], tree=given.tree[::-1])
        self.digests.append((self._kept(given), SnapshotDigest()(given), SnapshotDigest()(shuffled)))


def test_a_digest_is_of_the_content_and_not_of_its_order_or_history() -> None:
    snapshots = _Snapshots()
    run_scenario(load_scenario("spot_loss", SMALL["spot_loss"]), (snapshots,))
    assert len(snapshots.digests) > 20
    assert all(kept == fresh == shuffled for kept, fresh, shuffled in snapshots.digests)
    assert len({kept for kept, _, _ in snapshots.digests}) > len(snapshots.digests) / 2
