"""Group commit: many submissions in one transaction, for a commit is about as dear for one job as for a thousand.

Two writers take what waits, oldest first, and store it set-wise (`group_store`). A submission that is refused is left out. One
that the database refuses is found by halving the group, so that it never fails its neighbours.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import asyncpg
import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.capacity.largest import LargestNodesReader
from control_plane.db.idempotency import RequestKey
from control_plane.errors import Reason, RefusedError
from control_plane.jobs.group_store import LostRaceError, store
from control_plane.jobs.submission import Submission
from control_plane.settings import GrowingPool
from governance.policies import TypePolicies

_log = structlog.get_logger()

_JOBS_MAX = 2_000
"""Most jobs in one transaction, unless a single submission has more."""
_SUBMISSIONS_MAX = 256
_TRIES = 5
_GATHER_SECONDS = 0.015
"""After a group of several callers the next begins this much later at the earliest, so that many share it. Without it a group
begins when the first answer has brought its caller's next request, and costs more than what is in it. A caller who is alone
waits for nobody."""
_GATHERED_JOBS = 100
"""With so many jobs waiting there is nothing to gain by gathering more."""

_Waiting: TypeAlias = "tuple[Submission, asyncio.Future[bytes]]"


class GroupWriter:
    """Stores submissions. Safe for any number of callers of one event loop."""

    def __init__(
        self,
        engine: AsyncEngine,
        policies: TypePolicies | None = None,
        growing_pools: Sequence[GrowingPool] = (),
        writers: int = 2,
    ) -> None:
        """Args:
        engine: where to write; each writer keeps one of its connections.
        policies: what a job's type does to its priority; None: nothing.
        growing_pools: pools whose nodes may come when they are needed.
        writers: transactions at once. Two: one encodes while the other's commit waits for the disk.
        """
        self._engine = engine
        self._policies = policies or TypePolicies()
        self._writers = writers
        self._nodes = LargestNodesReader(growing_pools)
        self._waiting: deque[_Waiting] = deque()
        self._waiting_jobs = 0
        self._next_group_at = 0.0
        self._under_way: dict[tuple[str, str, str], tuple[RequestKey, asyncio.Future[bytes]]] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begins."""
        self._tasks = [asyncio.create_task(self._run(), name=f"submit-{number}") for number in range(self._writers)]

    async def stop(self) -> None:
        """Ends. What waits is refused as unavailable, and so is what is being written, which may or may not be stored."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        _fail(list(self._waiting), _unavailable())
        self._waiting.clear()
        self._waiting_jobs = 0

    async def store(self, submission: Submission) -> bytes:
        """Stores a submission, once per request key; returns the response's bytes, those of the first time for a repeat.

        Raises:
            RefusedError: it was refused and nothing of it is stored; or the database does not answer, and it may be.
        """
        key = submission.key
        if key is None:
            return await self._enqueue(submission)
        name = (key.project, key.principal, key.request_id)
        earlier = self._under_way.get(name)
        if earlier is not None:
            # A repeat that arrives while the first is under way shares its fate.
            key.require_same(earlier[0].method, earlier[0].sha256)
            return await asyncio.shield(earlier[1])
        future = self._enqueue(submission)
        self._under_way[name] = (key, future)
        future.add_done_callback(lambda done: self._forget(name, done))
        # The caller may go away; the submission is carried out all the same, and a repeat finds it.
        return await asyncio.shield(future)

    def _forget(self, name: tuple[str, str, str], done: asyncio.Future[bytes]) -> None:
        del self._under_way[name]
        if not done.cancelled():
            done.exception()  # whoever asked may be gone: then nobody else looks at it

    def _enqueue(self, submission: Submission) -> asyncio.Future[bytes]:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((submission, future))
        self._waiting_jobs += len(submission.jobs)
        self._wake.set()
        return future

    async def _run(self) -> None:
        connection = _Connection(self._engine, self._nodes, self._policies)
        try:
            while True:
                await self._wake.wait()
                await self._gather()
                group = self._take()
                if not group:
                    self._wake.clear()
                    continue
                try:
                    await self._write(connection, group)
                except asyncio.CancelledError:
                    _fail(group, _unavailable())
                    raise
                except Exception as error:
                    _log.warning("submit.group_failed", error=repr(error))
                    _fail(group, error)
        finally:
            await connection.close()

    async def _gather(self) -> None:
        loop = asyncio.get_running_loop()
        if self._waiting_jobs < _GATHERED_JOBS and (pause := self._next_group_at - loop.time()) > 0:
            await asyncio.sleep(pause)

    def _take(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        jobs = 0
        while self._waiting and len(group) < _SUBMISSIONS_MAX:
            size = len(self._waiting[0][0].jobs)
            if group and jobs + size > _JOBS_MAX:
                break
            submission, future = self._waiting.popleft()
            self._waiting_jobs -= size
            if not future.done():
                group.append((submission, future))
                jobs += size
        if len(group) > 1:
            self._next_group_at = asyncio.get_running_loop().time() + _GATHER_SECONDS
        return group

    async def _write(self, connection: _Connection, group: Sequence[_Waiting]) -> None:
        """Stores a group and answers its callers; halves it when the database refuses something in it."""
        try:
            answers = await connection.commit([submission for submission, _ in group])
        except asyncpg.PostgresError as error:
            if _is_outage(error):
                raise
            if len(group) == 1:
                _fail(group, error)
                return
            middle = len(group) // 2
            await self._write(connection, group[:middle])
            await self._write(connection, group[middle:])
            return
        for (_, future), answer in zip(group, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, bytes):
                future.set_result(answer)
            else:
                future.set_exception(answer)


class _Connection:
    """A writer's connection, kept from group to group and made anew when it breaks."""

    def __init__(self, engine: AsyncEngine, nodes: LargestNodesReader, policies: TypePolicies) -> None:
        self._engine = engine
        self._nodes = nodes
        self._policies = policies
        self._held: Any = None

    async def close(self) -> None:
        """Gives the connection back."""
        if self._held is not None:
            held, self._held = self._held, None
            await held.close()

    async def commit(self, group: Sequence[Submission]) -> list[bytes | RefusedError]:
        """Stores a group in a transaction of its own. To do so again is harmless: what was stored is found by its request id.

        Raises:
            PostgresError: the database refuses something in it, or does not answer.
            LostRaceError: other processes were faster, again and again.
        """
        for remaining in range(_TRIES - 1, -1, -1):
            try:
                raw = await self._raw()
                async with raw.transaction():
                    return await store(raw, group, self._nodes, self._policies)
            except (LostRaceError, asyncpg.PostgresError, asyncpg.InterfaceError, DBAPIError, OSError) as error:
                if remaining == 0 or not (isinstance(error, LostRaceError) or _is_outage(error)):
                    raise
                await self._give_up(error)
        raise AssertionError("unreachable: the last try returns or raises")

    async def _raw(self) -> Any:
        if self._held is None:
            self._held = await self._engine.connect()
        return (await self._held.get_raw_connection()).driver_connection

    async def _give_up(self, error: Exception) -> None:
        """Parts with a connection that broke, so that the next try has another."""
        if self._held is None or isinstance(error, LostRaceError):
            return
        held, self._held = self._held, None
        with suppress(DBAPIError, asyncpg.InterfaceError, OSError):
            await held.invalidate()
            await held.close()


def _fail(group: Sequence[_Waiting], error: Exception) -> None:
    refusal = _unavailable() if _is_outage(error) else error
    for _, future in group:
        if not future.done():
            future.set_exception(refusal)


def _is_outage(error: Exception) -> bool:
    """Whether the database broke off or asks to be asked again, as opposed to having refused what it was given."""
    if isinstance(error, RefusedError):
        return False
    if isinstance(error, OSError | asyncpg.InterfaceError | DBAPIError | LostRaceError):
        return True
    # Connection, rollback (serialization, deadlock), resources, lock not available, operator intervention.
    return str(getattr(error, "sqlstate", "") or "")[:2] in {"08", "40", "53", "55", "57"}


def _unavailable() -> RefusedError:
    return RefusedError(
        Reason.DEPENDENCY_UNAVAILABLE, "the database does not answer; retry with the same request id", {"component": "postgres"}
    )
