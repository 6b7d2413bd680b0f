"""Base models in the form that training needs: converted once for all projects, then only staged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from pydantic import ValidationError

from control_plane.jobs.states import FailureKind
from workers.activities import verdict_of
from workers.file_cache import FileCache
from workers.runner.specs import ImportBaseModelOk, ImportBaseModelSpec
from workers.storage import IntegrityError, ObjectMissingError, ObjectStore
from workers.stored_files import BASE_MODELS_PREFIX, upload
from workers.workflows.contracts import JobInput, StoredFiles

_IMPORTER_VERSION = 1
"""Grows when `import_base_model` writes other bytes for the same source; then every base model is converted anew."""
_log = structlog.get_logger()

RunImport = Callable[[ImportBaseModelSpec, type[ImportBaseModelOk]], Awaitable[ImportBaseModelOk]]


class BaseModels:
    """Converted base models: in the object store, found by the hash of what they were made of, and cached here."""

    def __init__(self, store: ObjectStore, cache: FileCache) -> None:
        self._store = store
        self._cache = cache
        self._converting = asyncio.Lock()

    async def stage(self, job: JobInput, workdir: Path, run_import: RunImport) -> tuple[StoredFiles, Path]:
        """The job's base model: its files in the store, and a directory here, for reading only, until it is released.

        Args:
            job: names the source and its hash.
            workdir: for the conversion, should it be needed.
            run_import: runs the program `import_base_model`.

        Raises:
            ApplicationError: the source is missing, damaged, or cannot be converted.
            StorageError: the store failed.
        """
        # One conversion at a time on this machine: it takes gigabytes, and the second often wants what the first makes.
        async with self._converting:
            known = await asyncio.to_thread(self._find, job.base_model_sha256)
            if known is None:
                return await self._convert(job, workdir, run_import)
        return known, await asyncio.to_thread(self._cache.stage, known)

    def release(self, directory: Path) -> None:
        """Says that a directory that `stage` gave is not used any more."""
        self._cache.release(directory)

    async def _convert(self, job: JobInput, workdir: Path, run_import: RunImport) -> tuple[StoredFiles, Path]:
        _log.info("converting a base model", base_model=job.spec.base_model, sha256=job.base_model_sha256)
        source = workdir / "source"
        await asyncio.to_thread(self._fetch_source, job, source)
        spec = ImportBaseModelSpec(source_path=source, source_sha256=job.base_model_sha256, output_dir=workdir / "import")
        await run_import(spec, ImportBaseModelOk)
        source.unlink()
        return await asyncio.to_thread(self._keep, job.base_model_sha256, spec.output_dir / "model")

    def _fetch_source(self, job: JobInput, path: Path) -> None:
        try:
            self._store.get_file(job.base_model_uri, path, job.base_model_sha256)
        except ObjectMissingError as error:
            message = f"base model {job.spec.base_model} is registered, but {error}; register it again"
            raise verdict_of(FailureKind.INVALID_BASE_MODEL, message) from error

    def _keep(self, source_sha256: str, directory: Path) -> tuple[StoredFiles, Path]:
        stored = upload(self._store, directory, BASE_MODELS_PREFIX)
        if self._store.put_bytes(_pointer_key(source_sha256), stored.model_dump_json().encode()):
            return stored, self._cache.adopt(stored, directory)
        # Another worker was faster, and everybody uses what it made.
        known = self._find(source_sha256)
        if known is None:
            raise ObjectMissingError(self._store.uri(_pointer_key(source_sha256)))
        return known, self._cache.stage(known)

    def _find(self, source_sha256: str) -> StoredFiles | None:
        uri = self._store.uri(_pointer_key(source_sha256))
        try:
            return StoredFiles.model_validate_json(self._store.get_bytes(uri))
        except ObjectMissingError:
            return None
        except ValidationError as error:
            raise IntegrityError(uri, "of a pointer to files", f"something else ({error})") from error


def _pointer_key(source_sha256: str) -> str:
    return f"{BASE_MODELS_PREFIX}/converted/{source_sha256}-{_IMPORTER_VERSION}.json"
