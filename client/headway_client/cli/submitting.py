"""What submitting prints beside the job: a plan, and the fate of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from headway_client.cli.exit_codes import ExitCode
from headway_client.cli.failures import InputError
from headway_client.cli.output import as_dict, as_plain, print_facts, print_json, print_table
from headway_client.cli.session import connected

if TYPE_CHECKING:
    from headway.jobs.v1.job_service_pb2 import BatchSubmitJobsResponse, SubmitJobResponse
    from headway.jobs.v1.plan_pb2 import Interval, JobPlan, PlannedPhase
    from headway_client.batch_file import BatchEntry
    from headway_client.errors import HeadwayError

_BATCH_MAX = 1_000


def print_valid(file: Path, response: SubmitJobResponse) -> None:
    """The resolved spec, as it would stand in a job file, and what the job would do and cost."""
    import yaml

    print(f"{file} is valid. With its defaults it says:\n")
    print(yaml.safe_dump({"spec": as_plain(response.job.spec)}, sort_keys=False, allow_unicode=True), end="")
    if response.HasField("plan"):
        print("\nIt would do this:\n")
        _print_plan(response.plan)


def _print_plan(plan: JobPlan) -> None:
    print_table(("PHASE", "HOLDS", "AT MOST", "STEPS"), [_phase(phase) for phase in plan.phases], "no phases")
    print()
    cost = plan.cost
    money = _range(cost.micros, 1e6, f" {cost.currency}", ",.2f") if plan.HasField("cost") else "not known"
    tokens = _range(plan.tokens.trained, 1, "", ",.0f") if plan.HasField("tokens") else "not known"
    print_facts(
        [
            ("tokens", tokens),
            ("accelerator-hours", _range(plan.accelerator_seconds, 3_600, "", ",.2f")),
            ("cost", money),
        ]
    )
    for assumption in plan.assumptions:
        print(f"  assumed: {assumption}")
    for warning in plan.warnings:
        print(f"  note: {warning}")


def _phase(phase: PlannedPhase) -> tuple[str, str, str, str]:
    if not phase.HasField("lease"):
        return phase.name, "nothing", "", ""
    lease = phase.lease
    times = f", {lease.leases} times, {lease.at_once} at once" if lease.leases > 1 else ""
    held = f"{lease.accelerators} {lease.accelerator_kind}{times}"
    return phase.name, held, f"{lease.max_run_seconds:,} s", str(lease.steps or "")


def _range(interval: Interval, divisor: float, unit: str, form: str) -> str:
    low, high = (format(value / divisor, form) for value in (interval.low, interval.high))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def submit_batch(
    files: Sequence[Path], project: str, job_set: str, partial: bool, request_id: str | None, as_json: bool
) -> None:
    """Submits the jobs of all files as one batch, and names each fault by the place it was read from."""
    from headway_client.batch_file import project_of, read_batch
    from headway_client.errors import HeadwayError
    from headway_client.job_file import JobFileError

    try:
        entries = read_batch(files)
        project = project or project_of(entries)
    except (JobFileError, ValueError) as error:
        raise InputError(str(error)) from error
    if not 1 <= len(entries) <= _BATCH_MAX:
        raise InputError(f"FILE: hold {len(entries):,} jobs; expected 1 to {_BATCH_MAX:,} in a batch")
    if not project:
        raise InputError(f"{entries[0].place}: project: is absent; expected it in the file, as --project or as HEADWAY_PROJECT")
    for entry in entries:
        if not entry.request.HasField("spec"):
            raise InputError(f"{entry.place}: spec: is absent; expected what the job is to do")
    with connected(span="headway submit") as client:
        try:
            response = client.batch_submit_jobs(
                project,
                [entry.item for entry in entries],
                job_set=job_set,
                partial_success=partial,
                request_id=request_id,
            )
        except HeadwayError as error:
            raise _placed(error, entries) from error
    _print_batch(response, entries, as_json)


def _placed(error: HeadwayError, entries: Sequence[BatchEntry]) -> HeadwayError:
    """The same error, which names files instead of numbers."""
    from headway_client.batch_file import with_places
    from headway_client.errors import FieldViolation, HeadwayError

    message, violations = error.message, list[FieldViolation]()
    for one in error.violations:
        place = with_places(one.field, entries)
        message = message.replace(f"{one.field}: ", f"{place}: ")
        violations.append(FieldViolation(place, one.description))
    return HeadwayError(error.code, message, reason=error.reason, metadata=error.metadata, violations=violations)


def _print_batch(response: BatchSubmitJobsResponse, entries: Sequence[BatchEntry], as_json: bool) -> None:
    """Exits with INVALID when some were refused."""
    from headway_client.errors import from_status

    refused = len(response.results) - response.accepted_count
    if as_json:
        print_json({"batch": as_dict(response)})
    else:
        for entry, result in zip(entries, response.results, strict=True):
            print(f"{result.job_id or 'refused':<36}  {entry.place}")
            if not result.job_id:
                sentence, lines = from_status(result.status).faults
                print("\n".join(f"    {line}" for line in (sentence, *lines)))
        print(f"{response.accepted_count} submitted, {refused} refused")
    if refused:
        raise typer.Exit(ExitCode.INVALID)
