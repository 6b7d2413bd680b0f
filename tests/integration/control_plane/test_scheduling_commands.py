"""The commands of the how-to pages, run as they stand there, and what people are shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from headway.projects.v1 import project_service_pb2 as projects_pb
from headway_client.cli.exit_codes import ExitCode
from tests.integration.control_plane.callers import PROJECT
from tests.integration.control_plane.conftest import Api, new_id
from tests.integration.control_plane.test_capacity import node, placed, registered
from tests.integration.control_plane.test_command_line import CommandLine
from tests.integration.control_plane.test_scheduling_service import NO_CAPACITY, QUOTA, wrote

HOW_TO = Path(__file__).parents[3] / "docs/how-to"


def commands(page: str) -> list[list[str]]:
    """The `headway` commands of a page, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", (HOW_TO / page).read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("headway ")]


@pytest.mark.timeout(300)
async def test_the_commands_of_the_pages_work_as_they_stand_there(api: Api, tmp_path: Path) -> None:
    await registered(api, node("n1", cpu_millis=192_000, labels={"rack": "r7"}), pool="h200")
    # Nobody beats for it while the commands run.
    await api.sql("UPDATE workers SET heartbeat_at = now() + interval '1 hour'")
    for name in ("vision", "speech"):
        created = projects_pb.CreateProjectRequest(request_id=new_id(), project=projects_pb.Project(name=name))
        await api.projects.CreateProject(created)
    job = await api.submit(await api.inputs())
    await wrote(api, job.job_id, QUOTA, ago=60)
    await wrote(api, job.job_id, QUOTA, NO_CAPACITY)
    admin = CommandLine(api, tmp_path, api.token)
    shown: dict[str, str] = {}
    for page in ("quotas.md", "budgets.md", "why-is-my-job-waiting.md"):
        for command in commands(page):
            words = [{"JOB": job.job_id, "PROJECT": PROJECT}.get(word, word) for word in command]
            code, output, errors = await admin.run(*words)
            assert code == ExitCode.OK, (command, errors)
            shown[" ".join(command)] = output
            print(f"$ headway {' '.join(command)}\n{output}")
    assert "vision" in shown["quota list"]
    assert "1,000.00, 500.00 h" in shown["budget list"]
    assert "3.6 EUR" in shown["price list"]
    assert "has no budget" in shown["budget delete vision"]
    assert "h200=16+8" in shown["quota list"]
    said = shown["why JOB"]
    assert "waits for be admitted" not in said
    assert "team lab uses 6 of at most 8" in said
    assert "until:" in said
    assert "0 of 1 like it" in said
    assert "1 of 1 would start at once, the first on n1" in shown["simulate submit -p PROJECT --accelerators 8 --hours 2"]
    assert "cordoned" in shown["nodes cordon n1"] or "takes nothing new" in shown["nodes cordon n1"]


async def test_people_are_shown_how_far_a_drain_is_and_pools_that_are_not_there(api: Api, tmp_path: Path) -> None:
    await registered(api, node("n1"))
    await api.sql("UPDATE workers SET heartbeat_at = now() + interval '1 hour'")
    _, lease_id = await api.leased()
    await placed(api, lease_id, ("n1", 1))
    admin = CommandLine(api, tmp_path, api.token)
    await admin.run("nodes", "drain", "n1", "--reason", "a fan is loud")
    assert "alive, draining: 1 lease left (a fan is loud)" in (await admin.run("nodes", "list"))[1]
    await api.sql("UPDATE leases SET state = 'ENDED', ended_at = now()")
    assert "alive, drained" in (await admin.run("nodes", "list"))[1]
    _, said, _ = await admin.run("quota", "set", PROJECT, "reserved=4", "resreved=4")
    assert "no node is in pool resreved;" in said
    assert "pool reserved;" not in said
