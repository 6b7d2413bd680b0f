"""Who is calling: from a bearer token, a client certificate, or both, and from nothing else that a caller may say.

What a look found is believed for `identity.cache_seconds` at most, and forgotten at once when tokens, members or projects
change: every such change notifies CHANNEL_IDENTITY in its transaction.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.db.notifications import Notifications
from control_plane.db.tables import CHANNEL_IDENTITY
from control_plane.identity import attempt_tokens, service_tokens
from control_plane.identity.attempt_tokens import AttemptTokens
from control_plane.identity.believed import Believed
from control_plane.identity.certificates import ClientCertificate, client_certificate
from control_plane.identity.directory import Directory, Roles, StoredToken
from control_plane.identity.principal import AttemptBinding, CredentialKind, Principal, Role
from control_plane.identity.refusal import unauthenticated
from control_plane.identity.token_use import TokenUse
from control_plane.settings import IdentitySettings, OidcSettings

if TYPE_CHECKING:
    from control_plane.identity.access_tokens import AccessTokens

_FOREVER = float("inf")
# A hash that no token has: an unknown id costs the same comparison as a known one.
_NO_HASH = bytes(32)


class Authenticator:
    """Verifies credentials. Between `start` and `stop` it hears of changes and records the use of tokens."""

    def __init__(self, engine: AsyncEngine, notifications: Notifications, settings: IdentitySettings) -> None:
        self._notifications = notifications
        self._directory = Directory(engine)
        self._attempt_tokens = AttemptTokens(settings.secret_key.get_secret_value().encode())
        self._access_tokens = None if settings.oidc is None else _access_tokens(settings.oidc)
        self._callers: Believed[Principal] = Believed(settings.cache_seconds)
        self._standing: Believed[Roles | None] = Believed(settings.cache_seconds)
        self._use = TokenUse(engine)
        self._listening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to hear of changes, and to record the use of tokens."""
        self._listening = asyncio.create_task(self._forget_when_told(), name="identity changes")
        self._use.start()

    async def stop(self) -> None:
        """Ends what runs behind; records what use is not recorded yet."""
        if self._listening is not None:
            self._listening.cancel()
            with suppress(asyncio.CancelledError):
                await self._listening
        await self._use.stop()
        if self._access_tokens is not None:
            await self._access_tokens.close()

    async def authenticate(
        self, metadata: Iterable[tuple[str, str | bytes]], auth_context: Mapping[str, Sequence[bytes]]
    ) -> Principal:
        """Who calls.

        Args:
            metadata: the call's; only `authorization` is read.
            auth_context: what gRPC says of the connection.

        Raises:
            UnauthenticatedError: there is no credential, or one that is not valid, or two that disagree.
            RefusedError: the identity provider's keys are needed and cannot be had (DEPENDENCY_UNAVAILABLE).
            DBAPIError: the database is needed and does not answer.
        """
        token, certificate = _bearer(metadata), client_certificate(auth_context)
        if certificate is None and token.startswith(attempt_tokens.PREFIX):
            return self._attempt(token)[0]  # Nothing to look up, so nothing to keep.
        # The token itself is kept nowhere.
        digest = hashlib.sha256(token.encode()).digest()
        key = (digest, None if certificate is None else certificate.sha256)

        async def look() -> tuple[Principal, float]:
            found = await self._verified(token, digest, certificate)
            return found, _seconds_left(found)

        principal = await self._callers.get(key, look)
        if principal.credential is CredentialKind.TOKEN:
            self._use.note(principal.credential_id)
        return principal

    async def still_valid(self, principal: Principal) -> bool:
        """Whether a credential verified earlier still holds, and nothing it gave was taken away: for calls that last long.

        Raises:
            DBAPIError: the database is needed and does not answer.
        """
        if _seconds_left(principal) <= 0:
            return False
        if principal.credential is CredentialKind.ATTEMPT:
            return True  # Whether the attempt is current is judged by the fence.

        async def look() -> tuple[Roles | None, float]:
            return await self._roles_now(principal), _FOREVER

        now = await self._standing.get((principal.credential, principal.credential_id, principal.subject), look)
        return (
            now is not None
            and principal.organisation_roles <= now.organisation
            and all(now.projects.get(project) == role for project, role in principal.project_roles.items())
        )

    async def _verified(self, token: str, digest: bytes, certificate: ClientCertificate | None) -> Principal:
        """Whom they stand for; the token may be empty."""
        if certificate is None:
            return await self._bearing(token, digest)
        return await (self._bearing_and_certified(token, digest, certificate) if token else self._certified(certificate))

    async def _bearing(self, token: str, digest: bytes) -> Principal:
        """Whom a token stands for, on a connection without certificate."""
        if not token:
            raise unauthenticated("no credential")
        if token.startswith(service_tokens.PREFIX):
            return await self._service(token, digest)
        principal, certificate_sha256 = await self._user(token)
        if certificate_sha256 is not None:
            raise unauthenticated("an access token bound to a client certificate, without it")
        return principal

    async def _bearing_and_certified(self, token: str, digest: bytes, certificate: ClientCertificate) -> Principal:
        """Whom a token and a certificate stand for, which must be one."""
        if token.startswith(attempt_tokens.PREFIX):
            principal, binding = self._attempt(token)
            if certificate.worker is None or not await self._directory.may_speak_for(certificate.worker, binding):
                raise unauthenticated(f"the token of {principal.subject} with the certificate of {certificate.uris}")
            return principal
        if token.startswith(service_tokens.PREFIX):
            principal = await self._service(token, digest)
            if principal.subject != certificate.subject:
                raise unauthenticated(f"the token of {principal.subject} with the certificate of {certificate.uris}")
            return principal
        principal, certificate_sha256 = await self._user(token)
        if certificate_sha256 is None or not hmac.compare_digest(certificate_sha256, certificate.sha256):
            raise unauthenticated(f"an access token that is not bound to the client certificate, {certificate.uris}")
        return principal

    async def _certified(self, certificate: ClientCertificate) -> Principal:
        subject = certificate.subject
        if subject is None:
            raise unauthenticated(f"a client certificate for {certificate.uris}; expected one worker or service of Headway")
        if certificate.expires_at <= datetime.now(UTC):
            raise unauthenticated(f"the certificate of {subject} has ended")
        roles = await self._roles_of(subject)
        return Principal(
            subject,
            subject,
            CredentialKind.CERTIFICATE,
            certificate.sha256.hex(),
            roles.projects,
            roles.organisation,
            expires_at=certificate.expires_at,
        )

    async def _service(self, token: str, digest: bytes) -> Principal:
        token_id = service_tokens.token_id_of(token)
        if token_id is None:
            raise unauthenticated("not of the form of a service token")
        stored = await self._directory.token(token_id)
        # What is compared, and how often, does not depend on whether there is such a token.
        matches = hmac.compare_digest(_NO_HASH if stored is None else stored.secret_sha256, digest)
        if stored is None or not matches:
            raise unauthenticated(f"no service token {token_id} with this secret")
        if not stored.live:
            raise unauthenticated(f"service token {token_id} has ended or was revoked")
        roles = await self._roles_of_token(stored)
        # A service stands for the person who made its token: people are told apart by it.
        person = stored.subject if stored.creator == service_tokens.BOOTSTRAP_CREATOR else stored.creator
        return Principal(
            stored.subject,
            person,
            CredentialKind.TOKEN,
            token_id,
            roles.projects,
            roles.organisation,
            expires_at=stored.expires_at,
        )

    async def _user(self, token: str) -> tuple[Principal, bytes | None]:
        """Whom an access token stands for, and the certificate it is bound to."""
        if self._access_tokens is None:
            raise unauthenticated("not a token of ours, and no identity provider is configured")
        verified = await self._access_tokens.verify(token)
        subject = f"user:{verified.sub}"
        roles = await self._roles_of(subject)
        principal = Principal(
            subject,
            subject,
            CredentialKind.OIDC,
            hashlib.sha256(token.encode()).hexdigest()[:32],
            roles.projects,
            roles.organisation,
            expires_at=verified.expires_at,
        )
        return principal, verified.certificate_sha256

    def _attempt(self, token: str) -> tuple[Principal, AttemptBinding]:
        binding, expires_at = self._attempt_tokens.verify(token, datetime.now(UTC))
        name = f"{binding.job_id}/{binding.attempt}"
        subject = f"attempt:{name}"
        principal = Principal(subject, subject, CredentialKind.ATTEMPT, name, attempt=binding, expires_at=expires_at)
        return principal, binding

    async def _roles_of(self, subject: str) -> Roles:
        # That a worker is one is said by its credential; nobody can make it a member of anything.
        if subject.startswith("worker:"):
            return Roles({}, frozenset({Role.WORKER}))
        return await self._directory.roles(subject)

    async def _roles_of_token(self, stored: StoredToken) -> Roles:
        """The token's role where it is for, whatever its service was given there; elsewhere what its service was given."""
        roles = await self._roles_of(stored.subject)
        if stored.project is None:
            return Roles(roles.projects, roles.organisation | {stored.role})
        return Roles({**roles.projects, stored.project: stored.role}, roles.organisation)

    async def _roles_now(self, principal: Principal) -> Roles | None:
        """What the credential gives now; None: nothing any more."""
        if principal.credential is not CredentialKind.TOKEN:
            return await self._roles_of(principal.subject)
        stored = await self._directory.token(principal.credential_id)
        return await self._roles_of_token(stored) if stored is not None and stored.live else None

    async def _forget_when_told(self) -> None:
        with self._notifications.subscribed(CHANNEL_IDENTITY) as changed:
            while True:
                await changed.wait()
                changed.clear()
                self._callers.forget()
                self._standing.forget()


def _bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The token in a call's metadata; empty: it has none.

    Raises:
        UnauthenticatedError: there are several `authorization` entries, or one that is no bearer token.
    """
    found = [value for key, value in metadata if key == "authorization"]
    if not found:
        return ""
    if len(found) > 1:
        raise unauthenticated(f"{len(found)} authorization headers; expected one")
    scheme, _, token = str(found[0]).partition(" ")
    if scheme.lower() != "bearer" or not token or not token.isascii() or " " in token:
        raise unauthenticated("an authorization header that is not `Bearer TOKEN`")
    return token


def _access_tokens(settings: OidcSettings) -> AccessTokens:
    # Only who has an identity provider loads what reads its tokens.
    from control_plane.identity.access_tokens import AccessTokens  # noqa: PLC0415 - as the line above says

    return AccessTokens(settings)


def _seconds_left(principal: Principal) -> float:
    return _FOREVER if principal.expires_at is None else (principal.expires_at - datetime.now(UTC)).total_seconds()
