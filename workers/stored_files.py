"""Sets of files in the object store: each file a blob named by its hash, and one manifest, written last, that names them."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from control_plane.jobs.spec import Sha256Hex
from control_plane.storage.layout import BASE_MODELS_PREFIX, blob_key, manifest_key, project_prefix
from workers.manifest import sha256_of
from workers.storage import IntegrityError, ObjectStore
from workers.workflows.contracts import StoredFiles

__all__ = [
    "BASE_MODELS_PREFIX",
    "FileSet",
    "StoredFile",
    "blob_key",
    "download",
    "download_files",
    "is_below",
    "project_prefix",
    "read_file_set",
    "upload",
]


class StoredFile(BaseModel):
    """One file of a set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Path below the set's root, with forward slashes."""
    uri: str
    size: int = Field(ge=0)
    sha256: Sha256Hex

    @field_validator("name")
    @classmethod
    def _stays_below_the_root(cls, name: str) -> str:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
            raise ValueError(f"{name!r} does not stay below the set's root")
        return name


class FileSet(BaseModel):
    """The content of a manifest; files are sorted by name, so that equal sets have equal hashes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    files: tuple[StoredFile, ...]

    def to_bytes(self) -> bytes:
        """Its canonical JSON."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()


def upload(store: ObjectStore, directory: Path, prefix: str) -> StoredFiles:
    """Stores every file below `directory`, then the manifest that names them. Safe to repeat.

    Raises:
        IntegrityError: a file changed while it was stored.
        StorageError: the store failed.
    """
    files: list[StoredFile] = []
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()):
        sha256 = sha256_of(path)
        uri = store.put_file(blob_key(prefix, sha256), path, sha256)
        name = path.relative_to(directory).as_posix()
        files.append(StoredFile(name=name, uri=uri, size=path.stat().st_size, sha256=sha256))
    content = FileSet(files=tuple(sorted(files, key=lambda file: file.name))).to_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    key = manifest_key(prefix, sha256)
    store.put_bytes(key, content)
    return StoredFiles(manifest_uri=store.uri(key), manifest_sha256=sha256)


def read_file_set(store: ObjectStore, stored: StoredFiles) -> FileSet:
    """The set that a manifest names. All its files lie beside it: no set leads to what another project stored.

    Raises:
        ObjectMissingError: the manifest is not there.
        IntegrityError: it has other bytes, is not a manifest, or names files elsewhere.
        StorageError: the store failed.
    """
    content = store.get_bytes(stored.manifest_uri, stored.manifest_sha256)
    try:
        found = FileSet.model_validate_json(content)
    except ValidationError as error:
        raise IntegrityError(stored.manifest_uri, "of a manifest", f"something else ({error})") from error
    prefix = stored.manifest_uri.removesuffix(manifest_key("", stored.manifest_sha256))
    for file in found.files:
        if file.uri != (expected := blob_key(prefix, file.sha256)):
            raise IntegrityError(stored.manifest_uri, f"of a manifest that names {expected}", f"one that names {file.uri}")
    return found


def is_below(store: ObjectStore, stored: StoredFiles, prefix: str) -> bool:
    """Whether a set is where `upload` puts it under this prefix."""
    return stored.manifest_uri == store.uri(manifest_key(prefix, stored.manifest_sha256))


def download(store: ObjectStore, stored: StoredFiles, directory: Path) -> None:
    """Fetches a set into `directory`, which must not exist yet and appears only when all of it is right.

    Raises:
        ObjectMissingError: the manifest or a file is not there.
        IntegrityError: one of them has other bytes.
        StorageError: the store failed.
    """
    partial = directory.with_name(f"{directory.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        download_files(store, read_file_set(store, stored).files, partial)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def download_files(store: ObjectStore, files: Iterable[StoredFile], directory: Path) -> None:
    """Fetches files into a directory, each under its path.

    Raises:
        ObjectMissingError, IntegrityError, StorageError: as `download`.
    """
    for file in files:
        target = directory / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        store.get_file(file.uri, target, file.sha256)
