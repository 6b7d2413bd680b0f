"""A collection of garbage: marks what nothing refers to, deletes what was marked a grace ago, gives up stale uploads.

`python -m control_plane collect` runs one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast

from botocore.exceptions import ClientError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.db.engine import in_transaction
from control_plane.settings import StorageSettings
from control_plane.storage import garbage, layout, references
from control_plane.storage.garbage import DELETING_PREFIX, MARKED_PREFIX
from control_plane.storage.references import References

_AT_ONCE = 16
_MANIFEST_BYTES_MAX = 64 * 2**20
_ONE_COLLECTOR = text("SELECT pg_try_advisory_lock(hashtextextended('headway/collect', 0))")
_RELEASE = text("SELECT pg_advisory_unlock(hashtextextended('headway/collect', 0))")


class CollectingError(Exception):
    """It could not be told what is garbage, or somebody else is collecting."""


@dataclass
class Collection:
    """What a run did; in a dry run, what it would have done.

    Attributes:
        objects: those of a form that can be garbage.
        referenced: of these, those that something refers to.
        young: of the others, those that have not been there for a grace.
        marked: marked now.
        waiting: marked before, less than a grace ago.
        deleted: deleted now.
        deleted_bytes: their size.
        unmarked: marked before, and referred to again.
        checkpoints_released: rows of jobs that ended long ago.
        uploads_given_up: uploads in parts, begun long ago.
    """

    objects: int = 0
    referenced: int = 0
    young: int = 0
    marked: int = 0
    waiting: int = 0
    deleted: int = 0
    deleted_bytes: int = 0
    unmarked: int = 0
    checkpoints_released: int = 0
    uploads_given_up: int = 0


@dataclass(slots=True)
class _Found:
    size: int
    age: timedelta


@dataclass
class _Listing:
    """The bucket at one time: what can be garbage by key, and the ages of marks by the key they are of."""

    objects: dict[str, _Found] = field(default_factory=dict[str, _Found])
    marks: dict[str, timedelta] = field(default_factory=dict[str, timedelta])
    announced: list[str] = field(default_factory=list[str])


class Collector:
    """Collects in one bucket. Safe beside everything else that goes on; one at a time."""

    def __init__(self, engine: AsyncEngine, client: Any, bucket: str, settings: StorageSettings) -> None:
        """Args:
        engine: the catalogue's.
        client: a boto3 S3 client.
        bucket: Headway's.
        settings: how long what is kept.
        """
        self._engine = engine
        self._client = client
        self._bucket = bucket
        self._settings = settings
        self._grace = timedelta(hours=settings.grace_hours)

    async def run(self, *, dry_run: bool = False) -> Collection:
        """One run.

        Raises:
            CollectingError: another one is running; or a manifest that is referred to cannot be read.
            ClientError, BotoCoreError, SQLAlchemyError: a server failed; what was done is done, and the next run goes on.
        """
        async with self._engine.connect() as connection:
            if not (await connection.execute(_ONE_COLLECTOR)).scalar_one():
                raise CollectingError("another collection is running; wait for its end")
            await connection.commit()
            try:
                return await self._run(dry_run)
            finally:
                await connection.execute(_RELEASE)

    async def _run(self, dry_run: bool) -> Collection:
        days = self._settings.final_job_days
        done = Collection()
        if not dry_run:
            done.checkpoints_released = await in_transaction(
                self._engine, lambda connection: references.release_final(connection, days)
            )
        # First what is there, then what is referred to: what was stored in between is in neither list's way.
        listing = await asyncio.to_thread(self._list)
        async with self._engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            found = await references.read(connection, self._bucket, days)
        await asyncio.to_thread(references.follow, found, listing.objects, self._get, self._bucket)
        if found.unreadable:
            raise CollectingError(
                f"{len(found.unreadable)} manifests that are referred to are gone or damaged, so nobody knows what they name: "
                f"{', '.join(found.unreadable[:5])}. Restore them from a backup, or let go what refers to them"
            )
        await asyncio.to_thread(self._collect, listing, found, done, dry_run)
        await asyncio.to_thread(self._give_up_uploads, done, dry_run)
        return done

    def _list(self) -> _Listing:
        listing = _Listing()
        for prefix in ("projects/", f"{layout.BASE_MODELS_PREFIX}/", MARKED_PREFIX, DELETING_PREFIX):
            for key, size, age in self._listed(prefix):
                if prefix == MARKED_PREFIX:
                    listing.marks[key.removeprefix(prefix)] = age
                elif prefix == DELETING_PREFIX:
                    listing.announced.append(key.removeprefix(prefix))
                elif layout.is_collectable(key):
                    listing.objects[key] = _Found(size, age)
        return listing

    def _listed(self, prefix: str) -> Iterator[tuple[str, int, timedelta]]:
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
            now = garbage.answered_at(page)
            for found in page.get("Contents", []):
                yield found["Key"], int(found["Size"]), now - cast("datetime", found["LastModified"])

    def _get(self, key: str) -> bytes | None:
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                return None
            raise
        return cast("bytes", answer["Body"].read(_MANIFEST_BYTES_MAX))

    def _collect(self, listing: _Listing, found: References, done: Collection, dry_run: bool) -> None:
        """Sorts every object into one of the counts, and does what follows."""
        mark: list[str] = []
        delete: list[str] = []
        # Marks of what is referred to again, or is gone.
        unmark = [key for key in listing.marks if key in found.keys or key not in listing.objects]
        for key, one in listing.objects.items():
            done.objects += 1
            if key in found.keys:
                done.referenced += 1
            elif one.age < self._grace:
                done.young += 1
            elif key not in listing.marks:
                mark.append(key)
            elif listing.marks[key] < self._grace:
                done.waiting += 1
            else:
                delete.append(key)
        done.marked, done.unmarked = len(mark), len(unmark)
        if dry_run:
            done.deleted, done.deleted_bytes = len(delete), sum(listing.objects[key].size for key in delete)
            return
        # A run that was stopped half-way left them, and whoever needs these objects waits.
        self._each(self._withdraw, listing.announced)
        self._each(self._unmark, unmark)
        self._each(self._mark, mark)
        for key, deleted in zip(delete, self._each(self._delete, delete), strict=True):
            done.deleted += deleted
            done.deleted_bytes += listing.objects[key].size if deleted else 0

    def _each(self, deed: Callable[[str], bool], keys: Iterable[str]) -> list[bool]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(deed, keys))

    def _withdraw(self, key: str) -> bool:
        garbage.withdraw(self._client, self._bucket, key)
        return True

    def _unmark(self, key: str) -> bool:
        self._client.delete_object(Bucket=self._bucket, Key=MARKED_PREFIX + key)
        return True

    def _mark(self, key: str) -> bool:
        garbage.mark(self._client, self._bucket, key)
        return True

    def _delete(self, key: str) -> bool:
        return garbage.delete_marked(self._client, self._bucket, key, self._grace)

    def _give_up_uploads(self, done: Collection, dry_run: bool) -> None:
        stale = timedelta(hours=self._settings.stale_upload_hours)
        for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket):
            now = garbage.answered_at(page)
            for upload in page.get("Uploads", []):
                if now - cast("datetime", upload["Initiated"]) < stale:
                    continue
                done.uploads_given_up += 1
                if not dry_run:
                    self._client.abort_multipart_upload(Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"])
