"""Webhooks against a real HTTP server: what is sent, that it is sent again, and where it is never sent."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import pytest
import pytest_asyncio
from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.app import ControlPlane
from control_plane.db.notifications import Notifications
from control_plane.db.tables import CHANNEL_WEBHOOKS
from control_plane.settings import S3Settings, WebhookSettings
from control_plane.webhooks import outbox
from control_plane.webhooks.deliverer import Deliverer
from control_plane.webhooks.signing import Signer
from headway.jobs.v1 import job_pb2
from headway.jobs.v1 import job_service_pb2 as jobs_pb
from headway.quotas.v1 import budget_pb2
from headway.webhooks.v1 import webhook_service_pb2 as pb
from headway.webhooks.v1 import webhook_service_pb2_grpc
from tests.integration.control_plane.budget_world import BudgetWorld, lease
from tests.integration.control_plane.callers import IDENTITY, PROJECT
from tests.integration.control_plane.conftest import Api, new_id, refused, settings_of

if TYPE_CHECKING:
    from headway.webhooks.v1.webhook_service_pb2_grpc import WebhookServiceAsyncStub

KEY = IDENTITY.secret_key.get_secret_value().encode()
PRIVATE = WebhookSettings(allow_http=True, private_hosts=("localhost", "127.0.0.1"), tries_max=3)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Message:
    """What the receiver got."""

    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> dict[str, object]:
        return json.loads(self.body)

    def signed_with(self, secret: str) -> bool:
        head = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}."
        key = base64.b64decode(secret.removeprefix("whsec_"))
        expected = base64.b64encode(hmac.digest(key, head.encode() + self.body, hashlib.sha256)).decode()
        return self.headers["webhook-signature"] == f"v1,{expected}"


@dataclass
class Receiver:
    """A service that hears of jobs; `answers` are given in order, then 204 for ever."""

    answers: list[Answer] = field(default_factory=list[Answer])
    messages: asyncio.Queue[Message] = field(default_factory=asyncio.Queue[Message])
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.messages.put_nowait(Message(headers, await request.read()))
        return await self.answers.pop(0)(request) if self.answers else web.Response(status=204)

    async def next(self) -> Message:
        return await asyncio.wait_for(self.messages.get(), 20)


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver, app = Receiver(), web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://localhost:{runner.addresses[0][1]}/hook"
    yield receiver
    await runner.cleanup()


@dataclass
class Hooks:
    """A control plane that may call inward, without deliverer: a test starts its own, with short pauses."""

    api: Api
    stub: WebhookServiceAsyncStub
    deliverer: Deliverer

    async def add(self, url: str, **fields: object) -> pb.CreateWebhookResponse:
        webhook = pb.Webhook(project=PROJECT, url=url, **fields)  # pyright: ignore[reportArgumentType] - fields by name
        return await self.stub.CreateWebhook(pb.CreateWebhookRequest(request_id=new_id(), webhook=webhook))

    async def cancelled_job(self, **fields: object) -> str:
        """A job that ends at once."""
        job = await self.api.submit(await self.api.inputs(), **fields)
        await self.api.jobs.CancelJob(jobs_pb.CancelJobRequest(request_id=new_id(), job_id=job.job_id))
        return job.job_id

    async def settled(self, webhook_id: str) -> pb.WebhookDelivery:
        """The one delivery of an endpoint, once it is not pending any more."""
        request = pb.ListWebhookDeliveriesRequest(webhook_id=webhook_id)
        async with asyncio.timeout(30):
            while True:
                [found] = (await self.stub.ListWebhookDeliveries(request)).deliveries
                if found.state != pb.DELIVERY_STATE_PENDING:
                    return found
                # There is no signal for it: an endpoint's answer is on record a moment after it was given.
                await asyncio.sleep(0.02)


@pytest_asyncio.fixture
async def hooks(
    postgres_dsn: str, s3_settings: S3Settings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Hooks]:
    async def stay_away(_: Deliverer) -> None:
        """The control plane's own would be too quick for tests of what is not sent yet."""

    start = Deliverer.start
    monkeypatch.setattr(Deliverer, "start", stay_away)
    settings = settings_of(postgres_dsn, s3_settings).model_copy(update={"webhooks": PRIVATE})
    notifications = Notifications(postgres_dsn, [CHANNEL_WEBHOOKS])
    async with ControlPlane(settings) as running, Api(running.port, engine, s3_settings) as api:
        monkeypatch.setattr(Deliverer, "start", start)
        await notifications.start()
        deliverer = Deliverer(engine, notifications, PRIVATE, Signer(KEY), pause_unit=0.001)
        try:
            yield Hooks(api, webhook_service_pb2_grpc.WebhookServiceStub(api.channel), deliverer)
        finally:
            await deliverer.stop()
            await notifications.stop()


async def test_a_budget_that_reaches_a_level_is_told_once_and_signed_to_those_that_ask(
    hooks: Hooks, receiver: Receiver
) -> None:
    asking, not_asking = await hooks.add(receiver.url, budget_alerts=True), await hooks.add(receiver.url)
    assert (asking.webhook.budget_alerts, not_asking.webhook.budget_alerts) == (True, False)
    await hooks.deliverer.start()
    limit = budget_pb2.SpendingLimit(accelerator_ms=10_000)
    budget = budget_pb2.Budget(project=PROJECT, period=budget_pb2.BUDGET_PERIOD_MONTH, hard_limit=limit, alert_percents=[50])
    await hooks.api.quotas.SetBudget(budget_pb2.SetBudgetRequest(request_id=new_id(), budget=budget))
    for _ in range(2):
        assert await BudgetWorld(hooks.api.engine).reserve(lease(PROJECT, seconds=5)) == []
    message = await receiver.next()
    assert message.signed_with(asking.secret)
    assert message.content["type"] == "budget.level_reached"
    data = message.content["data"]
    assert isinstance(data, dict)
    assert (data["scope"], data["level_percent"], data["reserved"]) == (PROJECT, 50, 5_000)
    delivery = await hooks.settled(asking.webhook.webhook_id)
    assert (delivery.state, delivery.job_id) == (pb.DELIVERY_STATE_DELIVERED, "")
    assert receiver.messages.empty()


async def test_a_job_that_ends_is_told_once_and_signed(hooks: Hooks, receiver: Receiver) -> None:
    made = await hooks.add(receiver.url)
    await hooks.deliverer.start()
    job_id = await hooks.cancelled_job(name="nightly")
    message = await receiver.next()
    assert message.signed_with(made.secret)
    assert message.headers["content-type"] == "application/json"
    assert message.content["type"] == "job.cancelled"
    data = message.content["data"]
    assert isinstance(data, dict)
    assert (data["job_id"], data["project"], data["name"], data["state"]) == (job_id, PROJECT, "nightly", "CANCELLED")
    delivery = await hooks.settled(made.webhook.webhook_id)
    assert (delivery.state, delivery.tries, delivery.last_result) == (pb.DELIVERY_STATE_DELIVERED, 1, "204")
    assert (delivery.delivery_id, delivery.job_id) == (message.headers["webhook-id"], job_id)
    assert receiver.messages.empty()


async def test_only_what_was_asked_for_is_told(hooks: Hooks, receiver: Receiver) -> None:
    failures = await hooks.add(receiver.url, states=[job_pb2.JOB_STATE_FAILED])
    others = await hooks.add(receiver.url, job_set="other")
    wanted = await hooks.add(receiver.url, states=[job_pb2.JOB_STATE_CANCELLED], job_set="nightly")
    await hooks.cancelled_job(job_set="nightly")
    found = await hooks.api.sql("SELECT webhook_id::text FROM webhook_deliveries")
    assert [row.webhook_id for row in found] == [wanted.webhook.webhook_id]
    assert wanted.webhook.webhook_id not in {failures.webhook.webhook_id, others.webhook.webhook_id}


async def test_a_refused_message_is_sent_again_with_the_same_id(hooks: Hooks, receiver: Receiver) -> None:
    async def failing(_: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    async def lost(request: web.Request) -> web.StreamResponse:
        """The message was taken, and its answer never arrives."""
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    receiver.answers = [failing, lost]
    made = await hooks.add(receiver.url)
    await hooks.deliverer.start()
    await hooks.cancelled_job()
    messages = [await receiver.next() for _ in range(3)]
    assert len({message.headers["webhook-id"] for message in messages}) == 1
    assert len({message.body for message in messages}) == 1
    assert all(message.signed_with(made.secret) for message in messages)
    delivery = await hooks.settled(made.webhook.webhook_id)
    assert (delivery.state, delivery.tries) == (pb.DELIVERY_STATE_DELIVERED, 3)


async def test_it_gives_up_after_the_last_try_and_says_what_was_answered(hooks: Hooks, receiver: Receiver) -> None:
    async def failing(_: web.Request) -> web.StreamResponse:
        return web.Response(status=500, text="x" * 1_000_000)

    receiver.answers = [failing] * 10
    made = await hooks.add(receiver.url)
    await hooks.deliverer.start()
    await hooks.cancelled_job()
    delivery = await hooks.settled(made.webhook.webhook_id)
    assert (delivery.state, delivery.tries, delivery.last_result) == (pb.DELIVERY_STATE_FAILED, PRIVATE.tries_max, "500")
    assert not delivery.HasField("next_try_time")
    assert receiver.messages.qsize() == PRIVATE.tries_max


async def test_a_redirect_is_not_followed(hooks: Hooks, receiver: Receiver) -> None:
    async def elsewhere(_: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"location": receiver.url + "/inside"})

    receiver.answers = [elsewhere] * 3
    made = await hooks.add(receiver.url)
    await hooks.deliverer.start()
    await hooks.cancelled_job()
    assert (await hooks.settled(made.webhook.webhook_id)).last_result == "307"
    assert receiver.messages.qsize() == PRIVATE.tries_max


async def test_what_a_dead_deliverer_had_claimed_is_sent_by_the_next(hooks: Hooks, receiver: Receiver) -> None:
    made = await hooks.add(receiver.url)
    await hooks.cancelled_job()
    async with hooks.api.engine.begin() as connection:
        # As a process that dies between its claim and its answer.
        [claimed] = await outbox.claim(connection, most=10, each=4, busy=[], claim_seconds=0.5)
        assert await outbox.claim(connection, most=10, each=4, busy=[], claim_seconds=0.5) == []
    await hooks.deliverer.start()
    assert (await receiver.next()).headers["webhook-id"] == claimed.delivery_id
    assert (await hooks.settled(made.webhook.webhook_id)).tries == 2


async def test_two_deliverers_send_a_message_once(hooks: Hooks, receiver: Receiver, postgres_dsn: str) -> None:
    await hooks.add(receiver.url)
    job_ids = {await hooks.cancelled_job() for _ in range(12)}
    notifications = Notifications(postgres_dsn, [CHANNEL_WEBHOOKS])
    await notifications.start()
    other = Deliverer(hooks.api.engine, notifications, PRIVATE, Signer(KEY))
    await asyncio.gather(hooks.deliverer.start(), other.start())
    try:
        told = [(await receiver.next()).content["data"] for _ in job_ids]
        assert {data["job_id"] for data in told if isinstance(data, dict)} == job_ids
        assert receiver.messages.empty()
    finally:
        await other.stop()
        await notifications.stop()


async def test_a_name_that_turns_inward_later_gets_nothing(
    hooks: Hooks, receiver: Receiver, engine: AsyncEngine, postgres_dsn: str
) -> None:
    made = await hooks.add(receiver.url)
    await hooks.cancelled_job()
    notifications = Notifications(postgres_dsn, [CHANNEL_WEBHOOKS])
    # To this one localhost is a name like any other, which the owner of its zone has pointed inward since it was added.
    strict = Deliverer(engine, notifications, WebhookSettings(allow_http=True, tries_max=1), Signer(KEY), pause_unit=0.001)
    await notifications.start()
    await strict.start()
    try:
        delivery = await hooks.settled(made.webhook.webhook_id)
    finally:
        await strict.stop()
        await notifications.stop()
    assert delivery.state == pb.DELIVERY_STATE_FAILED
    assert "an address that is not public" in delivery.last_result
    assert "127.0.0.1" not in delivery.last_result
    assert receiver.messages.empty()


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "gopher://x/", "https://user:word@localhost/", "https://169.254.169.254/latest"),
        *("https://2852039166/", "https://0xa9fea9fe/", "https://0251.0376.0251.0376/", "https://[::ffff:169.254.169.254]/"),
        *("https://127.1/", "https://0/", "https://[::1]/", "https://10.0.0.1/"),
    ],
)
async def test_an_endpoint_inside_is_refused_when_it_is_added(hooks: Hooks, url: str) -> None:
    found = await refused(hooks.add(url))
    assert (found.code, found.reason, found.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        ["webhook.url"],
    )


async def test_a_state_that_is_no_end_is_refused(hooks: Hooks, receiver: Receiver) -> None:
    found = await refused(hooks.add(receiver.url, states=[job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_RUNNING]))
    assert (found.code, found.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["webhook.states[1]"])


async def test_an_endpoint_of_no_project_is_refused(hooks: Hooks, receiver: Receiver) -> None:
    webhook = pb.Webhook(project="nowhere", url=receiver.url)
    found = await refused(hooks.stub.CreateWebhook(pb.CreateWebhookRequest(request_id=new_id(), webhook=webhook)))
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "PROJECT_NOT_FOUND")


async def test_a_repeated_request_adds_one_endpoint_and_tells_its_secret_again(hooks: Hooks, receiver: Receiver) -> None:
    request = pb.CreateWebhookRequest(request_id=new_id(), webhook=pb.Webhook(project=PROJECT, url=receiver.url))
    first, second = [await hooks.stub.CreateWebhook(request) for _ in range(2)]
    assert first == second
    assert first.secret.startswith("whsec_")
    listed = await hooks.stub.ListWebhooks(pb.ListWebhooksRequest(project=PROJECT))
    assert list(listed.webhooks) == [first.webhook]
    rows = await hooks.api.sql("SELECT * FROM webhooks")
    kept = await hooks.api.sql("SELECT response FROM idempotency_keys")
    secret = first.secret.removeprefix("whsec_")
    assert secret not in str(rows)
    assert all(secret.encode() not in row.response for row in kept)


async def test_a_removed_endpoint_hears_nothing_more(hooks: Hooks, receiver: Receiver) -> None:
    made = await hooks.add(receiver.url)
    await hooks.cancelled_job()
    request = pb.DeleteWebhookRequest(request_id=new_id(), webhook_id=made.webhook.webhook_id)
    await hooks.stub.DeleteWebhook(request)
    await hooks.stub.DeleteWebhook(request)
    await hooks.cancelled_job()
    assert await hooks.api.sql("SELECT 1 FROM webhook_deliveries") == []
    assert not (await hooks.stub.ListWebhooks(pb.ListWebhooksRequest(project=PROJECT))).webhooks
    again = pb.DeleteWebhookRequest(request_id=new_id(), webhook_id=made.webhook.webhook_id)
    found = await refused(hooks.stub.DeleteWebhook(again))
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_pages_of_endpoints_and_deliveries_are_the_whole_in_order(hooks: Hooks, receiver: Receiver) -> None:
    made = [(await hooks.add(f"{receiver.url}/{number}")).webhook.webhook_id for number in range(5)]
    found: list[str] = []
    token = ""
    while True:
        page = await hooks.stub.ListWebhooks(pb.ListWebhooksRequest(project=PROJECT, page_size=2, page_token=token))
        found += [webhook.webhook_id for webhook in page.webhooks]
        token = page.next_page_token
        if not token:
            break
    assert found == made[::-1]
    jobs = [await hooks.cancelled_job() for _ in range(3)]
    seen: list[str] = []
    while True:
        request = pb.ListWebhookDeliveriesRequest(webhook_id=made[0], page_size=1, page_token=token)
        deliveries = await hooks.stub.ListWebhookDeliveries(request)
        seen += [delivery.job_id for delivery in deliveries.deliveries]
        token = deliveries.next_page_token
        if not token:
            break
    assert seen == jobs[::-1]
