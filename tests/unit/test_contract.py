"""The contract's own checks work: what breaks clients is noticed, and generated code that is stale is noticed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).parent / "buf"
# Where `make setup` puts the proto files that ours import.
GOOGLEAPIS = Path(sys.prefix) / "googleapis"


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    """A copy of the contract that may be damaged."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    shutil.copytree(GOOGLEAPIS, tmp_path / ".venv/googleapis")
    return tmp_path


def _buf(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def _breaking(folder: Path) -> subprocess.CompletedProcess[str]:
    image = folder / "contract.binpb"
    built = _buf(folder, "build", "--output", str(image))
    assert built.returncode == 0, built.stderr
    return _buf(folder, "breaking", str(image), "--against", "protos/baseline.binpb")


def test_the_contract_only_grew(contract: Path) -> None:
    assert _breaking(contract).returncode == 0


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("jobs/v1/job_service.proto", "  string project = 2;", "  string tenant = 2;"),
        ("jobs/v1/job_service.proto", "  string project = 2;", "  bytes project = 2;"),
        ("jobs/v1/job.proto", "  JOB_STATE_QUEUED = 1;", "  JOB_STATE_WAITING = 1;"),
        ("errors/v1/error_reason.proto", "  ERROR_REASON_STALE_ATTEMPT = 9;", "  ERROR_REASON_STALE_ATTEMPT = 99;"),
    ],
)
def test_what_breaks_clients_is_noticed(contract: Path, file: str, before: str, after: str) -> None:
    path = contract / "protos/headway" / file
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    checked = _breaking(contract)
    assert checked.returncode != 0
    assert file in checked.stdout


def test_a_field_without_its_words_or_a_wrong_name_is_noticed(contract: Path) -> None:
    path = contract / "protos/headway/jobs/v1/job.proto"
    path.write_text(path.read_text(encoding="utf-8").replace("message Violation", "message violation"), encoding="utf-8")
    assert _buf(contract, "lint").returncode != 0


def test_generated_code_matches_the_protos(tmp_path: Path) -> None:
    protos = sorted(str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos").rglob("*.proto"))
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-Iprotos", f"-I{GOOGLEAPIS}", f"--python_out={tmp_path}", *protos],
        cwd=ROOT,
        check=True,
    )
    for made in tmp_path.rglob("*.py"):
        kept = ROOT / "gen" / made.relative_to(tmp_path)
        assert made.read_bytes() == kept.read_bytes(), f"{kept} is stale; run `make gen`"
