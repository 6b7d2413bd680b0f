"""Collecting garbage in a real object store by a real catalogue, beside uploads that want the same content."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.datasets.object_store import client_of
from control_plane.db.engine import create_engine
from control_plane.db.schema import metadata
from control_plane.db.tables import jobs
from control_plane.settings import PostgresSettings, S3Settings, StorageSettings
from control_plane.storage import garbage, layout
from control_plane.storage.collect import CollectingError, Collection, Collector
from control_plane.storage.garbage import DELETING_PREFIX, MARKED_PREFIX
from control_plane.storage.references import URI_COLUMNS
from workers.storage import ObjectStore, StorageError
from workers.stored_files import FileSet, blob_key, read_file_set, upload
from workers.workflows.contracts import StoredFiles

NOW = StorageSettings(grace_hours=0, stale_upload_hours=0)
PROJECT = layout.project_prefix("p")


class Store:
    """A bucket with its catalogue."""

    def __init__(self, s3: S3Settings, engine: AsyncEngine, folder: Path) -> None:
        self.s3 = s3
        self.engine = engine
        self.store = ObjectStore(s3)
        self.client: Any = client_of(s3, s3.endpoint_url)
        self._folder = folder

    async def collect(self, settings: StorageSettings = NOW, *, dry_run: bool = False) -> Collection:
        return await Collector(self.engine, self.client, self.s3.bucket, settings).run(dry_run=dry_run)

    async def sql(self, statement: str, **values: Any) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(text(statement), values)

    def files(self, *contents: str, prefix: str = PROJECT) -> StoredFiles:
        """A stored set with these contents."""
        folder = self._folder / os.urandom(4).hex()
        folder.mkdir()
        for number, content in enumerate(contents):
            (folder / str(number)).write_text(content)
        return upload(self.store, folder, prefix)

    def is_whole(self, stored: StoredFiles) -> bool:
        return all(self.store.size(self.key(file.uri)) is not None for file in read_file_set(self.store, stored).files)

    def key(self, uri: str) -> str:
        return uri.removeprefix(f"s3://{self.s3.bucket}/")

    def listed(self, prefix: str = "") -> set[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.s3.bucket, Prefix=prefix)
        return {found["Key"] for page in pages for found in page.get("Contents", [])}

    async def job(self, *, ended_days: float | None = None, result: dict[str, Any] | None = None) -> str:
        """A job that runs, or that ended so many days ago."""
        job_id = str(uuid.uuid4())
        await self.sql(
            """
            INSERT INTO jobs (job_id, project, name, type, spec, spec_sha256, inputs, priority, state, result, ended_at)
            VALUES (:job_id, 'p', '', 'fine_tune', '{}', '', '{}', 500, :state, CAST(:result AS jsonb),
                now() - make_interval(secs => :seconds))
            """,
            job_id=job_id,
            state="RUNNING" if ended_days is None else "SUCCEEDED",
            result=json.dumps(result or {}),
            seconds=None if ended_days is None else ended_days * 86_400,
        )
        return job_id

    async def checkpoint(self, job_id: str, stored: StoredFiles, step: int = 1) -> None:
        await self.sql(
            "INSERT INTO checkpoints (job_id, step, attempt, manifest_uri, manifest_sha256)"
            " VALUES (:job_id, :step, 1, :uri, :sha256)",
            job_id=job_id,
            step=step,
            uri=stored.manifest_uri,
            sha256=stored.manifest_sha256,
        )


@pytest.fixture
async def store(s3_settings: S3Settings, postgres_dsn: str, tmp_path: Path) -> AsyncIterator[Store]:
    engine = create_engine(PostgresSettings(dsn=SecretStr(postgres_dsn), pool_size=4))
    yield Store(s3_settings, engine, tmp_path)
    await engine.dispose()


def test_every_column_that_names_objects_is_read() -> None:
    named = {f"{table.name}.{column.name}" for table in metadata.tables.values() for column in table.c if "uri" in column.name}
    assert named == URI_COLUMNS, "a column with URIs of objects must be read by control_plane/storage/references.py"
    assert jobs.name == "jobs"


async def test_what_nothing_refers_to_goes_in_two_runs(store: Store) -> None:
    kept, gone = store.files("a", "shared"), store.files("b", "shared")
    await store.checkpoint(await store.job(), kept)
    first = await store.collect()
    assert (first.objects, first.referenced, first.marked, first.deleted) == (5, 3, 2, 0)
    assert store.is_whole(gone)
    second = await store.collect()
    assert (second.referenced, second.deleted) == (3, 2)
    assert second.deleted_bytes > 1
    assert store.is_whole(kept)
    assert store.key(gone.manifest_uri) not in store.listed()
    assert store.listed("garbage/") == set()
    assert (await store.collect()) == Collection(objects=3, referenced=3)


async def test_a_dry_run_changes_nothing(store: Store) -> None:
    store.files("a")
    before = store.listed()
    assert (await store.collect(dry_run=True)).marked == 2
    assert store.listed() == before
    await store.collect()
    before = store.listed()
    assert (await store.collect(dry_run=True)).deleted == 2
    assert store.listed() == before


async def test_what_is_young_is_not_marked_and_what_was_marked_lately_is_not_deleted(store: Store) -> None:
    store.files("a")
    patient = StorageSettings(grace_hours=1)
    assert (await store.collect(patient)) == Collection(objects=2, young=2)
    await store.collect()
    assert (await store.collect(patient)) == Collection(objects=2, young=2)
    # An object that is old enough, marked just now.
    assert not garbage.delete_marked(store.client, store.s3.bucket, next(iter(store.listed("projects/"))), timedelta(hours=1))
    assert len(store.listed("projects/")) == 2
    assert store.listed(DELETING_PREFIX) == set()


async def test_everything_that_the_catalogue_names_stays(store: Store) -> None:
    """Datasets, base models with their conversions, checkpoints, what phases stored, model versions, logs."""
    whole: list[StoredFiles] = []

    def stored(name: str, prefix: str = PROJECT) -> StoredFiles:
        whole.append(store.files(name, prefix=prefix))
        return whole[-1]

    def blob(name: str, kind: str = "blobs") -> str:
        sha256 = hashlib.sha256(name.encode()).hexdigest()
        store.store.put_bytes(f"{PROJECT}/{kind}/{sha256}", name.encode())
        return store.store.uri(f"{PROJECT}/{kind}/{sha256}")

    prepared = stored("prepared")
    job_id = await store.job(result={"prepare": {"dataset": prepared.model_dump(), "train_rows": 3}})
    done = await store.job(ended_days=29, result={"evaluate": {"records": stored("records").model_dump()}})
    await store.checkpoint(job_id, stored("checkpoint"))
    await store.checkpoint(done, stored("last checkpoint"))
    version, converted = stored("version"), stored("converted", layout.BASE_MODELS_PREFIX)
    source = hashlib.sha256(b"source").hexdigest()
    pointer = f"{layout.BASE_MODELS_PREFIX}/converted/{source}-1.json"
    store.store.put_bytes(pointer, converted.model_dump_json().encode())
    uris = {name: blob(name) for name in ("dataset", "source")} | {"log": blob("log", "logs")}
    old = await store.job(ended_days=400)
    await store.sql(
        "INSERT INTO model_versions (project, model, version, job_id, manifest_uri, manifest_sha256, lineage, metrics)"
        " VALUES ('p', 'm', 1, :job_id, :uri, '', '{}', '{}')",
        job_id=old,
        uri=version.manifest_uri,
    )
    await store.sql(
        "INSERT INTO datasets (project, name, sha256, size_bytes, uri, license, attribution)"
        " VALUES ('p', 'd', '', 1, :uri, '', '')",
        uri=uris["dataset"],
    )
    await store.sql(
        "INSERT INTO base_models (name, sha256, size_bytes, uri, format, license, attribution)"
        " VALUES ('b', :sha256, 1, :uri, 'GGUF', '', '')",
        sha256=source,
        uri=uris["source"],
    )
    await store.sql(
        "INSERT INTO log_archives (job_id, attempt, first_sequence, last_sequence, uri, sha256, size_bytes)"
        " VALUES (:job_id, 1, 1, 2, :uri, '', 1)",
        job_id=old,
        uri=uris["log"],
    )
    before = store.listed()
    for _ in range(3):
        done_now = await store.collect()
        assert done_now == Collection(objects=len(before), referenced=len(before))
    assert store.listed() == before
    assert all(store.is_whole(one) for one in whole)


async def test_a_job_that_ended_long_ago_keeps_only_what_is_registered(store: Store) -> None:
    records, checkpoint = store.files("records"), store.files("checkpoint")
    job_id = await store.job(ended_days=31, result={"evaluate": {"records": records.model_dump()}})
    await store.checkpoint(job_id, checkpoint)
    assert (await store.collect()).checkpoints_released == 1
    assert (await store.collect()).deleted == 4


async def test_a_manifest_that_cannot_be_read_stops_everything(store: Store) -> None:
    lost, other = store.files("a"), store.files("b")
    await store.checkpoint(await store.job(), lost)
    await store.collect()
    for damage in ("damaged", "dropped"):
        if damage == "damaged":
            store.client.put_object(Bucket=store.s3.bucket, Key=store.key(lost.manifest_uri), Body=b"{}")
        else:
            store.client.delete_object(Bucket=store.s3.bucket, Key=store.key(lost.manifest_uri))
        with pytest.raises(CollectingError, match=lost.manifest_sha256):
            await store.collect()
        assert store.is_whole(other)


async def test_what_is_not_ours_is_left_alone(store: Store) -> None:
    strange = {"projects/p/notes.txt", "elsewhere/blobs/" + "0" * 64, "projects/p/blobs/short", "backup"}
    for key in strange:
        store.client.put_object(Bucket=store.s3.bucket, Key=key, Body=b"x")
    for _ in range(2):
        assert (await store.collect()) == Collection()
    assert store.listed() == strange


async def test_content_that_is_stored_again_is_garbage_no_more(store: Store) -> None:
    stored = store.files("a")
    await store.collect()
    assert len(store.listed(MARKED_PREFIX)) == 2
    assert store.files("a") == stored
    assert store.listed(MARKED_PREFIX) == set()
    # It is not referred to yet, so it is marked again; its grace begins anew.
    assert (await store.collect()).deleted == 0


async def test_a_reference_made_after_the_mark_takes_it_away(store: Store) -> None:
    stored = store.files("a")
    await store.collect()
    await store.checkpoint(await store.job(), stored)
    done = await store.collect()
    assert (done.unmarked, done.deleted) == (2, 0)
    assert store.is_whole(stored)


async def test_a_collection_stopped_half_way_is_taken_up_by_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = store.files("a")
    await store.collect()
    [blob] = [key for key in store.listed(PROJECT) if "/blobs/" in key]
    store.client.put_object(Bucket=store.s3.bucket, Key=DELETING_PREFIX + blob, Body=b"")
    # Until then nobody may believe that it stays.
    monkeypatch.setattr(garbage, "_WAIT_SECONDS", 0.2)
    with pytest.raises(StorageError, match="control_plane collect"):
        store.files("a")
    # Trying again does not change that.
    with pytest.raises(StorageError, match="control_plane collect"):
        store.files("a")
    await store.collect()
    assert store.listed(DELETING_PREFIX) == set()
    assert store.files("a") == stored
    assert store.is_whole(stored)


async def test_one_collects_at_a_time(store: Store) -> None:
    async with store.engine.connect() as connection:
        await connection.execute(text("SELECT pg_advisory_lock(hashtextextended('headway/collect', 0))"))
        with pytest.raises(CollectingError, match="another collection"):
            await store.collect()
        await connection.execute(text("SELECT pg_advisory_unlock_all()"))
    assert await store.collect() == Collection()


def test_an_upload_and_a_deletion_of_the_same_content_never_lose_it(store: Store) -> None:
    """Both at once, many times: whoever was told that the content is stored finds it afterwards, whichever came first."""
    rng = random.Random(5)  # noqa: S311 - pauses
    deleted = 0
    with ThreadPoolExecutor(3) as pool:
        for round_number in range(60):
            content = f"content {round_number}".encode()
            sha256 = hashlib.sha256(content).hexdigest()
            key = blob_key(PROJECT, sha256)
            store.store.put_bytes(key, content)
            garbage.mark(store.client, store.s3.bucket, key)
            together = threading.Barrier(3)

            def upload_after(pause: float, key: str = key, content: bytes = content, go: threading.Barrier = together) -> None:
                go.wait()
                threading.Event().wait(pause)
                store.store.put_bytes(key, content)

            def delete(key: str = key, go: threading.Barrier = together) -> bool:
                go.wait()
                return garbage.delete_marked(store.client, store.s3.bucket, key, timedelta(0))

            uploads = [pool.submit(upload_after, rng.uniform(0, 0.02)) for _ in range(2)]
            deleted += pool.submit(delete).result()
            for one in uploads:
                one.result()
            assert store.store.get_bytes(store.store.uri(key)) == content
            assert store.listed("garbage/") == set()
    # Both came first at times, or this shows nothing.
    assert 0 < deleted < 60


async def test_uploads_beside_collections_are_never_lost(store: Store) -> None:
    """Sets that share content are stored, referred to and let go, while collections run one after the other."""
    job_id = await store.job()
    # A second is long beside a round of this, as a day is beside an upload.
    settings = StorageSettings(grace_hours=1 / 3_600, stale_upload_hours=1)
    stop = asyncio.Event()
    runs: list[Collection] = []

    async def collect() -> None:
        while not stop.is_set():
            runs.append(await store.collect(settings))

    collecting = asyncio.create_task(collect())
    rng = random.Random(3)  # noqa: S311 - contents
    previous: StoredFiles | None = None
    try:
        for step in range(1, 41):
            stored = await asyncio.to_thread(store.files, *(f"content {rng.randrange(12)}" for _ in range(3)))
            await store.checkpoint(job_id, stored, step)
            if previous is not None:
                assert await asyncio.to_thread(store.is_whole, previous)
            await store.sql("DELETE FROM checkpoints WHERE step < :step", step=step)
            assert await asyncio.to_thread(store.is_whole, stored)
            previous = stored
            await asyncio.sleep(0.1)
    finally:
        stop.set()
        await collecting
    assert sum(run.deleted for run in runs) > 10
    assert previous is not None
    assert FileSet.model_validate_json(store.store.get_bytes(previous.manifest_uri))


async def test_stale_uploads_are_given_up(store: Store) -> None:
    key = f"{PROJECT}/blobs/{'0' * 64}"
    store.client.create_multipart_upload(Bucket=store.s3.bucket, Key=key)
    assert (await store.collect(StorageSettings(stale_upload_hours=1))).uploads_given_up == 0
    assert (await store.collect(dry_run=True)).uploads_given_up == 1
    assert (await store.collect()).uploads_given_up == 1
    assert not store.client.list_multipart_uploads(Bucket=store.s3.bucket).get("Uploads")


def test_the_command_says_what_it_did(store: Store, postgres_dsn: str) -> None:
    store.files("a")
    assert store.s3.access_key_id is not None
    assert store.s3.secret_access_key is not None
    environment = {
        "HEADWAY_POSTGRES__DSN": postgres_dsn,
        "HEADWAY_S3__ENDPOINT_URL": store.s3.endpoint_url or "",
        "HEADWAY_S3__BUCKET": store.s3.bucket,
        "HEADWAY_S3__ACCESS_KEY_ID": store.s3.access_key_id.get_secret_value(),
        "HEADWAY_S3__SECRET_ACCESS_KEY": store.s3.secret_access_key.get_secret_value(),
        "HEADWAY_STORAGE__GRACE_HOURS": "0",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "control_plane", "collect", "--dry-run"],
        cwd=Path(__file__).parents[3],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(ended.stdout)
    assert (said["dry_run"], said["objects"], said["marked"]) == (True, 2, 2)
