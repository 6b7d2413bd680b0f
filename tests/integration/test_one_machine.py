"""`headway up`, `down` and `status` with every real part: together, killed, restarted, refused."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
from opentelemetry import propagate
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from deploy.one_machine import lock, machine
from deploy.one_machine.component import Probe, State
from deploy.one_machine.layout import Layout
from deploy.one_machine.probes import NotHealthyError, http_ok
from headway_client.cli.exit_codes import ExitCode
from tests.integration.conftest import Stack
from tests.processes import Marked
from tests.waiting import until

COMPONENTS = {
    *("postgres", "temporal", "s3", "mlflow", "migrate"),
    *("control-plane", "scheduler", "cpu-worker", "gpu-worker"),
}


@dataclass(frozen=True)
class Answer:
    """What a command said, and how it ended."""

    code: int
    output: str
    errors: str

    @property
    def content(self) -> Any:
        return json.loads(self.output)


async def headway(*arguments: str, marked: Marked | None = None) -> Answer:
    """Runs the command line as a user does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headway_client.cli", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=marked.env if marked else None,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return Answer(process.returncode, output.decode(), errors.decode())


@pytest.fixture
async def marked() -> AsyncGenerator[Marked]:
    marked = Marked()
    try:
        yield marked
        assert not marked.alive()
    finally:
        marked.kill()


async def test_everything_is_up_healthy_and_says_where_it_is(stack: Stack) -> None:
    answer = await headway("status", "--json", "--data-dir", str(stack.data_dir))
    assert answer.code == ExitCode.OK, answer
    assert answer.content["healthy"]
    found = {one["name"]: one for one in answer.content["components"]}
    assert set(found) == COMPONENTS
    assert found["migrate"]["state"] == State.DONE
    for name in COMPONENTS - {"migrate"}:
        assert found[name]["healthy"]
        assert found[name]["address"].startswith("127.0.0.1:")
        assert psutil.pid_exists(found[name]["pid"])
    logs = {one["log"] for one in found.values()}
    assert logs == {str(stack.data_dir / "logs" / f"{name}.log") for name in COMPONENTS}
    assert all(map(os.path.exists, logs))


async def test_the_administrator_calls_with_the_token_in_a_private_file(stack: Stack) -> None:
    kept = stack.data_dir / "admin.token"
    assert str(kept) == stack.state.admin_token_file
    private = [kept, stack.data_dir / "credentials.json", stack.settings_path, *(stack.data_dir / "logs").iterdir()]
    assert {path.name: path.stat().st_mode & 0o777 for path in private} == {path.name: 0o600 for path in private}
    admin, stranger, wrong = await asyncio.gather(
        headway("whoami", "--json", "--address", stack.state.control_plane, "--token-file", str(kept)),
        headway("whoami", "--json", "--address", stack.state.control_plane),
        headway("project", "list", "--address", stack.state.control_plane, "--token-file", str(_token(kept.parent, "hw_no"))),
    )
    assert admin.content["caller"]["subject"] == "service:admin"
    assert admin.content["caller"]["organisation_roles"] == ["ROLE_ORG_ADMIN"]
    assert stranger.code == wrong.code == ExitCode.REFUSED
    assert json.loads(stranger.errors)["error"]["reason"] == "UNAUTHENTICATED"
    assert "hw_no" not in wrong.errors


def _token(folder: Path, text: str) -> Path:
    path = folder / "wrong.token"
    path.write_text(text)
    return path


async def test_status_for_people_names_every_component(stack: Stack) -> None:
    answer = await headway("status", "--data-dir", str(stack.data_dir))
    assert answer.code == ExitCode.OK
    lines = answer.output.splitlines()
    for name in COMPONENTS:
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert "healthy" in line or "done" in line


async def test_a_second_up_in_the_same_place_is_refused_and_names_the_first(stack: Stack) -> None:
    answer = await headway("up", "--detach", "--json", "--data-dir", str(stack.data_dir))
    assert answer.code == ExitCode.REFUSED
    error = json.loads(answer.errors)["error"]
    assert error["reason"] == "IN_USE"
    assert f"pid {stack.state.supervisor_pid}" in error["message"]


@pytest.mark.parametrize("name", ["gpu-worker", "scheduler", "postgres", "temporal", "s3"])
async def test_a_component_that_is_killed_comes_back(stack: Stack, name: str) -> None:
    before = stack.component(name)
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)

    def is_back() -> bool:
        now = stack.component(name)
        return now.state is State.HEALTHY and now.pid not in {None, before.pid} and now.restarts == before.restarts + 1

    await until(is_back, lambda: stack.component(name), seconds=60)
    assert stack.component(name).address == before.address
    # The others get over it by themselves.
    probes = machine.probes(Layout.at(stack.data_dir))
    for other, probe in probes.items():
        await healthy_again(other, probe)


async def healthy_again(name: str, probe: Probe) -> None:
    deadline = asyncio.get_running_loop().time() + 60
    while (fault := await fault_of(probe)) is not None:
        assert asyncio.get_running_loop().time() < deadline, f"{name}: {fault}"
        await asyncio.sleep(0.1)


async def fault_of(probe: Probe) -> str | None:
    try:
        await probe()
    except NotHealthyError as error:
        return str(error)
    return None


async def test_spans_of_several_processes_arrive_as_one_trace(stack: Stack) -> None:
    telemetry = stack.settings.telemetry
    assert telemetry.otlp_traces_url is not None
    carrier: dict[str, str] = {}
    for service in ("first", "second", "third"):
        provider = TracerProvider(resource=Resource.create({"service.name": service}))
        exporter = OTLPSpanExporter(endpoint=telemetry.otlp_traces_url, headers=dict(telemetry.otlp_headers))
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        with provider.get_tracer("test").start_as_current_span(service, context=propagate.extract(carrier)):
            propagate.inject(carrier)
        await asyncio.to_thread(provider.shutdown)
    trace_id = carrier["traceparent"].split("-")[1]
    found = await asyncio.to_thread(get_trace, stack.state.mlflow_url, trace_id)
    spans = {span["name"]: span for span in found["spans"]}
    assert set(spans) == {"first", "second", "third"}
    assert "parent_span_id" not in spans["first"]
    assert spans["second"]["parent_span_id"] == spans["first"]["span_id"]
    assert spans["third"]["parent_span_id"] == spans["second"]["span_id"]
    # The page that a person opens; which trace it shows is decided in the browser.
    assert stack.state.traces_url.endswith("/#/experiments/0/traces/tr-{trace_id}")
    await http_ok(stack.state.traces_url.format(trace_id=trace_id))()


def get_trace(mlflow_url: str, trace_id: str) -> Any:
    url = f"{mlflow_url}/api/3.0/mlflow/traces/get?trace_id=tr-{trace_id}"
    with urllib.request.urlopen(url) as response:  # noqa: S310 - our own server's URL.
        return json.load(response)["trace"]


async def test_killed_supervisor_leaves_nothing_and_the_next_start_finds_everything(tmp_path: Path, marked: Marked) -> None:
    data_dir = tmp_path / "data"
    layout = Layout.at(data_dir)
    where = ("--data-dir", str(data_dir))

    first = await headway("up", "--detach", "--json", *where, marked=marked)
    assert first.code == ExitCode.OK, first
    settings = json.loads(layout.settings.read_text())
    dsn, token = settings["postgres"]["dsn"], layout.admin_token.read_text()
    connection = await asyncpg.connect(dsn)
    await connection.execute("CREATE TABLE kept (word text)")
    await connection.execute("INSERT INTO kept VALUES ('word')")
    await connection.close()
    state = json.loads(layout.state.read_text())
    os.kill(state["supervisor_pid"], signal.SIGKILL)
    await until(lambda: not lock.is_held(layout), marked.alive)
    assert not marked.alive()
    status = await headway("status", *where)
    assert status.code == ExitCode.UNAVAILABLE
    assert "nothing runs" in status.output

    second = await headway("up", "--detach", "--json", *where, marked=marked)
    assert second.code == ExitCode.OK, second
    # Same secrets, same ports, same data.
    assert json.loads(layout.settings.read_text()) == settings
    assert layout.admin_token.read_text() == token
    connection = await asyncpg.connect(dsn)
    assert await connection.fetchval("SELECT word FROM kept") == "word"
    await connection.close()

    down = await headway("down", "--json", *where)
    assert down.code == ExitCode.OK, down
    assert down.content["was_running"]
    assert not marked.alive()
    assert not layout.state.exists()
    again = await headway("down", "--json", *where)
    assert again.code == ExitCode.OK
    assert not again.content["was_running"]


async def test_ctrl_c_in_the_foreground_stops_everything(tmp_path: Path, marked: Marked) -> None:
    layout = Layout.at(tmp_path)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headway_client.cli", "up", "--json", "--data-dir", str(tmp_path)),
        stdout=subprocess.PIPE,
        env=marked.env,
    )
    assert process.stdout is not None
    # In the middle of the start: some run, some wait.
    async for line in process.stdout:
        if json.loads(line) | {"seconds": 0, "detail": ""} == _event("postgres", State.HEALTHY):
            break
    process.send_signal(signal.SIGINT)
    await process.stdout.read()
    assert await process.wait() == ExitCode.INTERRUPTED
    assert not marked.alive()
    assert not lock.is_held(layout)


def _event(component: str, state: State) -> dict[str, object]:
    return {"component": component, "state": state, "seconds": 0, "detail": ""}


async def test_a_taken_port_is_named(tmp_path: Path, stack: Stack) -> None:
    port = stack.state.control_plane.rpartition(":")[2]
    answer = await headway("up", "--detach", "--json", "--port", port, "--data-dir", str(tmp_path))
    assert answer.code == ExitCode.REFUSED
    error = json.loads(answer.errors)["error"]
    assert error["reason"] == "PORT_TAKEN"
    assert f"port {port} of 127.0.0.1" in error["message"]
    assert f"process {stack.component('control-plane').pid}" in error["message"]


async def test_a_server_that_cannot_start_is_named_with_its_log_and_nothing_is_left(tmp_path: Path, marked: Marked) -> None:
    (tmp_path / "temporal").mkdir()
    (tmp_path / "temporal" / "temporal.db").write_bytes(b"this is no database" * 1000)
    answer = await headway("up", "--detach", "--json", "--data-dir", str(tmp_path), marked=marked)
    assert answer.code == ExitCode.UNAVAILABLE
    error = json.loads(answer.errors)["error"]
    assert error["reason"] == "COMPONENT_FAILED"
    assert error["message"].startswith("temporal exited with code 1, 3 times in a row")
    assert str(tmp_path / "logs" / "temporal.log") in error["message"]
    assert "not a database" in error["message"]
    assert not marked.alive()


async def test_a_damaged_cluster_is_named(tmp_path: Path, marked: Marked) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "credentials.json").write_text(
        json.dumps({"postgres_password": "p", "s3_access_key_id": "k", "s3_secret_access_key": "s"})
    )
    answer = await headway("up", "--detach", "--data-dir", str(tmp_path), marked=marked)
    assert answer.code == ExitCode.REFUSED
    assert f"{tmp_path}/postgres is not a Postgres cluster" in answer.errors
    assert "Traceback" not in answer.errors
    assert not marked.alive()
