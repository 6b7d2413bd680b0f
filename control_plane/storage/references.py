"""What the catalogue refers to in the object store: by URI in its tables, and through manifests.

A running job's workflow knows of files too, such as its prepared data; so each phase names what it stored in its result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, cast

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.storage import layout

URI_COLUMNS = frozenset(
    {
        "base_models.uri",
        "checkpoints.manifest_uri",
        "datasets.uri",
        "log_archives.uri",
        "model_versions.manifest_uri",
    }
)
"""Every column that holds URIs; a test compares it with the schema."""

_URIS = text(
    " UNION ALL ".join("SELECT {1} FROM {0}".format(*column.split(".")) for column in sorted(URI_COLUMNS))  # noqa: S608 - ours
)
_DOCUMENTS = text(
    """
    SELECT inputs, result FROM jobs
    WHERE ended_at IS NULL OR ended_at > now() - make_interval(secs => :seconds)
    """
)
_RELEASE = text(
    """
    DELETE FROM checkpoints USING jobs
    WHERE checkpoints.job_id = jobs.job_id AND jobs.ended_at <= now() - make_interval(secs => :seconds)
    """
)


@dataclass(slots=True)
class References:
    """What is referred to.

    Attributes:
        keys: of objects.
        base_models: SHA-256 of the sources of base models, whose conversions are kept.
        unreadable: keys of manifests that are referred to and cannot be read, so that nobody knows what they refer to.
    """

    keys: set[str] = field(default_factory=set[str])
    base_models: set[str] = field(default_factory=set[str])
    unreadable: list[str] = field(default_factory=list[str])


async def release_final(connection: AsyncConnection, days: float) -> int:
    """Forgets the checkpoints of jobs that ended so many days ago; returns how many."""
    return (await connection.execute(_RELEASE, {"seconds": days * 86_400})).rowcount


async def read(connection: AsyncConnection, bucket: str, days: float) -> References:
    """What the catalogue names. The documents of jobs that ended so many days ago count no more.

    Args:
        connection: in a transaction, so that all of it is of one moment.
        bucket: Headway's.
        days: how long after its end a job still counts.
    """
    found = References()
    async for row in await connection.stream(_URIS):
        found.keys.update(_keys([row[0]], bucket))
    async for row in await connection.stream(_DOCUMENTS, {"seconds": days * 86_400}):
        found.keys.update(_keys([row[0], row[1]], bucket))
    rows = await connection.execute(text("SELECT sha256 FROM base_models"))
    found.base_models.update(row[0] for row in rows)
    return found


def follow(found: References, listed: Iterable[str], get: Callable[[str], bytes | None], bucket: str) -> None:
    """Adds what the manifests and pointers that are referred to name themselves.

    Args:
        found: what the catalogue names; added to.
        listed: the keys that there were.
        get: reads an object; None: it is not there any more.
        bucket: Headway's.
    """
    there = set(listed)
    found.keys.update(key for key in there if layout.converted_from(key) in found.base_models)
    waiting = list(found.keys)
    while waiting:
        key = waiting.pop()
        expected = layout.manifest_sha256(key)
        if expected is None and (layout.converted_from(key) is None or key not in there):
            continue
        content = get(key)
        named = None if content is None else _named(content, expected, bucket)
        if named is None:
            found.unreadable.append(key)
            continue
        fresh = named - found.keys
        found.keys |= fresh
        waiting += fresh


def _named(content: bytes, expected_sha256: str | None, bucket: str) -> set[str] | None:
    """The keys that a document names; None: it is not the one that it should be."""
    if expected_sha256 is not None and sha256(content).hexdigest() != expected_sha256:
        return None
    try:
        return set(_keys([json.loads(content)], bucket))
    except (ValueError, RecursionError):
        return None


def _keys(documents: list[Any], bucket: str) -> Iterator[str]:
    """The keys of all URIs of the bucket in JSON values, however deep."""
    prefix = f"s3://{bucket}/"
    waiting = documents
    while waiting:
        match waiting.pop():
            case str() as value if value.startswith(prefix):
                yield value.removeprefix(prefix)
            case dict() as value:
                waiting.extend(cast("dict[str, Any]", value).values())
            case list() as value:
                waiting.extend(cast("list[Any]", value))
            case _:
                pass
