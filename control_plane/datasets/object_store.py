"""The object store as the control plane needs it: presigned uploads, whether an object is there, and archives of its own logs.

Of what others put there it reads nothing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from control_plane.errors import Reason, RefusedError, invalid_field
from control_plane.settings import S3Settings
from control_plane.storage import layout
from control_plane.storage.garbage import BeingDeletedError, rely_on

_UPLOAD_LIFETIME = timedelta(hours=1)


class PresignedUpload(NamedTuple):
    """Where and how to send bytes, until when."""

    url: str
    headers: dict[str, str]
    expires_at: datetime


def blob_key(project: str, sha256: str) -> str:
    """The key of a project's bytes with a hash. Keys name content, so equal bytes are stored once in a project."""
    return layout.blob_key(layout.project_prefix(project), sha256)


class ObjectStore:
    """S3, or what speaks like it."""

    def __init__(self, settings: S3Settings) -> None:
        self._bucket = settings.bucket
        self._client = client_of(settings, settings.endpoint_url)
        self._signer = client_of(settings, settings.public_endpoint_url or settings.endpoint_url)

    def uri(self, key: str) -> str:
        """The URI of a key in Headway's bucket."""
        return f"s3://{self._bucket}/{key}"

    def key(self, uri: str, field: str) -> str:
        """The key of a URI in Headway's bucket.

        Raises:
            RefusedError: the URI is of another bucket or scheme, or not in canonical form.
        """
        prefix = f"s3://{self._bucket}/"
        key = uri.removeprefix(prefix)
        if (
            not uri.startswith(prefix)
            or not key
            or any(part in {"", ".", ".."} for part in key.split("/"))
            or set(key) & set("%?\\")
        ):
            raise invalid_field(field, f"is {uri[:200]!r}; expected a URI that CreateUpload returned")
        return key

    def presign_upload(self, key: str, sha256: str, size_bytes: int) -> PresignedUpload:
        """A URL that takes exactly the bytes with this hash and size, once signed headers are sent along."""
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        url = self._signer.generate_presigned_url(
            "put_object",
            Params={"Bucket": self._bucket, "Key": key, "ChecksumSHA256": checksum, "ContentLength": size_bytes},
            ExpiresIn=int(_UPLOAD_LIFETIME.total_seconds()),
        )
        headers = {"x-amz-checksum-sha256": checksum, "content-length": str(size_bytes)}
        return PresignedUpload(url, headers, datetime.now(UTC) + _UPLOAD_LIFETIME)

    async def size(self, key: str) -> int | None:
        """The size in bytes of an object, or None if there is none. What there is will not be collected for a grace.

        Raises:
            RefusedError: the store does not answer.
        """
        await self._rely_on(key)
        try:
            head = await asyncio.to_thread(self._client.head_object, Bucket=self._bucket, Key=key)
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                return None
            raise _unavailable(error) from error
        except BotoCoreError as error:
            raise _unavailable(error) from error
        return int(head["ContentLength"])

    async def put(self, key: str, data: bytes) -> None:
        """Stores bytes; the store checks that they arrive as they were sent.

        Raises:
            RefusedError: the store does not answer, or refuses.
        """
        await self._rely_on(key)
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        try:
            await asyncio.to_thread(self._client.put_object, Bucket=self._bucket, Key=key, Body=data, ChecksumSHA256=checksum)
        except (ClientError, BotoCoreError) as error:
            raise _unavailable(error) from error

    async def get(self, key: str, size_bytes: int) -> bytes | None:
        """The bytes of an object, or None if there is none. Of an object that is longer than expected, one byte more is read.

        Raises:
            RefusedError: the store does not answer.
        """

        def read() -> bytes:
            return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read(size_bytes + 1)

        try:
            return await asyncio.to_thread(read)
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                return None
            raise _unavailable(error) from error
        # urllib3's errors come through while a body is read.
        except (BotoCoreError, HTTPError) as error:
            raise _unavailable(error) from error

    async def _rely_on(self, key: str) -> None:
        try:
            await asyncio.to_thread(rely_on, self._client, self._bucket, key)
        except (ClientError, BotoCoreError, BeingDeletedError) as error:
            raise _unavailable(error) from error

    async def require(self, uri: str, size_bytes: int, field: str) -> None:
        """Refuses a URI whose object is absent or of another size.

        Raises:
            RefusedError: it is; or the store does not answer.
        """
        found = await self.size(self.key(uri, field))
        if found != size_bytes:
            said = "holds nothing" if found is None else f"holds {found} bytes"
            raise RefusedError(
                Reason.OBJECT_MISSING,
                f"{field}: the object store {said} at {uri}, expected {size_bytes} bytes; upload them with CreateUpload first",
                {"uri": uri},
            )


def client_of(settings: S3Settings, endpoint_url: str | None) -> Any:
    """A boto3 client of a store, by one of its addresses."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=settings.region,
        aws_access_key_id=settings.access_key_id and settings.access_key_id.get_secret_value(),
        aws_secret_access_key=settings.secret_access_key and settings.secret_access_key.get_secret_value(),
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            connect_timeout=5,
            read_timeout=10,
            retries={"max_attempts": 3, "mode": "standard"},
        ),
    )


def _unavailable(error: Exception) -> RefusedError:
    return RefusedError(
        Reason.DEPENDENCY_UNAVAILABLE,
        f"the object store does not answer: {type(error).__name__}; retry with the same request id",
        {"component": "s3"},
    )
