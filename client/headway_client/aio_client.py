"""The asyncio client: as `headway_client.client.Client`, for callers inside an event loop.

async with AsyncClient("127.0.0.1:7400", token="hw_…") as client:
    job = await client.submit_job("support", spec)
    async for batch in client.watch_events(job_id=job.job_id):
        for event in batch.events:
            print(event)
"""

from __future__ import annotations

from headway_client.aio.catalog import CatalogCalls
from headway_client.aio.jobs import JobCalls
from headway_client.aio.organisation import OrganisationCalls
from headway_client.aio.scheduling import SchedulingCalls
from headway_client.aio.spending import SpendingCalls


class AsyncClient(JobCalls, CatalogCalls, OrganisationCalls, SchedulingCalls, SpendingCalls):
    """A connection to one control plane, for the event loop it is made in; close it, or use it as a context manager.

    Every method raises `HeadwayError` when its call is refused or does not come through, and of that kind `ArgumentError` when
    an argument is nothing that can be sent.
    """
