"""Who may give and take which role: the whole table."""

from __future__ import annotations

import itertools

import pytest

from control_plane.call import Call, serve_call
from control_plane.errors import Reason, RefusedError
from control_plane.identity.principal import CredentialKind, Principal, Role
from control_plane.identity.roles import MEMBER_ROLES, TOKEN_ROLES, require_may_give, role_number, role_of
from control_plane.rpc.authorization import denied
from control_plane.rpc.policy import POLICY
from headway.projects.v1 import project_service_pb2 as pb

# By the giver's role in the project, what they may give and take there. Nobody but an admin gives anything in the organisation.
MAY_GIVE = {
    Role.VIEWER: "",
    Role.SUBMITTER: "",
    Role.APPROVER: "",
    Role.AUDITOR: "",
    Role.WORKER: "",
    Role.MAINTAINER: "VIEWER SUBMITTER MAINTAINER",
    Role.ORG_ADMIN: "VIEWER SUBMITTER MAINTAINER APPROVER ORG_ADMIN AUDITOR WORKER",
}


def holder(role: Role) -> Principal:
    if role in {Role.ORG_ADMIN, Role.AUDITOR, Role.WORKER}:
        return Principal("user:a", "user:a", CredentialKind.OIDC, organisation_roles=frozenset({role}))
    return Principal("user:a", "user:a", CredentialKind.OIDC, project_roles={"support": role})


@pytest.mark.parametrize(("own", "role", "project"), list(itertools.product(Role, Role, ["support", "other", ""])))
def test_who_may_give_what(own: Role, role: Role, project: str) -> None:
    caller = holder(own)
    serve_call(Call("headway.projects.v1.ProjectService/SetMember", caller))
    allowed = role in MAY_GIVE[own].split() and (project == "support" or own is Role.ORG_ADMIN)
    if allowed:
        require_may_give(caller, project, role)
    else:
        with pytest.raises(RefusedError) as caught:
            require_may_give(caller, project, role)
        assert caught.value.reason is Reason.PERMISSION_DENIED


def test_every_role_is_in_the_contract_and_only_fitting_ones_are_taken() -> None:
    assert {value.name.removeprefix("ROLE_") for value in pb.DESCRIPTOR.enum_types_by_name["Role"].values} == {
        "UNSPECIFIED",
        *Role,
    }
    for scope in (True, False):
        for allowed in (MEMBER_ROLES[scope], TOKEN_ROLES[scope]):
            for role in Role:
                if role in allowed:
                    assert role_of(role_number(role), "role", allowed) is role
                else:
                    with pytest.raises(RefusedError, match=f"role: is ROLE_{role}; expected one of"):
                        role_of(role_number(role), "role", allowed)
    for number in (0, 99, -1, 2**31 - 1):
        with pytest.raises(RefusedError, match="role: is"):
            role_of(number, "role", MEMBER_ROLES[True])


@pytest.mark.parametrize(
    ("method", "project", "of_organisation", "expected"),
    [
        (
            "jobs.v1.JobService/SubmitJob",
            "red",
            False,
            "SUBMITTER or MAINTAINER in project red, or ORG_ADMIN in the organisation;",
        ),
        ("quotas.v1.QuotaService/SetQuota", "red", False, "ORG_ADMIN in the organisation;"),
        (
            "audit.v1.AuditService/ListAuditRecords",
            "",
            False,
            "MAINTAINER in a project, or ORG_ADMIN or AUDITOR in the organisation;",
        ),
        ("identity.v1.IdentityService/CreateToken", "", True, "ORG_ADMIN in the organisation;"),
    ],
)
def test_a_refusal_names_the_roles_that_would_do_and_where_they_are_held(
    method: str, project: str, of_organisation: bool, expected: str
) -> None:
    name = f"headway.{method}"
    call = Call(name, holder(Role.VIEWER))
    call.project = project
    refusal = denied(name, POLICY[name], call, of_organisation=of_organisation)
    assert f"expected role {expected}" in refusal.message
    assert refusal.metadata["project"] == project
    assert ("MAINTAINER" in refusal.metadata["role_required"]) is ("MAINTAINER" in expected)
