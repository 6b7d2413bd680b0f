"""The object store as workers use it, against a real one, and through a proxy that breaks connections."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from worker_support import BreakingProxy

from control_plane.settings import S3Settings
from workers.storage import IntegrityError, ObjectMissingError, ObjectStore
from workers.stored_files import FileSet, blob_key, download, read_file_set, upload
from workers.workflows.contracts import StoredFiles

_MIB = 1024 * 1024


@pytest.fixture
def store(s3_settings: S3Settings) -> ObjectStore:
    return ObjectStore(s3_settings, part_bytes=5 * _MIB)


@pytest.fixture
def s3(s3_settings: S3Settings) -> Any:
    assert s3_settings.access_key_id is not None
    assert s3_settings.secret_access_key is not None
    return boto3.client(
        "s3",
        endpoint_url=s3_settings.endpoint_url,
        region_name=s3_settings.region,
        aws_access_key_id=s3_settings.access_key_id.get_secret_value(),
        aws_secret_access_key=s3_settings.secret_access_key.get_secret_value(),
    )


@pytest.fixture
def prefix() -> str:
    return f"projects/storage-{uuid.uuid4().hex[:8]}"


def written(path: Path, content: bytes) -> tuple[Path, str]:
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def overwrite(s3: Any, bucket: str, uri: str, content: bytes) -> None:
    """What nobody but a fault does: other bytes under a content's name."""
    s3.put_object(Bucket=bucket, Key=uri.removeprefix(f"s3://{bucket}/"), Body=content)


@pytest.mark.parametrize("size", [0, 1_000, 12 * _MIB], ids=["empty", "small", "in parts"])
def test_what_goes_in_comes_out(store: ObjectStore, prefix: str, tmp_path: Path, size: int) -> None:
    source, sha256 = written(tmp_path / "source", os.urandom(size))
    uri = store.put_file(blob_key(prefix, sha256), source, sha256)
    assert store.put_file(blob_key(prefix, sha256), source, sha256) == uri
    store.get_file(uri, tmp_path / "target", sha256)
    assert (tmp_path / "target").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("size", [1_000, 12 * _MIB], ids=["small", "in parts"])
def test_bytes_that_are_not_those_of_the_hash_are_not_stored(
    store: ObjectStore, prefix: str, tmp_path: Path, size: int
) -> None:
    source, _ = written(tmp_path / "source", os.urandom(size))
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(IntegrityError, match="expected SHA-256 " + other):
        store.put_file(blob_key(prefix, other), source, other)
    assert store.size(blob_key(prefix, other)) is None


def test_the_first_writer_of_a_key_wins(store: ObjectStore, prefix: str) -> None:
    assert store.put_bytes(f"{prefix}/pointer", b"first")
    assert not store.put_bytes(f"{prefix}/pointer", b"second")
    assert store.get_bytes(store.uri(f"{prefix}/pointer")) == b"first"


def test_damaged_bytes_are_refused_and_leave_nothing(
    store: ObjectStore, s3: Any, s3_settings: S3Settings, prefix: str, tmp_path: Path
) -> None:
    source, sha256 = written(tmp_path / "source", b"right")
    uri = store.put_file(blob_key(prefix, sha256), source, sha256)
    overwrite(s3, s3_settings.bucket, uri, b"wrong")
    with pytest.raises(IntegrityError, match=sha256):
        store.get_file(uri, tmp_path / "target", sha256)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("uri", ["s3://elsewhere/key", "file:///etc/passwd", "s3://{bucket}/a/../b", "s3://{bucket}/nothing"])
def test_what_is_not_in_the_bucket_is_missing(store: ObjectStore, s3_settings: S3Settings, tmp_path: Path, uri: str) -> None:
    with pytest.raises(ObjectMissingError):
        store.get_file(uri.format(bucket=s3_settings.bucket), tmp_path / "target", "0" * 64)


def test_an_upload_goes_on_where_it_stopped(
    store: ObjectStore, s3: Any, s3_settings: S3Settings, prefix: str, tmp_path: Path
) -> None:
    content = os.urandom(12 * _MIB)
    source, sha256 = written(tmp_path / "source", content)
    key, bucket = blob_key(prefix, sha256), s3_settings.bucket
    # An earlier try sent two of three parts, the second one damaged, and died.
    upload_id = s3.create_multipart_upload(Bucket=bucket, Key=key, ChecksumAlgorithm="SHA256")["UploadId"]
    for number, part in ((1, content[: 5 * _MIB]), (2, os.urandom(5 * _MIB))):
        checksum = base64.b64encode(hashlib.sha256(part).digest()).decode()
        s3.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=part, ChecksumSHA256=checksum)
    with BreakingProxy(s3_settings.endpoint_url or "") as proxy:
        through = ObjectStore(s3_settings.model_copy(update={"endpoint_url": proxy.url}), part_bytes=5 * _MIB)
        uri = through.put_file(key, source, sha256)
        assert 7 * _MIB <= proxy.received < 8 * _MIB  # The damaged part and the missing one.
    store.get_file(uri, tmp_path / "target", sha256)
    assert not s3.list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads")


def test_two_uploads_of_the_same_bytes_at_once(store: ObjectStore, prefix: str, tmp_path: Path) -> None:
    source, sha256 = written(tmp_path / "source", os.urandom(12 * _MIB))
    key = blob_key(prefix, sha256)

    async def both() -> list[str]:
        return await asyncio.gather(*(asyncio.to_thread(store.put_file, key, source, sha256) for _ in range(2)))

    assert asyncio.run(both()) == [store.uri(key)] * 2
    store.get_file(store.uri(key), tmp_path / "target", sha256)


@pytest.fixture
def proxy(s3_settings: S3Settings) -> Iterator[BreakingProxy]:
    with BreakingProxy(s3_settings.endpoint_url or "") as running:
        yield running


def test_a_download_goes_on_where_the_connection_broke(
    store: ObjectStore, proxy: BreakingProxy, s3_settings: S3Settings, prefix: str, tmp_path: Path
) -> None:
    source, sha256 = written(tmp_path / "source", os.urandom(8 * _MIB))
    uri = store.put_file(blob_key(prefix, sha256), source, sha256)
    through = ObjectStore(s3_settings.model_copy(update={"endpoint_url": proxy.url}))
    proxy.break_after(3 * _MIB, times=2)
    through.get_file(uri, tmp_path / "target", sha256)
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert proxy.broken == 2
    assert proxy.forwarded < 2 * 8 * _MIB  # It did not begin anew each time.


class TestStoredFiles:
    def directory(self, tmp_path: Path) -> Path:
        folder = tmp_path / "set"
        (folder / "below").mkdir(parents=True)
        (folder / "a.txt").write_text("a")
        (folder / "below/b.bin").write_bytes(os.urandom(100_000))
        return folder

    def test_round_trip(self, store: ObjectStore, prefix: str, tmp_path: Path) -> None:
        stored = upload(store, self.directory(tmp_path), prefix)
        assert upload(store, tmp_path / "set", prefix) == stored
        download(store, stored, tmp_path / "copy")
        assert (tmp_path / "copy/below/b.bin").read_bytes() == (tmp_path / "set/below/b.bin").read_bytes()
        assert [file.name for file in read_file_set(store, stored).files] == ["a.txt", "below/b.bin"]

    def test_a_damaged_file_leaves_no_directory(
        self, store: ObjectStore, s3: Any, s3_settings: S3Settings, prefix: str, tmp_path: Path
    ) -> None:
        stored = upload(store, self.directory(tmp_path), prefix)
        damaged = read_file_set(store, stored).files[1]
        overwrite(s3, s3_settings.bucket, damaged.uri, b"x" * damaged.size)
        with pytest.raises(IntegrityError):
            download(store, stored, tmp_path / "copy")
        assert [path.name for path in tmp_path.iterdir()] == ["set"]

    def test_a_manifest_with_another_hash_is_refused(self, store: ObjectStore, prefix: str, tmp_path: Path) -> None:
        stored = upload(store, self.directory(tmp_path), prefix)
        other = StoredFiles(manifest_uri=stored.manifest_uri, manifest_sha256="0" * 64)
        with pytest.raises(IntegrityError):
            read_file_set(store, other)

    def test_a_manifest_that_is_none_is_refused(self, store: ObjectStore, prefix: str) -> None:
        content = FileSet(files=()).to_bytes().replace(b"1", b"2")
        store.put_bytes(f"{prefix}/manifest", content)
        sha256 = hashlib.sha256(content).hexdigest()
        with pytest.raises(IntegrityError, match="manifest"):
            read_file_set(store, StoredFiles(manifest_uri=store.uri(f"{prefix}/manifest"), manifest_sha256=sha256))

    def test_a_set_that_names_files_elsewhere_is_refused(self, store: ObjectStore, prefix: str, tmp_path: Path) -> None:
        """Such as those of another project, by their hash."""
        other = read_file_set(store, upload(store, self.directory(tmp_path), prefix + "-other"))
        content = other.to_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        store.put_bytes(f"{prefix}/manifests/{sha256}.json", content)
        stored = StoredFiles(manifest_uri=store.uri(f"{prefix}/manifests/{sha256}.json"), manifest_sha256=sha256)
        with pytest.raises(IntegrityError, match="names"):
            download(store, stored, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
