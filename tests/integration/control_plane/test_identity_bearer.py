"""Bearer tokens against the real server: whom they stand for, and every way in which they are refused."""

from __future__ import annotations

import contextlib
import hashlib
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
import pytest_asyncio

from control_plane.identity.attempt_tokens import AttemptTokens
from control_plane.identity.authenticator import Authenticator
from control_plane.identity.bootstrap import bootstrap
from control_plane.identity.principal import Principal
from control_plane.identity.refusal import UnauthenticatedError
from control_plane.identity.service_tokens import bootstrap_token_id, new_secret, token_id_of
from control_plane.settings import S3Settings
from headway.identity.v1 import identity_service_pb2 as pb
from headway.projects.v1 import project_service_pb2 as projects_pb
from tests.credentials import Issuer
from tests.integration.control_plane.conftest import new_id, refused
from tests.integration.control_plane.identity_world import (
    ADMIN,
    SECRET_KEY,
    WORKER,
    Caller,
    World,
    code_of,
    identity_settings,
    oidc_settings,
    world,
)
from tests.waiting import until

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as running:
        yield running


@pytest_asyncio.fixture
async def here(postgres_dsn: str, s3_settings: S3Settings, issuer: Issuer) -> AsyncIterator[World]:
    async with world(postgres_dsn, s3_settings, identity_settings(oidc=oidc_settings(issuer))) as running:
        yield running


async def test_every_kind_of_caller_is_told_who_they_are(here: World, issuer: Issuer) -> None:
    admin = await here.admin()
    me = await admin.whoami()
    assert (me.subject, me.credential_kind) == ("service:admin", pb.CREDENTIAL_KIND_TOKEN)
    assert list(me.organisation_roles) == [projects_pb.ROLE_ORG_ADMIN]
    assert not me.HasField("expire_time")

    await admin.set_member("support", "user:alice", "SUBMITTER")
    ends = int(time.time()) + 300
    alice = await (await here.caller(issuer.token(exp=ends))).whoami()
    assert (alice.subject, alice.credential_kind) == ("user:alice", pb.CREDENTIAL_KIND_OIDC)
    assert dict(alice.project_roles) == {"support": projects_pb.ROLE_SUBMITTER}
    assert alice.expire_time.seconds == ends

    worker = await (await here.caller(WORKER)).whoami()
    assert (worker.subject, list(worker.organisation_roles)) == ("worker:gpu-1", [projects_pb.ROLE_WORKER])

    job = new_id()
    secret = AttemptTokens(SECRET_KEY.encode()).issue(job, 3, datetime.now(UTC) + timedelta(minutes=5))
    attempt = await (await here.caller(secret)).whoami()
    assert (attempt.subject, attempt.credential_kind) == (f"attempt:{job}/3", pb.CREDENTIAL_KIND_ATTEMPT)
    assert not attempt.project_roles
    assert not attempt.organisation_roles


async def test_whatever_is_wrong_the_answer_is_the_same(here: World, issuer: Issuer) -> None:
    admin = await here.admin()
    ended = await admin.create_token("support", name="ended")
    await here.sql("UPDATE tokens SET expires_at = now() WHERE token_id = :id", id=ended.token.token_id)
    revoked = await admin.create_token("support", name="revoked")
    await admin.revoke_token(revoked.token.token_id)
    good, past = issuer.token(), datetime.now(UTC) - timedelta(seconds=1)
    tokens = AttemptTokens(SECRET_KEY.encode())
    wrong: dict[str, list[tuple[str, str]]] = {
        "A1 none": [],
        "empty": [("authorization", "")],
        "no scheme": [("authorization", ADMIN)],
        "another scheme": [("authorization", f"Basic {ADMIN}")],
        "no token": [("authorization", "Bearer ")],
        "two tokens in one": [("authorization", f"Bearer {ADMIN} {ADMIN}")],
        "comma": [("authorization", f"Bearer {ADMIN},Bearer {ADMIN}")],
        "unknown id": [("authorization", f"Bearer {new_secret(new_id())}")],
        "wrong secret": [("authorization", f"Bearer {new_secret(bootstrap_token_id('admin'))}")],
        "ended": [("authorization", f"Bearer {ended.secret}")],
        "revoked": [("authorization", f"Bearer {revoked.secret}")],
        "A2 alg none": [("authorization", f"Bearer {good.rsplit('.', 1)[0]}.")],
        "A4 audience": [("authorization", f"Bearer {issuer.token(aud='https://other.example')}")],
        "A7 ended JWT": [("authorization", f"Bearer {issuer.token(iat=1_000, exp=2_000)}")],
        "A14 ID token": [("authorization", f"Bearer {issuer.token(headers={'typ': 'JWT'})}")],
        "A15 good and bad": [("authorization", f"Bearer {ADMIN}"), ("authorization", "Bearer x")],
        "A15 bad and good": [("authorization", "Bearer x"), ("authorization", f"Bearer {ADMIN}")],
        "A15 good twice": [("authorization", f"Bearer {ADMIN}"), ("authorization", f"Bearer {ADMIN}")],
        "A20 said by the caller": [
            ("x-user", "service:admin"),
            ("x-project", "support"),
            ("x-forwarded-client-cert", 'URI="spiffe://headway/worker/gpu-1"'),
            ("x509_common_name", "gpu-1"),
        ],
        "A21 bound without its certificate": [("authorization", f"Bearer {issuer.token(cnf={'x5t#S256': 'AA'})}")],
        "attempt that ended": [("authorization", f"Bearer {tokens.issue(new_id(), 1, past)}")],
        "attempt of another key": [
            ("authorization", f"Bearer {AttemptTokens(b'x' * 32).issue(new_id(), 1, past + timedelta(hours=1))}")
        ],
    }
    answers: dict[str, Any] = {}
    for name, metadata in wrong.items():
        caller = await here.caller(metadata=metadata)
        answers[name] = await refused(caller.whoami())
    assert {(answer.code, answer.reason) for answer in answers.values()} == {(UNAUTHENTICATED, "UNAUTHENTICATED")}, answers
    assert len({(answer.message, str(answer.metadata)) for answer in answers.values()}) == 1
    assert (await admin.whoami()).subject == "service:admin"


async def test_what_a_caller_says_beside_a_credential_changes_nothing(here: World) -> None:
    said = [
        ("authorization", f"Bearer {ADMIN}"),
        ("x-user", "user:root"),
        ("x-forwarded-client-cert", 'URI="spiffe://headway/worker/gpu-1"'),
        ("x-forwarded-user", "user:root"),
    ]
    assert (await (await here.caller(metadata=said)).whoami()).subject == "service:admin"
    assert (await (await here.caller(metadata=[("authorization", f"bEARER {ADMIN}")])).whoami()).subject == "service:admin"


async def test_revocation_is_seen_at_once(here: World) -> None:
    # The bound is a minute; what makes it quick is the notification, which another replica sends as well as this one.
    admin = await here.admin()
    made = await admin.create_token("support", name="ci", role="SUBMITTER")
    caller = await here.caller(made.secret)
    assert dict((await caller.whoami()).project_roles) == {"support": projects_pb.ROLE_SUBMITTER}
    await admin.revoke_token(made.token.token_id)
    await until(lambda: ends_as(caller, UNAUTHENTICATED))


async def test_a_role_that_was_taken_is_gone_and_a_stream_hears_of_it(here: World, issuer: Issuer) -> None:
    admin = await here.admin()
    await admin.set_member("support", "user:alice", "VIEWER")
    token = issuer.token()
    authenticator = await here.authenticator()
    metadata = [("authorization", f"Bearer {token}")]
    principal = await authenticator.authenticate(metadata, {})
    assert principal.sees("support")
    assert await authenticator.still_valid(principal)
    await admin.remove_member("support", "user:alice")
    await until(lambda: ended(authenticator, principal))
    assert not (await authenticator.authenticate(metadata, {})).sees("support")


async def test_what_still_holds_of_a_token(here: World) -> None:
    admin = await here.admin()
    made = await admin.create_token("support", name="ci", role="MAINTAINER")
    authenticator = await here.authenticator()
    metadata = [("authorization", f"Bearer {made.secret}")]
    principal = await authenticator.authenticate(metadata, {})
    assert principal.person == "service:admin"
    assert await authenticator.still_valid(principal)
    # A role more is no reason to end a stream.
    await admin.set_member("other", "service:support/ci", "VIEWER")

    async def sees_the_other() -> bool:
        return (await authenticator.authenticate(metadata, {})).sees("other")

    await until(sees_the_other)
    assert await authenticator.still_valid(principal)
    await admin.revoke_token(made.token.token_id)
    await until(lambda: ended(authenticator, principal))


async def test_without_any_notification_it_is_seen_within_the_bound(here: World) -> None:
    admin = await here.admin()
    made = await admin.create_token("support", name="ci")
    metadata = [("authorization", f"Bearer {made.secret}")]
    short = await here.authenticator(hears=False, cache_seconds=0.2)
    long = await here.authenticator(hears=False, cache_seconds=60.0)
    principal = await short.authenticate(metadata, {})
    await long.authenticate(metadata, {})
    await admin.revoke_token(made.token.token_id)

    async def refuses() -> bool:
        with contextlib.suppress(UnauthenticatedError):
            return not await short.authenticate(metadata, {})
        return True

    await until(refuses)
    assert not await short.still_valid(principal)
    # It was the bound, and no notification: whose bound is longer still believes.
    assert await long.authenticate(metadata, {}) == principal


async def test_strangers_are_not_remembered_and_the_use_of_tokens_is(here: World) -> None:
    admin = await here.admin()
    made = await admin.create_token("support", name="ci")
    authenticator = await here.authenticator()
    await authenticator.authenticate([("authorization", f"Bearer {made.secret}")], {})
    for _ in range(20):
        with pytest.raises(UnauthenticatedError):
            await authenticator.authenticate([("authorization", f"Bearer {new_secret(new_id())}")], {})
    assert len(authenticator._callers._answers) <= 1  # pyright: ignore[reportPrivateUsage] - memory is what this is about
    assert not authenticator._callers._looking  # pyright: ignore[reportPrivateUsage] - as above
    await authenticator.stop()
    (used,) = await here.sql("SELECT last_used_at, now() AS now FROM tokens WHERE token_id = :id", id=made.token.token_id)
    assert used.last_used_at is not None
    assert used.last_used_at <= used.now
    listed = await admin.identity.ListTokens(pb.ListTokensRequest(project="support"))
    assert listed.tokens[0].last_use_time.seconds == int(used.last_used_at.timestamp())
    assert used.last_used_at.second == 0


async def test_unknown_ids_and_wrong_secrets_take_the_same_time(here: World) -> None:
    authenticator = await here.authenticator()

    async def seconds(secret: str) -> float:
        began = time.perf_counter()
        with pytest.raises(UnauthenticatedError):
            await authenticator.authenticate([("authorization", f"Bearer {secret}")], {})
        return time.perf_counter() - began

    known, unknown = bootstrap_token_id("admin"), new_id()
    for _ in range(50):
        await seconds(new_secret(known))
    # Taken in turns, so that whatever else the machine does falls on both alike.
    pairs = [(await seconds(new_secret(known)), await seconds(new_secret(unknown))) for _ in range(500)]
    wrong_secret, unknown_id = (statistics.median(times) for times in zip(*pairs, strict=True))
    assert abs(wrong_secret - unknown_id) < 0.25 * min(wrong_secret, unknown_id)


async def test_bootstrap_is_repeatable_and_a_new_hash_ends_the_old_secret(here: World) -> None:
    assert token_id_of(ADMIN) == bootstrap_token_id("admin")
    await bootstrap(here.engine, here.settings.identity or identity_settings())
    assert (await (await here.admin()).whoami()).subject == "service:admin"
    newer = new_secret(bootstrap_token_id("admin"))
    tokens = identity_settings().bootstrap_tokens
    changed = tokens[0].model_copy(update={"secret_sha256": hashlib.sha256(newer.encode()).hexdigest()})
    await bootstrap(here.engine, identity_settings().model_copy(update={"bootstrap_tokens": (changed,)}))
    admin = await here.admin()
    await until(lambda: ends_as(admin, UNAUTHENTICATED))
    assert (await (await here.caller(newer)).whoami()).subject == "service:admin"
    # Revoked, it stays revoked through restarts, until its hash changes.
    await (await here.caller(newer)).revoke_token(bootstrap_token_id("admin"))
    await bootstrap(here.engine, identity_settings().model_copy(update={"bootstrap_tokens": (changed,)}))
    revoked = await here.caller(newer)
    await until(lambda: ends_as(revoked, UNAUTHENTICATED))
    await bootstrap(here.engine, identity_settings())
    assert (await (await here.admin()).whoami()).subject == "service:admin"


async def test_the_identity_provider_is_rotated_and_lost(postgres_dsn: str, s3_settings: S3Settings) -> None:
    with Issuer() as issuer:
        oidc = oidc_settings(issuer, keys_max_age_seconds=0.5, keys_refetch_seconds=0.05)
        settings = identity_settings(oidc=oidc, cache_seconds=0.05)
        async with world(postgres_dsn, s3_settings, settings) as here:
            assert (await (await here.caller(issuer.token())).whoami()).subject == "user:alice"
            issuer.status = 500
            caller = await here.caller(issuer.token())
            await until(lambda: ends_as(caller, grpc.StatusCode.UNAVAILABLE))
            assert (await refused(caller.whoami())).metadata == {"component": "identity provider"}
            # Other credentials do not need it.
            assert (await (await here.admin()).whoami()).subject == "service:admin"
            issuer.status = 200
            await until(lambda: ends_as(caller, grpc.StatusCode.OK))


async def ended(authenticator: Authenticator, principal: Principal) -> bool:
    return not await authenticator.still_valid(principal)


async def ends_as(caller: Caller, code: grpc.StatusCode) -> bool:
    return await code_of(caller.whoami()) is code
