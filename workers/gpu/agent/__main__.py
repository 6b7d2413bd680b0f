"""`python -m workers.gpu.agent SPEC.json`: supervises one runner; writes `<workdir>/agent_result.json`."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import structlog

from control_plane.settings import Settings
from headway_client import telemetry
from workers.gpu.agent.agent import exit_code, run
from workers.gpu.agent.spec import RESULT_NAME, AgentResult, AgentSpec


def main() -> int:
    """Runs the agent; returns its exit code, which is one of the runner's or of `AgentExit`."""
    spec = AgentSpec.model_validate_json(Path(sys.argv[1]).read_bytes())
    settings = Settings()
    provider = telemetry.configure("headway-agent", settings.telemetry.otlp_traces_url, settings.telemetry.otlp_headers)
    try:
        with (
            structlog.contextvars.bound_contextvars(job_id=spec.context.job.job_id, attempt=spec.grant.attempt),
            telemetry.continued(spec.trace_parent),
        ):
            result = asyncio.run(_run(spec, settings))
    finally:
        provider.shutdown()
    partial = spec.workdir / f"{RESULT_NAME}.partial"
    partial.write_text(result.model_dump_json(exclude_none=True))
    partial.replace(spec.workdir / RESULT_NAME)
    return exit_code(result)


async def _run(spec: AgentSpec, settings: Settings) -> AgentResult:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    return await run(spec, settings, stop)


if __name__ == "__main__":
    sys.exit(main())
