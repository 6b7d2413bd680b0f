"""Writes the histories that `test_replay.py` replays. Run it after a deliberate change of a workflow:

python tests/replay/record.py [SCENARIO ...]

A history made by today's code proves nothing about yesterday's runs: while jobs are running, keep the old file under a name
that says what it was made by, and guard the change with `workflow.patched`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

from scenarios import play, scenarios
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

HISTORIES = Path(__file__).parent / "histories"


async def _record(names: list[str]) -> None:
    server = await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(Path(sysconfig.get_path("scripts")) / "temporal"),
        data_converter=pydantic_data_converter,
        identity="recorder",
    )
    async with server as environment:
        for name, scenario in scenarios().items():
            if names and name not in names:
                continue
            _, outcome = await play(environment.client, name, scenario)
            history = await environment.client.get_workflow_handle(name).fetch_history()
            (HISTORIES / f"{name}.json").write_text(json.dumps(_without_host(history.to_json_dict()), indent=1) + "\n")
            print(f"{name}: {outcome.state}, {len(history.events)} events")


def _without_host(value: Any) -> Any:
    """The history without what tells the recording machine: identities and sticky queues hold its name."""
    if isinstance(value, dict):
        return {
            key: "recorder" if key == "identity" else _without_host(content)
            for key, content in value.items()
            if key not in {"stackTrace", "workerInstanceKey"}
        }
    if isinstance(value, list):
        return [_without_host(item) for item in value]
    return value


if __name__ == "__main__":
    asyncio.run(_record(sys.argv[1:]))
    sys.stdout.flush()
    # The SDK's threads would otherwise meet an interpreter that is gone already, and abort.
    os._exit(0)
