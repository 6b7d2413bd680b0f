"""The blocking client: one method per call, answers as the generated messages, errors as `HeadwayError`.

Every call has a deadline and carries the caller's token. Calls that are safe to repeat are repeated while the server is
unavailable or asks to wait, for some ten seconds, with the same request id. Streams reopen themselves after the last message
that was consumed, so a caller sees each message once, in order.

    with Client("127.0.0.1:7400", token="hw_…") as client:
        job = client.submit_job("support", spec)
        for batch in client.watch_events(job_id=job.job_id):
            for event in batch.events:
                print(event)

`headway_client.aio_client.AsyncClient` is the same for asyncio.
"""

from __future__ import annotations

from headway_client.blocking.catalog import CatalogCalls
from headway_client.blocking.jobs import JobCalls
from headway_client.blocking.organisation import OrganisationCalls
from headway_client.blocking.scheduling import SchedulingCalls
from headway_client.blocking.spending import SpendingCalls


class Client(JobCalls, CatalogCalls, OrganisationCalls, SchedulingCalls, SpendingCalls):
    """A connection to one control plane. Safe to share between threads; close it, or use it as a context manager.

    Every method raises `HeadwayError` when its call is refused or does not come through, and of that kind `ArgumentError` when
    an argument is nothing that can be sent.
    """
