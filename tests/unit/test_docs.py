"""The docs say what is there: every setting, reason, RPC, verb and term; every link leads somewhere; no machine is named."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import typer.main
from google.protobuf import descriptor_pool

from control_plane.app import SERVICES
from control_plane.errors import Reason
from control_plane.jobs.states import TRANSITIONS, JobPhase
from control_plane.settings import Settings
from headway_client.cli.app import build

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference"


def _tracked(pattern: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_every_error_reason_is_described() -> None:
    text = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    assert not [reason for reason in Reason if f"| {reason} |" not in text]


def test_every_setting_is_described() -> None:
    text = (REFERENCE / "settings.md").read_text(encoding="utf-8")
    for section, field in Settings.model_fields.items():
        keys: list[str] = []
        for kind in getattr(field.annotation, "__args__", (field.annotation,)):
            keys += getattr(kind, "model_fields", {})
        assert keys, section
        for key in keys:
            assert f"`{section}.{key}`" in text, f"docs/reference/settings.md does not describe {section}.{key}"


def test_every_rpc_is_described() -> None:
    text = (REFERENCE / "rpcs.md").read_text(encoding="utf-8")
    for name in SERVICES:
        assert f"## {name}\n" in text
        for method in descriptor_pool.Default().FindServiceByName(name).methods:
            assert f"| `{method.name}` |" in text, f"docs/reference/rpcs.md does not describe {name}/{method.name}"


def test_every_command_is_described() -> None:
    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    root = typer.main.get_command(build([]))
    names: list[str] = []
    for name, command in getattr(root, "commands", {}).items():
        inner = getattr(command, "commands", None)
        names += [f"headway {name} {verb}" for verb in inner] if inner else [f"headway {name}"]
    assert names
    assert not [name for name in names if name not in text]


def test_every_transition_and_phase_is_in_the_life_of_a_job() -> None:
    text = (ROOT / "docs/explanation/job-lifecycle.md").read_text(encoding="utf-8")
    assert not [transition.name for transition in TRANSITIONS if f"| {transition.name} |" not in text]
    assert not [phase for phase in JobPhase if phase not in text]


@pytest.mark.parametrize("page", _tracked("*.md"), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}, which is not there"


def test_no_file_names_a_machine() -> None:
    # Written apart, so that this file does not find itself.
    places = ["/" + "root/", "/" + "home/", "/" + "opt/wheels", "/" + "work/", "file:" + "///opt"]
    found: list[str] = []
    for path in _tracked("*"):
        if path.suffix in {".jsonl", ".lock", ".png", ".gguf"} or "gen" in path.relative_to(ROOT).parts[:1]:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            found += [f"{path.relative_to(ROOT)}:{number}: {place}" for place in places if place in line]
    assert not found
