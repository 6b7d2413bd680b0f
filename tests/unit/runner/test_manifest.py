"""A manifest stands for a directory: every way to change the directory is noticed and named."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.manifest import MANIFEST_NAME, ManifestError, verify_checkpoint, verify_manifest, write_manifest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "nested").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(256)) * 40)
    (folder / "nested" / "state.json").write_text("{}")
    write_manifest(folder, {"step": 4})
    return folder


def test_an_untouched_directory_is_verified(directory: Path) -> None:
    manifest = verify_manifest(directory)
    assert manifest["extra"] == {"step": 4}
    assert [entry["name"] for entry in manifest["files"]] == ["nested/state.json", "weights"]
    assert manifest["files"][1]["sha256"] == hashlib.sha256((directory / "weights").read_bytes()).hexdigest()


def test_the_manifests_own_hash_is_returned_and_can_be_demanded(directory: Path) -> None:
    sha256 = write_manifest(directory, {"step": 4})
    assert sha256 == hashlib.sha256((directory / MANIFEST_NAME).read_bytes()).hexdigest()
    assert verify_manifest(directory, sha256) == verify_manifest(directory)
    with pytest.raises(ManifestError, match=f"expected SHA-256 {'0' * 64}, found SHA-256 {sha256}"):
        verify_manifest(directory, "0" * 64)


def test_equal_directories_have_equal_manifests(directory: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "nested").mkdir(parents=True)
    (other / "nested" / "state.json").write_text("{}")
    (other / "weights").write_bytes((directory / "weights").read_bytes())
    assert write_manifest(other, {"step": 4}) == write_manifest(directory, {"step": 4})


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(bytes(content))


def _swap(directory: Path) -> None:
    weights, state = (directory / "weights").read_bytes(), (directory / "nested" / "state.json").read_bytes()
    (directory / "weights").write_bytes(state)
    (directory / "nested" / "state.json").write_bytes(weights)


def _edit(directory: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = directory / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    change(manifest)
    # As one that was made so: it is refused for what it says.
    unsealed = json.dumps({**manifest, "seal": ""}, sort_keys=True, indent=1)
    seal = hashlib.sha256(unsealed.encode()).hexdigest()
    path.write_text(json.dumps({**manifest, "seal": seal}, sort_keys=True, indent=1))


MUTATIONS: dict[str, Callable[[Path], object]] = {
    "one bit flipped": lambda d: _flip(d / "weights"),
    "file cut": lambda d: os.truncate(d / "weights", 100),
    "file emptied": lambda d: os.truncate(d / "weights", 0),
    "file grown": lambda d: (d / "weights").write_bytes((d / "weights").read_bytes() + b"\0"),
    "file dropped": lambda d: (d / "weights").unlink(),
    "files swapped": _swap,
    "file added": lambda d: (d / "optimizer.pt").write_bytes(b"\x80\x04"),
    "file added deep": lambda d: (d / "nested" / "x").write_bytes(b""),
    "file replaced by a link": lambda d: ((d / "weights").rename(d.parent / "w"), (d / "weights").symlink_to(d.parent / "w")),
    "manifest dropped": lambda d: (d / MANIFEST_NAME).unlink(),
    "manifest cut": lambda d: os.truncate(d / MANIFEST_NAME, 50),
    "manifest nested too deep": lambda d: (d / MANIFEST_NAME).write_text("[" * 100_000),
    "manifest of another version": lambda d: _edit(d, lambda m: m.update(version=1)),
    "manifest with a number that is none": lambda d: _edit(d, lambda m: m.update(extra={"metric": float("nan")})),
    "manifest without files": lambda d: _edit(d, lambda m: m.pop("files")),
    "manifest with a field more": lambda d: _edit(d, lambda m: m.update(more=1)),
    "manifest naming a file outside": lambda d: _edit(
        d, lambda m: m.update(files=[{"name": "../../etc/passwd", "size": 1, "sha256": "0" * 64}])
    ),
    "manifest naming no file": lambda d: _edit(d, lambda m: m.update(files=[])),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_every_change_is_noticed(mutation: str, directory: Path) -> None:
    MUTATIONS[mutation](directory)
    with pytest.raises(ManifestError, match=r"expected .+, found .+"):
        verify_manifest(directory)


def test_every_single_bit_of_a_manifest_counts(directory: Path) -> None:
    path = directory / MANIFEST_NAME
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :])
            with pytest.raises(ManifestError):
                verify_manifest(directory)
    path.write_bytes(content)
    verify_manifest(directory)


def test_a_checkpoint_in_another_ones_place_is_noticed(directory: Path, tmp_path: Path) -> None:
    place = directory.rename(tmp_path / "step-00000004")
    assert verify_checkpoint(place)["extra"] == {"step": 4}
    other = place.rename(tmp_path / "step-00000008")
    assert verify_manifest(other)["extra"] == {"step": 4}
    with pytest.raises(ManifestError, match="expected the step of step-00000008, found step 4"):
        verify_checkpoint(other)
    write_manifest(other, {})
    with pytest.raises(ManifestError, match="found step None"):
        verify_checkpoint(other)


def test_a_manifest_is_not_written_over_links(directory: Path) -> None:
    (directory / "link").symlink_to(directory / "weights")
    with pytest.raises(ManifestError, match="link"):
        write_manifest(directory, {})
