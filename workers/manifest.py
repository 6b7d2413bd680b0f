"""Manifests: which files a directory holds, each with its size and SHA-256. Standard library only.

A checkpoint, an adapter or a package is a directory with a manifest.json. What the manifest does not name must not be there
and what it names must be there unchanged, so that one hash, the manifest's own, stands for the whole directory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict, cast

MANIFEST_NAME = "manifest.json"
_VERSION = 2
_MAX_MANIFEST_BYTES = 16 * 1024 * 1024


class FileEntry(TypedDict):
    """One file: its path below the directory with forward slashes, its size in bytes and its SHA-256 in hex."""

    name: str
    size: int
    sha256: str


class Manifest(TypedDict):
    """What manifest.json holds; `files` is sorted by name."""

    version: int
    files: list[FileEntry]
    extra: dict[str, Any]
    seal: str
    """SHA-256, in hex, of the manifest with an empty seal, so that a change of any of its own bits is noticed too."""


class ManifestError(Exception):
    """A directory is not what its manifest says."""

    def __init__(self, file: str, expected: str, found: str) -> None:
        self.file = file
        self.expected = expected
        self.found = found
        super().__init__(f"{file}: expected {expected}, found {found}")


def sha256_of(path: Path) -> str:
    """SHA-256 in hex of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(directory: Path, extra: Mapping[str, object]) -> str:
    """Writes manifest.json over everything below `directory` and returns the manifest's SHA-256.

    Every file is flushed to disk on the way, the manifest and the directory last: when this returns, all of it is durable.

    Args:
        directory: holds the files; a manifest.json that is there already is replaced.
        extra: JSON values to keep beside the list of files.

    Raises:
        ManifestError: there is something that is neither a file nor a directory.
    """
    names = sorted(name for name in _names_below(directory) if name != MANIFEST_NAME)
    files = [_entry(directory, name) for name in names]
    content = _sealed(Manifest(version=_VERSION, files=files, extra=dict(extra), seal=""))
    target = directory / MANIFEST_NAME
    aside = directory / (MANIFEST_NAME + ".partial")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(target)
    for folder in {directory, *(directory / PurePosixPath(name).parent for name in names)}:
        flush_directory(folder)
    return hashlib.sha256(content).hexdigest()


def verify_manifest(directory: Path, expected_sha256: str | None = None) -> Manifest:
    """Reads every file below `directory` and returns the manifest if each is as it says.

    Args:
        directory: holds manifest.json and the files.
        expected_sha256: what the manifest's own SHA-256 must be, if it is known.

    Raises:
        ManifestError: a file is missing, cut, changed or unlisted, or the manifest itself is.
    """
    manifest = _read_manifest(directory, expected_sha256)
    found = {name for name in _names_below(directory) if name != MANIFEST_NAME}
    listed = {entry["name"] for entry in manifest["files"]}
    for name in sorted(found - listed):
        raise ManifestError(name, "no such file, as the manifest does not name it", "a file")
    for entry in manifest["files"]:
        _verify_entry(directory, entry, found)
    return manifest


def verify_checkpoint(directory: Path) -> Manifest:
    """As `verify_manifest`, and the manifest must be of the step that the directory is named after, as in "step-00000004".

    A whole checkpoint in another one's place is as wrong as a flipped bit, and consistent with itself.

    Raises:
        ManifestError: as `verify_manifest`; or the checkpoint is of another step.
    """
    manifest = verify_manifest(directory)
    step = manifest["extra"].get("step")
    if not isinstance(step, int) or directory.name != checkpoint_name(step):
        raise ManifestError(MANIFEST_NAME, f"the step of {directory.name}", f"step {step}")
    return manifest


def metric_of(checkpoint: Manifest) -> float | None:
    """What held-out data said of a checkpoint, lower is better: `metric` in its manifest. None: nothing that is a number."""
    metric = checkpoint["extra"].get("metric")
    return float(metric) if isinstance(metric, int | float) and math.isfinite(metric) else None


def checkpoint_name(step: int) -> str:
    """The name of the directory of a step's checkpoint."""
    return f"step-{step:08d}"


def flush_directory(directory: Path) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names_below(directory: Path) -> Iterator[str]:
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ManifestError(name, "a file or a directory", "a link or a special file")
        if path.is_file():
            yield name


def _entry(directory: Path, name: str) -> FileEntry:
    with (directory / name).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        return FileEntry(name=name, size=os.fstat(file.fileno()).st_size, sha256=digest)


def _read_manifest(directory: Path, expected_sha256: str | None) -> Manifest:
    path = directory / MANIFEST_NAME
    if not path.is_file() or path.is_symlink():
        raise ManifestError(MANIFEST_NAME, "a file", "nothing" if not path.exists() else "something else")
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise ManifestError(MANIFEST_NAME, f"at most {_MAX_MANIFEST_BYTES} bytes", f"{path.stat().st_size} bytes")
    content = path.read_bytes()
    found_sha256 = hashlib.sha256(content).hexdigest()
    if expected_sha256 is not None and found_sha256 != expected_sha256:
        raise ManifestError(MANIFEST_NAME, f"SHA-256 {expected_sha256}", f"SHA-256 {found_sha256}")
    try:
        value: Any = json.loads(content, parse_constant=_refuse_constant)
    # Also of text that is no UTF-8, and of numbers too long to read.
    except (ValueError, RecursionError) as error:
        raise ManifestError(MANIFEST_NAME, "JSON", f"something else ({error})") from error
    if not _is_manifest(value):
        raise ManifestError(MANIFEST_NAME, f"a manifest of version {_VERSION}", "JSON of another form")
    manifest = cast("Manifest", value)
    if content != _sealed(manifest):
        raise ManifestError(MANIFEST_NAME, "the bytes that its seal stands for", "others")
    return manifest


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _sealed(manifest: Manifest) -> bytes:
    """The one form that a manifest has."""
    unsealed = json.dumps({**manifest, "seal": ""}, sort_keys=True, indent=1, allow_nan=False)
    seal = hashlib.sha256(unsealed.encode()).hexdigest()
    return json.dumps({**manifest, "seal": seal}, sort_keys=True, indent=1, allow_nan=False).encode()


def _is_manifest(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    fields = cast("dict[str, Any]", value)
    if fields.keys() != {"version", "files", "extra", "seal"} or fields["version"] != _VERSION:
        return False
    if not isinstance(fields["extra"], dict) or not isinstance(fields["files"], list):
        return False
    return all(_is_entry(entry) for entry in cast("list[Any]", fields["files"]))


def _is_entry(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    fields = cast("dict[str, Any]", value)
    return (
        fields.keys() == {"name", "size", "sha256"}
        and isinstance(fields["name"], str)
        and isinstance(fields["size"], int)
        and isinstance(fields["sha256"], str)
    )


def _verify_entry(directory: Path, entry: FileEntry, found: set[str]) -> None:
    name = entry["name"]
    # Only names that were met while walking the directory are opened, so "../x" in a manifest leads nowhere.
    if name not in found:
        raise ManifestError(name, f"a file of {entry['size']} bytes", "nothing")
    size = (directory / name).stat().st_size
    if size != entry["size"]:
        raise ManifestError(name, f"{entry['size']} bytes", f"{size} bytes")
    digest = sha256_of(directory / name)
    if digest != entry["sha256"]:
        raise ManifestError(name, f"SHA-256 {entry['sha256']}", f"SHA-256 {digest}")
