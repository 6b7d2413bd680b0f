"""What is kept in a data directory, and what is said when it cannot be used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Generator
from pathlib import Path

import pytest

from control_plane.identity.service_tokens import bootstrap_token_id
from control_plane.settings import Settings
from deploy.one_machine import kept, lock, machine, ports, state, unprivileged
from deploy.one_machine.errors import OneMachineError, Reason
from deploy.one_machine.layout import Layout, write_private
from tests.processes import Marked
from tests.waiting import until


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout.at(tmp_path / "data")
    layout.prepare()
    return layout


@pytest.fixture
def taken() -> Generator[int]:
    with socket.socket() as server:
        server.bind((ports.HOST, 0))
        server.listen()
        yield server.getsockname()[1]


def refused(reason: Reason, caught: pytest.ExceptionInfo[OneMachineError], *words: str) -> None:
    assert caught.value.reason is reason
    for word in words:
        assert word in caught.value.message


def test_ports_are_distinct_free_and_kept(layout: Layout) -> None:
    first = kept.choose_ports(layout, {})
    assert set(first) == set(kept.PORTS)
    assert len(set(first.values())) == len(first)
    assert all(ports.is_free(port) for port in first.values())
    assert kept.choose_ports(layout, {}) == first
    assert kept.last_ports(layout) == first


def test_a_remembered_port_that_is_taken_is_replaced_and_the_others_are_kept(layout: Layout) -> None:
    first = kept.choose_ports(layout, {})
    with socket.socket() as other:
        other.bind((ports.HOST, first["mlflow"]))
        other.listen()
        second = kept.choose_ports(layout, {})
    assert second["mlflow"] != first["mlflow"]
    assert second | {"mlflow": 0} == first | {"mlflow": 0}


def test_a_port_that_was_asked_for_and_is_taken_is_named_with_who_has_it(layout: Layout, taken: int) -> None:
    with pytest.raises(OneMachineError) as caught:
        kept.choose_ports(layout, {"control-plane": taken})
    refused(Reason.PORT_TAKEN, caught, f"port {taken} of 127.0.0.1", "control-plane", f"process {os.getpid()}")


def test_a_port_that_was_asked_for_is_used_and_kept(layout: Layout) -> None:
    (port,) = ports.choose(["any"], {}, {}).values()
    assert kept.choose_ports(layout, {"control-plane": port})["control-plane"] == port
    assert kept.choose_ports(layout, {})["control-plane"] == port


def test_credentials_are_random_private_and_kept(layout: Layout, tmp_path: Path) -> None:
    first = kept.credentials(layout)
    assert kept.credentials(layout) == first
    assert layout.credentials.stat().st_mode & 0o077 == 0
    other = Layout.at(tmp_path / "other")
    other.prepare()
    assert kept.credentials(other).postgres_password != first.postgres_password


def test_credentials_of_an_earlier_release_are_kept_and_completed(layout: Layout) -> None:
    layout.credentials.write_text('{"postgres_password": "p", "s3_access_key_id": "k", "s3_secret_access_key": "s"}')
    first = kept.credentials(layout)
    assert (first.postgres_password, first.s3_access_key_id) == ("p", "k")
    assert kept.credentials(layout) == first
    assert json.loads(layout.credentials.read_text())["admin_token"] == first.admin_token


def test_the_settings_know_the_tokens_by_their_hash_and_only_the_workers_by_themselves(layout: Layout) -> None:
    machine.assemble(layout, kept.choose_ports(layout, {}), None)
    secrets, settings = kept.credentials(layout), Settings.model_validate_json(layout.settings.read_bytes())
    assert layout.admin_token.read_text().strip() == secrets.admin_token
    assert layout.admin_token.stat().st_mode & 0o777 == 0o600
    assert settings.identity is not None
    assert settings.identity.secret_key.get_secret_value() == secrets.identity_secret_key
    found = {token.role: token for token in settings.identity.bootstrap_tokens}
    for role, secret in (("ORG_ADMIN", secrets.admin_token), ("WORKER", secrets.worker_token)):
        assert found[role].secret_sha256 == hashlib.sha256(secret.encode()).hexdigest()
        assert secret.startswith(f"hw_{uuid.UUID(bootstrap_token_id(found[role].name)).hex}_")
    assert settings.worker.token is not None
    assert settings.worker.token.get_secret_value() == secrets.worker_token
    assert secrets.admin_token not in layout.settings.read_text()
    assert settings.identity.bootstrap_projects == ("demo",)


def test_the_next_start_keeps_the_tokens(layout: Layout) -> None:
    chosen = kept.choose_ports(layout, {})
    machine.assemble(layout, chosen, None)
    before = layout.settings.read_text(), layout.admin_token.read_text()
    machine.assemble(layout, chosen, None)
    assert (layout.settings.read_text(), layout.admin_token.read_text()) == before


def test_lost_credentials_of_existing_data_are_said(layout: Layout) -> None:
    layout.server("postgres").mkdir()
    with pytest.raises(OneMachineError) as caught:
        kept.credentials(layout)
    refused(Reason.DAMAGED_STATE, caught, str(layout.credentials), "missing")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"postgres_password": ""}', '{"unknown": 1}'])
def test_damaged_credentials_are_named(layout: Layout, content: str) -> None:
    layout.credentials.write_text(content)
    with pytest.raises(OneMachineError) as caught:
        kept.credentials(layout)
    refused(Reason.DAMAGED_STATE, caught, str(layout.credentials), "damaged")


def test_damaged_ports_are_named(layout: Layout) -> None:
    layout.ports.write_text('{"postgres": "many"}')
    with pytest.raises(OneMachineError) as caught:
        kept.choose_ports(layout, {})
    refused(Reason.DAMAGED_STATE, caught, str(layout.ports))


def test_a_damaged_state_file_is_named_and_an_absent_one_is_none(layout: Layout) -> None:
    assert state.read(layout) is None
    layout.state.write_text("{}")
    with pytest.raises(OneMachineError) as caught:
        state.read(layout)
    refused(Reason.DAMAGED_STATE, caught, str(layout.state))


def test_a_file_is_replaced_as_a_whole_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_private(path, "first, which is longer")
    write_private(path, "second")
    assert path.read_text() == "second"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OneMachineError) as caught:
        Layout.at(tmp_path / "file" / "data").prepare()
    refused(Reason.STORAGE, caught, str(tmp_path / "file" / "data"), "Not a directory")


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    mount = shutil.which("mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_nearly_full_disk_is_said_with_how_much_is_left(small_disk: Path) -> None:
    with pytest.raises(OneMachineError) as caught:
        Layout.at(small_disk / "data").prepare()
    refused(Reason.STORAGE, caught, "has 0 MiB left", "expected at least 512 MiB")


def test_a_full_disk_is_said(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "fill").write_bytes(bytes(1_000_000))
    with pytest.raises(OneMachineError) as caught:
        Layout.at(small_disk / "data").prepare()
    refused(Reason.STORAGE, caught, "No space left on device", "make room")


def test_a_directory_in_use_names_the_supervisor(layout: Layout) -> None:
    with lock.held(layout):
        assert lock.is_held(layout)
        assert lock.supervisor_pid(layout) == os.getpid()
        with pytest.raises(OneMachineError) as caught, lock.held(layout):
            pass
        refused(Reason.IN_USE, caught, f"pid {os.getpid()}", str(layout.root))
    assert not lock.is_held(layout)


def test_another_process_with_the_old_pid_is_not_taken_for_the_supervisor(layout: Layout) -> None:
    layout.lock.write_text(f"{os.getpid()} 1")
    assert lock.supervisor_pid(layout) is None


async def test_the_lock_of_a_killed_supervisor_is_waited_for(layout: Layout) -> None:
    marked = Marked()
    script = f"""
import asyncio, os
from pathlib import Path
from deploy.one_machine import lock
from deploy.one_machine.layout import Layout
from workers.child import spawn

async def main():
    with lock.held(Layout(Path({str(layout.root)!r}))) as fd:
        await spawn(["sh", "-c", "trap '' TERM; sleep 1000; sleep 1000"], hold_fd=fd, orphan_grace_seconds=0.3)
        os.kill(os.getpid(), 9)

asyncio.run(main())
"""
    try:
        subprocess.run([sys.executable, "-c", script], env=marked.env, check=False)  # noqa: ASYNC221 - nothing else runs here.
        assert marked.alive()
        with lock.held(layout):
            assert not marked.alive()
        await until(lambda: not marked.alive(), marked.alive)
    finally:
        marked.kill()


def test_settings_are_private_and_overridden_by_section(layout: Layout, tmp_path: Path) -> None:
    overrides = tmp_path / "overrides.json"
    overrides.write_text('{"scheduler": {"poll_seconds": 0.5}, "worker": {"cpu_slots": 7}}')
    assembled = machine.assemble(layout, kept.choose_ports(layout, {}), overrides)
    written = json.loads(layout.settings.read_text())
    assert written["scheduler"] == {"poll_seconds": 0.5}
    assert written["worker"]["cpu_slots"] == 7
    assert written["worker"]["stop_grace_seconds"] > 0
    assert layout.settings.stat().st_mode & 0o077 == 0
    # Nothing waits for the slowest server, and nobody needs what is not there.
    names = {component.name for component in assembled.components}
    assert all(component.needs <= names - {"mlflow"} for component in assembled.components)


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "expected a JSON object"), ("[]", "expected a JSON object"), ('{"scheduler": {"pol": 1}}', "scheduler.pol")],
)
def test_invalid_overrides_are_named(layout: Layout, tmp_path: Path, content: str, said: str) -> None:
    overrides = tmp_path / "overrides.json"
    overrides.write_text(content)
    with pytest.raises(OneMachineError) as caught:
        machine.assemble(layout, kept.choose_ports(layout, {}), overrides)
    refused(Reason.INVALID_SETTINGS, caught, str(overrides), said)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs anything as another user")
def test_root_lets_another_user_pass_closed_folders_and_nothing_more(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "file").write_text("content")
    (closed / "file").chmod(0o644)
    prefix = unprivileged.prefix([closed / "file"])
    read = subprocess.run([*prefix, "cat", closed / "file"], capture_output=True, check=True)
    assert read.stdout == b"content"
    identity = subprocess.run([*prefix, "id", "-u"], capture_output=True, check=True)
    assert int(identity.stdout) != 0
    # It may look, but not touch.
    assert subprocess.run([*prefix, "touch", closed / "new"], capture_output=True, check=False).returncode != 0
