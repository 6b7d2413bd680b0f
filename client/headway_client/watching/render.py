"""How a job looks on a terminal: the live view while it runs, and its result."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from headway.jobs.v1 import job_pb2
from headway_client.text import duration, local_time, one_line, printable, seconds_between
from headway_client.watching.result import EvaluateResult, JobResult, SampleResult, job_result
from headway_client.watching.view import JobView, PhaseView, Standing, phase_name, state_name

_STATE_STYLES = {
    job_pb2.JOB_STATE_SUCCEEDED: "bold green",
    job_pb2.JOB_STATE_FAILED: "bold red",
    job_pb2.JOB_STATE_CANCELLED: "bold yellow",
    job_pb2.JOB_STATE_CANCELLING: "yellow",
    job_pb2.JOB_STATE_RUNNING: "cyan",
}
_VIOLATIONS_SHOWN = 20
_SAMPLE_CHARACTERS_MAX = 300
_BAR_WIDTH = 28


class LiveView:
    """Draws a `JobView` again and again; holds only what animation needs."""

    def __init__(self, view: JobView) -> None:
        self._view = view
        self._spinner = Spinner("dots", style="cyan")

    def render(self, now: float) -> RenderableType:
        """The view at `now`, Unix seconds."""
        view = self._view
        rows = Table.grid(padding=(0, 2))
        rows.add_column(width=2)
        rows.add_column(width=9)
        rows.add_column(width=8, justify="right", style="dim")
        rows.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
        for number, phase in view.phases.items():
            rows.add_row(self._mark(phase), *_phase_cells(view, number, phase, now))
        lines: list[RenderableType] = [_title(view, now), Text(), rows, Text()]
        lines += [Text(f"  {line}", style="yellow") for line in _notes(view)]
        return Group(*lines)

    def _mark(self, phase: PhaseView) -> RenderableType:
        if phase.standing is Standing.RUNNING:
            return Padding(self._spinner, (0, 0, 0, 1))
        mark, style = {
            Standing.PENDING: ("·", "dim"),
            Standing.DONE: ("✓", "green"),
            Standing.STOPPED: ("✗", "red"),
        }[phase.standing]
        return Text(f" {mark}", style=style)


def _title(view: JobView, now: float) -> Text:
    job = view.job
    elapsed = now - job.create_time.ToNanoseconds() / 1e9
    title = Text("  ")
    title.append(one_line(job.name, 60), style="bold")
    title.append(f"   {state_name(view.state)}", style=_STATE_STYLES.get(view.state, "default"))
    title.append(f"   {duration(elapsed)}")
    title.append(f"\n  project {job.project} · job {job.job_id}", style="dim")
    return title


def _phase_cells(view: JobView, number: int, phase: PhaseView, now: float) -> tuple[Text, Text, RenderableType]:
    name = Text(phase_name(number), style="dim" if phase.standing is Standing.PENDING else "default")
    if phase.standing is Standing.PENDING:
        waits = view.lease_phase == number
        return name, Text(), Text(_waiting(view.job) if waits else "", style="yellow")
    end = now if phase.standing is Standing.RUNNING else phase.end_time
    time = Text(duration(end - phase.start_time))
    if phase.standing is Standing.DONE:
        return name, time, Text(phase_summary(phase_name(number), phase.detail))
    if view.lease_phase == number:
        return name, time, Text(_waiting(view.job), style="yellow")
    return name, time, _measurements(phase, now)


def _waiting(job: job_pb2.Job) -> str:
    return f"waits: {one_line(job.waiting_reason)}" if job.waiting_reason else "waits for its lease"


def _measurements(phase: PhaseView, now: float) -> RenderableType:
    if not phase.total_steps:
        return Text()
    text = Text(f"  {phase.step}/{phase.total_steps}")
    for part in measurement_parts(phase.metrics):
        text.append(f"   {part}")
    remaining = phase.remaining_seconds(now)
    if remaining is not None and phase.step < phase.total_steps:
        text.append(f"   {duration(remaining)} left", style="dim")
    bar = ProgressBar(
        total=phase.total_steps, completed=phase.step, width=_BAR_WIDTH, complete_style="cyan", finished_style="green"
    )
    row = Table.grid()
    row.add_row(bar, text)
    return row


def measurement_parts(metrics: Mapping[str, float]) -> list[str]:
    """The measurements that people follow, such as ["loss 3.210", "212 tokens/s"]."""
    parts: list[str] = []
    if "loss" in metrics:
        parts.append(f"loss {metrics['loss']:.3f}")
    if "tokens_per_second" in metrics:
        parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    return parts


def _notes(view: JobView) -> list[str]:
    notes: list[str] = []
    if view.state == job_pb2.JOB_STATE_QUEUED:
        notes.append(f"waits for the scheduler: {one_line(view.job.waiting_reason)}".rstrip(": "))
    if view.notice:
        notes.append(view.notice)
    return notes


def phase_summary(phase: str, detail: Mapping[str, object]) -> str:
    """What a finished phase found, in one line; empty for a phase this client does not know."""
    result = JobResult.model_validate({"register_" if phase == "register" else phase: detail})
    summary = ""
    if (prepare := result.prepare) is not None:
        summary = f"{prepare.train_rows:,} rows to train on, {prepare.eval_rows:,} held out, {prepare.train_tokens:,} tokens"
        summary += f", {prepare.duplicate_rows:,} duplicates left out" if prepare.duplicate_rows else ""
    elif (train := result.train) is not None:
        summary = f"{train.steps:,} steps, loss {train.final_loss:.3f}, {train.tokens_per_second:,.0f} tokens/s"
    elif (scores := result.evaluate) is not None:
        summary = f"held-out loss {scores.base_loss:.3f} → {scores.tuned_loss:.3f} on {scores.rows:,} rows"
    elif (gate := result.gate) is not None:
        summary = one_line(gate.explanation)
    elif (package := result.package) is not None:
        summary = f"manifest {package.manifest_sha256[:12]}"
    elif (registered := result.register_) is not None:
        summary = f"{registered.model} version {registered.version}"
        summary += f", alias {registered.alias}" if registered.alias else ""
    return summary


def render_outcome(job: job_pb2.Job) -> RenderableType:
    """A final job: how it ended, why, and what it produced."""
    result = job_result(job)
    lines: list[RenderableType] = [_outcome_line(job), Text()]
    if job.HasField("failure"):
        lines += [*_failure_lines(job.failure), Text()]
    if result.evaluate is not None:
        lines += [Padding(_scores(result.evaluate), (0, 0, 0, 2)), Text()]
        lines += [Padding(_sample(sample), (0, 0, 1, 2)) for sample in result.evaluate.samples]
    lines += [Padding(_facts(job, result), (0, 0, 0, 2))]
    return Group(*lines)


def _outcome_line(job: job_pb2.Job) -> Text:
    mark = "✓" if job.state == job_pb2.JOB_STATE_SUCCEEDED else "✗"
    seconds = seconds_between(job.create_time, job.end_time)
    line = Text(f"  {mark} {state_name(job.state)}", style=_STATE_STYLES.get(job.state, "default"))
    return line.append(f"  {one_line(job.name)} after {duration(seconds)}", style="default not bold")


def _failure_lines(failure: job_pb2.Failure) -> list[RenderableType]:
    kind = job_pb2.FailureKind.Name(failure.kind).removeprefix("FAILURE_KIND_")
    lines: list[RenderableType] = [Text(f"  {kind}: {one_line(failure.message)}", style="red")]
    for fault in failure.violations[:_VIOLATIONS_SHOWN]:
        place = f"line {fault.line} " if fault.line else ""
        lines.append(Text(f"    {place}{printable(fault.path)}: {one_line(fault.message)} ({fault.code})"))
    hidden = failure.violation_count - min(len(failure.violations), _VIOLATIONS_SHOWN)
    if hidden > 0:
        lines.append(Text(f"    and {hidden:,} more", style="dim"))
    return lines


def _scores(scores: EvaluateResult) -> Table:
    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("held-out loss before", f"{scores.base_loss:.3f} ± {scores.base_loss_se:.3f}", "the base model")
    table.add_row("held-out loss after", f"{scores.tuned_loss:.3f} ± {scores.tuned_loss_se:.3f}", "the tuned model")
    better = scores.gain_standard_errors > 2
    gain = Text(f"{scores.gain:.3f} ± {scores.gain_se:.3f}", style="bold green" if better else "bold yellow")
    explanation = f"{scores.gain_standard_errors:.1f} standard errors, paired over {scores.rows:,} rows"
    table.add_row("gain", gain, explanation)
    return table


def _sample(sample: SampleResult) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", width=6)
    table.add_column(overflow="fold")
    table.add_row("prompt", Text(one_line(sample.prompt, _SAMPLE_CHARACTERS_MAX), style="bold"))
    table.add_row("before", Text(one_line(sample.before, _SAMPLE_CHARACTERS_MAX)))
    table.add_row("after", Text(one_line(sample.after, _SAMPLE_CHARACTERS_MAX), style="green"))
    return table


def _facts(job: job_pb2.Job, result: JobResult) -> Table:
    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in _fact_rows(job, result):
        table.add_row(name, Text(value))
    return table


def _fact_rows(job: job_pb2.Job, result: JobResult) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if result.gate is not None:
        rows.append(("gate", one_line(result.gate.explanation)))
    if result.register_ is not None:
        rows.append(("model", phase_summary("register", result.register_.model_dump())))
    for kind, seconds in sorted(job.accelerator_seconds.items()):
        rows.append(("accelerator time", f"{seconds:,.1f} s of kind {kind}"))
    rows += [("job", job.job_id), ("trace", job.trace_id)]
    rows.append(("ended", local_time(job.end_time, with_date=True)))
    return [(name, value) for name, value in rows if value]
