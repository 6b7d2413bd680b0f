"""Sets of files kept on a machine, named by their manifest's hash, checked at every use, the least lately used evicted first.

    <root>/<hash>/           a set
    <root>/<hash>.partial/   one that is being fetched
    <root>/<hash>.lock       held shared by whoever uses the set, exclusively by who evicts it; its time is that of the last use
    <root>/<hash>.change     held exclusively by who fetches the set
    <root>/eviction.lock     held exclusively by who makes room

Locks are the kernel's (flock), so those of a process that was killed are gone with it. Their files stay: removing one would let
two processes lock two files of one name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path

import structlog

from workers.manifest import ManifestError, sha256_of
from workers.storage import ObjectStore
from workers.stored_files import FileSet, download_files, read_file_set
from workers.workflows.contracts import StoredFiles

_log = structlog.get_logger()


class FileCache:
    """One machine's cache, which its workers share. What it hands out stays until it is released or the process ends."""

    def __init__(self, root: Path, store: ObjectStore, bytes_max: int) -> None:
        """Args:
        root: where it is.
        store: what it fetches from.
        bytes_max: most bytes that it keeps; exceeded only by what is in use at once.
        """
        self._root = root
        self._store = store
        self._bytes_max = bytes_max
        self._in_use: dict[Path, list[int]] = {}

    def stage(self, stored: StoredFiles) -> Path:
        """A directory with the set, for reading only, until it is released.

        Fetched if it is not there, or not any more what it was. Whoever uses a damaged one keeps the files that they have open.

        Raises:
            ObjectMissingError: the manifest or a file is not in the store.
            IntegrityError: one of them has other bytes there.
            StorageError: the store failed.
        """
        target = self._target(stored)
        lock = self._use(target)
        try:
            expected = read_file_set(self._store, stored)
            if not _is_whole(target, expected):
                with self._locked(f"{target.name}.change"):
                    # Somebody else may have fetched it meanwhile.
                    if not _is_whole(target, expected):
                        self._fetch(target, expected)
        except BaseException:
            os.close(lock)
            raise
        self._in_use.setdefault(target, []).append(lock)
        return target

    def adopt(self, stored: StoredFiles, directory: Path) -> Path:
        """Moves the directory that `stored` was made from into the cache; returns where it is until it is released."""
        target = self._target(stored)
        lock = self._use(target)
        with self._locked(f"{target.name}.change"):
            if not target.is_dir():
                self._make_room(sum(path.stat().st_size for path in _files(directory)))
                shutil.move(directory, target)
        self._in_use.setdefault(target, []).append(lock)
        return target

    def release(self, directory: Path) -> None:
        """Says that a directory that was handed out is not used any more; as often as it was handed out."""
        locks = self._in_use[directory]
        os.close(locks.pop())
        if not locks:
            del self._in_use[directory]

    def _target(self, stored: StoredFiles) -> Path:
        self._root.mkdir(parents=True, exist_ok=True)
        return self._root / stored.manifest_sha256

    def _use(self, target: Path) -> int:
        """Keeps a set, there or not yet, from being evicted while the returned descriptor is open."""
        lock = os.open(target.with_name(f"{target.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        flock(lock, LOCK_SH)
        os.utime(lock)
        return lock

    def _fetch(self, target: Path, expected: FileSet) -> None:
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        # A damaged one goes first: it may be in somebody's hands, and is worth nothing.
        shutil.rmtree(target, ignore_errors=True)
        self._make_room(sum(file.size for file in expected.files))
        partial.mkdir()
        try:
            download_files(self._store, expected.files, partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _make_room(self, needed: int) -> None:
        """Evicts sets that nobody uses, the least lately used first, until so many more bytes fit."""
        with self._locked("eviction.lock"):
            sizes = {path: sum(file.stat().st_size for file in _files(path)) for path in self._root.iterdir() if path.is_dir()}
            excess = sum(sizes.values()) + needed - self._bytes_max
            for path in sorted(sizes, key=_last_use):
                if excess <= 0:
                    return
                if self._evict(path):
                    excess -= sizes[path]
        if excess > 0:
            _log.warning("the cache is larger than it may be, as all of it is in use", excess_bytes=excess)

    def _evict(self, path: Path) -> bool:
        """Removes a set, or what a killed process left of one, unless it is in use; returns whether it did."""
        name = path.name.removesuffix(".partial")
        with (self._root / f"{name}.lock").open("ab") as lock:
            try:
                flock(lock, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                return False
            _log.info("evicting from the cache", directory=str(path))
            shutil.rmtree(path)
            return True

    @contextmanager
    def _locked(self, name: str) -> Generator[None]:
        with (self._root / name).open("wb") as lock:
            flock(lock, LOCK_EX)
            yield


def _last_use(path: Path) -> float:
    lock = path.with_name(f"{path.name.removesuffix('.partial')}.lock")
    return lock.stat().st_mtime if lock.exists() else 0.0


def _files(directory: Path) -> Iterable[Path]:
    return (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())


def _is_whole(directory: Path, expected: FileSet) -> bool:
    if not directory.is_dir():
        return False
    try:
        _verify(directory, expected)
    except (ManifestError, OSError) as error:
        _log.warning("cached files are damaged and fetched again", directory=str(directory), fault=str(error))
        return False
    return True


def _verify(directory: Path, expected: FileSet) -> None:
    found = {
        path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir()
    }
    for name in sorted(found.keys() ^ {file.name for file in expected.files}):
        raise ManifestError(name, "as in the manifest", "unlisted" if name in found else "nothing")
    for file in expected.files:
        if found[file.name].is_symlink():
            raise ManifestError(file.name, "a file", "a link")
        if (digest := sha256_of(found[file.name])) != file.sha256:
            raise ManifestError(file.name, f"SHA-256 {file.sha256}", f"SHA-256 {digest}")
