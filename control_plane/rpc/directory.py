"""Whose an object is: what the policy must know of jobs, projects, tokens and webhooks before a call goes on."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from sqlalchemy import Table, select
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.db.notifications import Notifications
from control_plane.db.tables import CHANNEL_IDENTITY, jobs, projects, tokens, webhooks

_T = TypeVar("_T")

_JOBS_KEPT = 50_000
_PROJECTS_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose an object is.

    Attributes:
        project: the project it belongs to; empty: the organisation.
        subject: for a job, who submitted it.
    """

    project: str
    subject: str = ""


class _Newest(Generic[_T]):
    """The answers used last, at most so many of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._answers: OrderedDict[str, _T] = OrderedDict()

    def get(self, key: str) -> _T | None:
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
        return answer

    def put(self, key: str, answer: _T) -> None:
        self._answers[key] = answer
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)

    def clear(self) -> None:
        self._answers.clear()


class Directory:
    """Looks owners up. A job's owner never changes and is kept; that a project is open is believed for a while."""

    def __init__(
        self,
        engine: AsyncEngine,
        notifications: Notifications,
        believed_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        engine: the database.
        notifications: it must listen on CHANNEL_IDENTITY, which tells of projects that end.
        believed_seconds: how long a project is believed to be open, should a notification be lost.
        clock: monotonic seconds.
        """
        self._engine = engine
        self._believed_seconds = believed_seconds
        self._clock = clock
        self._subscription = notifications.subscribed(CHANNEL_IDENTITY)
        self._changed = self._subscription.__enter__()
        self._jobs: _Newest[Owner] = _Newest(_JOBS_KEPT)
        self._projects: _Newest[tuple[bool, float]] = _Newest(_PROJECTS_KEPT)

    def close(self) -> None:
        """Listens no more."""
        self._subscription.__exit__(None, None, None)

    def known_job(self, job_id: str) -> Owner | None:
        """A job's owner if it was looked up before; None says nothing about whether there is such a job."""
        return self._jobs.get(job_id)

    async def job(self, job_id: str) -> Owner | None:
        """A job's owner; None: there is no such job."""
        async with self._engine.connect() as connection:
            row = (await connection.execute(select(jobs.c.project, jobs.c.submitter).where(jobs.c.job_id == job_id))).first()
        if row is None:
            return None
        owner = Owner(row.project, row.submitter)
        self._jobs.put(job_id, owner)
        return owner

    async def project_open(self, project: str) -> bool | None:
        """Whether a project is open; False: it was deleted, and what it made is kept; None: there is no such project."""
        if self._changed.is_set():
            self._changed.clear()
            self._projects.clear()
        now = self._clock()
        believed = self._projects.get(project)
        if believed is not None and now - believed[1] < self._believed_seconds:
            return believed[0]
        async with self._engine.connect() as connection:
            row = (await connection.execute(select(projects.c.deleted_at).where(projects.c.project == project))).first()
        if row is None:
            return None
        is_open = row.deleted_at is None
        self._projects.put(project, (is_open, now))
        return is_open

    async def token(self, token_id: str) -> Owner | None:
        """A token's owner; None: there is no such token."""
        return await self._owner(tokens, token_id)

    async def webhook(self, webhook_id: str) -> Owner | None:
        """A webhook's owner; None: there is no such webhook."""
        return await self._owner(webhooks, webhook_id)

    async def _owner(self, table: Table, value: str) -> Owner | None:
        (key,) = table.primary_key.columns
        async with self._engine.connect() as connection:
            row = (await connection.execute(select(table.c.project).where(key == value))).first()
        return None if row is None else Owner(row.project or "")
