"""The cache of one machine: bounded, checked at every use, shared by processes that may be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_support import BreakingProxy

from control_plane.settings import S3Settings
from workers.file_cache import FileCache
from workers.storage import IntegrityError, ObjectStore
from workers.stored_files import BASE_MODELS_PREFIX, read_file_set, upload
from workers.workflows.contracts import StoredFiles

SIZE = 100_000
_ROOT = Path(__file__).parents[3]
# Stages a set as a worker's process does, says so, and holds it until its standard input ends.
_STAGER = """
import sys
from pathlib import Path
from control_plane.settings import S3Settings
from workers.file_cache import FileCache
from workers.storage import ObjectStore
from workers.workflows.contracts import StoredFiles
settings, root, stored = sys.argv[1:]
cache = FileCache(Path(root), ObjectStore(S3Settings.model_validate_json(settings)), 10**9)
print("begun", flush=True)
print(cache.stage(StoredFiles.model_validate_json(stored)), flush=True)
sys.stdin.read()
"""


class Stager:
    """Another process that uses the cache."""

    def __init__(self, settings: S3Settings, root: Path, stored: StoredFiles) -> None:
        shown = settings.model_dump() | {
            name: value.get_secret_value()
            for name in ("access_key_id", "secret_access_key")
            if (value := getattr(settings, name)) is not None
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", _STAGER, json.dumps(shown), str(root), stored.model_dump_json()],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "begun"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def store(s3_settings: S3Settings) -> ObjectStore:
    return ObjectStore(s3_settings)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def proxy(s3_settings: S3Settings) -> Iterator[BreakingProxy]:
    with BreakingProxy(s3_settings.endpoint_url or "") as running:
        yield running


def stored_set(store: ObjectStore, folder: Path, name: str, size: int = SIZE) -> StoredFiles:
    directory = folder / name
    (directory / "below").mkdir(parents=True)
    (directory / "a.txt").write_text(name)
    (directory / "below/b.bin").write_bytes(os.urandom(size))
    return upload(store, directory, BASE_MODELS_PREFIX)


def sets(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir()}


def test_it_fetches_once_and_notices_damage(store: ObjectStore, root: Path, tmp_path: Path) -> None:
    stored = stored_set(store, tmp_path, "one")
    cache = FileCache(root, store, 10**9)
    place = cache.stage(stored)
    inode = (place / "a.txt").stat().st_ino
    assert cache.stage(stored) == place
    assert (place / "a.txt").stat().st_ino == inode
    (place / "a.txt").write_text("two")
    (place / "added.py").write_text("import os")
    assert (cache.stage(stored) / "a.txt").read_text() == "one"
    assert not (place / "added.py").exists()


@pytest.mark.parametrize("damage", ["flipped", "dropped", "linked", "link added"])
def test_every_damage_is_mended(store: ObjectStore, root: Path, tmp_path: Path, damage: str) -> None:
    stored = stored_set(store, tmp_path, "one")
    cache = FileCache(root, store, 10**9)
    file = cache.stage(stored) / "below/b.bin"
    whole = file.read_bytes()
    match damage:
        case "flipped":
            file.write_bytes(whole[:7] + bytes([whole[7] ^ 1]) + whole[8:])
        case "dropped":
            file.unlink()
        case "linked":
            file.symlink_to(file.rename(tmp_path / "elsewhere"))
        case _:
            (file.parent / "more").symlink_to(tmp_path)
    place = cache.stage(stored)
    assert (place / "below/b.bin").read_bytes() == whole
    assert not any(path.is_symlink() for path in place.rglob("*"))


def test_what_was_made_here_is_adopted(store: ObjectStore, root: Path, tmp_path: Path) -> None:
    stored = stored_set(store, tmp_path, "one")
    cache = FileCache(root, store, 10**9)
    inode = (tmp_path / "one/a.txt").stat().st_ino
    place = cache.adopt(stored, tmp_path / "one")
    assert cache.stage(stored) == place
    assert (place / "a.txt").stat().st_ino == inode


def test_the_least_lately_used_goes_first(store: ObjectStore, root: Path, tmp_path: Path) -> None:
    one, two, three = (stored_set(store, tmp_path, name) for name in ("one", "two", "three"))
    cache = FileCache(root, store, 5 * SIZE // 2)
    for stored in (one, two):
        cache.release(cache.stage(stored))
    # What is used again is not the oldest any more.
    os.utime(root / f"{one.manifest_sha256}.lock", (1, 1))
    os.utime(root / f"{two.manifest_sha256}.lock", (2, 2))
    cache.release(cache.stage(one))
    cache.release(cache.stage(three))
    assert sets(root) == {one.manifest_sha256, three.manifest_sha256}


def test_what_is_in_use_is_never_evicted(s3_settings: S3Settings, store: ObjectStore, root: Path, tmp_path: Path) -> None:
    one, two, three = (stored_set(store, tmp_path, name) for name in ("one", "two", "three"))
    cache = FileCache(root, store, SIZE)
    other = Stager(s3_settings, root, one)
    place = Path(other.line())
    mine = cache.stage(two)
    assert cache.stage(two) == mine
    cache.release(mine)
    cache.stage(three)
    # Another process holds one, this one still holds two, and three is wanted: all stay, though the cache is too small.
    assert sets(root) == {one.manifest_sha256, two.manifest_sha256, three.manifest_sha256}
    assert (place / "a.txt").read_text() == "one"
    other.kill()
    cache.release(mine)
    four = stored_set(store, tmp_path, "four")
    cache.stage(four)
    assert sets(root) == {three.manifest_sha256, four.manifest_sha256}


def test_processes_that_want_the_same_fetch_it_once(
    s3_settings: S3Settings, store: ObjectStore, root: Path, tmp_path: Path, proxy: BreakingProxy
) -> None:
    size = 8 * 1024 * 1024
    stored = stored_set(store, tmp_path, "one", size)
    through = s3_settings.model_copy(update={"endpoint_url": proxy.url})
    others = [Stager(through, root, stored) for _ in range(3)]
    assert len({other.line() for other in others}) == 1
    assert size < proxy.forwarded < 1.5 * size
    for other in others:
        other.kill()


def test_a_process_killed_while_it_fetches_leaves_nothing_that_stays(
    s3_settings: S3Settings, store: ObjectStore, root: Path, tmp_path: Path, proxy: BreakingProxy
) -> None:
    one, two = stored_set(store, tmp_path, "one", 8 * 1024 * 1024), stored_set(store, tmp_path, "two")
    other = Stager(s3_settings.model_copy(update={"endpoint_url": proxy.url}), root, one)
    partial = root / f"{one.manifest_sha256}.partial"
    while not (partial / "below/b.bin.partial").exists():
        assert other.process.poll() is None
    other.kill()
    assert sets(root) == {partial.name}
    cache = FileCache(root, store, SIZE)
    cache.stage(two)
    assert sets(root) == {two.manifest_sha256}
    assert (cache.stage(one) / "a.txt").read_text() == "one"


def test_what_cannot_be_fetched_leaves_nothing(store: ObjectStore, root: Path, tmp_path: Path) -> None:
    stored = stored_set(store, tmp_path, "one")
    [damaged] = [file for file in read_file_set(store, stored).files if file.name == "a.txt"]
    other = StoredFiles(manifest_uri=damaged.uri, manifest_sha256=stored.manifest_sha256)
    cache = FileCache(root, store, 10**9)
    with pytest.raises(IntegrityError):
        cache.stage(other)
    assert sets(root) == set()
