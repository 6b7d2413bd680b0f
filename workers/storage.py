"""The object store: bytes named by their SHA-256, checked on the way in and on the way out.

Everything here blocks and may be used from several threads; asyncio code calls it through `asyncio.to_thread`. Objects are
immutable: two writers of one key write the same bytes, and the store takes the first (If-None-Match).
"""

from __future__ import annotations

import base64
import hashlib
import random
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError

from control_plane.settings import S3Settings
from control_plane.storage.garbage import BeingDeletedError, rely_on
from workers import multipart

_MIB = 1024 * 1024
_READS_MAX = 3
"""How often an object is read whole before wrong bytes are believed."""
_BREAKS_MAX = 6
"""How often one read may be taken up again after a broken connection."""
_MISSING = frozenset({"404", "NoSuchKey", "NoSuchBucket", "NotFound"})
_WRONG_BYTES = frozenset({"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "InvalidDigest"})
_TAKEN = frozenset({"412", "PreconditionFailed", "409", "ConditionalRequestConflict"})


class StorageError(Exception):
    """The object store did not do what was asked; trying again later may help."""


class ObjectMissingError(Exception):
    """There is no such object."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"{uri} is not in the object store; expected it to have been uploaded")
        self.uri = uri


class IntegrityError(Exception):
    """Bytes do not have the hash on record."""

    def __init__(self, where: str, expected: str, found: str) -> None:
        super().__init__(f"{where}: expected SHA-256 {expected}, found {found}")
        self.where = where
        self.expected = expected
        self.found = found


class ObjectStore:
    """One bucket. URIs are `s3://<bucket>/<key>`; those of other buckets are refused."""

    def __init__(self, settings: S3Settings, *, part_bytes: int = 32 * _MIB) -> None:
        """Args:
        settings: where the bucket is.
        part_bytes: files larger than this go up in parts of this size, at least 5 MiB, and can be resumed.
        """
        self._bucket = settings.bucket
        self._part_bytes = part_bytes
        session = Session()
        self._client: Any = session.client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=settings.region,
            aws_access_key_id=_reveal(settings.access_key_id),
            aws_secret_access_key=_reveal(settings.secret_access_key),
            config=Config(
                retries={"mode": "standard", "max_attempts": 6},
                connect_timeout=5,
                read_timeout=30,
                max_pool_connections=16,
                signature_version="s3v4",
                request_checksum_calculation="when_required",
                s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
            ),
        )

    def uri(self, key: str) -> str:
        """Where `key` is."""
        return f"s3://{self._bucket}/{key}"

    def put_file(self, key: str, path: Path, sha256: str) -> str:
        """Stores a file under a key that its content determines; returns the URI. Does nothing if it is there already.

        Raises:
            IntegrityError: the file's bytes are not those of `sha256`; nothing was stored.
            StorageError: the store failed.
        """
        size = path.stat().st_size
        self._rely_on(key)
        if self.size(key) == size:
            return self.uri(key)
        with path.open("rb") as file, _translated(self.uri(key), sha256):
            if size > self._part_bytes:
                self._put_parts(key, file, size, sha256)
            else:
                self._put(key, file, size, sha256)
        return self.uri(key)

    def put_bytes(self, key: str, content: bytes) -> bool:
        """Stores small content; returns whether it was stored, False if the key was taken.

        Raises:
            StorageError: the store failed.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        self._rely_on(key)
        with _translated(self.uri(key), sha256):
            return self._put(key, content, len(content), sha256)

    def size(self, key: str) -> int | None:
        """How many bytes an object has; None if it is not there.

        Raises:
            StorageError: the store failed.
        """
        try:
            with _translated(self.uri(key)):
                return int(self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"])
        except ObjectMissingError:
            return None

    def get_file(self, uri: str, path: Path, sha256: str) -> None:
        """Fetches an object into `path`, which appears only when its bytes are right.

        Raises:
            ObjectMissingError: there is no such object.
            IntegrityError: it was read more than once and its bytes are not those of `sha256`.
            StorageError: the store failed.
        """
        key = self._key(uri)
        partial = path.with_name(path.name + ".partial")
        found = ""
        try:
            for _ in range(_READS_MAX):
                with partial.open("wb") as file:
                    found = self._fetch(key, file)
                if found == sha256:
                    partial.replace(path)
                    return
        finally:
            partial.unlink(missing_ok=True)
        raise IntegrityError(uri, sha256, found)

    def get_bytes(self, uri: str, sha256: str | None = None, *, max_bytes: int = 16 * _MIB) -> bytes:
        """Small content of an object.

        Raises:
            ObjectMissingError: there is no such object.
            IntegrityError: its bytes are not those of `sha256`.
            StorageError: the store failed, or the object is larger than `max_bytes`.
        """
        content = b""
        for _ in range(_READS_MAX):
            with _translated(uri, sha256):
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key(uri))
                if answer["ContentLength"] > max_bytes:
                    raise StorageError(f"{uri} has {answer['ContentLength']} bytes; expected at most {max_bytes}")
                content = cast("bytes", answer["Body"].read())
            if sha256 is None or hashlib.sha256(content).hexdigest() == sha256:
                return content
        raise IntegrityError(uri, str(sha256), hashlib.sha256(content).hexdigest())

    def _rely_on(self, key: str) -> None:
        """Whoever stores something will refer to it: garbage or not, it is wanted from now on."""
        try:
            with _translated(self.uri(key)):
                rely_on(self._client, self._bucket, key)
        except BeingDeletedError as error:
            raise StorageError(str(error)) from error

    def _key(self, uri: str) -> str:
        prefix = f"s3://{self._bucket}/"
        if not uri.startswith(prefix) or ".." in uri or "?" in uri:
            raise ObjectMissingError(uri)
        return uri.removeprefix(prefix)

    def _put(self, key: str, body: BinaryIO | bytes, size: int, sha256: str) -> bool:
        try:
            self._client.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=body,
                ContentLength=size,
                ChecksumSHA256=base64.b64encode(bytes.fromhex(sha256)).decode(),
                IfNoneMatch="*",
            )
        except ClientError as error:
            if _code(error) not in _TAKEN:
                raise
            return False
        return True

    def _put_parts(self, key: str, file: BufferedReader, size: int, sha256: str) -> None:
        # Each part is checked by the store against a hash of what was read here, so it is enough that what was read is right.
        if (found := hashlib.file_digest(file, "sha256").hexdigest()) != sha256:
            raise IntegrityError(self.uri(key), sha256, found)
        try:
            multipart.upload(self._client, self._bucket, key, file, size, self._part_bytes)
        except ClientError as error:
            # Somebody else completed the same upload, or another one of the same bytes, first.
            if _code(error) not in _TAKEN | {"NoSuchUpload"} or self.size(key) != size:
                raise

    def _fetch(self, key: str, file: BinaryIO) -> str:
        """Writes the object to `file` and returns the SHA-256 of what was written; goes on where a connection broke."""
        digest = hashlib.sha256()
        breaks = 0
        while True:
            try:
                for chunk in self._chunks(key, file.tell()):
                    file.write(chunk)
                    digest.update(chunk)
                return digest.hexdigest()
            except FlexibleChecksumError:
                return digest.hexdigest()
            except BotoCoreError as error:
                breaks += 1
                if breaks > _BREAKS_MAX:
                    raise StorageError(f"reading {self.uri(key)} broke off {breaks} times; last: {error}") from error
                time.sleep(random.uniform(0.05, 0.1) * 2**breaks)  # noqa: S311 — jitter, not a secret

    def _chunks(self, key: str, offset: int) -> Iterator[bytes]:
        byte_range = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            with _translated(self.uri(key), reading=True):
                answer = self._client.get_object(Bucket=self._bucket, Key=key, **byte_range)
        except _RangeNotSatisfiableError:
            return  # The connection broke after the last byte.
        yield from answer["Body"].iter_chunks(_MIB)


class _RangeNotSatisfiableError(Exception):
    pass


@contextmanager
def _translated(uri: str, sha256: str | None = None, *, reading: bool = False) -> Generator[None]:
    """The store's errors in our terms. While reading, broken connections are left to the reader."""
    try:
        yield
    except ClientError as error:
        code = _code(error)
        if code in _MISSING:
            raise ObjectMissingError(uri) from error
        if code in _WRONG_BYTES:
            raise IntegrityError(uri, sha256 or "as announced", "other bytes") from error
        if code in {"416", "InvalidRange"}:
            raise _RangeNotSatisfiableError from error
        raise StorageError(f"the object store refused {uri}: {error}") from error
    except BotoCoreError as error:
        if reading:
            raise
        raise StorageError(f"the object store does not answer for {uri}: {error}") from error


def _code(error: ClientError) -> str:
    return str(cast("dict[str, Any]", error.response).get("Error", {}).get("Code", ""))


def _reveal(secret: Any) -> str | None:
    return None if secret is None else secret.get_secret_value()
