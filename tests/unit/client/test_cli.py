"""The command line as its users meet it: output, exit codes, errors, help, and how fast it starts."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status
from typer.testing import CliRunner

from headway.jobs.v1 import job_pb2
from headway.jobs.v1 import job_service_pb2 as jobs
from headway_client.cli.app import build
from headway_client.cli.failures import describe
from headway_client.connection import NoAddressError, resolve
from headway_client.errors import HeadwayError
from tests.unit.client.command_line import headway
from tests.unit.client.conftest import Serve
from tests.unit.client.scripted_job import JOB_ID, ScriptedJob, at, script

ROOT = Path(__file__).resolve().parents[3]
JOB_FILE = ROOT / "examples" / "fine_tune.yaml"
ID = "0b8f4c1e-3a5d-4f0e-8d4e-2f6a7b9c0d1e"


class RefusingJob(ScriptedJob):
    """Answers every unary call with one status."""

    def __init__(self, code: grpc.StatusCode, reason: str, fields: dict[str, str] | None = None) -> None:
        super().__init__()
        self._status = status_pb2.Status(code=code.value[0], message="refused, as the script says")
        details = [
            error_details_pb2.ErrorInfo(reason=reason, domain="headway", metadata={"job_id": "j"}),
            error_details_pb2.BadRequest(
                field_violations=[{"field": key, "description": text} for key, text in (fields or {}).items()]
            ),
        ]
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            self._status.details.append(packed)

    async def SubmitJob(  # noqa: N802  the generated name
        self, request: jobs.SubmitJobRequest, context: aio.ServicerContext[Any, Any]
    ) -> jobs.SubmitJobResponse:
        await context.abort_with_status(rpc_status.to_status(self._status))
        raise AssertionError("abort raises")

    async def GetJob(  # noqa: N802  the generated name
        self, request: jobs.GetJobRequest, context: aio.ServicerContext[Any, Any]
    ) -> jobs.GetJobResponse:
        await context.abort_with_status(rpc_status.to_status(self._status))
        raise AssertionError("abort raises")


async def test_submit_sends_the_file_with_what_the_options_change(serve: Serve) -> None:
    servicer = ScriptedJob()
    address = await serve(servicer.register)
    run = await headway("submit", str(JOB_FILE), "--address", address, "--request-id", ID, "-p", "other", "--priority", "0")
    assert (run.code, run.err) == (0, "")
    assert run.out == f"submitted {JOB_ID}\n  headway watch {JOB_ID}\n"
    (request,) = servicer.submitted
    assert (request.request_id, request.project, request.name) == (ID, "other", "support-assistant")
    assert (request.HasField("priority"), request.priority) == (True, 0)
    assert request.spec.fine_tune.training.steps == 10
    assert len(request.spec.fine_tune.evaluation.sample_prompts) == 3


async def test_submit_begins_the_trace_and_a_dead_collector_costs_nothing(serve: Serve) -> None:
    servicer = ScriptedJob()
    address = await serve(servicer.register)
    collector = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}
    run = await headway("submit", str(JOB_FILE), "--address", address, environment=collector)
    assert (run.code, run.err) == (0, "")
    untraced = await headway("submit", str(JOB_FILE), "--address", address)
    assert untraced.code == 0
    parent, none = servicer.traceparents
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[1-3]", parent)
    assert none == ""


async def test_submit_and_watch_in_json_lines(serve: Serve) -> None:
    servicer = ScriptedJob()
    address = await serve(servicer.register)
    await servicer.play()
    run = await headway("submit", str(JOB_FILE), "--watch", "--json", "--address", address)
    documents = run.documents()
    assert run.code == 0
    assert len(documents) == len(script()) + 2
    assert documents[-1]["job"]["state"] == "JOB_STATE_SUCCEEDED"


@pytest.mark.parametrize("state", [job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED])
async def test_watch_exits_with_1_unless_the_job_succeeded(serve: Serve, state: job_pb2.JobState.ValueType) -> None:
    final = job_pb2.Job(state=state, end_time=at(9), failure=job_pb2.Failure(message="the gain is too small"))
    servicer = ScriptedJob(final=final)
    address = await serve(servicer.register)
    await servicer.play()
    run = await headway("watch", JOB_ID, "--address", address)
    assert run.code == 1
    assert "the gain is too small" in run.out
    assert job_pb2.JobState.Name(state).removeprefix("JOB_STATE_") in run.out


async def test_logs_follow_and_cannot_steer_the_terminal(serve: Serve) -> None:
    servicer = ScriptedJob()
    address = await serve(servicer.register)
    await servicer.play()
    run = await headway("logs", "-f", JOB_ID, "--address", address)
    lines = run.out.splitlines()
    assert run.code == 0
    assert lines[0].endswith("INFO     1 runner  loading\\x1b[31m")
    assert lines[1].strip() == "model"
    assert lines[-1].endswith("train step 10/10, loss 3.000, 210 tokens/s")


async def test_logs_are_chosen_by_the_server(serve: Serve) -> None:
    asked: list[Any] = []

    class Logs(ScriptedJob):
        async def TailLogs(self, request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:  # noqa: N802  the generated name
            asked.append(request)
            async for batch in super().TailLogs(request, context):
                yield batch

    servicer = Logs()
    address = await serve(servicer.register)
    await servicer.play()
    chosen = ("--attempt", "2", "--source", "stderr", "--text", "memory", "--since", "2026-01-02T03:04:05")
    run = await headway("logs", JOB_ID, *chosen, "--address", address)
    assert run.code == 0
    (request,) = asked
    assert (request.attempt, request.source, request.text) == (2, "stderr", "memory")
    assert request.since.ToJsonString() == "2026-01-02T03:04:05Z"


async def test_jobs_and_get_for_people_and_for_programs(serve: Serve) -> None:
    address = await serve(ScriptedJob().register)
    table, document, facts = await asyncio.gather(
        headway("jobs", "-p", "demo", "--state", "queued", "--address", address),
        headway("jobs", "-p", "demo", "--json", "--address", address),
        headway("get", JOB_ID, "--address", address),
    )
    assert [line.split()[0] for line in table.out.splitlines()] == ["JOB", JOB_ID]
    assert document.documents()[0]["jobs"][0]["job_id"] == JOB_ID
    assert "waits for     2 jobs of higher priority are ahead" in facts.out


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", 2),
        (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED", 2),
        (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND", 3),
        (grpc.StatusCode.FAILED_PRECONDITION, "ILLEGAL_TRANSITION", 4),
        (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED", 4),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", 5),
        (grpc.StatusCode.INTERNAL, "INTERNAL", 70),
    ],
)
async def test_exit_codes(serve: Serve, code: grpc.StatusCode, reason: str, exit_code: int) -> None:
    address = await serve(RefusingJob(code, reason).register)
    run = await headway("get", JOB_ID, "--json", "--address", address)
    assert (run.code, run.out) == (exit_code, "")
    error = run.error()
    assert (error["code"], error["reason"], error["metadata"]) == (code.name, reason, {"job_id": "j"})


def test_what_is_tried_again_for_long_exits_as_what_does_not_answer() -> None:
    # Without the ten seconds that the command takes.
    away = HeadwayError(grpc.StatusCode.UNAVAILABLE, "the database does not answer", reason="DEPENDENCY_UNAVAILABLE")
    assert describe(away).exit_code == 5


async def test_every_field_violation_has_its_line(serve: Serve) -> None:
    fields = {"spec.fine_tune.lora.rank": "is 0; expected 1 to 256", "name": "is 200 characters; expected at most 128"}
    address = await serve(RefusingJob(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", fields).register)
    run = await headway("submit", str(JOB_FILE), "--address", address)
    assert run.code == 2
    assert run.err.splitlines() == [
        "headway: refused, as the script says",
        "  spec.fine_tune.lora.rank: is 0; expected 1 to 256",
        "  name: is 200 characters; expected at most 128",
    ]


async def test_a_bad_file_is_refused_by_line_and_field_without_a_call(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("project: p\nspec:\n  fine_tune:\n    training:\n      step: 3\n      seed: x\n")
    run = await headway("submit", str(path), "--address", "127.0.0.1:1")
    assert run.code == 2
    assert run.err.splitlines() == [
        f"headway: {path}:5: spec.fine_tune.training.step: is not a field here; did you mean steps?",
        f'         {path}:6: spec.fine_tune.training.seed: is the text "x"; expected a whole number',
    ]


async def test_what_is_missing_is_said(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: x\n")
    no_project, no_spec, no_file = await asyncio.gather(
        headway("submit", str(path)), headway("submit", str(path), "-p", "p"), headway("submit", str(tmp_path / "no.yaml"))
    )
    assert (no_project.code, no_spec.code, no_file.code) == (2, 2, 2)
    assert "project: is absent; expected it in the file, as --project or as HEADWAY_PROJECT" in no_project.err
    assert "spec: is absent" in no_spec.err
    assert "no.yaml: cannot be read: No such file or directory" in no_file.err


async def test_nobody_there(tmp_path: Path) -> None:
    unnamed, dead, dead_watch = await asyncio.gather(
        headway("workers", cwd=tmp_path),
        headway("workers", "--address", "127.0.0.1:1"),
        headway("dataset", "add", "x", "/nonexistent", "-p", "p", "--address", "127.0.0.1:1"),
    )
    assert (unnamed.code, dead.code, dead_watch.code) == (5, 5, 2)
    assert "HEADWAY_ADDRESS" in unnamed.err
    assert "the control plane at 127.0.0.1:1 does not answer" in dead.err
    assert "/nonexistent: cannot be read" in dead_watch.err
    for run in (unnamed, dead, dead_watch):
        assert "Traceback" not in run.err


USAGE = [
    ("jobs", "--state", "running"),
    ("cancel",),
    ("cancel", "j", "--job-set", "s", "-p", "p"),
    ("pause", "--job-set", "s"),
    ("update", "j"),
    ("rerun", "j", "--set", "fine_tune.training.steps"),
    ("rerun", "j", "--set", "fine_tune.training.step=3"),
    ("rerun", "j", "--field", "fine_tune.training.steps"),
    ("submit", "a.yaml", "b.yaml"),
    ("submit", "--batch", "a.yaml", "--watch"),
    ("project", "update", "p"),
    ("member", "set", "user:a", "--role", "king"),
    ("token", "create", "n", "--role", "nobody"),
    ("audit", "verify", "--expect-head", "7"),
    ("webhook", "add", "https://x", "-p", "p", "--state", "asleep"),
    ("jobs", "-p", "p", "--state", "asleep"),
    ("jobs", "-p", "p", "--limit", "0"),
    ("logs", "j", "--level", "loud"),
    ("logs", "j", "--attempt", "-1"),
    ("audit", "list", "--after", str(2**63)),
    ("token", "create", "n", "--role", "viewer", "--days", "nan"),
    ("quota", "set", "p"),
    ("quota", "set", "p", "h200"),
    ("budget", "set", "p", "--money", "9" * 20),
    ("budget", "set", "p", "--gpu-hours", "1e30"),
    ("simulate", "submit", "-p", "p", "--accelerators", "99999999999"),
    ("quota", "set", "p", "h200=1", "h200=2"),
    ("quota", "set", "p", "h200=-1"),
    ("quota", "set", "p", "h200:disk=1"),
    ("quota", "set", "p", "--team", "t", "h200=1"),
    ("quota", "get"),
    ("simulate", "quota", "h200=1"),
    ("model", "show", "m:latest", "-p", "p"),
    ("no-such-command",),
]


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
async def test_usage_errors_exit_with_2(arguments: tuple[str, ...]) -> None:
    run = await headway(*arguments, *([] if len(arguments) == 1 else ["--address", "127.0.0.1:1"]))
    assert run.code == 2
    assert run.err
    assert "Traceback" not in run.err


COMMANDS = [
    *[(name,) for name in ("submit", "jobs", "get", "watch", "logs", "cancel", "pause", "resume", "preempt", "reprioritize")],
    *[(name,) for name in ("update", "rerun", "diff", "models", "workers", "whoami")],
    *[("dataset", verb) for verb in ("add", "list")],
    *[("base-model", verb) for verb in ("add", "list")],
    ("model", "show"),
    *[("quota", verb) for verb in ("get", "set", "list", "delete", "usage")],
    *[("budget", verb) for verb in ("set", "get", "list", "delete", "ledger", "report")],
    *[("price", verb) for verb in ("set", "list", "delete")],
    *[("nodes", verb) for verb in ("list", "cordon", "uncordon", "drain", "delete")],
    *[("simulate", verb) for verb in ("submit", "quota", "lost-node")],
    ("why",),
    ("queue",),
    *[("job-set", verb) for verb in ("get", "list")],
    *[("project", verb) for verb in ("create", "list", "get", "update", "delete")],
    *[("member", verb) for verb in ("set", "remove", "list")],
    *[("token", verb) for verb in ("create", "list", "revoke")],
    *[("audit", verb) for verb in ("list", "verify")],
    *[("webhook", verb) for verb in ("add", "list", "remove", "deliveries")],
]


async def test_every_command_is_in_the_reference_and_has_examples_and_json() -> None:
    reference = (ROOT / "docs" / "reference" / "cli.md").read_text()
    # In this process: a process for each would take a minute.
    runner, app = CliRunner(), build([])
    for command in COMMANDS:
        run = runner.invoke(app, [*command, "--help"], prog_name="headway")
        spoken = f"headway {' '.join(command)}"
        assert f"`{spoken}" in reference
        examples = run.output.partition("Examples:")[2]
        assert f"  {spoken} " in examples or f"  {spoken}\n" in examples, spoken
        for option in ("--json", "--address", "--token-file"):
            assert option in run.output, (spoken, option)
    listed = (await headway("--help")).out.partition("Commands:")[2]
    names = {line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "}
    assert names == {command[0] for command in COMMANDS} | {"up", "down", "status"}
    assert all(f"`headway {name}" in reference for name in names)


def test_a_hint_says_only_what_the_message_does_not() -> None:
    absent = HeadwayError(grpc.StatusCode.NOT_FOUND, "project p has no model 'm'", reason="MODEL_NOT_FOUND")
    assert describe(absent).hint == "`headway models` lists a project's models"
    told = HeadwayError(grpc.StatusCode.NOT_FOUND, "no model; list them with `headway models`", reason="MODEL_NOT_FOUND")
    assert describe(told).hint == ""
    denied = HeadwayError(
        grpc.StatusCode.PERMISSION_DENIED, "no", reason="PERMISSION_DENIED", metadata={"role_required": "X", "project": "red"}
    )
    assert describe(denied).hint == "`headway whoami` shows what you may do, `headway member list -p red` whom to ask"


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, headway_client.cli.app as a; a.build([]); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"grpc", "google.protobuf", "opentelemetry", "structlog", "torch", "mlflow", "temporalio"} & set(loaded)


def test_an_address_is_found_in_its_order(tmp_path: Path) -> None:
    with pytest.raises(NoAddressError, match=r"state\.json"):
        resolve(None, {}, tmp_path)
    (tmp_path / "state.json").write_text('{"control_plane": "127.0.0.1:7"}')
    (tmp_path / "settings.json").write_text('{"telemetry": {"otlp_traces_url": "http://x", "otlp_headers": {"a": "b"}}}')
    found = resolve(None, {}, tmp_path)
    assert (found.address, found.otlp_traces_url, found.otlp_headers) == ("127.0.0.1:7", "http://x", {"a": "b"})
    environment = {"HEADWAY_ADDRESS": "e:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://y"}
    assert resolve(None, environment, tmp_path).address == "e:1"
    assert resolve("o:1", environment, tmp_path).address == "o:1"
    assert resolve("o:1", environment, tmp_path).otlp_traces_url == "http://y"
    for content in ("{", "[]", "{}", '{"control_plane": 7}'):
        (tmp_path / "state.json").write_text(content)
        with pytest.raises(NoAddressError, match=r"state\.json"):
            resolve(None, {}, tmp_path)


async def test_interrupting_a_watch_exits_with_130(serve: Serve) -> None:
    servicer = ScriptedJob()
    address = await serve(servicer.register)
    await servicer.play(1)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headway_client.cli", "watch", JOB_ID, "--json", "--address", address, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert json.loads(await asyncio.wait_for(process.stdout.readline(), 30))["event"]["sequence"] == "1"
    process.send_signal(2)
    assert await asyncio.wait_for(process.wait(), 30) == 130
