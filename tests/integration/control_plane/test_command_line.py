"""The command line against a real control plane: projects, members, tokens, and the audit log checked from outside."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from headway_client.cli.exit_codes import ExitCode
from tests.integration.control_plane.callers import PROJECT
from tests.integration.control_plane.conftest import Api


class CommandLine:
    """Runs commands as one caller."""

    def __init__(self, api: Api, folder: Path, token: str | None) -> None:
        self._address = f"127.0.0.1:{api.port}"
        self._folder = folder
        self._environment = {} if token is None else {"HEADWAY_TOKEN": token}

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "headway_client.cli", *arguments, "--address", self._address),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._folder,
            env={**os.environ, **self._environment},
        )
        output, errors = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        return process.returncode, output.decode(), errors.decode()

    async def json(self, *arguments: str) -> Any:
        code, output, errors = await self.run(*arguments, "--json")
        assert code == ExitCode.OK, errors
        return json.loads(output)


async def test_a_project_its_member_and_a_token_from_the_first_to_the_last_day(api: Api, tmp_path: Path) -> None:
    admin = CommandLine(api, tmp_path, api.token)
    made = await admin.json("project", "create", "lab", "--title", "The lab", "--priority-max", "700")
    assert (made["project"]["name"], made["project"]["priority_max"]) == ("lab", 700)
    await admin.json("member", "set", "user:alice@example.org", "--role", "submitter", "-p", "lab")
    members = await admin.json("member", "list", "-p", "lab")
    assert [(one["subject"], one["role"]) for one in members["members"]] == [("user:alice@example.org", "ROLE_SUBMITTER")]
    kept = tmp_path / "nightly.token"
    token = await admin.json("token", "create", "nightly", "--role", "maintainer", "-p", "lab", "--days", "1", "-o", str(kept))
    assert "secret" not in token
    assert kept.stat().st_mode & 0o777 == 0o600
    service = CommandLine(api, tmp_path, None)
    caller = await service.json("whoami", "--token-file", str(kept))
    assert caller["caller"]["subject"] == "service:lab/nightly"
    assert caller["caller"]["project_roles"] == {"lab": "ROLE_MAINTAINER"}
    code, _, errors = await service.run("project", "create", "more", "--token-file", str(kept))
    assert code == ExitCode.REFUSED
    assert "headway whoami" in errors
    listed = await service.json("project", "list", "--token-file", str(kept))
    assert [one["name"] for one in listed["projects"]] == ["lab"]
    await admin.json("token", "revoke", token["token"]["token_id"])
    await admin.json("project", "delete", "lab")
    code, _, errors = await service.run("whoami", "--token-file", str(kept))
    assert code == ExitCode.REFUSED
    assert kept.read_text().strip() not in errors


async def test_the_audit_log_is_verified_from_outside_and_a_change_is_found(api: Api, tmp_path: Path) -> None:
    admin = CommandLine(api, tmp_path, api.token)
    for name in ("one", "two", "three"):
        await admin.json("project", "create", name)
    noted = await _linked(admin)
    code, output, _ = await admin.run("audit", "list", "--json")
    records = [json.loads(line) for line in output.splitlines()]
    assert code == ExitCode.OK
    made = [record["object"] for record in records if record["method"].endswith("/CreateProject")]
    assert made[-3:] == ["one", "two", "three"]
    code, output, _ = await admin.run("audit", "list", "--json", "--newest-first", "--limit", str(len(records)))
    positions = [int(json.loads(line)["position"]) for line in output.splitlines()]
    assert positions == sorted(positions, reverse=True)
    assert positions[0] >= int(records[-1]["position"])
    again = await admin.json("audit", "verify", "--expect-head", noted)
    assert again["position"] >= int(noted.partition(":")[0])
    forged = f"{noted.partition(':')[0]}:{'0' * 64}"
    code, _, errors = await admin.run("audit", "verify", "--expect-head", forged)
    assert code == ExitCode.TAMPERED
    assert "written anew" in errors
    # Whoever has the database can change a row; whoever has its hashes sees it.
    await api.sql("ALTER TABLE audit_records DISABLE TRIGGER USER")
    await api.sql("UPDATE audit_records SET object = 'other' WHERE object = 'two'")
    code, _, errors = await admin.run("audit", "verify")
    assert code == ExitCode.TAMPERED
    assert "was changed" in errors


async def _linked(admin: CommandLine) -> str:
    """The head, once the three projects are in the chain: linking follows a moment later."""
    async with asyncio.timeout(30):
        while True:
            found = await admin.json("audit", "verify")
            if found["position"] >= 3:
                return found["head"]


async def test_a_refusal_is_told_once_with_the_role_and_the_project(api: Api, tmp_path: Path) -> None:
    admin = CommandLine(api, tmp_path, api.token)
    viewer = CommandLine(api, tmp_path, (await api.acting_as("VIEWER")).token)
    job = await api.submit(await api.inputs())
    await admin.json("cancel", job.job_id)
    (tmp_path / "job.yaml").write_text(
        "spec: {fine_tune: {base_model: nothing, dataset: {name: nowhere}, output_model: out}}", encoding="utf-8"
    )
    refused, final, absent, one_absent = await asyncio.gather(
        viewer.run("submit", "job.yaml", "-p", PROJECT),
        admin.run("cancel", job.job_id),
        admin.run("submit", "job.yaml", "-p", PROJECT),
        admin.run("rerun", job.job_id, "--set", "fine_tune.base_model=nothing"),
    )
    assert refused[2].splitlines() == [
        "headway: your role does not allow headway.jobs.v1.JobService/SubmitJob: expected role SUBMITTER or MAINTAINER in "
        f"project {PROJECT}, or ORG_ADMIN in the organisation; ask whoever manages the project's members",
        f"  `headway whoami` shows what you may do, `headway member list -p {PROJECT}` whom to ask",
    ]
    [said] = final[2].splitlines()
    assert said.startswith("headway: cannot cancel a job that is CANCELLED; expected")
    sentence, *faults = absent[2].splitlines()
    assert sentence == "headway: the spec names what is not there"
    assert [fault.split(":")[0].strip() for fault in faults] == ["spec.fine_tune.base_model", "spec.fine_tune.dataset.name"]
    [said] = one_absent[2].splitlines()
    assert "is 'nothing', which is no base model here; register it with `headway base-model add`" in said
    assert [code for code, _, _ in (refused, final, absent, one_absent)] == [4, 4, 3, 3]


async def test_a_project_without_quota_is_said_what_that_means(api: Api, tmp_path: Path) -> None:
    code, _, errors = await CommandLine(api, tmp_path, api.token).run("quota", "get", PROJECT)
    assert code == ExitCode.NOT_FOUND
    [said] = errors.splitlines()
    assert said.endswith(f"it may use whatever is free; set one with SetQuota, or `headway quota set {PROJECT} KIND=NUMBER`")


async def test_text_that_is_none_is_the_callers_fault(api: Api, tmp_path: Path) -> None:
    code, _, errors = await CommandLine(api, tmp_path, api.token).run("get", "\udcff")
    assert (code, errors) == (2, "headway: job_id: has '\\udcff' at position 0, which is no character; expected text\n")
