"""Following a job: what is known after each event, how it is shown, and that every way of showing tells the same story."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from headway.jobs.v1 import job_event_pb2 as events
from headway.jobs.v1 import job_pb2
from headway.logs.v1 import log_record_pb2
from headway_client.aio_client import AsyncClient
from headway_client.connection import Connection
from headway_client.errors import HeadwayError
from headway_client.watching.follow import follow, watch_as_json, watch_on_console
from headway_client.watching.plain import event_line
from headway_client.watching.render import LiveView, render_outcome
from headway_client.watching.result import job_result
from headway_client.watching.view import JobView, Standing
from tests.unit.client.conftest import Serve
from tests.unit.client.scripted_job import JOB_ID, RESULT, START, STEPS, ScriptedJob, at, script, structure

TRAIN, EVALUATE = job_pb2.JOB_PHASE_TRAIN, job_pb2.JOB_PHASE_EVALUATE


def told(view: JobView, count: int) -> JobView:
    for entry in script()[:count]:
        if isinstance(entry, events.JobEvent):
            view.apply_event(entry)
        else:
            view.apply_progress(entry)
    return view


def position(kind: events.JobEventType.ValueType, phase: int) -> int:
    """How many entries of the script to tell so that this event is the last."""
    entries = enumerate(script(), start=1)
    return next(n for n, e in entries if isinstance(e, events.JobEvent) and (e.type, e.phase) == (kind, phase))


def drawn(view: JobView, now: float) -> str:
    console = Console(file=io.StringIO(), width=110, force_terminal=True, color_system=None)
    console.print(LiveView(view).render(now))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def test_the_view_of_a_queued_job_says_why_it_waits() -> None:
    view = told(JobView(ScriptedJob().job), 1)
    assert view.waits
    assert "waits for the scheduler: 2 jobs of higher priority are ahead" in drawn(view, START + 2)


async def test_a_phase_that_waits_for_its_lease_says_so() -> None:
    view = told(JobView(ScriptedJob().job), position(events.JOB_EVENT_TYPE_LEASE_REQUESTED, TRAIN))
    assert view.lease_phase == TRAIN
    line = next(line for line in drawn(view, START + 5).splitlines() if "train  " in line)
    assert "waits: 2 jobs of higher priority are ahead" in line


async def test_the_end_of_one_lease_does_not_end_the_wait_for_another() -> None:
    view = told(JobView(ScriptedJob().job), position(events.JOB_EVENT_TYPE_LEASE_REQUESTED, EVALUATE))
    ended = events.JobEvent(type=events.JOB_EVENT_TYPE_LEASE_ENDED, phase=TRAIN, state=view.state, time=at(40))
    view.apply_event(ended)
    assert view.lease_phase == EVALUATE
    view.apply_event(events.JobEvent(type=events.JOB_EVENT_TYPE_PHASE_STARTED, phase=EVALUATE, time=at(41)))
    assert not view.waits


def test_a_lease_that_ended_for_a_pause_says_so() -> None:
    detail = structure({"outcome": "paused", "reason": "PAUSED: the job is to pause", "accelerator_seconds": 12.5})
    ended = events.JobEvent(type=events.JOB_EVENT_TYPE_LEASE_ENDED, phase=TRAIN, time=at(40), detail=detail)
    assert event_line(ended).endswith("train: lease ended, paused, 12.5 accelerator-seconds")


async def test_training_shows_step_loss_speed_and_what_is_left() -> None:
    view = told(JobView(ScriptedJob().job), position(events.JOB_EVENT_TYPE_PHASE_STARTED, TRAIN) + 4)
    phase = view.phases[TRAIN]
    assert (phase.standing, phase.step, phase.total_steps) == (Standing.RUNNING, 4, STEPS)
    assert phase.last_measured is not None
    assert phase.seconds_per_step == pytest.approx(1.0)
    assert phase.remaining_seconds(phase.last_measured[0] + 0.5) == pytest.approx(5.5)
    line = next(line for line in drawn(view, phase.last_measured[0]).splitlines() if "train  " in line)
    assert "4/10   loss 3.900   204 tokens/s   6.0 s left" in line
    assert line.count("━") > 0


async def test_a_resumed_attempt_measures_its_own_speed() -> None:
    view = told(JobView(ScriptedJob().job), position(events.JOB_EVENT_TYPE_PHASE_STARTED, TRAIN) + 6)
    start = view.phases[TRAIN].start_time
    lost = events.JobEvent(type=events.JOB_EVENT_TYPE_ATTEMPT_LOST, phase=TRAIN, attempt=1, state=view.state, time=at(50))
    view.apply_event(lost)
    assert "attempt 1 was lost" in drawn(view, START + 51)
    view.apply_event(
        events.JobEvent(type=events.JOB_EVENT_TYPE_PHASE_STARTED, phase=TRAIN, attempt=2, state=view.state, time=at(60))
    )
    view.apply_event(
        events.JobEvent(
            type=events.JOB_EVENT_TYPE_RESUMED, attempt=2, state=view.state, time=at(60), detail=structure({"step": 4})
        )
    )
    for step, seconds in ((5, 70), (6, 73)):
        progress = log_record_pb2.Progress(step=step, total_steps=STEPS, phase="train")
        view.apply_progress(log_record_pb2.LogRecord(time=at(seconds), progress=progress))
    assert view.phases[TRAIN].seconds_per_step == pytest.approx(3.0)
    assert view.phases[TRAIN].start_time == start
    assert "attempt 2 went on from step 4" in drawn(view, START + 74)


async def test_the_finished_view_has_every_phase_checked() -> None:
    view = told(JobView(ScriptedJob().job), len(script()))
    assert all(phase.standing is Standing.DONE for phase in view.phases.values())
    text = drawn(view, START + 60)
    assert text.count("✓") == 6
    assert "811 rows to train on, 81 held out, 24,310 tokens, 152 duplicates left out" in text
    assert "SUCCEEDED" in text


async def test_a_phase_that_ran_when_the_job_ended_is_crossed() -> None:
    view = told(JobView(ScriptedJob().job), position(events.JOB_EVENT_TYPE_PHASE_STARTED, TRAIN))
    failed = job_pb2.JOB_STATE_FAILED
    view.apply_event(events.JobEvent(type=events.JOB_EVENT_TYPE_STATE_CHANGED, state=failed, time=at(30)))
    assert view.phases[TRAIN].standing is Standing.STOPPED
    assert view.phases[EVALUATE].standing is Standing.PENDING
    assert "✗" in drawn(view, START + 31)


async def test_an_event_and_a_phase_of_a_newer_server_are_let_be() -> None:
    view = JobView(ScriptedJob().job)
    view.apply_event(events.JobEvent(type=99, phase=42, state=job_pb2.JOB_STATE_RUNNING, time=at(1)))  # type: ignore[arg-type]  # not in this contract
    view.apply_event(events.JobEvent(type=events.JOB_EVENT_TYPE_PHASE_STARTED, phase=42, time=at(2)))  # type: ignore[arg-type]  # as above
    assert "42" in drawn(view, START + 3)


async def test_following_tells_every_event_and_measurement_once(serve: Serve) -> None:
    servicer = ScriptedJob()
    seen: list[object] = []

    class Recorder:
        def event(self, event: events.JobEvent) -> None:
            seen.append(event)

        def progress(self, record: log_record_pb2.LogRecord) -> None:
            seen.append(record)

    await servicer.play()
    async with AsyncClient(await serve(servicer.register)) as client:
        job = await follow(client, JOB_ID, Recorder())
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED
    expected = script()
    assert [e for e in seen if isinstance(e, events.JobEvent)] == [e for e in expected if isinstance(e, events.JobEvent)]
    measured = [e for e in expected if isinstance(e, log_record_pb2.LogRecord)]
    assert [e for e in seen if isinstance(e, log_record_pb2.LogRecord)] == measured


@pytest.mark.parametrize("terminal", [True, False])
async def test_the_console_ends_with_the_result(serve: Serve, terminal: bool) -> None:
    servicer = ScriptedJob()
    output = io.StringIO()
    console = Console(file=output, width=110, force_terminal=terminal, color_system=None)
    address = await serve(servicer.register)
    await servicer.play()
    await watch_on_console(Connection(address), JOB_ID, console)
    text = output.getvalue()
    for part in (
        "held-out loss before   4.468 ± 0.142",
        "held-out loss after    3.021 ± 0.110",
        "1.447 ± 0.214   6.8 standard errors",
        "support-assistant version 1, alias dev",
        "25.0 s of kind cpu",
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "after   Sort of.",
    ):
        assert part in text
    assert "\x1b[2J" not in text  # A model's answer must not clear the reader's screen.
    if not terminal:
        assert "train step 10/10, loss 3.000, 210 tokens/s" in text
        assert "train: lease granted on machine, attempt 1" in text
        assert "\x1b" not in text


async def test_json_lines_hold_the_whole_story(serve: Serve) -> None:
    servicer = ScriptedJob()
    lines: list[str] = []
    address = await serve(servicer.register)
    await servicer.play()
    await watch_as_json(Connection(address), JOB_ID, lines.append)
    parsed = [json.loads(line) for line in lines]
    assert len(parsed) == len(script()) + 1
    assert parsed[-1]["job"]["result"]["evaluate"]["gain"] == 1.447
    assert [p["progress"]["progress"]["step"] for p in parsed if "progress" in p] == [str(n) for n in range(1, STEPS + 1)]


async def test_a_server_that_cannot_tell_ends_the_watch(serve: Serve) -> None:
    with pytest.raises(HeadwayError):
        await watch_as_json(Connection(await serve(lambda _: None)), JOB_ID, lambda _: None)


async def test_a_failure_is_shown_with_its_faults_and_how_many_more() -> None:
    job = ScriptedJob().job
    job.state = job_pb2.JOB_STATE_FAILED
    job.end_time.CopyFrom(at(9))
    job.failure.kind = job_pb2.FAILURE_KIND_INVALID_DATASET
    job.failure.message = "40 rows are unusable"
    job.failure.violation_count = 40
    for line in range(1, 31):
        job.failure.violations.add(path="/completion", line=line, code="empty_completion", message="is empty; expected text")
    console = Console(file=io.StringIO(), width=110)
    console.print(render_outcome(job))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "✗ FAILED" in text
    assert "INVALID_DATASET: 40 rows are unusable" in text
    assert "line 20 /completion: is empty; expected text (empty_completion)" in text
    assert "line 21" not in text
    assert "and 20 more" in text


async def test_a_result_is_read_as_documented_and_may_be_partial() -> None:
    whole = job_result(job_pb2.Job(result=structure(RESULT)))
    assert whole.register_ is not None
    assert (whole.register_.model, whole.register_.version) == ("support-assistant", 1)
    assert whole.evaluate is not None
    assert whole.evaluate.gain_standard_errors == pytest.approx(1.447 / 0.214)
    partial = job_result(job_pb2.Job(result=structure({"prepare": {"train_rows": 3, "new": 1}, "later": {}})))
    assert partial.prepare is not None
    assert partial.prepare.train_rows == 3
    assert partial.train is None
