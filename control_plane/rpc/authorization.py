"""Whether the caller may do this, by the policy's row for the method.

In two steps. `Permission` knows the method and the caller only, and so comes before anything of the request is parsed.
`Authorization` also knows what the request names. Who may not see an object gets the answer that a missing one gets, to the
byte, and after the same work, so that neither words nor time tell them apart.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

from control_plane.call import Call
from control_plane.errors import Reason, RefusedError
from control_plane.identity.principal import PROJECT_ROLES, AttemptBinding, Principal, Role
from control_plane.identity.roles import roles_and_where
from control_plane.jobs.repository import job_not_found
from control_plane.jobs.spec import ProjectName
from control_plane.projects.repository import project_not_found
from control_plane.rpc.convert import identifier, validated_value
from control_plane.rpc.directory import Directory, Owner
from control_plane.rpc.exchange import Exchange, Method, Proceed
from control_plane.rpc.policy import AttemptUse, Kind, Place, Rule, Unnamed

_WORKER = frozenset({Role.WORKER})
_PROJECT = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_CANONICAL_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Permission:
    """Refuses callers who could not call the method whatever they sent."""

    name: ClassVar[str] = "permission"
    after: ClassVar[frozenset[str]] = frozenset({"authentication"})

    async def around(self, exchange: Exchange, proceed: Proceed) -> Any:
        """The rest, if the caller may call the method at all.

        Raises:
            RefusedError: they may not; or the method has no row, and so nobody may.
        """
        rule, call = exchange.method.rule, exchange.call
        if rule.access == "roles" and (call is None or not _may_ever(rule, call.principal)):
            exchange.denied = True
            raise denied(exchange.method.name, rule, call)
        return await proceed(exchange)


def _may_ever(rule: Rule, principal: Principal) -> bool:
    if principal.attempt is not None:
        return rule.attempt is not AttemptUse.NONE
    if rule.attempt is AttemptUse.WRITES:
        return False
    held = principal.organisation_roles
    if rule.of_organisation:
        return not held.isdisjoint(rule.roles)
    if held == _WORKER and not principal.project_roles:
        return False
    return bool(rule.places) or not _held_anywhere(principal).isdisjoint(rule.roles)


class Authorization:
    """Refuses what the caller may not do with what the request names."""

    name: ClassVar[str] = "authorization"
    after: ClassVar[frozenset[str]] = frozenset({"permission", "decoding"})

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def around(self, exchange: Exchange, proceed: Proceed) -> Any:
        """The rest, if the caller may; of a stream of requests, each is looked at as the service asks for it.

        Raises:
            RefusedError: the caller may not, or what the request names is not there for them.
        """
        method, call = exchange.method, exchange.call
        if call is not None and method.rule.places:
            if method.takes_stream:
                exchange.request = self._authorized(method, call, exchange.request)
            else:
                try:
                    await self._authorize(method, call, exchange.request)
                except RefusedError as refusal:
                    exchange.denied = refusal.reason is not Reason.INVALID_FIELD
                    raise
        return await proceed(exchange)

    async def _authorized(self, method: Method, call: Call, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            await self._authorize(method, call, request)
            yield request

    async def _authorize(self, method: Method, call: Call, request: Any) -> None:
        rule, principal = method.rule, call.principal
        if principal.attempt is not None and rule.attempt is AttemptUse.WRITES:
            await self._authorize_attempt(call, principal.attempt, request)
            return
        named = [(place, value) for place in rule.places if (value := _value(request, place.path))]
        for place, value in named:
            match place.kind:
                case Kind.PROJECT:
                    await self._authorize_project(method, call, value, place.path)
                case Kind.JOB:
                    await self._authorize_job(method, call, value, place.path)
                case Kind.TOKEN | Kind.WEBHOOK:
                    await self._authorize_object(method, call, value, place)
        if named:
            return
        if rule.unnamed is Unnamed.INCOMPLETE:
            _refuse_incomplete(rule.places[0])
        of_organisation = rule.unnamed is Unnamed.ORGANISATION
        held = principal.organisation_roles if of_organisation else _held_anywhere(principal)
        if held.isdisjoint(rule.roles | rule.own):
            raise denied(method.name, rule, call, of_organisation=of_organisation)

    async def _authorize_attempt(self, call: Call, bound: AttemptBinding, request: Any) -> None:
        """An attempt writes for itself alone. Whether it is still current, the fence says in the write's transaction."""
        call.object = bound.job_id
        if not call.project:
            owner = self._directory.known_job(bound.job_id) or await self._directory.job(bound.job_id)
            call.project = owner.project if owner is not None else ""
        job_id, attempt = identifier(request.job_id, "job_id"), getattr(request, "attempt", bound.attempt)
        if job_id != bound.job_id or attempt != bound.attempt:
            raise RefusedError(
                Reason.STALE_ATTEMPT,
                f"the credential is that of attempt {bound.attempt} of job {bound.job_id} and is good for nothing else; stop",
                {"job_id": bound.job_id, "attempt": str(bound.attempt), "current_attempt": ""},
            )

    async def _authorize_project(self, method: Method, call: Call, project: str, path: str) -> None:
        if _PROJECT.fullmatch(project) is None:
            validated_value(ProjectName, project, path)
        rule, principal = method.rule, call.principal
        call.project = project
        if principal.attempt is not None:
            raise denied(method.name, rule, call)
        is_open = await self._directory.project_open(project) if principal.sees(project) else None
        # What a deleted project made is kept for those who could see it; nothing is added.
        if is_open is None or (not is_open and method.mutates):
            raise project_not_found(project)
        if _held_in(principal, project).isdisjoint(rule.roles | rule.own):
            raise denied(method.name, rule, call)

    async def _authorize_job(self, method: Method, call: Call, asked: str, path: str) -> None:
        job_id = asked if _CANONICAL_ID.fullmatch(asked) else identifier(asked, path)
        rule, principal = method.rule, call.principal
        call.object = call.object or job_id
        owner = self._directory.known_job(job_id)
        if owner is None or not _sees_job(principal, job_id, owner):
            # A job that is hidden costs the query that a missing one costs.
            owner = await self._directory.job(job_id)
        if owner is None or not _sees_job(principal, job_id, owner):
            raise job_not_found(job_id)
        call.project = owner.project
        if principal.attempt is not None:
            return
        held = _held_in(principal, owner.project)
        if held.isdisjoint(rule.roles) and (owner.subject != principal.subject or held.isdisjoint(rule.own)):
            raise denied(method.name, rule, call)

    async def _authorize_object(self, method: Method, call: Call, asked: str, place: Place) -> None:
        value = asked if _CANONICAL_ID.fullmatch(asked) else identifier(asked, place.path)
        principal = call.principal
        call.object = value
        if place.kind is Kind.TOKEN and principal.credential_id == value:
            return  # whoever holds a token may end it
        look: Callable[[str], Any] = self._directory.token if place.kind is Kind.TOKEN else self._directory.webhook
        owner: Owner | None = await look(value)
        if owner is None or not (principal.sees(owner.project) if owner.project else principal.sees_every_project):
            raise RefusedError(Reason.RESOURCE_NOT_FOUND, f"there is no {place.kind} {value}", {"name": value})
        call.project = owner.project
        held = _held_in(principal, owner.project) if owner.project else principal.organisation_roles
        if held.isdisjoint(method.rule.roles):
            raise denied(method.name, method.rule, call, of_organisation=not owner.project)


def denied(method: str, rule: Rule, call: Call | None, *, of_organisation: bool = False) -> RefusedError:
    """The refusal of a caller whose roles do not suffice.

    Args:
        method: what was called.
        rule: its row of the policy.
        call: says which project is concerned, if that is known.
        of_organisation: it is about the organisation, where roles in projects do not count.
    """
    project = call.project if call is not None else ""
    required = [role for role in Role if role in rule.roles | rule.own and not (of_organisation and role in PROJECT_ROLES)]
    if rule.attempt is AttemptUse.WRITES:
        expected = "only the credential of the attempt concerned may call it; ask for one with IssueAttemptToken"
    elif required:
        own = " (for a SUBMITTER, a job of their own)" if Role.SUBMITTER in rule.own else ""
        managed = "the project's members" if project else "members"
        expected = f"expected role {roles_and_where(required, project)}{own}; ask whoever manages {managed}"
    else:
        expected = "nobody may"
    return RefusedError(
        Reason.PERMISSION_DENIED,
        f"your role does not allow {method}: {expected}",
        {"method": method, "role_required": ",".join(required), "project": project},
    )


def _value(request: Any, path: str) -> str:
    for name in path.split("."):
        request = getattr(request, name)
    return request


def _refuse_incomplete(place: Place) -> None:
    if place.kind is Kind.PROJECT:
        validated_value(ProjectName, "", place.path)
    else:
        identifier("", place.path)


def _held_in(principal: Principal, project: str) -> frozenset[Role]:
    role = principal.project_roles.get(project)
    return principal.organisation_roles if role is None else principal.organisation_roles | {role}


def _held_anywhere(principal: Principal) -> frozenset[Role]:
    return principal.organisation_roles.union(principal.project_roles.values())


def _sees_job(principal: Principal, job_id: str, owner: Owner) -> bool:
    if principal.attempt is not None:
        return principal.attempt.job_id == job_id
    return principal.sees(owner.project)
