"""Uploads in parts that go on where an earlier try stopped.

Parts have a fixed size and keys are named by content, so a part that the store already holds with the right checksum is the
right part, whoever sent it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any, BinaryIO

_PARTS_MAX = 10_000


def upload(client: Any, bucket: str, key: str, file: BinaryIO, size: int, part_bytes: int) -> None:
    """Uploads `file`, sending only the parts that the store does not hold yet.

    Args:
        client: a boto3 S3 client.
        bucket: the bucket.
        key: named by the file's content.
        file: seekable.
        size: of the file, in bytes.
        part_bytes: size of a part; doubled until 10,000 parts suffice.

    Raises:
        ClientError: the store refused a part or the whole; PreconditionFailed if the key was taken meanwhile.
    """
    while size > part_bytes * _PARTS_MAX:
        part_bytes *= 2
    upload_id = _open_upload(client, bucket, key)
    held = {int(part["PartNumber"]): part for part in _held_parts(client, bucket, key, upload_id)}
    parts: list[dict[str, Any]] = []
    for number, offset in enumerate(range(0, size, part_bytes), start=1):
        file.seek(offset)
        content = file.read(part_bytes)
        checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
        if number in held and _same(held[number], content, checksum):
            etag = str(held[number]["ETag"])
        else:
            etag = _send(client, bucket, key, upload_id, number, content, checksum)
        parts.append({"PartNumber": number, "ETag": etag, "ChecksumSHA256": checksum})
    client.complete_multipart_upload(
        Bucket=bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
    )


def _open_upload(client: Any, bucket: str, key: str) -> str:
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=key)
    open_uploads = [found for page in pages for found in page.get("Uploads", []) if found["Key"] == key]
    if open_uploads:
        return str(max(open_uploads, key=lambda found: found["Initiated"])["UploadId"])
    return str(client.create_multipart_upload(Bucket=bucket, Key=key, ChecksumAlgorithm="SHA256")["UploadId"])


def _held_parts(client: Any, bucket: str, key: str, upload_id: str) -> Iterator[dict[str, Any]]:
    for page in client.get_paginator("list_parts").paginate(Bucket=bucket, Key=key, UploadId=upload_id):
        yield from page.get("Parts", [])


def _same(part: dict[str, Any], content: bytes, checksum: str) -> bool:
    """Whether the store's part has this content. Stores that list no SHA-256 list the MD5, as the part's ETag."""
    if "ChecksumSHA256" in part:
        return bool(part["ChecksumSHA256"] == checksum)
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return int(part["Size"]) == len(content) and str(part["ETag"]).strip('"') == digest


def _send(client: Any, bucket: str, key: str, upload_id: str, number: int, content: bytes, checksum: str) -> str:
    answer = client.upload_part(
        Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=content, ChecksumSHA256=checksum
    )
    return str(answer["ETag"])
