"""Sending a file's bytes to the object store by a presigned URL."""

from __future__ import annotations

import hashlib
import http.client
import io
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from headway.datasets.v1.dataset_service_pb2 import CreateUploadResponse
from headway_client.errors import HeadwayError

Progress = Callable[[int], None]
"""Told how many more bytes have been read for sending."""

_CHUNK_BYTES = 1024 * 1024


def ignore_progress(_bytes: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file's identity."""

    path: Path
    sha256: str
    """In hex."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Bytes that are in the object store."""

    uri: str
    sha256: str
    size_bytes: int
    already_there: bool
    """Whether the store held them before, so that nothing was sent."""


def read_content(path: Path) -> FileContent:
    """Hash and size of the file.

    Raises:
        OSError: the file cannot be read, or is a device or pipe, which may have no end.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file; expected one with an end")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileContent(path, digest.hexdigest(), file.tell())


def put(content: FileContent, upload: CreateUploadResponse, timeout_seconds: float, progress: Progress) -> Uploaded:
    """Sends the file where `upload` says; sends nothing when it says that the bytes are there already.

    Args:
        content: what CreateUpload was asked for.
        upload: what it answered.
        timeout_seconds: the longest that one read or write of the connection may take.
        progress: told about every piece.

    Raises:
        HeadwayError: the object store refused the bytes or does not answer.
        OSError: the file cannot be read.
    """
    if not upload.upload_url:
        return Uploaded(upload.uri, content.sha256, content.size_bytes, already_there=True)
    with content.path.open("rb") as file:
        body = _Counted(file, progress)
        headers = {**upload.headers, "Content-Length": str(content.size_bytes)}
        request = urllib.request.Request(upload.upload_url, data=body, headers=headers, method="PUT")  # noqa: S310  the control plane names the URL
        try:
            with urllib.request.urlopen(request, timeout=timeout_seconds) as response:  # noqa: S310  as above
                response.read()
        except urllib.error.HTTPError as error:
            raise _refused(content, error) from error
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise HeadwayError(
                grpc.StatusCode.UNAVAILABLE, f"the object store does not take {content.path}: {reason}"
            ) from error
    return Uploaded(upload.uri, content.sha256, content.size_bytes, already_there=False)


def _refused(content: FileContent, error: urllib.error.HTTPError) -> HeadwayError:
    with error:
        explanation = error.read(2_000).decode(errors="replace")
    code = grpc.StatusCode.UNAVAILABLE if error.code >= 500 else grpc.StatusCode.FAILED_PRECONDITION
    return HeadwayError(code, f"the object store refused {content.path} with HTTP {error.code}: {explanation}")


class _Counted(io.RawIOBase):
    """A file that tells how much of it was read, in large pieces."""

    def __init__(self, file: io.BufferedReader, progress: Progress) -> None:
        super().__init__()
        self._file = file
        self._progress = progress

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(_CHUNK_BYTES if size < 0 else max(size, _CHUNK_BYTES))
        self._progress(len(data))
        return data
